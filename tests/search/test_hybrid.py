"""`lance_rerank.hybrid` and `hybrid_async`: LanceDB's builder, but for how many rows a reranker sees."""

from __future__ import annotations

import asyncio
import threading
import time

import lancedb
import lancedb.rerankers as theirs
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.expr import col, lit
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector
from lancedb.query import BooleanQuery, BoostQuery, MatchQuery, MultiMatchQuery, Occur, PhraseQuery

import lance_rerank as lr
from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, ColumnError, MissingIndexError, QueryError, UnsupportedError

VECTOR = np.linspace(-1, 1, 8).astype(np.float32)
QUERY = "api keys"


class Shuffling(lr.BaseReranker):
    """Scores a text by a number that has nothing to do with the legs, and keeps what it saw."""

    def score_texts(self, query, texts):
        self.query, self.texts_seen = query, texts
        return [sum(map(ord, text)) * 7919 % 1009 for text in texts]


class Slow(lr.BaseReranker):
    """Half a second of thinking."""

    def score_texts(self, query, texts):
        time.sleep(0.5)
        return np.zeros(len(texts))


def search(table, query=QUERY, **arguments):
    return lr.hybrid(table, query, vector=VECTOR, **arguments)


@pytest.fixture
async def adocs(docs, tmp_path):
    return await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")


async def asearch(table, query=QUERY, **arguments):
    return await lr.hybrid_async(table, query, vector=VECTOR, **arguments)


def ids(rows):
    return rows["id"].to_pylist()


RERANKERS = [
    lambda: None,
    Shuffling,
    lambda: Shuffling(top_n=3),
    lambda: lr.RRFReranker(top_n=1),
    lambda: Shuffling(return_score="all"),
    theirs.RRFReranker,
    theirs.LinearCombinationReranker,
]
any_reranker = pytest.mark.parametrize(
    "make", RERANKERS, ids=["default", "text", "text-top-3", "rrf-top-1", "all-scores", "lancedb-rrf", "lancedb-linear"]
)


class TestPages:
    @any_reranker
    def test_two_pages_of_ten_are_the_first_twenty(self, docs, make):
        def page(limit, offset):
            return ids(search(docs).rerank(make()).limit(limit).offset(offset).to_arrow())

        assert page(10, 0) + page(10, 10) == page(20, 0)
        assert page(7, 3) == page(20, 0)[3:10]

    @any_reranker
    async def test_async_too(self, adocs, make):
        async def page(limit, offset):
            return ids(await (await asearch(adocs)).rerank(make()).limit(limit).offset(offset).to_arrow())

        assert await page(10, 0) + await page(10, 10) == await page(20, 0)
        assert await page(7, 3) == (await page(20, 0))[3:10]

    @any_reranker
    async def test_sync_and_async_agree(self, docs, adocs, make):
        one = search(docs).rerank(make()).limit(30).to_arrow()
        other = await (await asearch(adocs)).rerank(make()).limit(30).to_arrow()
        assert one.equals(other)

    @any_reranker
    def test_no_row_comes_twice(self, docs, make):
        rows = ids(search(docs).rerank(make()).limit(240).to_arrow())
        assert len(set(rows)) == len(rows)

    def test_past_the_end_there_is_nothing(self, docs):
        rows = search(docs).rerank(Shuffling()).limit(10).offset(1000).to_arrow()
        assert rows.num_rows == 0
        assert arrow.RELEVANCE in rows.column_names

    def test_a_page_beyond_the_candidates_fetches_as_many_as_it_needs(self, docs):
        rows = search(docs).candidates(5).limit(30).offset(20).to_arrow()
        assert rows.num_rows == 30

    def test_ten_rows_are_returned_unless_told_otherwise(self, docs):
        assert search(docs).to_arrow().num_rows == 10
        assert search(docs).limit(None).to_arrow().num_rows == 10


class TestCandidates:
    def leg_ids(self, docs, n):
        vector = docs.search(VECTOR).limit(n).to_arrow()
        words = docs.search(QUERY, query_type="fts").limit(n).to_arrow()
        return set(ids(vector)) | set(ids(words))

    @pytest.mark.parametrize("n", [5, 40, 100])
    def test_the_reranker_sees_the_union_of_both_legs(self, docs, n):
        reranker = Shuffling()
        search(docs).candidates(n).rerank(reranker).limit(2).to_arrow()
        seen = {int(text.rsplit(" ", 1)[1]) for text in reranker.texts_seen}
        assert seen == self.leg_ids(docs, n)
        assert len(reranker.texts_seen) == len(seen)

    def test_one_hundred_a_leg_by_default(self, docs):
        reranker = Shuffling()
        search(docs).rerank(reranker).limit(2).to_arrow()
        assert len(reranker.texts_seen) == len(self.leg_ids(docs, 100)) > 100

    async def test_async_too(self, docs, adocs):
        reranker = Shuffling()
        await (await asearch(adocs)).candidates(40).rerank(reranker).limit(2).to_arrow()
        assert {int(text.rsplit(" ", 1)[1]) for text in reranker.texts_seen} == self.leg_ids(docs, 40)

    def test_more_than_the_table_has_are_all_of_it(self, docs):
        reranker = Shuffling()
        rows = search(docs).candidates(100_000).rerank(reranker).limit(3).to_arrow()
        assert len(reranker.texts_seen) == 240
        assert rows.num_rows == 3

    def test_a_better_row_than_the_first_leg_rows_is_found(self, docs):
        best = search(docs).candidates(240).rerank(Shuffling()).limit(1).to_arrow()
        few = search(docs).candidates(1).rerank(Shuffling()).limit(1).to_arrow()
        assert best[arrow.RELEVANCE][0].as_py() > few[arrow.RELEVANCE][0].as_py()

    @pytest.mark.parametrize("n", [0, -1, 1.5, True, "10", None])
    def test_are_a_whole_number_of_at_least_one(self, docs, n):
        with pytest.raises(ArgumentError, match="candidates must be at least 1"):
            search(docs).candidates(n)


class TestRerankersOfLanceDB:
    FOREIGN = (
        theirs.RRFReranker(),
        theirs.RRFReranker(K=3, return_score="all"),
        theirs.MRRReranker(),
        theirs.LinearCombinationReranker(),
        theirs.LinearCombinationReranker(weight=0.3, return_score="all"),
    )

    def stock(self, docs):
        return docs.search(query_type="hybrid").vector(VECTOR).text(QUERY)

    @pytest.mark.parametrize("reranker", FOREIGN, ids=str)
    @pytest.mark.parametrize("normalize", ["score", "rank"])
    def test_give_lancedbs_own_result_where_candidates_equal_the_limit(self, docs, reranker, normalize):
        mine = search(docs).candidates(25).rerank(reranker, normalize=normalize).limit(25).to_arrow()
        expected = self.stock(docs).rerank(reranker, normalize=normalize).limit(25).to_arrow()
        assert mine.equals(expected)

    async def test_async_too(self, docs, adocs):
        for reranker in self.FOREIGN:
            mine = await (await asearch(adocs)).candidates(25).rerank(reranker).limit(25).to_arrow()
            stock = adocs.query().nearest_to(VECTOR).nearest_to_text(QUERY).limit(25)
            assert mine.equals(await stock.rerank(reranker).to_arrow())

    def test_the_default_is_lancedbs_default(self, docs):
        mine = search(docs).candidates(25).limit(25).to_arrow()
        expected = self.stock(docs).limit(25).to_arrow()
        assert ids(mine) == ids(expected)
        assert mine[arrow.RELEVANCE].equals(expected[arrow.RELEVANCE])

    def test_the_text_column_is_fetched_for_them_too(self, docs, tiny_cross_encoder):
        reranker = theirs.CrossEncoderReranker(tiny_cross_encoder, device="cpu")
        slim = search(docs).candidates(8).select(["id"]).rerank(reranker).limit(8).to_arrow()
        full = search(docs).candidates(8).rerank(reranker).limit(8).to_arrow()
        assert slim.column_names == ["id", arrow.RELEVANCE]
        assert ids(slim) == ids(full)

    def test_what_is_no_reranker_is_refused(self, docs):
        with pytest.raises(ValueError, match="Reranker"):
            search(docs).rerank("rrf")


class TestWhere:
    @any_reranker
    def test_only_rows_that_match(self, docs, make):
        rows = search(docs).where("lang = 'de'").rerank(make()).limit(50).to_arrow()
        assert rows.num_rows == 50
        assert set(rows["lang"].to_pylist()) == {"de"}

    def test_filters_before_the_search_by_default(self, docs):
        assert ids(search(docs).where("id = 17").to_arrow()) == [17]

    def test_or_after_it(self, docs):
        after = search(docs).candidates(20).where("lang = 'de'", prefilter=False).limit(40).to_arrow()
        assert set(after["lang"].to_pylist()) == {"de"}
        assert after.num_rows < 40

    def test_a_filter_that_matches_nothing(self, docs):
        rows = search(docs).where("id > 1000").rerank(Shuffling()).to_arrow()
        assert rows.num_rows == 0
        assert rows.column_names == ["id", "text", "lang", "vector", arrow.RELEVANCE]
        foreign = search(docs).where("id > 1000").rerank(theirs.RRFReranker()).to_arrow()
        assert foreign.num_rows == 0

    async def test_async_too(self, adocs):
        rows = await (await asearch(adocs)).where("lang = 'de'").limit(50).to_arrow()
        assert set(rows["lang"].to_pylist()) == {"de"}
        nothing = await (await asearch(adocs)).where("id > 1000").rerank(Shuffling()).to_arrow()
        assert nothing.num_rows == 0

    def test_distance_range_cuts_the_vector_leg(self, docs):
        nearest = docs.search(VECTOR).limit(3).to_arrow()["_distance"].to_pylist()
        rows = search(docs, "zebra").distance_range(upper_bound=nearest[2]).limit(50).to_arrow()
        assert rows.num_rows == 2, "no text has a zebra, and the bound itself is left out"

    async def test_async_filters_after_the_search_and_by_distance_too(self, docs, adocs):
        after = (await asearch(adocs)).candidates(20).where("lang = 'de'").postfilter().limit(40)
        before = search(docs).candidates(20).where("lang = 'de'", prefilter=False).limit(40)
        assert ids(await after.to_arrow()) == ids(before.to_arrow())
        near = (await asearch(adocs, "zebra")).distance_range(upper_bound=3.2).limit(50)
        assert ids(await near.to_arrow()) == ids(search(docs, "zebra").distance_range(upper_bound=3.2).to_arrow())

    def test_an_empty_table(self, db):
        schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 8))])
        table = db.create_table("empty", schema=schema)
        table.create_index("text", config=FTS())
        assert search(table).rerank(Shuffling()).to_arrow().num_rows == 0


class TestSelect:
    @any_reranker
    @pytest.mark.parametrize("columns", [["id"], ["lang", "id"], ["text", "id"], ["id", "vector"]])
    async def test_only_these_columns_come_out(self, docs, adocs, make, columns):
        scores = {"_distance", "_score", "_rowid"} if getattr(make(), "return_score", "") == "all" else set()
        rows = search(docs).select(columns).rerank(make()).to_arrow()
        assert [name for name in rows.column_names if name not in scores] == [*columns, arrow.RELEVANCE]
        rows = await (await asearch(adocs)).select(columns).rerank(make()).to_arrow()
        assert [name for name in rows.column_names if name not in scores] == [*columns, arrow.RELEVANCE]

    @pytest.mark.parametrize("make", [Shuffling, theirs.RRFReranker])
    async def test_or_these_expressions(self, docs, adocs, make):
        expressions = {"twice": "id * 2", "shout": "upper(lang)"}
        rows = search(docs).select(expressions).rerank(make()).to_arrow()
        assert rows.column_names == ["twice", "shout", arrow.RELEVANCE]
        assert set(rows["shout"].to_pylist()) <= {"EN", "DE"}
        other = await (await asearch(adocs)).select(expressions).rerank(make()).to_arrow()
        assert other.equals(rows)

    @pytest.mark.parametrize("make", [Shuffling, theirs.RRFReranker])
    async def test_or_expressions_made_of_columns(self, docs, adocs, make):
        typed, written = {"twice": col("id") * lit(2)}, {"twice": "id * 2"}
        rows = search(docs).select(typed).rerank(make()).to_arrow()
        assert rows.equals(search(docs).select(written).rerank(make()).to_arrow())
        assert rows.equals(await (await asearch(adocs)).select(typed).rerank(make()).to_arrow())

    def test_an_expression_may_stand_for_the_rerankers_text(self, docs):
        reranker = Shuffling()
        rows = search(docs).select({"id": "id", "text": "upper(text)"}).rerank(reranker).to_arrow()
        assert all(text == text.upper() for text in reranker.texts_seen)
        assert rows.column_names == ["id", "text", arrow.RELEVANCE]

    def test_the_order_of_calls_does_not_matter(self, docs):
        one = search(docs).select(["id"]).limit(5).rerank(Shuffling()).where("lang = 'en'").to_arrow()
        other = search(docs).where("lang = 'en'").rerank(Shuffling()).limit(5).select(["id"]).to_arrow()
        assert one.equals(other)

    def test_a_text_column_that_the_table_lacks_is_an_error(self, docs):
        with pytest.raises(ColumnError, match="'body' is not in the search results"):
            search(docs).select(["id"]).rerank(Shuffling(column="body")).to_arrow()


class TestScoresAndRowIds:
    def test_relevance_alone_by_default(self, docs):
        assert search(docs).rerank(Shuffling()).to_arrow().column_names[-2:] == ["vector", arrow.RELEVANCE]

    async def test_all_scores_are_the_legs_own(self, docs, adocs):
        distances = docs.search(VECTOR).limit(100).to_arrow()
        distances = dict(zip(ids(distances), distances["_distance"].to_pylist(), strict=True))
        words = docs.search(QUERY, query_type="fts").limit(100).to_arrow()
        words = dict(zip(ids(words), words["_score"].to_pylist(), strict=True))
        for normalize in ("score", "rank"):
            reranker = Shuffling(return_score="all")
            rows = search(docs).rerank(reranker, normalize=normalize).limit(100).to_arrow()
            for row in rows.to_pylist():
                assert row["_distance"] == distances.get(row["id"])
                assert row["_score"] == words.get(row["id"])
                assert row["_rowid"] is not None
            other = await (await asearch(adocs)).rerank(reranker, normalize=normalize).limit(100).to_arrow()
            assert other.equals(rows)

    async def test_row_ids_when_asked_for(self, docs, adocs):
        rows = search(docs).with_row_id(True).rerank(Shuffling()).to_arrow()
        other = await (await asearch(adocs)).with_row_id().rerank(Shuffling()).to_arrow()
        assert rows["_rowid"].to_pylist() == ids(rows), "this table has one fragment"
        assert other["_rowid"].to_pylist() == ids(other)

    def test_ours_see_raw_scores_or_ranks(self, docs):
        class Seeing(lr.BaseReranker):
            def score_candidates(self, query, candidates):
                self.distances = arrow.score_column(candidates.rows, "_distance")
                return np.zeros(candidates.n_rows)

        raw, ranks = Seeing(), Seeing()
        search(docs).candidates(5).rerank(raw).limit(5).to_arrow()
        search(docs).candidates(5).rerank(ranks, normalize="rank").limit(5).to_arrow()
        assert raw.distances[:5].tolist() == docs.search(VECTOR).limit(5).to_arrow()["_distance"].to_pylist()
        assert ranks.distances[:5].tolist() == [1, 2, 3, 4, 5]

    def test_an_unknown_normalisation_is_refused(self, docs):
        with pytest.raises(ValueError, match="normalize"):
            search(docs).rerank(Shuffling(), normalize="softmax")


class TestTokenColumns:
    @pytest.fixture
    def tokens(self, docs):
        field = pa.field("colbert", pa.list_(pa.fixed_shape_tensor(pa.float16(), [4])))
        docs.add_columns(field)
        return docs

    async def test_are_left_out_unless_selected(self, tokens, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        columns = ["id", "text", "lang", "vector", arrow.RELEVANCE]
        for reranker in (Shuffling(), theirs.RRFReranker()):
            assert search(tokens).rerank(reranker).to_arrow().column_names == columns
            assert (await (await asearch(opened)).rerank(reranker).to_arrow()).column_names == columns

    def test_and_come_out_when_selected(self, tokens):
        rows = search(tokens).select(["id", "colbert"]).rerank(Shuffling()).to_arrow()
        assert rows.column_names == ["id", "colbert", arrow.RELEVANCE]
        assert rows.schema.field("colbert").type == tokens.schema.field("colbert").type


class TestOutputs:
    def test_pandas_lists_and_arrow_say_the_same(self, docs):
        def built():
            return search(docs).select(["id", "text"]).rerank(Shuffling()).limit(5)

        expected = built().to_arrow().to_pylist()
        assert built().to_list() == expected
        assert built().to_pandas().to_dict("records") == expected

    def test_pydantic_models(self, docs):
        class Doc(LanceModel):
            id: int
            text: str
            lang: str
            vector: Vector(8)

        found = search(docs).rerank(Shuffling()).limit(4).to_pydantic(Doc)
        assert [doc.id for doc in found] == ids(search(docs).rerank(Shuffling()).limit(4).to_arrow())

    async def test_async_pandas_and_lists(self, adocs):
        async def built():
            return (await asearch(adocs)).select(["id", "text"]).rerank(Shuffling()).limit(5)

        expected = (await (await built()).to_arrow()).to_pylist()
        assert await (await built()).to_list() == expected
        assert (await (await built()).to_pandas()).to_dict("records") == expected

    async def test_plans_are_those_of_the_legs_that_run(self, docs, adocs):
        plan = search(docs).candidates(77).rerank(Shuffling()).limit(5).explain_plan()
        other = await (await asearch(adocs)).candidates(77).rerank(Shuffling()).limit(5).explain_plan()
        for text in (plan, other):
            assert text.startswith("Shuffling")
            assert "fetch=77" in text
            assert "MatchQuery" in text
        assert "fetch=77" in search(docs).candidates(77).analyze_plan().replace("k=77", "fetch=77")

    def test_a_builder_can_be_run_twice(self, docs):
        built = search(docs).select(["id"]).rerank(Shuffling())
        assert built.to_arrow().equals(built.to_arrow())


@register("by-letters")
class ByLetters(TextEmbeddingFunction):
    """A text's vector is (letters, words); each call is kept."""

    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        EMBEDDED.extend(texts)
        return [[float(len(text)), float(len(text.split()))] for text in texts]


EMBEDDED: list[str] = []


@pytest.fixture
def embedded(db):
    """A table whose vectors come from its own embedding function."""
    config = EmbeddingFunctionConfig(
        source_column="text", vector_column="vector", function=get_registry().get("by-letters").create()
    )
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 2))])
    table = db.create_table("embedded", schema=schema, embedding_functions=[config])
    table.add([{"id": i, "text": "a" * (i + 1)} for i in range(20)])
    table.create_index("text", config=FTS())
    EMBEDDED.clear()
    return table


class TestTheTablesOwnEmbeddingFunction:
    def test_embeds_the_query(self, embedded):
        assert ids(lr.hybrid(embedded, "bbbb").limit(1).to_arrow()) == [3]
        assert EMBEDDED == ["bbbb"]

    def test_is_not_asked_when_the_vector_is_given(self, embedded):
        assert ids(lr.hybrid(embedded, "zzz", vector=[6, 1]).limit(1).to_arrow()) == [5]
        assert EMBEDDED == []

    def test_embeds_the_text_that_is_given_later(self, embedded):
        assert ids(lr.hybrid(embedded).text("bbbb").limit(1).to_arrow()) == [3]

    def test_embeds_the_words_of_a_full_text_query(self, embedded):
        assert ids(lr.hybrid(embedded, MatchQuery("bbbb", "text")).limit(1).to_arrow()) == [3]

    async def test_async_too(self, embedded, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("embedded")
        for query in ("bbbb", MatchQuery("bbbb", "text")):
            assert ids(await (await lr.hybrid_async(opened, query)).limit(1).to_arrow()) == [3]

    def test_with_a_vector_given_later(self, embedded):
        assert ids(lr.hybrid(embedded).text("zzz").vector([6.0, 1.0]).limit(1).to_arrow()) == [5]


class TestTheQuery:
    FULL_TEXT = (
        MatchQuery("api keys", "text"),
        PhraseQuery("api keys", "text"),
        MultiMatchQuery("api keys", ["text"]),
        BoostQuery(MatchQuery("api keys", "text"), MatchQuery("cat", "text")),
        MatchQuery("api", "text") & MatchQuery("keys", "text"),
        BooleanQuery([(Occur.MUST, MatchQuery("api keys", "text")), (Occur.MUST_NOT, MatchQuery("cat", "text"))]),
    )

    @pytest.mark.parametrize("query", FULL_TEXT, ids=lambda query: type(query).__name__)
    async def test_a_full_text_query_reaches_the_reranker_in_words(self, db, docs, adocs, query):
        docs.create_index("text", config=FTS(with_position=True), replace=True)
        await adocs.checkout_latest()
        one, other = Shuffling(), Shuffling()
        rows = search(docs, query).rerank(one).to_arrow()
        assert one.query == "api keys"
        assert (await (await asearch(adocs, query)).rerank(other).to_arrow()).equals(rows)
        assert other.query == "api keys"

    def test_a_phrase(self, docs):
        docs.create_index("text", config=FTS(with_position=True, remove_stop_words=False), replace=True)
        reranker = Shuffling(return_score="all")
        rows = search(docs, "dog the cat").phrase_query().rerank(reranker).to_arrow()
        assert rows["_score"].null_count == rows.num_rows, "the texts say: the cat and the dog"
        rows = search(docs, "the cat and").phrase_query().rerank(reranker).limit(200).to_arrow()
        phrased = [row["text"] for row in rows.to_pylist() if row["_score"] is not None]
        assert len(phrased) == 30
        assert all("the cat and" in text for text in phrased)
        assert reranker.query == "the cat and"

    @pytest.mark.parametrize("query", ["", "  \n", MatchQuery("", "text")])
    async def test_an_empty_one_is_refused(self, docs, adocs, query):
        with pytest.raises(QueryError, match="empty"):
            search(docs, query).to_arrow()
        with pytest.raises(QueryError, match="empty"):
            await asearch(adocs, query)

    def test_none_at_all_is_refused(self, docs):
        with pytest.raises(QueryError, match=r"needs words.*\.text\("):
            lr.hybrid(docs, vector=VECTOR).to_arrow()

    @pytest.mark.parametrize("query", [5, ["api"], b"api"])
    async def test_what_is_no_text_is_refused(self, docs, adocs, query):
        with pytest.raises(QueryError, match=type(query).__name__):
            search(docs, query).to_arrow()
        with pytest.raises(QueryError, match=type(query).__name__):
            await asearch(adocs, query)

    @any_reranker
    @pytest.mark.parametrize("query", ["?!", "the", "zebra", "'; DROP TABLE docs; --", "مفاتيح", "x" * 10_000])
    async def test_words_that_no_row_has_leave_the_vector_leg(self, docs, adocs, make, query):
        nearest = set(ids(docs.search(VECTOR).limit(100).to_arrow()))
        rows = search(docs, query).rerank(make()).limit(100).to_arrow()
        assert set(ids(rows)) == nearest
        other = await (await asearch(adocs, query)).rerank(make()).limit(100).to_arrow()
        assert ids(other) == ids(rows)

    def test_one_full_text_column_of_several(self, db):
        rows = [{"id": i, "title": "cat" if i == 3 else "x", "text": "cat" if i == 5 else "y"} for i in range(9)]
        table = db.create_table("two", [{**row, "vector": np.ones(8, np.float32)} for row in rows])
        for column in ("title", "text"):
            table.create_index(column, config=FTS())
        for columns, expected in (("title", {3}), (["text"], {5}), (None, {3, 5})):
            found = search(table, "cat", fts_columns=columns).rerank(lr.RRFReranker(return_score="all")).to_arrow()
            scored = {row["id"] for row in found.to_pylist() if row["_score"] is not None}
            assert scored == expected, columns


def vectors(rows):
    return pa.array([list(map(float, row)) for row in rows], pa.list_(pa.float32(), len(rows[0])))


def indexed(db, **columns):
    table = db.create_table("made", pa.table(columns))
    table.create_index("text", config=FTS())
    return table


class TestTheVectorColumn:
    @pytest.fixture
    def two(self, db):
        return indexed(
            db,
            id=range(10),
            text=["cat"] * 10,
            a=vectors([[i] * 8 for i in range(10)]),
            b=vectors([[9 - i] * 8 for i in range(10)]),
        )

    async def test_of_several_one_has_to_be_named(self, two, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("made")
        with pytest.raises(ColumnError, match=r"\(a, b\).*vector_column_name='a'"):
            search(two)
        with pytest.raises(ColumnError, match=r"\(a, b\).*vector_column_name='a'"):
            await asearch(opened)

    def test_the_named_one_is_searched(self, two):
        zeros = np.zeros(8)
        for column, expected in (("a", 0), ("b", 9)):
            built = lr.hybrid(two, "zebra", vector=zeros, vector_column_name=column)
            assert ids(built.limit(1).to_arrow()) == [expected]

    def test_the_dimension_may_decide(self, db):
        table = indexed(db, text=["cat"], a=vectors([[1] * 8]), b=vectors([[1] * 4]))
        assert lr.hybrid(table, "cat", vector=np.ones(4)).to_arrow().num_rows == 1
        with pytest.raises(ColumnError, match="no vector column of 3 dimensions"):
            lr.hybrid(table, "cat", vector=np.ones(3))

    async def test_a_vector_of_another_dimension_is_an_error_that_says_both(self, docs, adocs):
        message = r"'vector' holds vectors of 8 dimensions and the query's has 3"
        with pytest.raises(ColumnError, match=message):
            lr.hybrid(docs, QUERY, vector=np.ones(3), vector_column_name="vector").to_arrow()
        with pytest.raises(ColumnError, match=message):
            await (await lr.hybrid_async(adocs, QUERY, vector=np.ones(3), vector_column_name="vector")).to_arrow()

    def test_a_name_that_is_none_is_refused(self, docs):
        with pytest.raises(ColumnError, match=r"no column 'embedding'; its vector columns are: vector"):
            search(docs, vector_column_name="embedding")
        with pytest.raises(ColumnError, match="'text' is no vector column but string"):
            search(docs, vector_column_name="text")

    def test_without_a_vector_and_without_an_embedding_function(self, docs):
        with pytest.raises(ColumnError, match=r"no embedding function.*vector="):
            lr.hybrid(docs, QUERY)
        with pytest.raises(ColumnError, match=r"no embedding function.*vector="):
            lr.hybrid(docs).text(QUERY).to_arrow()

    @pytest.mark.parametrize("vector", [3, np.zeros((2, 2, 8))])
    async def test_what_has_no_dimensions_of_a_vector_is_refused(self, docs, adocs, vector):
        with pytest.raises(ArgumentError, match="vector has the shape"):
            lr.hybrid(docs, QUERY, vector=vector)
        with pytest.raises(ArgumentError, match="vector has the shape"):
            await lr.hybrid_async(adocs, QUERY, vector=vector)

    async def test_a_multivector_column(self, db, tmp_path):
        rng = np.random.default_rng(0)
        tokens = [[rng.standard_normal(4).astype(np.float32).tolist() for _ in range(1 + i % 3)] for i in range(20)]
        table = db.create_table(
            "mv",
            pa.table(
                {
                    "id": range(20),
                    "text": [f"cat {i}" for i in range(20)],
                    "tokens": pa.array(tokens, pa.list_(pa.list_(pa.float32(), 4))),
                }
            ),
        )
        table.create_index("text", config=FTS())
        query = np.array(tokens[7], np.float32)
        rows = lr.hybrid(table, "zebra", vector=query).metric("cosine").limit(5).to_arrow()
        assert 7 in ids(rows)
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("mv")
        other = (await lr.hybrid_async(opened, "zebra", vector=query)).distance_type("cosine").limit(5)
        assert ids(await other.to_arrow()) == ids(rows)


class TestWhatCannotBeSearched:
    async def test_a_table_without_a_full_text_index(self, db, docs, tmp_path):
        table = db.create_table("plain", docs.to_arrow())
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("plain")
        with pytest.raises(MissingIndexError, match="create_index"):
            search(table).to_arrow()
        with pytest.raises(MissingIndexError, match="create_index"):
            await (await asearch(opened)).to_arrow()

    async def test_the_other_kind_of_table(self, docs, adocs):
        with pytest.raises(UnsupportedError, match="hybrid_async"):
            search(adocs)
        with pytest.raises(ArgumentError, match=r"hybrid_async.*LanceTable.*lance_rerank\.hybrid"):
            await asearch(docs)

    def test_no_table_at_all(self):
        with pytest.raises(ArgumentError, match="takes a LanceDB table, got str"):
            search("docs")


class TestTheEventLoop:
    async def ticking(self, work):
        """Run the work beside a ticker of 10 ms; return its seconds and the ticker's longest stall."""
        stalls, done = [], asyncio.Event()

        async def ticker():
            last = time.perf_counter()
            while not done.is_set():
                await asyncio.sleep(0.01)
                now = time.perf_counter()
                stalls.append(now - last - 0.01)
                last = now

        ticks = asyncio.create_task(ticker())
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        await work
        seconds = time.perf_counter() - start
        done.set()
        await ticks
        return seconds, max(stalls)

    async def meets(self, make, seconds=10.0, stall=10.0):
        """Run up to three times: a busy machine may stall anything once, a blocked loop stalls every time."""
        runs = []
        for _ in range(3):
            runs.append(await self.ticking(make()))
            if runs[-1][0] < seconds and runs[-1][1] < stall:
                return
        pytest.fail(f"(seconds, longest stall) of each run: {runs}")

    async def test_is_free_while_a_slow_reranker_works(self, adocs):
        async def one():
            await (await asearch(adocs)).rerank(Slow()).to_arrow()

        await self.meets(one, stall=0.05)

    async def test_four_queries_wait_together(self, adocs):
        async def one():
            await (await asearch(adocs)).rerank(Slow()).to_arrow()

        async def four():
            await asyncio.gather(*(one() for _ in range(4)))

        await self.meets(four, seconds=0.8)

    async def test_foreign_rerankers_run_off_it_too(self, adocs):
        class Where(theirs.RRFReranker):
            def rerank_hybrid(self, *legs):
                self.thread = threading.current_thread()
                return super().rerank_hybrid(*legs)

        reranker = Where()
        await (await asearch(adocs)).rerank(reranker).to_arrow()
        assert reranker.thread is not threading.current_thread()

    async def test_embedding_the_query_runs_off_it(self, embedded, tmp_path, monkeypatch):
        threads = []
        embed = ByLetters.generate_embeddings
        monkeypatch.setattr(
            ByLetters,
            "generate_embeddings",
            lambda self, texts: (threads.append(threading.current_thread()), embed(self, texts))[1],
        )
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("embedded")
        await (await lr.hybrid_async(opened, "bbb")).to_arrow()
        assert threads
        assert threading.current_thread() not in threads
