from __future__ import annotations

import numpy as np
import pytest

import lance_rerank as lr
from lance_rerank.errors import ArgumentError, ColumnError


class Words:
    """A word's vector points in a direction drawn from its letters."""

    dim = 32
    fingerprint = None

    def encode_queries(self, texts):
        return self.encode_documents(texts)

    def encode_documents(self, texts):
        return [np.stack([self._word(word) for word in text.split()]) for text in texts]

    def _word(self, word):
        vector = np.random.default_rng(list(word.encode())).standard_normal(32).astype(np.float32)
        return vector / np.linalg.norm(vector)


@pytest.fixture
def table(db):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(80)]
    rows = [{"id": i, "text": " ".join(rng.choice(vocabulary, 12))} for i in range(400)]
    return db.create_table("docs", [*rows, {"id": 400, "text": None}, {"id": 401, "text": " "}])


@pytest.fixture
def data(table):
    texts = dict(zip(table.to_arrow()["id"].to_pylist(), table.to_arrow()["text"].to_pylist(), strict=True))
    queries = [lr.Query(i, " ".join(texts[i].split()[:5])) for i in range(0, 400, 20)]
    return lr.Dataset.from_memory(queries, [lr.Qrel(i, i, 1) for i in range(0, 400, 20)])


def rung(ladder, dtype, factor):
    return next(r for r in ladder.rungs if (r.dtype, r.pool_factor) == (dtype, factor))


def test_each_rung_says_what_it_costs_and_keeps(table, data):
    ladder = lr.choose_compression(table, Words(), data)
    assert (ladder.n_documents, ladder.n_queries, len(ladder.rungs)) == (400, 20, 12)
    assert rung(ladder, "float32", 1).recall == 1
    assert rung(ladder, "float32", 1).bytes_per_document == 12 * 32 * 4
    assert rung(ladder, "float16", 1).bytes_per_document == 12 * 32 * 2
    assert rung(ladder, "int8", 2).bytes_per_document == 6 * 32
    assert rung(ladder, "float16", 1).recall >= 0.99
    assert rung(ladder, "int8", 4).recall < rung(ladder, "int8", 1).recall
    sizes = [r.bytes_per_document for r in ladder.rungs]
    assert sizes == sorted(sizes, reverse=True)


def test_the_smallest_within_the_budget_is_chosen(table, data):
    strict = lr.choose_compression(table, Words(), data, 1.0).chosen
    loose = lr.choose_compression(table, Words(), data, 0.2).chosen
    assert strict.recall == 1
    assert loose.bytes_per_document < strict.bytes_per_document
    assert loose.recall >= 0.2


def test_ndcg_is_that_of_the_exact_ranking(table, data):
    ladder = lr.choose_compression(table, Words(), data, dtypes=["float32"], pool_factors=[1])
    assert rung(ladder, "float32", 1).ndcg == pytest.approx(1.0), "five words of twelve are enough to find a document"


def test_it_prints_as_a_table_and_writes_nothing(table, data):
    version = table.version
    text = str(lr.choose_compression(table, Words(), data, dtypes=["int8"], pool_factors=[2]))
    assert "400 documents, 20 queries" in text
    assert "int8, pooled 2x" in text
    assert text.count("<- chosen") == 1
    assert table.version == version
    assert table.schema.names == ["id", "text"]


def test_a_sample_keeps_the_judged_documents(table, data):
    ladder = lr.choose_compression(table, Words(), data, max_documents=40, max_queries=5)
    assert ladder.n_queries == 5
    assert 40 <= ladder.n_documents <= 60
    assert rung(ladder, "float32", 1).ndcg == pytest.approx(1.0)


def test_progress_reaches_the_end(table, data):
    seen = []
    lr.choose_compression(table, Words(), data, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (400, 400)


def test_documents_that_are_not_there_are_an_error(table):
    data = lr.Dataset.from_memory([lr.Query("q", "word1")], [lr.Qrel("q", "elsewhere", 1)])
    with pytest.raises(ArgumentError, match="none of the 1 judged documents"):
        lr.choose_compression(table, Words(), data)


@pytest.mark.parametrize(
    ("arguments", "error"), [({"recall_budget": 0}, ArgumentError), ({"source": "body"}, ColumnError)]
)
def test_bad_arguments_are_refused(table, data, arguments, error):
    with pytest.raises(error):
        lr.choose_compression(table, Words(), data, **arguments)
