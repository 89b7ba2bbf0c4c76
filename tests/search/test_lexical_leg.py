"""The Tantivy leg: `hybrid`, `hybrid_async` and `Retriever` with ``lexical=``, held to brute force."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta

import lancedb
import lancedb.rerankers as theirs
import numpy as np
import pyarrow as pa
import pytest
import tantivy
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.expr import col, lit
from lancedb.query import BooleanQuery, MatchQuery, Occur, PhraseQuery

import lance_rerank as lr
from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, MissingIndexError, QueryError, StaleIndexError, UnsupportedError
from lance_rerank.lexical import Matches
from lance_rerank.search import lexical as leg

N = 2_000
DIM = 8
VECTOR = np.linspace(-1, 1, DIM).astype(np.float32)
QUERY = "w3 w11 w40"


def texts(n, seed=0):
    """Texts of words as common as words are: w0 is in most, w399 in few."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, 401)
    words = rng.choice(400, (n, 12), p=share / share.sum())
    return [" ".join(f"w{word}" for word in row) for row in words]


def rows(n=N, seed=0):
    rng = np.random.default_rng(seed)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(n * DIM).astype(np.float32)), DIM)
    return pa.table(
        {
            "id": pa.array(rng.permutation(n) - 5, pa.int64()),  # some are negative
            "name": [f'it\'s "{i}" \\ `{i}`' for i in range(n)],
            "text": texts(n, seed),
            "share": pa.array(rng.permutation(n) / n),  # `share < 0.01` keeps one row of a hundred
            "vector": vectors,
        }
    )


class World:
    """A table without a native full-text index, a Tantivy index of it, and brute force to hold both to."""

    def __init__(self, folder, key="id", data=None):
        self.uri = str(folder / "db")
        self.table = lancedb.connect(self.uri).create_table("docs", rows() if data is None else data)
        self.index = lr.TantivyIndex.open(folder / "tantivy", table=self.table, key=key, stop_words=False)
        self.index.sync()

    async def opened(self):
        return await (await lancedb.connect_async(self.uri)).open_table("docs")

    def hybrid(self, query=QUERY, **arguments):
        return lr.hybrid(self.table, query, vector=VECTOR, lexical=self.index, **arguments)

    async def hybrid_async(self, query=QUERY, **arguments):
        return await lr.hybrid_async(await self.opened(), query, vector=VECTOR, lexical=self.index, **arguments)

    def leg(self, limit, where=None, prefilter=True, columns=None, query=QUERY, **settings):
        steps = leg.LexicalLeg(self.index, **settings).steps(query, lance.LegRequest(columns, limit, where, prefilter))
        return lance.run_leg(steps, self.table)

    def brute(self, limit, where=None, prefilter=True, query=QUERY):
        """Rank every row by score, then filter and cut: (key, score), best first."""
        key = self.index.key
        found = self.index.matches(query, 10 * N, freshness="warn")
        there = set(self.table.search().select([key]).limit(None).to_arrow()[key].to_pylist())
        ranked = [pair for pair in zip(found.keys, found.scores.tolist(), strict=True) if pair[0] in there]
        if where is None:
            return ranked[:limit]
        passing = set(self.table.search().where(where).select([key]).limit(None).to_arrow()[key].to_pylist())
        if not prefilter:
            ranked = ranked[:limit]
        return [pair for pair in ranked if pair[0] in passing][:limit]


def pairs(world, found):
    return list(zip(found[world.index.key].to_pylist(), found[arrow.SCORE].to_pylist(), strict=True))


def same_ranking(one, other):
    """Compare rankings; scores are sums of floats, which Tantivy may add up in another order when it filters."""
    assert [score for _, score in one] == pytest.approx([score for _, score in other], rel=1e-5)
    assert dict(one) == pytest.approx(dict(other), rel=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("ints"))


@pytest.fixture(scope="module", params=["id", "name"])
def keyed(request, world, tmp_path_factory):
    """The same rows told apart by integers, some of them negative, and by strings full of quotes."""
    return world if request.param == "id" else World(tmp_path_factory.mktemp("strings"), key="name")


@pytest.fixture
def fresh(tmp_path):
    """A world that a test may change."""
    return World(tmp_path)


class Wordy(lr.BaseReranker):
    """Scores a text by a number that has nothing to do with the legs, and keeps what it saw."""

    def score_texts(self, query, texts):
        self.query, self.texts_seen = query, texts
        return [sum(map(ord, text)) * 7919 % 1009 for text in texts]


FILTERS = {"0.1%": "share < 0.001", "1%": "share < 0.01", "50%": "share < 0.5", "100%": "share >= 0"}


class TestTheLegAgainstBruteForce:
    @pytest.mark.parametrize("limit", [1, 100, N])
    def test_unfiltered(self, keyed, limit):
        same_ranking(pairs(keyed, keyed.leg(limit)), keyed.brute(limit))

    @pytest.mark.parametrize("prefilter", [True, False], ids=["before", "after"])
    @pytest.mark.parametrize("limit", [5, 100])
    @pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS)
    @pytest.mark.parametrize("query", [QUERY, "w0", "w350"], ids=["common", "everywhere", "rare"])
    def test_filtered(self, keyed, query, where, limit, prefilter):
        found = keyed.leg(limit, where, prefilter, query=query)
        same_ranking(pairs(keyed, found), keyed.brute(limit, where, prefilter, query=query))

    @pytest.mark.parametrize("where", FILTERS.values(), ids=FILTERS)
    @pytest.mark.parametrize(
        ("read", "few", "named"), [(1, 1, 3), (1, 1, 10_000), (100, 1, 150), (100_000, 1, 3), (100_000, 1, 10_000)]
    )
    def test_by_whatever_way_the_sizes_suggest(self, keyed, where, read, few, named, monkeypatch):
        """Tables of millions of rows take ways that these sizes would not: move the limits instead of the sizes."""
        monkeypatch.setattr(leg, "READ_KEYS", read)
        monkeypatch.setattr(leg, "FEW_KEYS", few)
        monkeypatch.setattr(leg, "NAMED_KEYS", named)
        same_ranking(pairs(keyed, keyed.leg(20, where)), keyed.brute(20, where))

    def test_a_filter_that_keeps_only_what_hardly_matches(self, world, monkeypatch):
        worst = world.brute(N)[-300:]
        where = lance.any_of("id", [key for key, _ in worst])
        expected = world.brute(50, where)
        same_ranking(pairs(world, world.leg(50, where)), expected)
        monkeypatch.setattr(leg, "FEW_KEYS", 10)
        same_ranking(pairs(world, world.leg(50, where)), expected)
        monkeypatch.setattr(leg, "READ_KEYS", 10)
        same_ranking(pairs(world, world.leg(50, where)), expected)

    def test_scores_are_the_indexs_own_and_rows_the_tables(self, world):
        found = world.leg(40)
        assert pairs(world, found) == world.brute(40)
        assert found.schema.field(arrow.SCORE).type == pa.float32()
        stored = {row["id"]: row for row in world.table.search().with_row_id(True).limit(None).to_list()}
        for row in found.to_pylist():
            del row[arrow.SCORE]
            assert row == stored[row["id"]]

    @pytest.mark.parametrize("where", [None, "share < 0.5", "share < 0.01"])
    def test_pages_walk_through_one_ranking(self, world, where):
        def page(limit, offset):
            search = world.hybrid().candidates(60).select(["id"]).limit(limit).offset(offset)
            return (search if where is None else search.where(where)).to_arrow()["id"].to_pylist()

        whole = page(40, 0)
        assert [i for offset in (0, 10, 20, 30) for i in page(10, offset)] == whole
        assert len(set(whole)) == len(whole)


class TestRowsThatAreGoneOrNew:
    def test_deleted_rows_do_not_come_back_and_leave_no_gap(self, fresh):
        best = [key for key, _ in fresh.brute(30)]
        fresh.table.delete(lance.any_of("id", best[:20]))
        found = fresh.leg(100)
        assert found.num_rows == 100
        same_ranking(pairs(fresh, found), fresh.brute(100))
        assert fresh.hybrid().candidates(100).limit(200).to_arrow().num_rows >= 100
        for where in FILTERS.values():
            for prefilter in (True, False):
                same_ranking(pairs(fresh, fresh.leg(10, where, prefilter)), fresh.brute(10, where, prefilter))

    def test_nor_when_most_of_what_is_found_is_gone(self, fresh, monkeypatch):
        ranked = fresh.brute(N)
        fresh.table.delete(lance.any_of("id", [key for key, _ in ranked[:-7]]))
        monkeypatch.setattr(leg, "NAMED_KEYS", 50)
        same_ranking(pairs(fresh, fresh.leg(20)), ranked[-7:])

    def test_nor_when_every_row_is_gone(self, fresh):
        before = fresh.leg(5).schema
        fresh.table.delete("true")
        assert fresh.leg(5).num_rows == 0
        assert fresh.leg(5).schema == before
        assert fresh.hybrid().to_arrow().num_rows == 0

    def test_new_rows_are_found_as_freshness_says(self, fresh, caplog):
        new = rows(1).set_column(0, "id", pa.array([9_999])).set_column(2, "text", pa.array(["zebra"]))
        fresh.table.add(new)
        with caplog.at_level(logging.WARNING):
            assert fresh.leg(5, query="zebra").num_rows == 0
        assert "rows that were added or changed" in caplog.text
        with pytest.raises(StaleIndexError):
            fresh.hybrid("zebra", freshness="error").to_arrow()
        for freshness in ("scan", "sync", "error"):
            found = fresh.hybrid("zebra", freshness=freshness).select(["id"]).rerank(lr.RRFReranker(return_score="all"))
            scored = [row["id"] for row in found.to_list() if row[arrow.SCORE] is not None]
            assert scored == [9_999], freshness

    def test_an_index_that_was_never_built(self, fresh, tmp_path):
        index = lr.TantivyIndex.open(tmp_path / "other", table=fresh.table)
        with pytest.raises(MissingIndexError, match="sync"):
            lr.hybrid(fresh.table, QUERY, vector=VECTOR, lexical=index).to_arrow()

    def test_rows_that_share_a_key_all_come(self, tmp_path):
        data = pa.table(
            {
                "id": [1, 1, 1, 2, 3],
                "text": ["cat cat", "cat cat", "cat cat", "cat and a dog", "dog"],
                "share": [0.1, 0.9, 0.1, 0.1, 0.1],
                "vector": pa.array([[1.0] * DIM] * 5, pa.list_(pa.float32(), DIM)),
            }
        )
        double = World(tmp_path, data=data)
        assert double.leg(10, query="cat")["id"].to_pylist() == [1, 1, 1, 2]
        assert double.leg(2, query="cat")["id"].to_pylist() == [1, 1]
        filtered = double.leg(10, "share < 0.5", query="cat")
        assert filtered["id"].to_pylist() == [1, 1, 2]
        assert filtered["share"].to_pylist() == [0.1] * 3
        assert double.leg(2, "share > 0.5", prefilter=False, query="cat")["share"].to_pylist() == [0.9]

    def test_an_index_that_changes_between_two_askings_costs_no_wrong_row(self, world):
        class Shifting:
            """Finds two rows that are gone, then others."""

            table, key, asked = world.table, "id", 0

            def matches(self, query, k, **settings):
                self.asked += 1
                first = [100_001, 100_002, 7] if self.asked == 1 else [8, 9, 10, 11]
                return Matches(first, np.arange(len(first), 0, -1, dtype=np.float32), exhausted=self.asked > 1)

        steps = leg.LexicalLeg(Shifting()).steps("x", lance.LegRequest(["id"], 3))
        assert lance.run_leg(steps, world.table)["id"].to_pylist() == [8, 9, 10]


class TestSelect:
    SELECTIONS = (
        None,
        ["id"],
        ["text"],
        ["share", "id"],
        ["_score", "text"],
        {"twice": "id * 2"},
        {"id": "id + 1000"},
        {"twice": col("id") * lit(2)},
    )

    @pytest.mark.parametrize("columns", SELECTIONS, ids=str)
    @pytest.mark.parametrize("where", [None, "share < 0.5"])
    def test_the_leg_has_the_schema_of_lancedbs(self, fresh, columns, where):
        from lancedb.index import FTS

        fresh.table.create_index("text", config=FTS(remove_stop_words=False))
        native = fresh.table.search(QUERY, query_type="fts").with_row_id(True).limit(5)
        if columns is not None:
            native = native.select(columns)
        expected = [name for name in native.to_arrow().column_names if name != arrow.SCORE]
        for query in (QUERY, "nothinghasthis"):
            found = fresh.leg(5, where, columns=columns, query=query, freshness="scan")
            assert [name for name in found.column_names if name != arrow.SCORE] == expected
            for name in expected:
                assert found.schema.field(name).type == native.to_arrow().schema.field(name).type
            assert found.schema.field(arrow.SCORE).type == pa.float32()

    def test_the_score_is_where_lancedb_has_it(self, world):
        assert world.leg(5, columns=["id"]).column_names == ["id", "_score", "_rowid"]
        assert world.leg(5, columns=["_score", "id"]).column_names == ["_score", "id", "_rowid"]
        assert world.leg(5).column_names[-2:] == ["_score", "_rowid"]

    @pytest.mark.parametrize("reranker", [Wordy(), lr.RRFReranker(), theirs.RRFReranker()], ids=str)
    @pytest.mark.parametrize(
        ("columns", "out"),
        [
            (["text"], ["text"]),
            (["share", "id"], ["share", "id"]),
            ({"twice": "id * 2"}, ["twice"]),
            ({"twice": col("id") * lit(2)}, ["twice"]),
            (None, ["id", "name", "text", "share", "vector"]),
        ],
        ids=str,
    )
    async def test_only_these_columns_come_out(self, world, reranker, columns, out):
        def selecting(search):
            search = search.rerank(reranker).limit(7)
            return search if columns is None else search.select(columns)

        found = selecting(world.hybrid()).to_arrow()
        assert found.column_names == [*out, arrow.RELEVANCE]
        assert found.equals(await selecting(await world.hybrid_async()).to_arrow())

    def test_expressions_are_those_of_the_row(self, world):
        found = world.leg(20, columns={"twice": "id * 2", "id": "id + 1000"})
        assert [(i - 1000) * 2 for i in found["id"].to_pylist()] == found["twice"].to_pylist()
        assert [i - 1000 for i in found["id"].to_pylist()] == [key for key, _ in world.brute(20)]

    def test_columns_of_token_vectors_are_left_out_as_ever(self, fresh):
        fresh.table.add_columns(pa.field("colbert", pa.list_(pa.fixed_shape_tensor(pa.float16(), [4]))))
        found = fresh.hybrid().to_arrow()
        assert found.column_names == ["id", "name", "text", "share", "vector", arrow.RELEVANCE]


class TestHybrid:
    def test_needs_no_native_index(self, world):
        assert world.table.list_indices() == []
        found = world.hybrid().candidates(100).rerank(lr.RRFReranker(return_score="all")).limit(100).to_list()
        words = dict(world.brute(100))
        near = world.table.search(VECTOR).select(["id", "_distance"]).limit(100).to_list()
        near = {row["id"]: row["_distance"] for row in near}
        for row in found:
            assert (row["_score"], row["_distance"]) == (words.get(row["id"]), near.get(row["id"]))
        assert sum(row["_score"] is not None for row in found) > 30

    def test_fuses_both_legs_as_lancedb_would(self, world):
        vector = world.table.search(VECTOR).limit(30).with_row_id(True).to_arrow()
        both = arrow.union([vector, world.leg(30)])
        expected = lr.RRFReranker().rerank_candidates(QUERY, both)
        for reranker in (lr.RRFReranker(), theirs.RRFReranker()):
            found = world.hybrid().candidates(30).rerank(reranker).limit(25).to_arrow()
            assert found[arrow.RELEVANCE].to_pylist() == pytest.approx(expected[arrow.RELEVANCE].to_pylist()[:25])

    @pytest.mark.parametrize("where", [None, "share < 0.01", "share < 0.5", col("share") < lit(0.5)], ids=str)
    @pytest.mark.parametrize("prefilter", [True, False], ids=["before", "after"])
    @pytest.mark.parametrize("reranker", [Wordy(return_score="all"), lr.RRFReranker(), theirs.RRFReranker()], ids=str)
    async def test_async_finds_the_same(self, world, reranker, where, prefilter):
        one, other = world.hybrid(), await world.hybrid_async()
        for search in (one, other):
            search.candidates(40).rerank(reranker).limit(20).offset(5).select(["id"])
        if where is not None:
            one.where(where, prefilter=prefilter)
            other.where(where)
            if not prefilter:
                other.postfilter()
        assert one.to_arrow().equals(await other.to_arrow())

    def test_expressions_filter_as_their_sql_does(self, world):
        for where, sql in ((col("share") < lit(0.3), "share < 0.3"), (col("name") == lit("it's"), "name = 'it''s'")):
            same_ranking(pairs(world, world.leg(30, where)), world.brute(30, sql))
            typed = world.hybrid().where(where).where("id >= 0").select(["id"]).to_arrow()
            assert typed.equals(world.hybrid().where(f"{sql} AND id >= 0").select(["id"]).to_arrow())

    async def test_a_filter_of_the_hybrid_search_holds_for_both_legs(self, world):
        found = world.hybrid().where("share < 0.05").limit(200).to_arrow()
        assert found.num_rows == 100
        assert max(found["share"].to_pylist()) < 0.05
        other = await (await world.hybrid_async()).where("share < 0.05").limit(200).to_arrow()
        assert found.equals(other)

    async def test_row_ids_when_asked_for(self, world):
        one = world.hybrid().with_row_id(True).select(["id"]).to_arrow()
        other = await (await world.hybrid_async()).with_row_id().select(["id"]).to_arrow()
        assert one.equals(other)
        stored = world.table.search().select(["id"]).with_row_id(True).limit(None).to_arrow()
        assert set(map(tuple, one.select(["id", "_rowid"]).to_pandas().to_numpy())) <= set(
            map(tuple, stored.to_pandas().to_numpy())
        )

    async def test_a_text_that_nothing_has_leaves_the_vector_leg(self, world):
        near = world.table.search(VECTOR).limit(10).to_arrow()["id"].to_pylist()
        for query in ("nothinghasthis", "?!", "'; DROP TABLE docs; --"):
            assert world.hybrid(query).select(["id"]).to_arrow()["id"].to_pylist() == near
            other = await (await world.hybrid_async(query)).select(["id"]).to_arrow()
            assert other["id"].to_pylist() == near

    async def test_nothing_at_all(self, world):
        for reranker in (Wordy(), theirs.RRFReranker()):
            found = world.hybrid().where("share > 2").rerank(reranker).to_arrow()
            assert found.num_rows == 0
            assert arrow.RELEVANCE in found.column_names
            other = await (await world.hybrid_async()).where("share > 2").rerank(reranker).to_arrow()
            assert other.num_rows == 0

    async def test_plans_tell_of_both_legs(self, world):
        def built(search):
            return search.candidates(77).where("share < 0.5").rerank(Wordy())

        for plan in (built(world.hybrid()).explain_plan(), await built(await world.hybrid_async()).explain_plan()):
            assert plan.startswith("Wordy")
            assert "fetch=77" in plan
            assert "TantivyIndex: query='w3 w11 w40', k=77, key='id', filter='share < 0.5'" in plan
        one, other = built(world.hybrid()).analyze_plan(), await built(await world.hybrid_async()).analyze_plan()
        assert "metrics=[output_rows=77, elapsed=" in one.splitlines()[-1]
        assert "metrics=[output_rows=77, elapsed=" in other.splitlines()[-1]

    def test_a_builder_can_be_run_twice(self, world):
        built = world.hybrid().select(["id"])
        assert built.to_arrow().equals(built.to_arrow())

    def test_settings_reach_the_index(self, world):
        def words(query, **settings):
            found = world.hybrid(query, **settings).rerank(lr.RRFReranker(return_score="all")).limit(200).to_list()
            return [row["text"].split() for row in found if row["_score"] is not None]

        both = words("w3 -w0", syntax=True)
        assert both
        assert all("w3" in text and "w0" not in text for text in both)
        assert not words("w3333")
        assert words("wordthree w3", fuzzy=1)

    async def test_the_event_loop_stays_free(self, world):
        class Slow:
            table, key = world.table, "id"

            def matches(self, query, k, **settings):
                self.thread = threading.current_thread()
                return world.index.matches(query, k, **settings)

        slow = Slow()
        search = await lr.hybrid_async(await world.opened(), QUERY, vector=VECTOR, lexical=slow)
        await search.where("share < 0.5").to_arrow()
        assert slow.thread is not threading.current_thread()

    async def test_async_rows_are_of_the_version_that_the_vector_leg_reads(self, fresh):
        opened = await fresh.opened()
        before = await lr.hybrid_async(opened, QUERY, vector=VECTOR, lexical=fresh.index)
        expected = await before.select(["id", "share"]).limit(20).to_arrow()
        fresh.table.update(values={"share": 5.0})
        again = await lr.hybrid_async(opened, QUERY, vector=VECTOR, lexical=fresh.index)
        assert expected.equals(await again.select(["id", "share"]).limit(20).to_arrow())

    def test_a_sync_on_the_way_does_not_part_the_legs(self, fresh):
        """A row that was updated has another row id: legs of two versions would find it as two rows."""
        lancedb.connect(fresh.uri).open_table("docs").update(values={"share": 5.0})
        search = fresh.hybrid(freshness="sync").candidates(N).limit(2 * N).select(["id"])
        found = search.to_arrow()["id"].to_pylist()
        assert len(set(found)) == len(found) == N

    async def test_a_timeout_holds_for_the_leg_too(self, world):
        soon, later = timedelta(microseconds=1), timedelta(seconds=60)

        def steps():
            return leg.LexicalLeg(world.index).steps(QUERY, lance.LegRequest(["id"], 100))

        with pytest.raises(Exception, match=r"(?i)time"):
            lance.run_leg(steps(), world.table, soon)
        with pytest.raises(Exception, match=r"(?i)time"):
            await lance.run_leg_async(steps(), await world.opened(), soon)
        found = world.hybrid().to_arrow(timeout=later)
        assert found.equals(await (await world.hybrid_async()).to_arrow(timeout=later))

    async def test_many_searches_at_once(self, world):
        async def one(i):
            search = await world.hybrid_async(f"w{i} w3")
            return await search.where("share < 0.5").select(["id"]).to_arrow()

        together = await asyncio.gather(*(one(i) for i in range(12)))
        for i, found in enumerate(together):
            assert found.equals(world.hybrid(f"w{i} w3").where("share < 0.5").select(["id"]).to_arrow())


@register("letters-of-the-leg")
class Letters(TextEmbeddingFunction):
    """A text's vector is eight times its length."""

    def ndims(self):
        return DIM

    def generate_embeddings(self, texts):
        return [[float(len(text))] * DIM for text in texts]


class TestTheQuery:
    @pytest.fixture(scope="class")
    def embedded(self, tmp_path_factory):
        config = EmbeddingFunctionConfig(
            source_column="text", vector_column="vector", function=get_registry().get("letters-of-the-leg").create()
        )
        folder = tmp_path_factory.mktemp("embedded")
        made = World.__new__(World)
        made.uri = str(folder / "db")
        schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), DIM))])
        db = lancedb.connect(made.uri)
        made.table = db.create_table("docs", schema=schema, embedding_functions=[config])
        made.table.add([{"id": i, "text": "a" * (i + 1)} for i in range(20)])
        made.index = lr.TantivyIndex.open(folder / "tantivy", table=made.table)
        made.index.sync()
        return made

    FULL_TEXT = (
        MatchQuery("w3 w11", "text"),
        PhraseQuery("w3 w11", "text"),
        BooleanQuery([(Occur.MUST, MatchQuery("w3 w11", "text")), (Occur.MUST_NOT, MatchQuery("w0", "text"))]),
    )

    @pytest.mark.parametrize("query", FULL_TEXT, ids=lambda query: type(query).__name__)
    async def test_of_lancedbs_full_text_queries_the_words_count(self, world, query):
        reranker = Wordy()
        found = world.hybrid(query).rerank(reranker).to_arrow()
        assert reranker.query == "w3 w11"
        assert found.equals(world.hybrid("w3 w11").rerank(Wordy()).to_arrow())
        assert found.equals(await (await world.hybrid_async(query)).rerank(Wordy()).to_arrow())

    async def test_a_tantivy_query_is_searched_as_it_is(self, world):
        query = tantivy.Query.all_query()
        found = world.hybrid(query).candidates(N).limit(2 * N).rerank(lr.RRFReranker(return_score="all")).to_arrow()
        assert found.num_rows == N
        assert found[arrow.SCORE].null_count == 0
        nothing = world.hybrid(tantivy.Query.empty_query()).select(["id"]).to_arrow()
        near = world.table.search(VECTOR).limit(10).to_arrow()["id"].to_pylist()
        assert nothing["id"].to_pylist() == near
        other = await (await world.hybrid_async(tantivy.Query.empty_query())).select(["id"]).to_arrow()
        assert nothing.equals(other)

    async def test_which_has_no_words_to_embed_or_to_rerank_by(self, world, embedded):
        query = tantivy.Query.all_query()
        with pytest.raises(QueryError, match=r"no words.*vector=.*\.text\("):
            lr.hybrid(embedded.table, query, lexical=embedded.index).to_arrow()
        with pytest.raises(QueryError, match=r"no words.*vector="):
            await lr.hybrid_async(await embedded.opened(), query, lexical=embedded.index)
        for reranker in (Wordy(), theirs.CrossEncoderReranker("none", column="text")):
            with pytest.raises(QueryError, match=r"by the words of the query, and a tantivy\.Query has none.*\.text\("):
                world.hybrid(query).rerank(reranker).to_arrow()
            with pytest.raises(QueryError, match=r"by the words of the query, and a tantivy\.Query has none.*\.text\("):
                await (await world.hybrid_async(query)).rerank(reranker).to_arrow()

    async def test_unless_text_gives_them(self, world, embedded):
        query = tantivy.Query.all_query()
        for search in (world.hybrid(query).text("of words"), world.hybrid("of words").text(query)):
            reranker = Wordy()
            found = search.rerank(reranker).candidates(N).to_arrow()
            assert reranker.query == "of words"
            assert len(reranker.texts_seen) == N
        other = (await world.hybrid_async(query)).text("of words").rerank(reranker).candidates(N)
        assert found.equals(await other.to_arrow())
        nearest = lr.hybrid(embedded.table, tantivy.Query.empty_query(), lexical=embedded.index).text("aaaa").limit(1)
        assert nearest.to_arrow()["id"].to_pylist() == [3]

    def test_text_alone(self, world, embedded):
        assert lr.hybrid(embedded.table, lexical=embedded.index).text("aaaa").limit(1).to_list()[0]["id"] == 3
        with pytest.raises(QueryError, match=r"needs words.*\.text\("):
            lr.hybrid(world.table, vector=VECTOR, lexical=world.index).to_arrow()

    async def test_of_an_async_search_with_words_there_is_no_other_text(self, world):
        with pytest.raises(ArgumentError, match="words of its own"):
            (await world.hybrid_async()).text("other")

    @pytest.mark.parametrize("query", ["", "  \n", MatchQuery("", "text")])
    async def test_an_empty_one_is_refused(self, world, query):
        with pytest.raises(QueryError, match="empty"):
            world.hybrid(query).to_arrow()
        with pytest.raises(QueryError, match="empty"):
            await world.hybrid_async(query)

    async def test_a_tantivy_query_without_an_index_for_it(self, world):
        with pytest.raises(QueryError, match="lexical="):
            lr.hybrid(world.table, tantivy.Query.all_query(), vector=VECTOR).to_arrow()
        with pytest.raises(QueryError, match="lexical="):
            await lr.hybrid_async(await world.opened(), tantivy.Query.all_query(), vector=VECTOR)

    def test_phrases_are_written_in_quotes(self, world):
        with pytest.raises(UnsupportedError, match="syntax=True"):
            world.hybrid().phrase_query().to_arrow()


class TestArgumentsThatDoNotGoTogether:
    async def test_columns_belong_to_the_index(self, world):
        for make in (world.hybrid, lambda **more: lr.Retriever(world.table, query_type="fts", **self.of(world, more))):
            with pytest.raises(ArgumentError, match=r"fts_columns='text'.*opened with.*column:word"):
                make(fts_columns="text")
        with pytest.raises(ArgumentError, match="fts_columns"):
            await world.hybrid_async(fts_columns=["text"])

    def of(self, world, more):
        return {"lexical": world.index, **more}

    @pytest.mark.parametrize("setting", [{"freshness": "scan"}, {"syntax": True}, {"fuzzy": 1}], ids=str)
    async def test_settings_of_an_index_need_one(self, world, setting):
        with pytest.raises(ArgumentError, match=f"{next(iter(setting))}=.*lexical="):
            lr.hybrid(world.table, QUERY, vector=VECTOR, **setting)
        with pytest.raises(ArgumentError, match="lexical="):
            await lr.hybrid_async(await world.opened(), QUERY, vector=VECTOR, **setting)
        with pytest.raises(ArgumentError, match="lexical="):
            lr.Retriever(world.table, query_type="fts", **setting)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [({"freshness": "old"}, "freshness must be one of error"), ({"fuzzy": 3}, "fuzzy must be 0, 1 or 2, got 3")],
    )
    def test_settings_have_their_values(self, world, setting, message):
        with pytest.raises(ArgumentError, match=message):
            world.hybrid(**setting)

    def test_an_index_is_an_index(self, world):
        with pytest.raises(ArgumentError, match=r"takes a lance_rerank\.TantivyIndex, got str"):
            lr.hybrid(world.table, QUERY, vector=VECTOR, lexical="docs.tantivy")

    async def test_of_the_table_that_is_searched(self, world, tmp_path):
        other = lancedb.connect(tmp_path).create_table("others", rows(3))
        with pytest.raises(ArgumentError, match=r"index of table 'docs'.*the search is of 'others'"):
            lr.hybrid(other, QUERY, vector=VECTOR, lexical=world.index)
        with pytest.raises(ArgumentError, match=r"index of table 'docs'.*the search is of 'others'"):
            lr.Retriever(other, query_type="fts", lexical=world.index)
        opened = await (await lancedb.connect_async(tmp_path)).open_table("others")
        with pytest.raises(ArgumentError, match=r"index of table 'docs'.*the search is of 'others'"):
            await lr.hybrid_async(opened, QUERY, vector=VECTOR, lexical=world.index)

    async def test_however_the_path_is_written(self, fresh, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        again = lancedb.connect("./db").open_table("docs")
        assert lr.hybrid(again, QUERY, vector=VECTOR, lexical=fresh.index).to_arrow().num_rows == 10
        opened = await (await lancedb.connect_async("./db")).open_table("docs")
        search = await lr.hybrid_async(opened, QUERY, vector=VECTOR, lexical=fresh.index)
        assert (await search.to_arrow()).num_rows == 10

    @pytest.mark.parametrize("query_type", ["vector", "multivector"])
    def test_a_retriever_without_a_full_text_leg(self, world, query_type):
        with pytest.raises(ArgumentError, match=f"query_type='hybrid' or 'fts', got '{query_type}'"):
            lr.Retriever(world.table, query_type=query_type, lexical=world.index)


class Encoder:
    dim, fingerprint = DIM, None

    def encode_queries(self, texts):
        return np.stack([VECTOR] * len(texts))

    encode_documents = encode_queries


class TestRetriever:
    def retriever(self, world, query_type="fts", **arguments):
        return lr.Retriever(world.table, query_type=query_type, lexical=world.index, encoder=Encoder(), **arguments)

    @pytest.mark.parametrize("where", [None, *FILTERS.values()])
    def test_full_text_hits_are_the_indexs_best(self, keyed, where):
        found = self.retriever(keyed, candidates=30, where=where, id_column=keyed.index.key).retrieve(QUERY, k=30)
        expected = keyed.brute(30, where)
        same_ranking([(hit.doc_id, hit.score) for hit in found], [(str(key), score) for key, score in expected])
        assert [hit.rank for hit in found] == list(range(1, len(expected) + 1))

    def test_hybrid_finds_what_the_builder_finds(self, world):
        for reranker in (None, Wordy(), lr.WeightedReranker(), theirs.RRFReranker()):
            hits = self.retriever(world, "hybrid", candidates=40, reranker=reranker).retrieve(QUERY, k=20)
            found = world.hybrid().candidates(40).rerank(reranker).limit(20).to_arrow()
            assert [int(hit.doc_id) for hit in hits] == found["id"].to_pylist()

    def test_rows_hold_what_is_selected_and_not_the_key(self, world):
        hit = self.retriever(world, id_column="name", select=["share"], reranker=Wordy()).retrieve(QUERY, k=1)[0]
        assert list(hit.row) == ["name", "share", "text"]

    def test_the_trace_calls_the_leg_fts(self, world):
        trace = self.retriever(world, "hybrid", candidates=20).trace(QUERY)
        assert {stage.name for stage in trace.stages} == {"encode", "vector", "fts", "search", "rerank"}
        ranks = [candidate.leg_ranks["fts"] for candidate in trace.candidates if "fts" in candidate.leg_ranks]
        assert sorted(ranks) == list(range(1, 21))

    def test_the_name_says_what_searches(self, world):
        assert self.retriever(world).name == "fts@100 by Tantivy"
        assert self.retriever(world, "hybrid", reranker=lr.RRFReranker()).name.startswith("hybrid@100 by Tantivy + RRF")

    async def test_other_ways_to_ask(self, world):
        recipe = self.retriever(world, "hybrid", reranker=Wordy())
        expected = recipe.retrieve(QUERY)
        assert recipe.retrieve_many([QUERY, "w7"])[0] == expected
        assert await recipe.aretrieve(QUERY) == expected
        assert recipe.with_reranker(None).with_reranker(Wordy()).retrieve(QUERY) == expected

    def test_a_tantivy_query(self, world):
        hits = self.retriever(world, candidates=N).retrieve(tantivy.Query.all_query(), k=N)
        assert len(hits) == N
        assert "AllQuery" in self.retriever(world).trace(tantivy.Query.all_query()).query
        assert self.retriever(world).retrieve_many([tantivy.Query.empty_query()]) == [[]]
        with pytest.raises(QueryError, match=r"a tantivy\.Query has none: search by a string"):
            self.retriever(world, reranker=Wordy()).retrieve(tantivy.Query.all_query())
        with pytest.raises(QueryError, match=r"no words to embed.*'hybrid'"):
            self.retriever(world, "hybrid").retrieve(tantivy.Query.all_query())
        with pytest.raises(QueryError, match="lexical="):
            lr.Retriever(world.table, query_type="fts").retrieve(tantivy.Query.all_query())

    def test_settings_reach_the_index(self, fresh):
        fresh.table.add(rows(1).set_column(0, "id", pa.array([9_999])).set_column(2, "text", pa.array(["zebra"])))
        assert self.retriever(fresh, freshness="warn").retrieve("zebra") == []
        assert [hit.doc_id for hit in self.retriever(fresh, freshness="scan").retrieve("zebra")] == ["9999"]
        assert [hit.doc_id for hit in self.retriever(fresh, freshness="sync", fuzzy=1).retrieve("zebre")] == ["9999"]
        assert self.retriever(fresh, syntax=True).retrieve("zebra -zebra") == []

    def test_an_empty_query_is_refused(self, world):
        with pytest.raises(QueryError, match="words in it"):
            self.retriever(world).retrieve(" ")


class TestRowIdsOfAnotherVersion:
    """The index knows rows by their places in the version it mirrors; in another one these may be other rows'."""

    @pytest.fixture
    def own(self, tmp_path):
        return World(tmp_path)

    def test_after_a_compaction(self, own):
        own.table.delete("id % 3 = 0")
        own.table.optimize()
        found = own.leg(50)
        assert list(zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True)) == own.brute(50)

    def test_after_the_table_was_written_anew_in_another_order(self, own):
        data = rows().take(np.random.default_rng(9).permutation(N))
        table = lancedb.connect(own.uri).create_table("docs", data, mode="overwrite")
        own.table.checkout_latest()
        found = own.leg(50)
        assert list(zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True)) == own.brute(50)
        texts_of = dict(zip(data["id"].to_pylist(), data["text"].to_pylist(), strict=True))
        assert found["text"].to_pylist() == [texts_of[key] for key in found["id"].to_pylist()]
        assert table.count_rows() == N

    def test_rows_updated_since_are_found_by_their_keys(self, own):
        own.table.update(where="id % 2 = 0", values={"share": 2.0})
        found = own.leg(50)
        assert list(zip(found["id"].to_pylist(), found["_score"].to_pylist(), strict=True)) == own.brute(50)
        assert {share == 2.0 for share in found["share"].to_pylist()} == {True, False}
