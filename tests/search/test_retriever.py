from __future__ import annotations

import asyncio
import time

import lancedb
import lancedb.rerankers as theirs
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS, IvfFlat

import lance_rerank as lr
from lance_rerank.errors import (
    ArgumentError,
    ColumnError,
    MissingIndexError,
    ModelError,
    QueryError,
    UnsupportedError,
)

QUERY = "api keys"


class Letters:
    """An encoder a person can follow: how often each of the letters a to h comes in a text."""

    dim = 8
    fingerprint = None

    def __init__(self):
        self.calls = []

    def encode_queries(self, texts):
        self.calls.append(list(texts))
        return self.encode_documents(texts)

    def encode_documents(self, texts):
        return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)


class Shortest(lr.BaseReranker):
    def score_texts(self, query, texts):
        self.n = len(texts)
        return [-len(text) for text in texts]


class Slow(lr.BaseReranker):
    def score_texts(self, query, texts):
        time.sleep(0.3)
        return np.zeros(len(texts))


@pytest.fixture
def encoder():
    return Letters()


def retriever(table, encoder=None, **arguments):
    return lr.Retriever(table, encoder=encoder or Letters(), **arguments)


def doc_ids(hits):
    return [hit.doc_id for hit in hits]


def ids(rows):
    return [str(i) for i in rows["id"].to_pylist()]


class TestOneLeg:
    def test_vector_hits_are_lancedbs_nearest(self, docs, encoder):
        hits = retriever(docs, encoder, query_type="vector").retrieve(QUERY, k=7)
        expected = docs.search(encoder.encode_queries([QUERY])[0]).limit(7).to_arrow()
        assert doc_ids(hits) == ids(expected)
        assert [hit.score for hit in hits] == [-d for d in expected["_distance"].to_pylist()]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6, 7]

    def test_full_text_hits_are_lancedbs_best(self, docs):
        hits = lr.Retriever(docs, query_type="fts", candidates=7).retrieve(QUERY, k=7)
        expected = docs.search(QUERY, query_type="fts").limit(7).to_arrow()
        assert doc_ids(hits) == ids(expected)
        assert [hit.score for hit in hits] == expected["_score"].to_pylist()

    def test_full_text_needs_no_vector_column(self, db):
        table = db.create_table("words", [{"id": "a", "text": "cat"}, {"id": "b", "text": "dog"}])
        table.create_index("text", config=FTS())
        assert doc_ids(lr.Retriever(table, query_type="fts").retrieve("cat")) == ["a"]

    def test_one_full_text_column_of_several(self, db):
        table = db.create_table("two", [{"id": 1, "title": "cat", "text": "x"}, {"id": 2, "title": "y", "text": "cat"}])
        for column in ("title", "text"):
            table.create_index(column, config=FTS())
        for columns, expected in (("title", {"1"}), (["text"], {"2"}), (None, {"1", "2"})):
            hits = lr.Retriever(table, query_type="fts", fts_columns=columns).retrieve("cat")
            assert set(doc_ids(hits)) == expected


class TestHybrid:
    def test_legs_are_fused_by_reciprocal_rank(self, docs, encoder):
        hits = retriever(docs, encoder, candidates=30).retrieve(QUERY, k=30)
        stock = docs.search(query_type="hybrid").vector(encoder.encode_queries([QUERY])[0]).text(QUERY).limit(30)
        expected = stock.rerank(theirs.RRFReranker()).to_arrow()
        assert doc_ids(hits) == ids(expected)
        assert [hit.score for hit in hits] == expected["_relevance_score"].to_pylist()

    def test_it_finds_what_our_builder_finds(self, docs, encoder):
        vector = encoder.encode_queries([QUERY])[0]
        for reranker in (Shortest(), Shortest(top_n=2), lr.LinearCombinationReranker(), lr.WeightedReranker()):
            hits = retriever(docs, encoder, candidates=40, reranker=reranker).retrieve(QUERY, k=20)
            built = lr.hybrid(docs, QUERY, vector=vector).candidates(40).rerank(reranker).limit(20)
            assert doc_ids(hits) == ids(built.to_arrow())

    def test_the_reranker_sees_every_candidate(self, docs):
        reranker = Shortest()
        trace = retriever(docs, candidates=30, reranker=reranker).trace(QUERY, k=3)
        assert reranker.n == len(trace.candidates) > 30
        assert len(trace.hits) == 3


class TestExact:
    @pytest.mark.parametrize("distance", ["l2", "cosine"])
    def test_it_passes_an_index_by_and_measures_as_the_index_does(self, db, distance):
        """One partition of sixteen has some of the nearest; by another distance others are the nearest."""
        rng = np.random.default_rng(5)
        vectors = (rng.standard_normal((600, 8)) * rng.uniform(0.5, 2, (600, 1))).astype(np.float32)
        table = db.create_table("far", [{"id": i, "vector": vector} for i, vector in enumerate(vectors)])
        table.create_index("vector", config=IvfFlat(distance_type=distance, num_partitions=16))
        query = Letters().encode_queries([QUERY])[0]
        lengths = np.linalg.norm(vectors, axis=1) if distance == "cosine" else 1
        near = -vectors @ query / lengths if distance == "cosine" else ((vectors - query) ** 2).sum(axis=1)
        expected = {str(i) for i in np.argsort(near)[:100]}
        one = retriever(table, query_type="vector", nprobes=1)
        assert set(doc_ids(one.retrieve(QUERY, k=100))) != expected
        assert set(doc_ids(one.adjusted(exact=True).retrieve(QUERY, k=100))) == expected

    def test_without_an_index_it_changes_nothing(self, docs):
        for query_type in ("vector", "hybrid", "fts"):
            plain = retriever(docs, query_type=query_type, candidates=30)
            assert plain.adjusted(exact=True).retrieve(QUERY) == plain.retrieve(QUERY)


class TestSeveralVectorColumns:
    @pytest.fixture
    def two(self, db):
        def column(values):
            return pa.array([[float(v)] * 8 for v in values], pa.list_(pa.float32(), 8))

        table = pa.table({"id": range(6), "text": [f"cat {i}" for i in range(6)], "a": column([0, 9, 9, 9, 1, 9])})
        made = db.create_table("two", table.append_column("b", column([9, 0, 9, 1, 9, 9])))
        made.create_index("text", config=FTS())
        return made

    class Zeros(Letters):
        def encode_documents(self, texts):
            return np.zeros((len(texts), 8), np.float32)

    def test_have_to_be_named(self, two):
        with pytest.raises(ColumnError, match=r"\(a, b\)"):
            retriever(two)

    def test_each_is_a_leg_of_its_own(self, two):
        for query_type, legs in (("vector", {"a", "b"}), ("hybrid", {"a", "b", "fts"})):
            trace = retriever(two, self.Zeros(), query_type=query_type, vector_columns=["a", "b"], candidates=2).trace(
                "cat"
            )
            assert {stage.name for stage in trace.stages} == legs | {"encode", "search", "rerank"}
            assert {leg for candidate in trace.candidates for leg in candidate.leg_ranks} == legs
        vector = retriever(two, self.Zeros(), query_type="vector", vector_columns=["a", "b"], candidates=2)
        ranks = {candidate.doc_id: candidate.leg_ranks for candidate in vector.trace("cat").candidates}
        assert ranks == {"0": {"a": 1}, "4": {"a": 2}, "1": {"b": 1}, "3": {"b": 2}}

    def test_one_of_them_is_enough(self, two):
        hits = retriever(two, self.Zeros(), query_type="vector", vector_columns="b").retrieve("x", k=2)
        assert doc_ids(hits) == ["1", "3"]

    @pytest.mark.parametrize("reranker", [theirs.RRFReranker(), theirs.MRRReranker(), lr.MRRReranker(), Shortest()])
    def test_any_reranker_of_several_vector_searches(self, two, reranker):
        recipe = retriever(
            two, self.Zeros(), query_type="vector", vector_columns=["a", "b"], candidates=2, reranker=reranker
        )
        assert sorted(doc_ids(recipe.retrieve("cat"))) == ["0", "1", "3", "4"]

    @pytest.mark.parametrize(("columns", "message"), [("c", "no column 'c'"), (["a", "text"], "'text' is no vector")])
    def test_a_name_that_is_none_is_refused(self, two, columns, message):
        with pytest.raises(ColumnError, match=message):
            retriever(two, vector_columns=columns)

    def test_no_name_at_all_is_refused(self, two):
        with pytest.raises(ArgumentError, match="names no column"):
            retriever(two, vector_columns=[])


class TestWhere:
    @pytest.mark.parametrize("query_type", ["hybrid", "vector", "fts"])
    def test_filters_before_the_search(self, docs, query_type):
        recipe = retriever(docs, query_type=query_type, where="lang = 'de'", candidates=20, select=["lang"])
        hits = recipe.retrieve(QUERY, k=20)
        assert len(hits) == 20
        assert {hit.row["lang"] for hit in hits} == {"de"}

    @pytest.mark.parametrize("query_type", ["hybrid", "vector", "fts"])
    @pytest.mark.parametrize("reranker", [None, Shortest(), theirs.RRFReranker()])
    def test_a_filter_that_matches_nothing(self, docs, query_type, reranker):
        trace = retriever(docs, query_type=query_type, where="id > 9999", reranker=reranker).trace(QUERY)
        assert trace.hits == ()
        assert trace.candidates == ()
        assert "no candidates" in str(trace)


class TestHits:
    def test_rows_hold_the_id_what_is_selected_and_what_the_reranker_reads(self, docs):
        hit = retriever(docs, select=["lang"], reranker=Shortest()).retrieve(QUERY, k=1)[0]
        assert list(hit.row) == ["id", "lang", "text"]
        assert list(retriever(docs).retrieve(QUERY, k=1)[0].row) == ["id"]

    def test_at_most_k_and_at_most_the_candidates(self, docs):
        fts = lr.Retriever(docs, query_type="fts", candidates=5)
        assert len(fts.retrieve(QUERY, k=3)) == 3
        assert len(fts.retrieve(QUERY, k=50)) == 5
        assert len(lr.Retriever(docs, query_type="fts", candidates=10_000).retrieve(QUERY, k=10_000)) <= 240

    def test_top_n_of_a_reranker_does_not_cut(self, docs):
        assert len(retriever(docs, reranker=Shortest(top_n=2)).retrieve(QUERY, k=10)) == 10

    def test_rows_that_cannot_be_scored_come_last_without_a_score(self, db):
        rows = [{"id": i, "title": "cat", "text": text} for i, text in enumerate(["long text", None, "x"])]
        table = db.create_table("nulls", rows)
        table.create_index("title", config=FTS())
        hits = lr.Retriever(table, query_type="fts", reranker=Shortest()).retrieve("cat")
        assert [(hit.doc_id, hit.score) for hit in hits] == [("2", -1), ("0", -9), ("1", None)]

    def test_an_id_column_with_an_underscore(self, db):
        table = db.create_table("mongo", [{"_id": "a1", "text": "cat"}])
        table.create_index("text", config=FTS())
        hit = lr.Retriever(table, query_type="fts", id_column="_id").retrieve("cat")[0]
        assert (hit.doc_id, hit.row) == ("a1", {"_id": "a1"})

    def test_one_column_may_be_selected_by_its_name(self, docs):
        assert list(retriever(docs, select="lang").retrieve(QUERY)[0].row) == ["id", "lang"]

    def test_another_id_column(self, docs):
        assert {hit.doc_id for hit in retriever(docs, id_column="lang").retrieve(QUERY)} <= {"en", "de"}


class TestTrace:
    def test_stages_come_in_order_of_their_ends_with_times_and_rows(self, docs):
        trace = retriever(docs, candidates=30, reranker=Slow()).trace(QUERY, k=5)
        names = [stage.name for stage in trace.stages]
        assert names[0] == "encode"
        assert set(names[1:3]) == {"vector", "fts"}
        assert names[3:] == ["search", "rerank"]
        rows = {stage.name: stage.rows for stage in trace.stages}
        assert (rows["encode"], rows["vector"], rows["fts"]) == (None, 30, 30)
        assert rows["search"] == rows["rerank"] == len(trace.candidates)
        times = {stage.name: stage.milliseconds for stage in trace.stages}
        assert times["rerank"] >= 300
        assert times["search"] >= max(times["vector"], times["fts"]) > 0

    def test_candidates_have_their_rank_in_each_leg(self, docs, encoder):
        trace = retriever(docs, encoder, candidates=30).trace(QUERY, k=5)
        vector = ids(docs.search(encoder.encode_queries([QUERY])[0]).limit(30).to_arrow())
        words = ids(docs.search(QUERY, query_type="fts").limit(30).to_arrow())
        for candidate in trace.candidates:
            expected = {"vector": vector, "fts": words}
            ranks = {
                leg: found.index(candidate.doc_id) + 1 for leg, found in expected.items() if candidate.doc_id in found
            }
            assert candidate.leg_ranks == ranks
        assert [candidate.rank for candidate in trace.candidates] == list(range(1, len(trace.candidates) + 1))
        assert [candidate.doc_id for candidate in trace.candidates[:5]] == doc_ids(trace.hits)

    def test_rows_that_share_an_id_keep_their_own_ranks(self, db):
        """As passages of one document do, when its id is the hits' doc_id."""
        table = db.create_table("passages", [{"doc": "d", "text": "cat " * n} for n in (1, 2, 3)])
        table.create_index("text", config=FTS())
        trace = lr.Retriever(table, query_type="fts", id_column="doc").trace("cat")
        assert [candidate.leg_ranks for candidate in trace.candidates] == [{"fts": 1}, {"fts": 2}, {"fts": 3}]

    @pytest.mark.parametrize("reranker", [theirs.RRFReranker(), theirs.LinearCombinationReranker()])
    def test_foreign_rerankers_are_traced_too(self, docs, reranker):
        trace = retriever(docs, candidates=30, reranker=reranker).trace(QUERY)
        assert all(candidate.leg_ranks for candidate in trace.candidates)
        assert len(trace.candidates) == trace.stages[-1].rows > 30

    def test_it_prints_the_best_with_their_ranks(self, docs):
        text = str(lr.Retriever(docs, query_type="fts", candidates=5).trace(QUERY, k=2))
        assert text.startswith("'api keys': 5 candidates (encode ")
        assert "(fts 1)" in text
        assert len(text.splitlines()) == 6


class TestRerankersOfLanceDB:
    @pytest.mark.parametrize("query_type", ["hybrid", "vector", "fts"])
    def test_a_cross_encoder_on_every_path(self, docs, query_type, tiny_cross_encoder):
        foreign = theirs.CrossEncoderReranker(tiny_cross_encoder, device="cpu")
        ours = lr.CrossEncoderReranker(tiny_cross_encoder, device="cpu", precision="float32")
        one = retriever(docs, query_type=query_type, candidates=10, reranker=foreign).retrieve(QUERY, k=20)
        other = retriever(docs, query_type=query_type, candidates=10, reranker=ours).retrieve(QUERY, k=20)
        assert {hit.doc_id: hit.score for hit in one} == pytest.approx(
            {hit.doc_id: hit.score for hit in other}, abs=1e-5
        )
        assert "text" in one[0].row

    def test_fusion_of_a_single_leg_is_refused_by_name(self, docs):
        with pytest.raises(UnsupportedError, match=r"RRFReranker.*vector.*lance_rerank"):
            retriever(docs, query_type="vector", reranker=theirs.RRFReranker()).retrieve(QUERY)

    def test_an_answer_without_scores_is_an_error(self, docs):
        class Careless(theirs.RRFReranker):
            def rerank_fts(self, query, fts_results):
                return fts_results

        with pytest.raises(ModelError, match=r"Careless.*_relevance_score"):
            lr.Retriever(docs, query_type="fts", reranker=Careless()).retrieve(QUERY)


class TestQueryVectors:
    def test_many_queries_are_encoded_in_one_batch(self, docs, encoder):
        recipe = retriever(docs, encoder)
        queries = ["api keys", "bake bread", "the cat"]
        together = recipe.retrieve_many(queries, k=4)
        assert encoder.calls == [queries]
        assert together == [recipe.retrieve(query, k=4) for query in queries]

    def test_full_text_encodes_nothing(self, docs, encoder):
        recipe = retriever(docs, encoder, query_type="fts")
        assert len(recipe.retrieve_many(["api keys", "cat"], k=2)) == 2
        assert encoder.calls == []

    def test_no_queries(self, docs, encoder):
        assert retriever(docs, encoder).retrieve_many([]) == []
        assert encoder.calls == []

    def test_an_empty_query_among_many_is_refused_before_any_is_encoded(self, docs, encoder):
        with pytest.raises(QueryError):
            retriever(docs, encoder).retrieve_many(["api keys", " "])
        assert encoder.calls == []

    @pytest.mark.parametrize("answer", [np.zeros((1, 8)), np.zeros((3, 8)), np.zeros(8)])
    def test_an_encoder_with_a_wrong_count_is_an_error(self, docs, encoder, answer):
        encoder.encode_queries = lambda texts: answer.astype(np.float32)
        with pytest.raises(ModelError, match="2 queries"):
            retriever(docs, encoder).retrieve_many(["api keys", "cat"])

    def test_an_encoder_of_another_dimension_is_an_error_that_says_both(self, docs, encoder):
        encoder.encode_queries = lambda texts: np.zeros((len(texts), 5), np.float32)
        with pytest.raises(ColumnError, match=r"'vector'.*8.*5"):
            retriever(docs, encoder).retrieve(QUERY)

    def test_without_an_encoder_the_tables_function_embeds(self, db):
        @register("by-count")
        class ByCount(TextEmbeddingFunction):
            def ndims(self):
                return 2

            def generate_embeddings(self, texts):
                return [[float(len(text)), 0.0] for text in texts]

        config = EmbeddingFunctionConfig(
            source_column="text", vector_column="vector", function=get_registry().get("by-count").create()
        )
        schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 2))])
        table = db.create_table("embedded", schema=schema, embedding_functions=[config])
        table.add([{"id": i, "text": "a" * (i + 1)} for i in range(9)])
        hits = lr.Retriever(table, query_type="vector").retrieve("bbbb", k=1)
        assert (hits[0].doc_id, hits[0].score) == ("3", 0)

    def test_without_an_encoder_and_without_a_function(self, docs):
        with pytest.raises(ColumnError, match=r"no embedding function.*encoder="):
            lr.Retriever(docs).retrieve(QUERY)


class TestAsync:
    async def test_the_answer_is_the_same(self, docs):
        recipe = retriever(docs, reranker=Shortest())
        assert await recipe.aretrieve(QUERY, k=5) == recipe.retrieve(QUERY, k=5)

    async def test_queries_wait_together_and_the_loop_is_free(self, docs):
        recipe = retriever(docs, candidates=5, reranker=Slow())
        recipe.retrieve(QUERY)

        async def ticks(stop):
            count = 0
            while not stop.is_set():
                await asyncio.sleep(0.01)
                count += 1
            return count

        best = (10.0, 0)
        for _ in range(3):  # a busy machine may be slow once
            stop = asyncio.Event()
            ticker = asyncio.create_task(ticks(stop))
            start = time.perf_counter()
            await asyncio.gather(*(recipe.aretrieve(QUERY) for _ in range(4)))
            seconds = time.perf_counter() - start
            stop.set()
            best = min(best, (seconds, await ticker))
            if best[0] < 0.6:
                break
        assert best[0] < 0.6, "one after the other they would take 1.2 s"
        assert best[1] >= 10


class TestRecipes:
    def test_with_another_reranker_everything_else_is_kept(self, docs, encoder):
        plain = retriever(docs, encoder, candidates=30, where="lang = 'de'", name="plain")
        reranked = plain.with_reranker(Shortest())
        assert (reranked.candidates, reranked.where, reranked.encoder) == (30, "lang = 'de'", encoder)
        assert plain.reranker is None
        assert doc_ids(reranked.retrieve(QUERY)) != doc_ids(plain.retrieve(QUERY))
        assert reranked.with_reranker(None).retrieve(QUERY) == plain.retrieve(QUERY)

    def test_with_other_settings_everything_else_is_kept(self, docs, encoder):
        plain = retriever(
            docs, encoder, candidates=30, nprobes=3, where="lang = 'en'", reranker=Shortest(), name="mine"
        )
        other = plain.adjusted(candidates=7, refine_factor=2, exact=True)
        assert (other.candidates, other.nprobes, other.refine_factor, other.exact) == (7, 3, 2, True)
        assert (other.where, other.reranker, other.encoder) == (plain.where, plain.reranker, encoder)
        assert (plain.candidates, plain.refine_factor, plain.exact) == (30, None, False)
        assert doc_ids(other.retrieve(QUERY)) != doc_ids(plain.retrieve(QUERY))
        assert other.name == f"hybrid@7 exact + {plain.reranker}"
        assert plain.adjusted(exact=False, name="other").name == "other"

    @pytest.mark.parametrize(
        ("setting", "value"), [("candidates", 0), ("nprobes", 1.5), ("refine_factor", True), ("exact", "no")]
    )
    def test_other_settings_are_checked(self, docs, setting, value):
        with pytest.raises(ArgumentError, match=f"{setting} must be"):
            retriever(docs).adjusted(**{setting: value})

    def test_names_are_given_or_the_recipe_in_words(self, docs):
        plain = retriever(docs, candidates=30)
        assert plain.name == "hybrid@30"
        assert plain.with_reranker(lr.RRFReranker()).name == "hybrid@30 + RRFReranker(K=60)"
        assert plain.with_reranker(lr.RRFReranker(), name="mine").name == "mine"
        assert retriever(docs, name="given").name == "given"
        assert repr(plain) == "Retriever('docs': hybrid@30)"


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"query_type": "sparse"}, ArgumentError, r"hybrid, vector, fts.*'sparse'"),
            ({"candidates": 0}, ArgumentError, "candidates must be at least 1"),
            ({"candidates": 2.5}, ArgumentError, "candidates must be at least 1"),
            ({"candidates": None}, ArgumentError, "candidates must be at least 1"),
            ({"exact": 1}, ArgumentError, "exact must be True or False, got 1"),
            ({"id_column": "key"}, ColumnError, r"no column 'key' \(columns: id, text, lang, vector\)"),
            ({"select": ["title"]}, ColumnError, "no column 'title'"),
        ],
    )
    def test_what_the_table_does_not_have_is_refused_at_once(self, docs, arguments, error, message):
        with pytest.raises(error, match=message):
            retriever(docs, **arguments)

    def test_a_table_without_vectors(self, db):
        table = db.create_table("words", [{"id": 1, "text": "cat"}])
        with pytest.raises(ColumnError, match="no vector column"):
            retriever(table)

    async def test_an_async_table(self, docs, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        with pytest.raises(UnsupportedError, match="Retriever"):
            lr.Retriever(opened)

    @pytest.mark.parametrize("query", ["", " \n", None, 5, b"x", ["x"]])
    def test_a_query_without_words(self, docs, query):
        with pytest.raises(QueryError, match="string with words"):
            retriever(docs).retrieve(query)

    @pytest.mark.parametrize("k", [0, -1, 1.5, "3"])
    def test_k_is_a_whole_number_of_at_least_one(self, docs, k):
        with pytest.raises(ArgumentError, match="k must be at least 1"):
            retriever(docs).retrieve(QUERY, k=k)

    @pytest.mark.parametrize("query_type", ["hybrid", "fts"])
    def test_a_table_without_a_full_text_index(self, db, docs, query_type):
        table = db.create_table("plain", docs.to_arrow())
        with pytest.raises(MissingIndexError, match="create_index"):
            retriever(table, query_type=query_type).retrieve(QUERY)

    def test_a_model_that_fails(self, docs):
        class Broken(lr.BaseReranker):
            def score_texts(self, query, texts):
                raise RuntimeError("out of memory")

        with pytest.raises(ModelError, match="out of memory"):
            retriever(docs, reranker=Broken()).retrieve(QUERY)

    def test_a_text_column_that_the_table_lacks(self, docs):
        with pytest.raises(ColumnError, match="'body'"):
            retriever(docs, reranker=Shortest(column="body")).retrieve(QUERY)
