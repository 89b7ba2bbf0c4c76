"""Late interaction over token vectors stored in the table, on every path LanceDB has, and over those that are not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS

import lance_rerank as lr
from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, ColumnError, ModelError, QueryError, RowIdError, UnsupportedError
from lance_rerank.testing import RerankerContract

VECTOR = np.linspace(-1, 1, 8).astype(np.float32)
QUERY = "rotate the api keys"
COLUMNS = ["id", "text"]  # without the vectors, which the reranker would take from the results


class Letters:
    """A token encoder a person can follow: a word's vector counts its first and last letters, as a unit vector."""

    dim = 16
    fingerprint = None

    def __init__(self):
        self.documents = 0

    def _encode(self, text):
        vectors = np.zeros((len(text.split()), self.dim), np.float32)
        for row, word in zip(vectors, text.split(), strict=True):
            row[ord(word[0]) % 8] += 1
            row[8 + ord(word[-1]) % 8] += 1
        return vectors / np.float32(np.sqrt(2))

    def encode_queries(self, texts):
        return [self._encode(text) for text in texts]

    def encode_documents(self, texts):
        self.documents += len(texts)
        return [self._encode(text) for text in texts]

    def __repr__(self):
        return "Letters()"


def maxsim_by_hand(encoder, query, text):
    if text is None or not text.split():
        return None
    similarity = encoder._encode(query) @ encoder._encode(text).T
    return float(similarity.max(axis=1).sum())


@pytest.fixture
def encoder():
    return Letters()


@pytest.fixture
def stored(docs, encoder):
    """The table with its token vectors, and a few rows without a text."""
    docs.add([{"id": 240 + i, "text": text, "lang": "en", "vector": VECTOR} for i, text in enumerate((None, "", None))])
    lr.add_multivector_column(docs, encoder=encoder)
    encoder.documents = 0
    return docs


@pytest.fixture
def late(stored, encoder):
    return lr.LateInteractionReranker(encoder, table=stored)


@pytest.fixture
async def async_stored(stored, tmp_path):
    connection = await lancedb.connect_async(tmp_path / "db")
    return await connection.open_table("docs")


def assert_scored_by_maxsim(rows, encoder, query=QUERY):
    """The scores are those of a plain numpy MaxSim, best first, and rows without tokens come last."""
    texts, scores = rows["text"].to_pylist(), rows[arrow.RELEVANCE].to_pylist()
    for text, score in zip(texts, scores, strict=True):
        expected = maxsim_by_hand(encoder, query, text)
        assert score == (None if expected is None else pytest.approx(expected, abs=2e-3))
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert scores[: len(known)] == known


class TestStoredVectorsOnLanceDBsBuilders:
    def test_vector_search(self, stored, late, encoder):
        rows = stored.search(VECTOR).select(COLUMNS).limit(40).rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)
        assert encoder.documents == 0, "no document is encoded at query time"

    def test_full_text_search(self, stored, late, encoder):
        rows = stored.search(QUERY, query_type="fts").select(COLUMNS).limit(40).rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    def test_hybrid_search(self, stored, late, encoder):
        search = stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).limit(40)
        rows = search.rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_hybrid_search(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to(VECTOR).nearest_to_text(QUERY).select(COLUMNS).limit(40)
        rows = await search.rerank(late).to_arrow()
        assert rows.num_rows == 40
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_vector_search_with_row_ids(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to(VECTOR).select(COLUMNS).with_row_id().limit(40)
        rows = await search.rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_full_text_search_with_row_ids(self, async_stored, late, encoder):
        search = async_stored.query().nearest_to_text(QUERY).select(COLUMNS).with_row_id().limit(40)
        rows = await search.rerank(late).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    async def test_async_single_leg_searches_without_row_ids_say_what_to_do(self, async_stored, late):
        vector = async_stored.query().nearest_to(VECTOR).select(["text"]).rerank(late, query_string=QUERY)
        words = async_stored.query().nearest_to_text(QUERY).select(["text"]).rerank(late)
        for search in (vector, words):
            with pytest.raises(RowIdError, match=r"\.with_row_id\(\).*Retriever\.aretrieve"):
                await search.to_arrow()

    def test_columns_that_are_not_selected_are_not_needed(self, stored, late):
        rows = stored.search(VECTOR).select(["id"]).limit(5).rerank(late, query_string=QUERY).to_arrow()
        assert rows.column_names == ["id", arrow.RELEVANCE]

    def test_row_ids_do_not_come_out(self, stored, late):
        for search in (
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY),
            stored.search(QUERY, query_type="fts").select(COLUMNS).rerank(late),
            stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).rerank(late),
        ):
            assert search.to_arrow().column_names == [*COLUMNS, arrow.RELEVANCE]

    def test_all_scores_and_row_ids_come_out_when_asked_for(self, stored, encoder):
        late = lr.LateInteractionReranker(encoder, table=stored, return_score="all")
        single = stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()
        both = stored.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).rerank(late).to_arrow()
        assert {"_rowid", "_distance", arrow.RELEVANCE} <= set(single.column_names)
        assert {"_rowid", "_distance", "_score", arrow.RELEVANCE} <= set(both.column_names)


class TestThroughThisPackage:
    def test_our_builder(self, stored, late, encoder):
        rows = lr.hybrid(stored, QUERY, vector=VECTOR).rerank(late).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert {"_rowid", "colbert"}.isdisjoint(rows.column_names)

    async def test_our_async_builder(self, async_stored, late, encoder):
        search = await lr.hybrid_async(async_stored, QUERY, vector=VECTOR)
        rows = await search.rerank(late).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert {"_rowid", "colbert"}.isdisjoint(rows.column_names)

    def test_the_vectors_may_come_with_the_results(self, stored, encoder):
        carried = lr.LateInteractionReranker(encoder)
        rows = lr.hybrid(stored, QUERY, vector=VECTOR).rerank(carried).limit(30).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert "colbert" not in rows.column_names, "fetched for the reranker, not returned"

    def test_fetched_and_carried_vectors_score_alike(self, stored, late, encoder):
        search = stored.search(VECTOR).select(["id", "text", "colbert"]).limit(30)
        carried = search.rerank(lr.LateInteractionReranker(encoder), query_string=QUERY).to_arrow()
        fetched = stored.search(VECTOR).select(["id"]).limit(30).rerank(late, query_string=QUERY).to_arrow()
        assert carried["id"].to_pylist() == fetched["id"].to_pylist()

    async def test_a_retriever(self, stored, late, encoder):
        retriever = lr.Retriever(stored, query_type="fts", reranker=late, select=["text"])
        hits = retriever.retrieve(QUERY, k=20)
        for hit in hits:
            assert hit.score == pytest.approx(maxsim_by_hand(encoder, QUERY, hit.row["text"]), abs=2e-3)
        assert await retriever.aretrieve(QUERY, k=20) == hits

    def test_several_vector_searches(self, stored, late, encoder):
        searches = [stored.search(VECTOR).select(COLUMNS).limit(10), stored.search(-VECTOR).select(COLUMNS).limit(10)]
        rows = late.rerank_multivector(searches, QUERY)
        assert_scored_by_maxsim(rows, encoder)


class TestRowsWithoutVectors:
    def test_null_vectors_come_last_in_order_of_arrival(self, stored, late):
        rows = stored.search(VECTOR).select(COLUMNS).limit(10).rerank(late, query_string=QUERY).to_arrow()
        before = [i for i in stored.search(VECTOR).select(COLUMNS).limit(10).to_arrow()["id"].to_pylist() if i >= 240]
        assert rows["id"].to_pylist()[-3:] == before
        assert rows[arrow.RELEVANCE].to_pylist()[-3:] == [None] * 3
        assert None not in rows[arrow.RELEVANCE].to_pylist()[:-3]

    def test_rows_added_since_the_column_was_filled_come_last_if_asked_for(self, stored, encoder):
        late = lr.LateInteractionReranker(encoder, table=stored, missing="null")
        stored.add([{"id": 900, "text": QUERY, "lang": "en", "vector": VECTOR}])
        rows = stored.search(VECTOR).select(COLUMNS).limit(6).rerank(late, query_string=QUERY).to_arrow()
        scores = dict(zip(rows["id"].to_pylist(), rows[arrow.RELEVANCE].to_pylist(), strict=True))
        assert scores[900] is None
        assert (encoder.documents, late.documents_encoded) == (0, 0)

    def test_rows_deleted_between_search_and_fetch_come_last(self, stored, encoder, tmp_path):
        current = lancedb.connect(tmp_path / "db").open_table("docs")
        late = lr.LateInteractionReranker(encoder, table=current)
        found = stored.search(VECTOR).select(COLUMNS).where("id < 240").limit(10).to_arrow()["id"].to_pylist()
        gone = {found[0], found[4], found[9]}
        current.delete(f"id IN ({', '.join(map(str, gone))})")
        search = (
            stored.search(VECTOR).select(COLUMNS).where("id < 240").limit(10)
        )  # this handle has not seen the delete
        rows = search.rerank(late, query_string=QUERY).to_arrow()
        assert set(rows["id"].to_pylist()[-3:]) == gone
        assert rows[arrow.RELEVANCE].to_pylist()[-3:] == [None] * 3
        assert_scored_by_maxsim(rows.slice(0, 7), encoder)

    def test_all_rows_deleted_since(self, stored, encoder, tmp_path):
        current = lancedb.connect(tmp_path / "db").open_table("docs")
        late = lr.LateInteractionReranker(encoder, table=current)
        current.delete("id >= 0")
        rows = stored.search(VECTOR).select(COLUMNS).limit(5).rerank(late, query_string=QUERY).to_arrow()
        assert rows[arrow.RELEVANCE].to_pylist() == [None] * 5

    def test_vectors_are_found_by_row_id_after_deletes_and_compaction(self, stored, late, encoder):
        stored.delete("id % 3 = 0")
        stored.optimize()
        rows = stored.search(VECTOR).select(COLUMNS).limit(60).rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert sum(score is None for score in rows[arrow.RELEVANCE].to_pylist()) <= 3

    def test_stable_row_ids_that_are_not_in_storage_order(self, tmp_path, encoder):
        db = lancedb.connect(tmp_path / "stable", storage_options={"new_table_enable_stable_row_ids": "true"})
        words = ["rotate", "the api", "keys", "bread", "a cat", "api keys", "rotate keys", "x"]
        table = db.create_table("t", [{"id": i, "text": word, "vector": VECTOR} for i, word in enumerate(words)])
        table.update(where="id IN (0, 3)", values={"vector": (-VECTOR).tolist()})  # moves them behind the others
        lr.add_multivector_column(table, encoder=encoder)
        late = lr.LateInteractionReranker(encoder, table=table)
        ids = np.arange(8, dtype=np.uint64)
        taken = lance.take_rows(table, ids, ["text"])
        assert taken["_rowid"].to_pylist() != sorted(taken["_rowid"].to_pylist()), "else this shows nothing"
        rows = table.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 8
        assert_scored_by_maxsim(rows, encoder)

    def test_no_results_at_all(self, stored, late):
        rows = stored.search(VECTOR).select(COLUMNS).where("id > 9999").rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 0


class TestErrors:
    def test_another_dimension_says_both(self, stored):
        class Wide(Letters):
            dim = 20

        late = lr.LateInteractionReranker(Wide(), table=stored)
        with pytest.raises(ColumnError, match=r"16 dimensions and the query's 20.*encoder that filled the column"):
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()

    def test_a_column_that_the_table_lacks_says_how_to_make_it(self, docs, encoder):
        with pytest.raises(ColumnError, match=r"no column 'colbert'.*add_multivector_column"):
            lr.LateInteractionReranker(encoder, table=docs)

    def test_a_column_of_another_kind_says_what_it_is(self, stored, encoder):
        late = lr.LateInteractionReranker(encoder, table=stored, vectors="vector")
        with pytest.raises(ColumnError, match="multivector column is a list of fixed-size vectors, not"):
            stored.search(VECTOR).select(COLUMNS).rerank(late, query_string=QUERY).to_arrow()

    def test_without_a_table_the_column_has_to_be_selected(self, stored, encoder):
        carried = lr.LateInteractionReranker(encoder)
        with pytest.raises(ColumnError, match=r"'colbert'.*select\(.*table=.*vectors=None"):
            stored.search(VECTOR).select(["id"]).rerank(carried, query_string=QUERY).to_arrow()

    async def test_an_async_table_is_refused(self, async_stored, encoder):
        with pytest.raises(UnsupportedError, match="LateInteractionReranker"):
            lr.LateInteractionReranker(encoder, table=async_stored)

    def test_a_query_without_tokens_is_refused(self, stored):
        class Silent(Letters):
            def encode_queries(self, texts):
                return [np.empty((0, self.dim), np.float32) for _ in texts]

        late = lr.LateInteractionReranker(Silent(), table=stored)
        with pytest.raises(QueryError, match="'the' has no tokens"):
            stored.search(VECTOR).rerank(late, query_string="the").to_arrow()

    def test_missing_is_one_of_two_words(self, stored, encoder):
        with pytest.raises(ArgumentError, match="missing must be 'encode' or 'null', got 'skip'"):
            lr.LateInteractionReranker(encoder, table=stored, missing="skip")

    def test_a_vector_search_without_the_query_as_text_is_lancedbs_error(self, stored, late):
        with pytest.raises(ValueError, match="not a string"):
            stored.search(VECTOR).rerank(late)


def test_a_row_id_that_lies_between_stored_ones_is_not_mistaken_for_a_neighbour(stored, late):
    ids = (
        stored.search(VECTOR)
        .select(COLUMNS)
        .where("id < 240")
        .limit(3)
        .with_row_id(True)
        .to_arrow()["_rowid"]
        .to_pylist()
    )
    strange = [ids[0], max(ids) + 10_000, 2**62, ids[1]]
    rows = pa.table({"_rowid": pa.array(strange, pa.uint64()), "n": [0, 1, 2, 3]})
    reranked = lr.LateInteractionReranker.rerank_candidates(late, QUERY, arrow.union([rows]))
    scores = dict(zip(reranked["n"].to_pylist(), reranked[arrow.RELEVANCE].to_pylist(), strict=True))
    assert scores[1] is None
    assert scores[2] is None
    assert scores[0] is not None
    assert scores[3] is not None


class TestWhichTableIsRead:
    def test_rows_that_came_after_the_handle_was_opened_are_scored_too(self, late, stored, db, encoder):
        elsewhere = db.open_table("docs")
        elsewhere.add([{"id": 500, "text": QUERY, "lang": "en", "vector": VECTOR}])
        lr.add_multivector_column(elsewhere, encoder=encoder)
        hits = lr.hybrid(db.open_table("docs"), QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(1).to_list()
        assert (hits[0]["id"], hits[0]["_relevance_score"]) == (500, pytest.approx(4.0, abs=0.01))

    def test_rows_that_a_compaction_moved_are_found_again(self, late, db):
        other = db.open_table("docs")
        other.delete("id < 100")
        other.optimize()
        rows = lr.hybrid(db.open_table("docs"), QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(50).to_arrow()
        assert rows[arrow.RELEVANCE].null_count <= 2, "the rows without text alone"

    def test_another_table_than_the_one_searched_is_refused(self, late, db):
        other = db.create_table("other", [{"id": "a", "text": "api", "vector": VECTOR}])
        with pytest.raises(lr.errors.ArgumentError, match="reads from table 'docs' and the search is of 'other'"):
            lr.hybrid(other, "api", vector=VECTOR).rerank(late)
        with pytest.raises(lr.errors.ArgumentError, match="'docs'"):
            lr.Retriever(other, reranker=late)

    def test_a_column_dropped_meanwhile_says_how_to_make_it(self, late, stored):
        stored.drop_columns(["colbert"])
        with pytest.raises(ColumnError, match="add_multivector_column"):
            lr.hybrid(stored, QUERY, vector=VECTOR).rerank(late).limit(3).to_arrow()

    def test_candidates_of_which_none_has_vectors_are_said_to_be_unranked(self, docs, encoder, caplog):
        lance.add_hidden_column(docs, "colbert", pa.list_(pa.fixed_shape_tensor(pa.float16(), [16])), {})
        late = lr.LateInteractionReranker(encoder, table=docs, missing="null")
        rows = lr.hybrid(docs, QUERY, vector=VECTOR).rerank(late).select(COLUMNS).limit(3).to_arrow()
        assert rows[arrow.RELEVANCE].null_count == 3
        assert "candidates has token vectors in 'colbert'" in caplog.text


NEW = [
    {"id": 900, "text": QUERY, "lang": "en", "vector": VECTOR},
    {"id": 901, "text": "bake api bread", "lang": "en", "vector": VECTOR},
    {"id": 902, "text": None, "lang": "en", "vector": VECTOR},
    {"id": 903, "text": "  ", "lang": "en", "vector": VECTOR},
]


def scores_by_id(rows):
    return dict(zip(rows["id"].to_pylist(), rows[arrow.RELEVANCE].to_pylist(), strict=True))


def near(table, columns=COLUMNS, limit=12):
    """A search for the four new rows, the three old ones without tokens, and five with stored vectors."""
    return table.search(VECTOR).select(columns).limit(limit)


@pytest.fixture
def mixed(stored):
    """The table with rows added since its column was filled, two of which have a text."""
    stored.add(NEW)
    return stored


@pytest.fixture
def takes(monkeypatch):
    """How many rows were taken from the table, and which columns of them, each time."""
    seen = []
    take_rows = lance.take_rows
    monkeypatch.setattr(
        lance,
        "take_rows",
        lambda table, ids, columns: seen.append((len(ids), list(columns))) or take_rows(table, ids, columns),
    )
    return seen


class TestRowsEncodedAtQueryTime:
    def test_rows_without_vectors_score_as_if_they_had_them(self, mixed, late, encoder, caplog):
        rows = near(mixed).rerank(late, query_string=QUERY).to_arrow()
        assert rows.num_rows == 12
        assert scores_by_id(rows)[900] == pytest.approx(4.0, abs=0.01)
        texts = rows["text"].to_pylist()
        assert [text for text in texts[-5:] if text and text.strip()] == []
        assert rows[arrow.RELEVANCE].to_pylist()[-5:] == [None] * 5, "what has no text comes last"
        assert_scored_by_maxsim(rows.slice(0, 7), encoder)
        assert late.documents_encoded == encoder.documents == 2
        assert (
            "2 of 12 candidates had no token vectors in 'colbert' and were encoded at query time: "
            "sync_multivector_column(table, 'colbert', encoder=encoder) stores them" in caplog.text
        )

    def test_where_all_is_stored_nothing_else_is_read_encoded_or_said(self, stored, late, encoder, takes, caplog):
        search = stored.search(VECTOR).select(["id"]).where("id < 240").limit(40)
        rows = search.rerank(late, query_string=QUERY).to_arrow()
        assert rows[arrow.RELEVANCE].null_count == 0
        assert takes == [(40, ["colbert"])]
        assert (encoder.documents, late.documents_encoded, late.reads, caplog.text) == (0, 0, (), "")

    def test_texts_are_fetched_for_those_rows_alone(self, mixed, late, takes):
        rows = near(mixed, ["id"]).rerank(late, query_string=QUERY).to_arrow()
        assert takes == [(12, ["colbert"]), (6, ["text"])], "the new rows, and the old ones whose text is null"
        assert rows.column_names == ["id", arrow.RELEVANCE]
        with_texts = near(mixed).rerank(late, query_string=QUERY).to_arrow()
        assert scores_by_id(rows) == scores_by_id(with_texts)

    def test_texts_among_the_rows_are_not_fetched_again(self, mixed, late, takes):
        near(mixed).rerank(late, query_string=QUERY).to_arrow()
        assert takes == [(12, ["colbert"])]

    @pytest.mark.parametrize("pool_factor", [1, 2, 3])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
    def test_scores_are_those_after_a_sync(self, docs, encoder, dtype, pool_factor):
        lr.add_multivector_column(docs, encoder=encoder, dtype=dtype, pool_factor=pool_factor)
        docs.add(NEW)
        late = lr.LateInteractionReranker(encoder, table=docs)
        before = scores_by_id(near(docs).rerank(late, query_string=QUERY).to_arrow())
        assert late.documents_encoded == 2
        lr.sync_multivector_column(docs, encoder=encoder)
        after = scores_by_id(near(docs).rerank(late, query_string=QUERY).to_arrow())
        assert late.documents_encoded == 2
        assert before == after
        assert None not in (before[900], before[901])

    def test_the_column_says_which_texts_it_was_made_from(self, docs, encoder):
        lr.add_multivector_column(docs, source="lang", encoder=encoder)
        docs.add(NEW)
        late = lr.LateInteractionReranker(encoder, table=docs)
        scores = scores_by_id(near(docs).rerank(late, query_string="en").to_arrow())
        assert scores[900] == scores[902] == pytest.approx(1.0, abs=0.01)

    def test_a_column_that_says_nothing_of_itself_is_rounded_to_by_its_type(self, docs, encoder):
        lance.add_hidden_column(docs, "colbert", pa.list_(pa.fixed_shape_tensor(pa.int8(), [16])), {})
        late = lr.LateInteractionReranker(encoder, table=docs)
        rows = docs.search(VECTOR).select(["id", "text"]).limit(5).rerank(late, query_string="api").to_arrow()
        one = 90 * 90 * 2 / 127**2  # both numbers of a word are round(127 / sqrt(2)) = 90
        for text, score in zip(rows["text"].to_pylist(), rows[arrow.RELEVANCE].to_pylist(), strict=True):
            assert score == pytest.approx(maxsim_by_hand(encoder, "api", text) * one)

    def test_columns_of_which_the_text_is_made_are_fetched_too(self, docs, encoder):
        lance.add_hidden_column(docs, "colbert", pa.list_(pa.fixed_shape_tensor(pa.float32(), [16])), {})
        late = lr.LateInteractionReranker(encoder, table=docs, column="{lang} {text}")
        rows = docs.search(VECTOR).select(["id"]).where("lang = 'de'").limit(5).rerank(late, query_string="de")
        assert rows.to_arrow()[arrow.RELEVANCE].to_pylist() == pytest.approx([1.0] * 5)

    def test_rows_deleted_between_search_and_fetch_are_not_brought_back(self, mixed, encoder, tmp_path):
        current = lancedb.connect(tmp_path / "db").open_table("docs")
        late = lr.LateInteractionReranker(encoder, table=current)
        current.delete("id = 900")
        for columns in (COLUMNS, ["id"]):  # with its text among the rows, and without
            scores = scores_by_id(near(mixed, columns).rerank(late, query_string=QUERY).to_arrow())
            assert scores[900] is None
            assert scores[901] is not None

    def test_vectors_that_come_with_the_results(self, mixed, encoder, caplog):
        carried = lr.LateInteractionReranker(encoder)
        rows = near(mixed, [*COLUMNS, "colbert"]).rerank(carried, query_string=QUERY).to_arrow()
        assert scores_by_id(rows)[900] == pytest.approx(4.0, abs=0.01)
        assert carried.documents_encoded == 2
        without_texts = near(mixed, ["id", "colbert"]).rerank(carried, query_string=QUERY).to_arrow()
        assert scores_by_id(without_texts)[900] is None
        assert "6 of 12 candidates have no token vectors in 'colbert', and no column 'text' to encode" in caplog.text
        late = lr.LateInteractionReranker(encoder, table=mixed)
        fetched = near(mixed, ["id", "colbert"]).rerank(late, query_string=QUERY).to_arrow()
        assert scores_by_id(fetched) == scores_by_id(rows), "with a table the texts are fetched"

    def test_vectors_that_come_with_the_results_say_how_they_are_stored(self, docs, encoder):
        lr.add_multivector_column(docs, encoder=encoder, dtype="int8", pool_factor=2)
        docs.add(NEW)
        answers = [
            lr.hybrid(docs, QUERY, vector=VECTOR).rerank(late).limit(200).to_arrow()
            for late in (lr.LateInteractionReranker(encoder), lr.LateInteractionReranker(encoder, table=docs))
        ]
        assert scores_by_id(answers[0]) == scores_by_id(answers[1])
        assert 900 in scores_by_id(answers[0])

    async def test_on_async_searches(self, mixed, late, encoder, tmp_path):
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        ours = (await lr.hybrid_async(table, QUERY, vector=VECTOR)).rerank(late).limit(12)
        lancedbs = table.query().nearest_to(VECTOR).nearest_to_text(QUERY).select(COLUMNS).limit(12).rerank(late)
        for search in (ours, lancedbs):
            rows = await search.to_arrow()
            assert scores_by_id(rows)[900] == pytest.approx(4.0, abs=0.01)
        assert late.documents_encoded == encoder.documents == 4

    def test_a_retriever(self, mixed, late):
        hits = lr.Retriever(mixed, query_type="fts", reranker=late).retrieve(QUERY, k=1)
        assert (hits[0].doc_id, hits[0].score) == ("900", pytest.approx(4.0, abs=0.01))

    def test_a_query_that_is_encoded_already(self, mixed, late, encoder):
        rows = near(mixed).with_row_id(True).to_arrow()
        tokens = encoder.encode_queries([QUERY])[0]
        assert late.score_tokens(tokens, rows).equals(late.score_rows(QUERY, rows))
        fresh = lr.LateInteractionReranker(encoder, vectors=None)
        expected = [maxsim_by_hand(encoder, QUERY, text) for text in rows["text"].to_pylist()]
        assert fresh.score_tokens(tokens, rows).to_pylist() == [score and pytest.approx(score) for score in expected]

    def test_threads_count_together(self, mixed, late):
        rows = near(mixed).with_row_id(True).to_arrow()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: late.rerank_vector(QUERY, rows), range(20)))
        assert late.documents_encoded == 40

    def test_an_encoder_that_answers_with_too_few_documents_is_an_error(self, mixed, late, encoder, monkeypatch):
        monkeypatch.setattr(encoder, "encode_documents", lambda texts: [])
        with pytest.raises(ModelError, match="0 documents for 2 texts"):
            near(mixed).rerank(late, query_string=QUERY).to_arrow()

    def test_where_no_row_has_vectors_all_are_encoded(self, docs, encoder, caplog):
        lance.add_hidden_column(docs, "colbert", pa.list_(pa.fixed_shape_tensor(pa.float16(), [16])), {})
        late = lr.LateInteractionReranker(encoder, table=docs)
        rows = docs.search(VECTOR).select(COLUMNS).limit(9).rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert "9 of 9 candidates had no token vectors" in caplog.text
        assert "none is ranked" not in caplog.text


class TestNothingStored:
    """`vectors=None`: every candidate is encoded at query time, as LanceDB's own ColbertReranker does."""

    @pytest.fixture
    def fresh(self, encoder):
        return lr.LateInteractionReranker(encoder, vectors=None)

    def test_every_candidate_is_encoded_and_counted(self, docs, fresh, encoder, caplog):
        rows = docs.search(VECTOR).select(COLUMNS).limit(40).rerank(fresh, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)
        assert fresh.documents_encoded == encoder.documents == 40
        assert caplog.text == ""
        assert rows.column_names == [*COLUMNS, arrow.RELEVANCE]

    def test_on_hybrid_searches_the_text_is_fetched_for_it(self, docs, fresh, encoder):
        rows = lr.hybrid(docs, QUERY, vector=VECTOR).rerank(fresh).select(["id"]).limit(20).to_arrow()
        assert rows.column_names == ["id", arrow.RELEVANCE]
        theirs = docs.search(query_type="hybrid").vector(VECTOR).text(QUERY).select(COLUMNS).limit(20)
        assert_scored_by_maxsim(theirs.rerank(fresh).to_arrow(), encoder)

    async def test_on_async_searches(self, docs, fresh, encoder, tmp_path):
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        rows = await table.query().nearest_to(VECTOR).limit(9).rerank(fresh, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    def test_a_table_is_not_needed_and_does_no_harm(self, docs, encoder):
        late = lr.LateInteractionReranker(encoder, table=docs, vectors=None)
        rows = docs.search(VECTOR).select(COLUMNS).limit(9).rerank(late, query_string=QUERY).to_arrow()
        assert_scored_by_maxsim(rows, encoder)

    def test_several_columns_make_a_text(self, docs, encoder):
        late = lr.LateInteractionReranker(encoder, vectors=None, column=["lang", "text"])
        assert late.reads == ("lang", "text")
        rows = docs.search(VECTOR).where("lang = 'de'").limit(5).rerank(late, query_string="de").to_arrow()
        assert rows[arrow.RELEVANCE].to_pylist() == pytest.approx([1.0] * 5)

    def test_a_query_without_tokens_is_refused(self, docs, fresh, encoder, monkeypatch):
        monkeypatch.setattr(encoder, "encode_queries", lambda texts: [np.empty((0, 16), np.float32)])
        with pytest.raises(QueryError, match="'the' has no tokens"):
            docs.search(VECTOR).rerank(fresh, query_string="the").to_arrow()

    def test_it_prints_as_what_it_is(self, fresh):
        assert str(fresh) == "LateInteractionReranker(Letters(), vectors=None)"


class TestContractWithNothingStored(RerankerContract):
    def make_reranker(self, **arguments):
        return lr.LateInteractionReranker(Letters(), vectors=None, **arguments)


PLANE = {"api": (1, 0), "keys": (0.96, 0.28), "bread": (0, 1), "oven": (0.28, 0.96), "the": (0.6, -0.8)}


class Nameless:
    """A token encoder of words with a direction in the plane: what a score is made of can be computed in the head."""

    dim = 2
    fingerprint = None

    def _encode(self, text):
        return np.array([PLANE[word] for word in text.split()], np.float32).reshape(-1, 2)

    def encode_queries(self, texts):
        return [self._encode(text) for text in texts]

    def encode_documents(self, texts):
        return [self._encode(text) for text in texts]


class Directions(Nameless):
    """The same, which also says what its vectors are of."""

    def query_tokens(self, text):
        return text.split()

    def document_tokens(self, text):
        return text.split()

    def __repr__(self):
        return "Directions()"


def told(explanation):
    """The matches as (query token, document token, position) with similarities beside them."""
    matches = explanation.matches
    return [(m.query_token, m.document_token, m.document_position) for m in matches], [m.similarity for m in matches]


class TestExplain:
    TEXTS = ("bread oven keys", "the api", None, "api bread keys oven")

    @pytest.fixture
    def plane(self):
        return Directions()

    @pytest.fixture
    def table(self, db):
        return db.create_table("t", [{"id": i, "text": t, "vector": VECTOR} for i, t in enumerate(self.TEXTS)])

    def ranked(self, table, late, query, columns=("id", "text", "_rowid")):
        rows = late.rerank_vector(query, table.search(VECTOR).with_row_id(True).to_arrow())
        assert rows.num_rows == table.count_rows()
        scores = scores_by_id(rows)
        everything = table.search(VECTOR).with_row_id(True).to_list()
        return [({name: row[name] for name in columns}, scores[row["id"]]) for row in everything]

    def test_each_query_token_has_its_best_token_of_the_row(self, plane):
        late = lr.LateInteractionReranker(plane, vectors=None)
        explanation = late.explain("api oven", {"text": "bread oven keys"})
        pairs, similarities = told(explanation)
        assert pairs == [("api", "keys", 2), ("oven", "oven", 1)]
        assert similarities == pytest.approx([0.96, 1.0])
        assert explanation.score == sum(similarities)
        assert [match.query_position for match in explanation.matches] == [0, 1]
        assert (explanation.query, explanation.text) == ("api oven", "bread oven keys")

    def test_it_prints_as_a_table_and_goes_into_json(self, plane):
        explanation = lr.LateInteractionReranker(plane, vectors=None).explain("the oven", {"text": "bread oven"})
        assert str(explanation) == "score 0.4000\n  the  -0.600  oven\n  oven  1.000  oven"
        values = explanation.to_dict()
        assert json.loads(json.dumps(values)) == values
        assert values["matches"][1] == {
            "query_token": "oven",
            "document_token": "oven",
            "similarity": pytest.approx(1.0),
            "query_position": 1,
            "document_position": 1,
        }

    @pytest.mark.parametrize("carried", [True, False], ids=["in the row", "by row id"])
    @pytest.mark.parametrize("pool_factor", [1, 2])
    @pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
    def test_the_sum_is_the_score_of_the_row(self, table, plane, dtype, pool_factor, carried):
        lr.add_multivector_column(table, encoder=plane, dtype=dtype, pool_factor=pool_factor)
        late = lr.LateInteractionReranker(plane, table=table)
        columns = ("id", "text", "_rowid", *(["colbert"] if carried else []))
        explained = 0
        for row, score in self.ranked(table, late, "the api oven", columns):
            if score is not None:
                assert late.explain("the api oven", row).score == pytest.approx(score, abs=1e-6)
                explained += 1
        assert explained == 3

    @pytest.mark.parametrize("dtype", ["float16", "int8"])
    def test_the_sum_is_the_score_of_a_row_encoded_at_query_time(self, table, plane, dtype):
        lr.add_multivector_column(table, encoder=plane, dtype=dtype, pool_factor=2)
        table.add([{"id": 9, "text": "oven keys the bread", "vector": VECTOR}])
        late = lr.LateInteractionReranker(plane, table=table)
        row, score = next(pair for pair in self.ranked(table, late, "api oven") if pair[0]["id"] == 9)
        for part in (row, row | {"colbert": None}, {"text": row["text"]}):
            assert late.explain("api oven", part).score == pytest.approx(score, abs=1e-6)

    def test_of_a_pooled_column_the_tokens_of_a_vector_are_named_together(self, table, plane):
        lr.add_multivector_column(table, encoder=plane, pool_factor=2)
        late = lr.LateInteractionReranker(plane, table=table)
        row = next(row for row in table.search(VECTOR).with_row_id(True).to_list() if row["id"] == 3)
        pairs, similarities = told(late.explain("bread api", row))
        assert [pair[:2] for pair in pairs] == [("bread", "bread oven"), ("api", "api keys")]
        assert {pair[2] for pair in pairs} == {0, 1}
        # the mean of (1, 0) and (0.96, 0.28) is (0.98, 0.14), of unit length (0.98995, 0.14142)
        assert similarities == pytest.approx([0.98995, 0.98995], abs=1e-3)

    def test_the_text_is_fetched_by_row_id(self, table, plane):
        lr.add_multivector_column(table, encoder=plane)
        late = lr.LateInteractionReranker(plane, table=table)
        row = table.search(VECTOR).select(["id"]).with_row_id(True).limit(1).to_list()[0]
        assert late.explain("api", row).text == self.TEXTS[row["id"]]

    def test_hits_are_explained_too(self, table, plane):
        lr.add_multivector_column(table, encoder=plane)
        late = lr.LateInteractionReranker(plane, table=table)
        table.create_index("text", config=FTS())
        hit = lr.Retriever(table, query_type="fts", reranker=late, select=["text"]).retrieve("api the", k=1)[0]
        assert late.explain("api the", hit).score == pytest.approx(hit.score, abs=1e-6)
        assert late.explain("api the", hit.row) == late.explain("api the", hit)

    def test_rows_of_pandas_are_explained_too(self, table, plane):
        lr.add_multivector_column(table, encoder=plane, dtype="int8")
        late = lr.LateInteractionReranker(plane)
        frame = table.search(VECTOR).to_pandas().set_index("id")
        assert told(late.explain("api", frame.loc[0].to_dict()))[0] == [("api", "keys", 2)]

    def test_an_encoder_that_names_no_tokens_has_positions(self, table):
        late = lr.LateInteractionReranker(Nameless(), vectors=None)
        assert told(late.explain("api oven", {"text": "bread oven keys"}))[0] == [
            ("token 0", "token 2", 2),
            ("token 1", "token 1", 1),
        ]

    def test_vectors_of_an_older_text_say_what_to_do(self, table, plane):
        for pool_factor in (1, 2):
            name = f"colbert{pool_factor}"
            lr.add_multivector_column(table, into=name, encoder=plane, pool_factor=pool_factor)
            late = lr.LateInteractionReranker(plane, table=table, vectors=name)
            table.update(where="id = 0", values={"text": "bread oven keys api the api"})
            row = next(row for row in table.search(VECTOR).with_row_id(True).to_list() if row["id"] == 0)
            with pytest.raises(ColumnError, match=rf"of an older text.*sync_multivector_column\(table, '{name}'"):
                late.explain("api", row)
            lr.sync_multivector_column(table, name, encoder=plane)
            row = next(row for row in table.search(VECTOR).with_row_id(True).to_list() if row["id"] == 0)
            assert late.explain("api", row).score == pytest.approx(1.0, abs=0.02)
            table.update(where="id = 0", values={"text": self.TEXTS[0]})

    def test_a_row_of_a_pooled_column_needs_the_table(self, table, plane):
        lr.add_multivector_column(table, encoder=plane, pool_factor=2)
        row = next(row for row in table.search(VECTOR).to_list() if row["id"] == 3)
        with pytest.raises(ColumnError, match="the column is pooled: give the reranker the table"):
            lr.LateInteractionReranker(plane).explain("api", row)

    def test_a_row_without_its_text_says_what_to_select(self, table, plane):
        lr.add_multivector_column(table, encoder=plane)
        late = lr.LateInteractionReranker(plane, table=table)
        with pytest.raises(ColumnError, match=r"'text' is not in the row \(there: id\)\. Select it.*with_row_id"):
            late.explain("api", {"id": 0})

    @pytest.mark.parametrize(("text", "said"), [(None, "has no text"), (" ", "has no text")])
    def test_a_row_without_text_has_no_score_to_explain(self, plane, text, said):
        with pytest.raises(ArgumentError, match=f"null score.*{said}"):
            lr.LateInteractionReranker(plane, vectors=None).explain("api", {"text": text})

    def test_a_row_that_missing_leaves_unscored_has_no_score_to_explain(self, table, plane):
        lr.add_multivector_column(table, encoder=plane)
        late = lr.LateInteractionReranker(plane, table=table, missing="null")
        with pytest.raises(ArgumentError, match=r"null score.*missing='null'"):
            late.explain("api", {"text": "api", "colbert": None})

    def test_a_row_whose_text_gave_no_tokens_has_no_score_to_explain(self, plane):
        with pytest.raises(ArgumentError, match=r"null score.*no tokens"):
            lr.LateInteractionReranker(plane).explain("api", {"text": "", "colbert": []})

    def test_a_row_that_was_deleted_is_said_to_be_gone(self, table, plane):
        lr.add_multivector_column(table, encoder=plane)
        late = lr.LateInteractionReranker(plane, table=table)
        row = table.search(VECTOR).select(["id", "text"]).with_row_id(True).limit(1).to_list()[0]
        table.delete(f"id = {row['id']}")
        with pytest.raises(ArgumentError, match="no longer in the table"):
            late.explain("api", row)

    def test_a_value_that_is_no_list_of_vectors_is_an_error(self, plane):
        with pytest.raises(ColumnError, match="'vector' is expected to be its token vectors"):
            lr.LateInteractionReranker(plane, vectors="vector").explain("api", {"text": "api", "vector": [0.5, 1.0]})

    def test_a_query_without_tokens_is_refused(self, plane):
        with pytest.raises(QueryError, match="'' has no tokens"):
            lr.LateInteractionReranker(plane, vectors=None).explain("", {"text": "api"})

    def test_an_encoder_that_names_too_few_tokens_is_an_error(self, plane, monkeypatch):
        late = lr.LateInteractionReranker(plane, vectors=None)
        monkeypatch.setattr(plane, "document_tokens", lambda text: ["api"])
        with pytest.raises(ModelError, match=r"Directions\(\) names 1 tokens for a text that it gives 2 vectors"):
            late.explain("api", {"text": "the api"})

    def test_explaining_is_not_reranking(self, plane):
        late = lr.LateInteractionReranker(plane, vectors=None)
        late.explain("api", {"text": "api"})
        assert late.documents_encoded == 0

    def test_with_a_model(self, table, tiny_encoder):
        model = lr.ColBERTEncoder(tiny_encoder, device="cpu", precision="float32")
        lr.add_multivector_column(table, encoder=model)
        late = lr.LateInteractionReranker(model, table=table)
        for row, score in self.ranked(table, late, "the api keys"):
            if score is not None:
                explanation = late.explain("the api keys", row)
                assert [match.query_token for match in explanation.matches] == ["the", "api", "keys"]
                assert explanation.score == pytest.approx(score, abs=1e-5)
