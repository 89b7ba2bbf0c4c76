"""``Retriever(query_type="multivector")``: candidates by token vectors, scores by exact MaxSim."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from lancedb.index import IvfFlat, IvfRq

import lance_rerank as lr
from lance_rerank.errors import ArgumentError, ColumnError, ModelError, QueryError

WORDS = [f"w{i}" for i in range(40)]


class RandomWords:
    """A word is a random unit vector of 32 dimensions, the same each time."""

    dim = 32
    fingerprint = "random words"

    def __init__(self):
        self.queries = []
        self.documents_encoded = 0

    def vectors(self, text):
        made = [np.random.default_rng(list(word.encode())).standard_normal(32) for word in text.split()]
        return np.array([v / np.linalg.norm(v) for v in made], np.float32).reshape(-1, 32)

    def encode_queries(self, texts):
        self.queries.append(list(texts))
        return [self.vectors(text) for text in texts]

    def encode_documents(self, texts):
        self.documents_encoded += len(texts)
        return [self.vectors(text) for text in texts]


def make(db, dtype="float16"):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(600)]
    table = db.create_table("words", [{"id": f"d{i}", "text": text, "n": i} for i, text in enumerate(texts)])
    lr.add_multivector_column(table, encoder=RandomWords(), dtype=dtype)
    return table


@pytest.fixture
def table(db):
    return make(db)


def exact(table, query, k=10):
    """The first k ids by MaxSim's definition, and their scores."""
    encoder = RandomWords()
    scores = {
        row["id"]: float((encoder.vectors(query) @ encoder.vectors(row["text"]).T).max(axis=1).sum())
        for row in table.search().select(["id", "text"]).limit(10_000).to_list()
    }
    best = sorted(scores, key=lambda doc_id: -scores[doc_id])[:k]
    return best, [scores[doc_id] for doc_id in best]


def retriever(table, **arguments):
    arguments = {"encoder": RandomWords(), "candidates": 150, **arguments}
    return lr.Retriever(table, query_type="multivector", **arguments)


QUERY = "w3 w17 w29"


def assert_exact(hits, table, query=QUERY):
    _, scores = exact(table, query)
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=2e-2)


class TestWhereCandidatesComeFrom:
    def test_without_an_index_every_row_is_read_and_the_user_is_told(self, table, caplog):
        with caplog.at_level(logging.WARNING, "lance_rerank"):
            found = retriever(table)
        assert "'colbert' has no index" in caplog.text
        assert "add_mean_vector_column" in caplog.text
        assert found.vector_columns == ("colbert",)
        assert_exact(found.retrieve(QUERY), table)

    def test_lancedbs_index_is_taken_where_there_is_one(self, table, caplog):
        table.create_index("colbert", config=IvfRq(distance_type="cosine", num_partitions=1))
        lr.add_mean_vector_column(table)
        found = retriever(table)
        assert found.vector_columns == ("colbert",)
        assert not caplog.records
        assert_exact(found.retrieve(QUERY), table)

    @pytest.mark.parametrize("dtype", ["float16", "int8"])
    def test_means_are_taken_where_there_is_no_index(self, db, dtype):
        table = make(db, dtype)
        lr.add_mean_vector_column(table)
        found = retriever(table, candidates=300)
        assert found.vector_columns == ("colbert_mean",)
        assert_exact(found.retrieve(QUERY), table)

    def test_means_can_be_named_and_indexed(self, table):
        table.create_index("colbert", config=IvfRq(distance_type="cosine", num_partitions=1))
        lr.add_mean_vector_column(table, into="centre")
        table.create_index("centre", config=IvfFlat(distance_type="cosine", num_partitions=4))
        found = retriever(table, vector_columns="centre", candidates=400, nprobes=4)
        assert found.vector_columns == ("centre",)
        assert_exact(found.retrieve(QUERY), table)

    def test_int8_without_means_says_what_to_do(self, db):
        with pytest.raises(ColumnError, match=r"int8, which LanceDB cannot search.*add_mean_vector_column"):
            retriever(make(db, "int8"))


class TestTheSearch:
    def test_scores_are_maxsim_and_no_document_is_encoded(self, table):
        encoder = RandomWords()
        hits = retriever(table, encoder=encoder).retrieve(QUERY, k=10)
        assert [hit.rank for hit in hits] == list(range(1, 11))
        assert [hit.doc_id for hit in hits][:1] == exact(table, QUERY)[0][:1]
        assert encoder.queries == [[QUERY]]
        assert encoder.documents_encoded == 0

    def test_a_batch_of_queries_is_encoded_at_once(self, table):
        encoder = RandomWords()
        answers = retriever(table, encoder=encoder).retrieve_many([QUERY, "w1 w2"], k=3)
        assert encoder.queries == [[QUERY, "w1 w2"]]
        assert [len(answer) for answer in answers] == [3, 3]
        assert answers[1] == retriever(table).retrieve("w1 w2", k=3)

    def test_a_filter_is_applied_before_the_search(self, table):
        hits = retriever(table, where="n < 50", select=["n"]).retrieve(QUERY, k=60)
        assert len(hits) == 50
        assert all(hit.row["n"] < 50 for hit in hits)

    def test_rows_without_vectors_are_not_found_and_not_ranked_wrongly(self, table):
        table.add([{"id": "new", "text": QUERY, "n": 1000}])
        assert "new" not in [hit.doc_id for hit in retriever(table).retrieve(QUERY)]
        lr.sync_multivector_column(table, encoder=RandomWords())
        assert retriever(table).retrieve(QUERY)[0].doc_id == "new"

    def test_a_reranker_sees_the_rows_in_the_order_of_maxsim(self, table):
        class Keep(lr.BaseReranker):
            def score_rows(self, query, rows):
                self.ids = rows["id"].to_pylist()
                return [0.0] * rows.num_rows

        keep = Keep()
        plain = retriever(table)
        hits = plain.with_reranker(keep).retrieve(QUERY, k=5)
        assert len(keep.ids) == 150
        assert [hit.doc_id for hit in hits] == keep.ids[:5] == [hit.doc_id for hit in plain.retrieve(QUERY, k=5)]

    async def test_async(self, table):
        assert await retriever(table).aretrieve(QUERY, k=3) == retriever(table).retrieve(QUERY, k=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": None}, ArgumentError, r"needs the encoder that filled the column"),
        ({"vectors": "tokens"}, ColumnError, r"no column 'tokens' of token vectors"),
        ({"vector_columns": ["colbert", "text"]}, ArgumentError, r"by one column, got colbert, text"),
        ({"vector_columns": "text"}, ColumnError, r"'text' is no vector column"),
        ({"nprobes": 0}, ArgumentError, r"nprobes must be at least 1"),
        ({"refine_factor": True}, ArgumentError, r"refine_factor must be at least 1"),
    ],
)
def test_bad_arguments(table, arguments, error, message):
    with pytest.raises(error, match=message):
        retriever(table, **arguments)


def test_another_encoder_is_refused(table):
    other = RandomWords()
    other.fingerprint = "other words"
    with pytest.raises(ColumnError, match="filled by random words"):
        retriever(table, encoder=other).retrieve(QUERY)


class TestWhatTheEncoderAnswers:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda texts: 1 / 0, "failed on 1 queries: ZeroDivisionError"),
            (lambda texts: [], "answered with 0 arrays for 1 queries"),
            (lambda texts: [np.zeros(32, np.float32)], r"shape \(32,\) for a query; a token encoder gives one"),
            (lambda texts: np.zeros((1, 32), np.float32), r"shape \(32,\)"),
            (lambda texts: [np.full((2, 32), np.nan, np.float32)], "NaN or infinite"),
        ],
    )
    def test_what_cannot_be_searched_is_an_error(self, table, answer, message):
        encoder = RandomWords()
        encoder.encode_queries = answer
        with pytest.raises(ModelError, match=message):
            retriever(table, encoder=encoder).retrieve(QUERY)

    def test_a_query_without_tokens(self, table):
        encoder = RandomWords()
        encoder.encode_queries = lambda texts: [np.zeros((0, 32), np.float32)] * len(texts)
        with pytest.raises(QueryError, match="no tokens"):
            retriever(table, encoder=encoder).retrieve("the")


class TestMeansOfOtherVectors:
    @pytest.fixture
    def remade(self, db):
        """Token vectors of one encoder, means of another's."""
        table = make(db, "int8")
        lr.add_mean_vector_column(table)
        table.drop_columns(["colbert"])
        self.encoder = RandomWords()
        self.encoder.fingerprint = "other words"
        lr.add_multivector_column(table, encoder=self.encoder, dtype="int8")
        return table

    def test_a_sync_leaves_them_and_says_so(self, remade, caplog):
        with caplog.at_level(logging.WARNING, "lance_rerank"):
            lr.sync_multivector_column(remade, encoder=self.encoder)
        assert "drop_columns(['colbert_mean'])" in caplog.text

    def test_they_are_not_searched(self, remade):
        with pytest.raises(ColumnError, match="'colbert_mean' was filled by random words"):
            retriever(remade, encoder=self.encoder).retrieve(QUERY)


@pytest.mark.parametrize("vectors", ["text", "n"])
def test_a_column_of_something_else(table, vectors):
    with pytest.raises(ColumnError, match=f"{vectors!r} holds .*, not token vectors"):
        retriever(table, vectors=vectors)


def test_a_filter_that_keeps_nothing_is_no_reason_to_warn(table, caplog):
    found = retriever(table, where="n < 0")
    caplog.clear()
    assert found.retrieve(QUERY) == []
    assert not caplog.records


def test_a_status_leaves_a_handle_at_its_version(table):
    version = table.version
    table.add([{"id": "new", "text": "w1", "n": 1}])
    table.checkout(version)
    lr.multivector_status(table)
    assert table.version == version


def test_a_reranker_reads_what_was_synced_by_another_handle(table, db):
    late = lr.LateInteractionReranker(RandomWords(), table=table)
    other = db.open_table("words")
    other.update(where="id = 'd0'", values={"text": "w38 w39"})
    rows = other.search().where("id = 'd0'").with_row_id(True).to_arrow()
    late.rerank_vector("w38 w39", rows)
    lr.sync_multivector_column(other, encoder=RandomWords())
    rows = other.search().where("id = 'd0'").select(["id"]).with_row_id(True).to_arrow()
    ranked = late.rerank_vector("w38 w39", rows)
    assert ranked["_relevance_score"].to_pylist() == [pytest.approx(2, abs=0.01)]
    assert table.version < other.version, "the user's own handle stays where it is"


def test_explain_of_a_hit_is_of_its_stored_vectors(table):
    late = lr.LateInteractionReranker(RandomWords(), table=table)
    [hit] = retriever(table, select="text").retrieve(QUERY, k=1)
    assert late.explain(QUERY, hit).score == pytest.approx(hit.score, abs=1e-5)
    with pytest.raises(ArgumentError, match="it has no text"):
        late.explain(QUERY, {"text": float("nan")})


def test_reading_and_scoring_are_timed_apart_within_their_stage(table):
    found = retriever(table).trace(QUERY, 5)
    assert {(stage.name, stage.inside) for stage in found.stages} >= {("fetch", "vector"), ("score", "vector")}
    late = lr.LateInteractionReranker(RandomWords(), table=table)
    reranked = retriever(table).with_reranker(late).trace(QUERY, 5)
    inside = {(stage.name, stage.inside) for stage in reranked.stages}
    assert {("encode", "rerank"), ("fetch", "rerank"), ("score", "rerank"), ("encode", None)} <= inside
    outer = [stage.name for stage in reranked.stages if stage.inside is None]
    assert outer == ["encode", "search", "rerank"]
