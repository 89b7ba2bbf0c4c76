"""Handles that follow a swap: no text is searched for with another model's vector, not even in the moment itself."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfFlat
from lancedb.rerankers import Reranker
from lancedb.table import LanceTable

import lance_rerank
from lance_rerank import lance as ours
from lance_rerank.errors import ColumnError, ConflictError, UnsupportedError

AT_ONCE = timedelta(0)


class KeepingVectors(Reranker):
    """Keeps the order of the vector leg, whose best row then is the first, and nothing of its schema's metadata."""

    def rerank_vector(self, query, vector_results):
        scores = pa.array([1.0 - i for i in range(vector_results.num_rows)], pa.float32())
        return vector_results.append_column("_relevance_score", scores).replace_schema_metadata(None)

    def rerank_fts(self, query, fts_results):
        raise NotImplementedError

    def rerank_hybrid(self, query, vector_results, fts_results):
        return self.rerank_vector(query, vector_results)


def vector_search(table, text):
    return table.search(text).limit(1)


def named_search(table, text):
    return table.search(text, vector_column_name="vector", query_type="vector").limit(1)


def reranked_search(table, text):
    return table.search(text).limit(1).rerank(KeepingVectors())


def stock_hybrid(table, text):
    return table.search(text, query_type="hybrid").rerank(KeepingVectors()).limit(1)


def our_hybrid(table, text):
    return lance_rerank.hybrid(table).text(text).rerank(KeepingVectors()).limit(1)


SEARCHES = [vector_search, named_search, reranked_search, stock_hybrid, our_hybrid]
every_search = pytest.mark.parametrize("search", SEARCHES)


def is_right(search, text):
    return search.to_list()[0]["text"] == text


@pytest.fixture
def swapping(swappable):
    swappable.add_shadow(5)
    return swappable


@pytest.fixture
def following(swapping):
    return ours.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")


@pytest.fixture
def patched():
    ours.patch()
    yield
    ours.unpatch()


class TestLanceDBItself:
    """What this is for. A failure here says that LanceDB does it now."""

    def test_goes_on_embedding_by_the_old_model(self, swapping):
        handle = lancedb.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")
        assert is_right(vector_search(handle, "text 7"), "text 7")
        swapping.swap_to(5)
        assert not is_right(vector_search(handle, "text 7"), "text 7")
        handle.checkout_latest()
        assert not is_right(vector_search(handle, "text 7"), "text 7")

    @pytest.mark.parametrize("select", [["id"], ["text", "vector"], {"twice": "id * 2"}, None])
    @pytest.mark.parametrize("indexed", [False, True])
    def test_says_with_what_it_found_which_model_the_version_names(self, swapping, select, indexed):
        table = swapping.table
        if indexed:
            table.create_index("vector", config=IvfFlat(num_partitions=1))
        searches = [
            table.search(swapping.vector_of("text 7", 0)).where("id > 3"),
            table.search(swapping.vector_of("text 7", 0)).where("id > 300"),
            table.search("text", query_type="fts"),
            table.search(),
        ]
        for search in searches:
            search = search.select(select) if select else search
            assert search.limit(3).to_arrow().schema.metadata == table.schema.metadata


class TestAfterASwap:
    @every_search
    def test_texts_are_embedded_by_the_new_model(self, swapping, following, search):
        assert is_right(search(following, "text 7"), "text 7")
        swapping.swap_to(5)
        assert is_right(search(following, "text 7"), "text 7")
        swapping.swap_to(0, swap=swapping.swap.reversed())
        assert is_right(search(following, "text 7"), "text 7")

    @every_search
    def test_also_of_another_dimension(self, swappable, search):
        swappable.add_shadow(5, dim=24)
        handle = ours.connect(swappable.place, read_consistency_interval=AT_ONCE).open_table("t")
        assert is_right(search(handle, "text 7"), "text 7")
        swappable.swap_to(5, dim=24)
        assert is_right(search(handle, "text 7"), "text 7")

    def test_a_handle_that_looks_for_no_news_searches_the_old_version_until_it_moves(self, swapping):
        handle = ours.connect(swapping.place).open_table("t")
        swapping.swap_to(5)
        assert is_right(vector_search(handle, "text 7"), "text 7")
        assert handle.version < swapping.table.version
        handle.add([{"id": 99, "text": "text 7"}])
        assert is_right(vector_search(handle, "text 8"), "text 8")
        assert handle.version > swapping.table.version

    def test_time_travel_searches_with_the_model_of_the_time(self, swapping, following):
        before = swapping.table.version
        swapping.swap_to(5)
        following.checkout(before)
        assert is_right(vector_search(following, "text 7"), "text 7")
        following.checkout_latest()
        assert is_right(vector_search(following, "text 7"), "text 7")

    def test_models_with_one_name_are_told_apart_by_their_fingerprint(self, swapping, following, monkeypatch):
        """A model that was trained on in its folder: LanceDB's entry for it stays the same."""
        trained = []
        monkeypatch.setattr(
            type(swapping.table.embedding_functions["vector"].function),
            "generate_embeddings",
            lambda self, texts: [swapping.vector_of(text, 5 if trained else 0) for text in texts],
        )
        assert is_right(vector_search(following, "text 7"), "text 7")
        before = following.embedding_functions["vector"].function
        query = vector_search(following, "text 8")
        trained.append(True)
        ours.swap_columns(
            swapping.table, swapping.swap, embedding_functions=None, metadata_updates={ours.model_key("vector"): "b"}
        )
        assert is_right(query, "text 8")
        assert following.embedding_functions["vector"].function is not before


class TestInFlight:
    """The swap comes after the table's metadata was read for a query, and before the query runs."""

    @every_search
    def test_between_reading_the_model_and_searching(self, swapping, following, before_embedding, search):
        before_embedding(partial(swapping.swap_to, 5))
        assert is_right(search(following, "text 7"), "text 7")
        assert swapping.table.schema.names[-1] == "vector", "the swap was made"

    @pytest.mark.parametrize("dim", [16, 24])
    def test_between_making_a_query_and_running_it(self, swappable, dim):
        swappable.add_shadow(5, dim)
        handle = ours.connect(swappable.place, read_consistency_interval=AT_ONCE).open_table("t")
        query = vector_search(handle, "text 7").select(["text"])
        for swap, shift, of in ((swappable.swap, 5, dim), (swappable.swap.reversed(), 0, 16)) * 2:
            swappable.swap_to(shift, of, swap)
            assert is_right(query, "text 7")

    def test_there_and_back_while_a_query_fails_for_its_dimension(self, swappable, monkeypatch):
        swappable.add_shadow(5, dim=24)
        query = vector_search(
            ours.connect(swappable.place, read_consistency_interval=AT_ONCE).open_table("t"), "text 7"
        )
        execute, back = LanceTable._execute_query, swappable.swap.reversed()

        def swapped_meanwhile(table, query, **options):
            monkeypatch.setattr(LanceTable, "_execute_query", execute)
            swappable.swap_to(5, 24)
            try:
                return execute(table, query, **options)
            finally:
                swappable.swap_to(0, swap=back)

        monkeypatch.setattr(LanceTable, "_execute_query", swapped_meanwhile)
        assert is_right(query, "text 7")

    def test_each_model_embeds_a_query_once(self, swapping, following, before_embedding):
        query = vector_search(following, "text 7")
        swapping.swap_to(5)
        assert is_right(query, "text 7")
        before_embedding(lambda: pytest.fail("embedded again"))
        assert is_right(query, "text 7")
        swapping.swap_to(0, swap=swapping.swap.reversed())
        assert is_right(query, "text 7")

    @pytest.mark.parametrize("search", [stock_hybrid, our_hybrid])
    def test_between_two_runs_of_one_hybrid_query(self, swapping, following, search):
        query = search(following, "text 7")
        for swap, shift in ((swapping.swap, 5), (swapping.swap.reversed(), 0)) * 2:
            assert is_right(query, "text 7")
            swapping.swap_to(shift, swap=swap)

    def test_a_copied_query_is_followed_too(self, swapping, following):
        query = copy.copy(vector_search(following, "text 7"))
        query._table = copy.copy(query._table)
        swapping.swap_to(5)
        assert is_right(query, "text 7")

    def test_what_was_asked_for_stays(self, swapping, following):
        query = following.search("text 7").where("id != 7").select(["id"]).limit(2).offset(1).with_row_id(True)
        before = query.to_arrow()
        swapping.swap_to(5)
        after = query.to_arrow()
        assert after.column_names == before.column_names == ["id", "_distance", "_rowid"]
        assert after.num_rows == before.num_rows == 2
        assert 7 not in after["id"].to_pylist()

    def test_a_column_without_a_function_any_more_says_so(self, swapping, following):
        query = vector_search(following, "text 7")
        ours.swap_columns(swapping.table, swapping.swap, embedding_functions=[])
        with pytest.raises(ColumnError, match="'vector' has no embedding function"):
            query.to_list()

    def test_a_model_that_is_not_registered_here_says_so(self, swapping, following):
        query = vector_search(following, "text 7")
        unknown = swapping.entry() | {"name": "of-another-app"}
        ours.swap_columns(swapping.table, swapping.swap, embedding_functions=[unknown])
        with pytest.raises(ColumnError, match="'of-another-app', which this process has not registered"):
            query.to_list()
        with pytest.raises(ColumnError, match="'of-another-app'"):
            following.search("text 7")

    def test_a_model_of_another_dimension_than_its_column_is_an_error_as_ever(self, swapping, following):
        entry = swapping.entry(dim=24)
        ours.update_schema_metadata(swapping.table, {"embedding_functions": json.dumps([entry])})
        with pytest.raises(ValueError, match="query dim"):
            vector_search(following, "text 7").to_list()

    def test_so_is_a_query_that_cannot_run(self, following):
        with pytest.raises(ValueError, match="nonsense"):
            following.search("text 7").where("nonsense = 1").limit(1).to_list()

    def test_a_model_that_changes_during_each_run_is_a_conflict(self, swapping, following, monkeypatch):
        execute, shifts = LanceTable._execute_query, iter(range(1, 1000))

        def swap_first(table, query, **options):
            entry = swapping.entry(shift=next(shifts))
            ours.update_schema_metadata(swapping.table, {"embedding_functions": json.dumps([entry])})
            return execute(table, query, **options)

        query = vector_search(following, "text 7")
        monkeypatch.setattr(LanceTable, "_execute_query", swap_first)
        monkeypatch.setattr("lance_rerank.lance.models.RUNS", 5)
        with pytest.raises(ConflictError, match="changed during each of 5 runs"):
            query.to_list()


@pytest.mark.parametrize("dim", [16, 24])
def test_swaps_to_and_fro_under_readers_give_no_wrong_answer(swappable, dim):
    """Every reader's handle looks for news with each read, so that all of this happens in flight."""
    swappable.add_shadow(5, dim)
    for column in ("vector", "vector_next"):
        swappable.table.create_index(column, config=IvfFlat(num_partitions=1))
    until = time.monotonic() + 1.5

    def answers(search):
        handle = ours.connect(swappable.place, read_consistency_interval=AT_ONCE).open_table("t")
        counted, texts = Counter(), itertools.cycle(f"text {number}" for number in range(16))
        while time.monotonic() < until:
            text = next(texts)
            counted[is_right(search(handle, text), text)] += 1
        return counted

    swaps = 0
    with ThreadPoolExecutor(len(SEARCHES)) as pool:
        readers = [pool.submit(answers, search) for search in SEARCHES]
        while time.monotonic() < until:
            swappable.swap_to(5, dim)
            swappable.swap_to(0, 16, swappable.swap.reversed())
            swaps += 2
    assert swaps > 10
    for reader in readers:
        counted = reader.result()
        assert counted[True]
        assert not counted[False]


class TestHandles:
    def test_are_those_of_lancedb(self, swapping):
        db = ours.connect(swapping.place)
        assert isinstance(db, lancedb.DBConnection)
        for table in (
            db.open_table("t"),
            db["t"],
            db.create_table("u", [{"id": 1}]),
            db.open_table("t", version=1),
            db.open_table("t").branches.create("dev"),
        ):
            assert isinstance(table, LanceTable)
            assert isinstance(table, ours.FollowingTable)
        assert ours.require_sync_table(table, "this") is table

    def test_search_what_is_not_embedded_as_lancedb_does(self, swapping, following):
        stock = lancedb.connect(swapping.place).open_table("t")
        vector = swapping.vector_of("text 7", 0)
        for search in (
            lambda table: table.search(),
            lambda table: table.search(vector),
            lambda table: table.search(np.array(vector), vector_column_name="vector_next"),
            lambda table: table.search("text", query_type="fts"),
            lambda table: table.search(query_type="hybrid").vector(vector).text("text"),
        ):
            assert search(following).limit(3).to_arrow().equals(search(stock).limit(3).to_arrow())
            assert (
                type(search(following)) in type(search(stock)).__mro__ or "Hybrid" in type(search(following)).__name__
            )

    def test_plans_and_schemas_are_told(self, following):
        query = following.search("text 7").limit(3)
        assert "KNNVectorDistance" in query.explain_plan()
        assert "_distance" in query.output_schema().names

    def test_a_table_without_functions_is_searched_by_its_words(self, docs, tmp_path):
        table = ours.connect(tmp_path / "db").open_table("docs")
        assert table.embedding_functions == {}
        assert table.search("cat").limit(3).to_list() == docs.search("cat").limit(3).to_list()
        with pytest.raises(ValueError, match="No embedding function"):
            table.search("cat", query_type="vector")

    def test_functions_are_made_once_for_a_model(self, swapping, following):
        before = following.embedding_functions["vector"].function
        assert following.embedding_functions["vector"].function is before
        swapping.table.add([{"id": 99, "text": "text 7"}])
        assert following.embedding_functions["vector"].function is before
        swapping.swap_to(5)
        assert following.embedding_functions["vector"].function.shift == 5
        swapping.swap_to(0, swap=swapping.swap.reversed())
        assert following.embedding_functions["vector"].function is before, "for queries in flight"

    def test_only_local_tables_can_be_followed(self, swapping):
        from lancedb.remote.table import RemoteTable

        with pytest.raises(UnsupportedError, match="got RemoteTable"):
            ours.follow(object.__new__(RemoteTable))
        with pytest.raises(UnsupportedError, match="LanceDB Cloud"):
            ours.connect("db://somewhere")


class TestPatch:
    @every_search
    def test_handles_of_lancedb_follow(self, swapping, patched, search):
        handle = lancedb.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")
        assert is_right(search(handle, "text 7"), "text 7")
        swapping.swap_to(5)
        assert is_right(search(handle, "text 7"), "text 7")

    def test_handles_opened_before_follow_too(self, swapping):
        handle = lancedb.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")
        assert is_right(vector_search(handle, "text 7"), "text 7")
        ours.patch()
        try:
            swapping.swap_to(5)
            assert is_right(vector_search(handle, "text 7"), "text 7")
        finally:
            ours.unpatch()

    def test_can_be_made_twice_and_taken_back(self):
        before = {name: vars(LanceTable)[name] for name in ("search", "embedding_functions")}
        ours.patch()
        ours.patch()
        assert vars(LanceTable)["search"] is not before["search"]
        ours.unpatch()
        ours.unpatch()
        assert {name: vars(LanceTable)[name] for name in before} == before

    @pytest.mark.parametrize("use", [ours.patch, partial(ours.connect, "/nowhere/at/all"), partial(ours.follow, None)])
    def test_another_version_of_lancedb_is_refused(self, monkeypatch, use):
        monkeypatch.setattr("importlib.metadata.version", lambda _: "0.41.2")
        before = vars(LanceTable)["search"]
        with pytest.raises(UnsupportedError, match=r"0\.41\.2 is installed"):
            use()
        assert vars(LanceTable)["search"] is before


def test_vectors_that_are_passed_are_searched_for_as_they_are(swapping, following):
    old = swapping.vector_of("text 7", 0)
    swapping.swap_to(5)
    assert is_right(following.search(old).limit(1), "text 2"), "the neighbour among the new model's vectors"
    query = our_hybrid(following, "text 7")
    assert is_right(query, "text 7")
    assert is_right(query.vector(old), "text 2")


class TestOurHybrid:
    """On any handle: `lance_rerank.hybrid` checks its own vector leg."""

    def test_is_right_on_a_handle_of_lancedb(self, swapping, before_embedding):
        handle = lancedb.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")
        before_embedding(partial(swapping.swap_to, 5))
        assert is_right(our_hybrid(handle, "text 7"), "text 7")
        assert is_right(our_hybrid(handle, "text 8"), "text 8")


class TestEmbeddedQuery:
    """What a retriever of any kind can use to search a handle that does not follow by itself."""

    def test_is_searched_with_the_right_model_on_any_handle(self, swapping):
        handle = lancedb.connect(swapping.place, read_consistency_interval=AT_ONCE).open_table("t")
        query = ours.EmbeddedQuery(handle, "vector", "text 7")
        assert np.array_equal(query.vector, swapping.vector_of("text 7", 0))
        swapping.swap_to(5)
        assert query.search().limit(1).to_list()[0]["id"] == 7
        assert np.array_equal(query.vector, swapping.vector_of("text 7", 5))

    def test_needs_a_function(self, docs):
        with pytest.raises(ColumnError, match="no embedding function"):
            ours.EmbeddedQuery(docs, "vector", "cat")


def test_arrow_tables_that_say_nothing_of_their_version_are_believed(swapping):
    """As of a search that a server runs: then the table's schema is asked."""
    query = ours.EmbeddedQuery(swapping.table, "vector", "text 7")
    nameless = pa.table({"id": [7]})
    assert query.answer(lambda vector: nameless) is nameless


class TestAsync:
    """`hybrid_async`; LanceDB's own async searches embed by the latest version, and follow no further."""

    async def search(self, swapping, text):
        table = await (await lancedb.connect_async(swapping.place, read_consistency_interval=AT_ONCE)).open_table("t")
        return (await lance_rerank.hybrid_async(table, text)).rerank(KeepingVectors()).limit(1)

    async def test_a_query_in_flight_is_run_again(self, swapping):
        search = await self.search(swapping, "text 7")
        swapping.swap_to(5)
        assert (await search.to_arrow())["text"].to_pylist() == ["text 7"]

    async def test_also_with_a_filter_and_a_selection(self, swapping):
        search = (await self.search(swapping, "text 7")).where("id != 7").select(["id", "text"])
        swapping.swap_to(5)
        rows = await search.to_arrow()
        assert rows.column_names[:2] == ["id", "text"]
        assert rows["id"].to_pylist() != [7]

    async def test_also_of_another_dimension(self, swappable):
        swappable.add_shadow(5, dim=24)
        search = await self.search(swappable, "text 7")
        swappable.swap_to(5, dim=24)
        assert (await search.to_arrow())["text"].to_pylist() == ["text 7"]

    async def test_an_error_that_no_swap_made_is_raised(self, swapping):
        search = (await self.search(swapping, "text 7")).where("no_such_column = 1")
        with pytest.raises((ValueError, RuntimeError), match="no_such_column"):
            await search.to_arrow()
