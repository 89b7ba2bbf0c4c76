"""The gate before a swap: the old column against the new one, with the reranker that will serve."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, ColumnError, GateError
from lance_rerank.reindex import ReindexJob, plan_reindex
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.fitted import BlendModel, FittedBlendReranker, fitted_for
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Qrel, Query

CHANGED = 20  # rows whose text was changed, so that the old vectors do not find them


class Worse:
    """A model whose queries are nowhere near its documents."""

    fingerprint = None
    dim = 8

    def __init__(self, fakes):
        self._model = fakes.HashEncoder(seed=5)

    def encode_documents(self, texts):
        return self._model.encode_queries(texts)

    def encode_queries(self, texts):
        return -self._model.encode_queries(texts)


class OfOldOnly(BaseReranker):
    """Puts rows first whose text was never changed, as one does that was trained on what the old model found."""

    def score_texts(self, query, texts):
        return [(query == text) * (1.0 if "changed" not in text else -1.0) for text in texts]


class Same(BaseReranker):
    """Puts the very text that was asked for first."""

    def score_texts(self, query, texts):
        return [float(query == text) for text in texts]


@pytest.fixture
def dataset(table):
    table.update(where=f"id < {CHANGED}", values_sql={"text": "concat('changed ', text)"})
    texts = {row["id"]: row["text"] for row in table.search().select(["id", "text"]).limit(100).to_list()}
    queries = [Query(f"q{i}", texts[i]) for i in range(2 * CHANGED)]
    return Dataset.from_memory(queries, [Qrel(f"q{i}", str(i), 1) for i in range(2 * CHANGED)])


@pytest.fixture
def filled(table, dataset, fakes):
    """A job whose new column finds all that was asked for, where the old one misses half of it."""
    return _filled(table, fakes.HashEncoder(seed=2))


def _filled(table, model):
    job = ReindexJob(plan_reindex(table, model=model))
    job.backfill()
    table.checkout_latest()
    return job


def by_vector(table, reranker=None, **options):
    return Retriever(table, query_type="vector", candidates=10, reranker=reranker, **options)


def test_a_better_model_is_accepted(filled, table, dataset):
    gate = filled.evaluate(dataset, by_vector(table), ["RR@10"])
    assert gate.result.means["new"] == {"RR@10": 1.0}
    assert gate.result.means["old"]["RR@10"] < 0.8
    gate.raise_if_worse(max_loss=0)
    assert gate.notes == ()
    assert "new against old: RR@10 +0." in str(gate)
    assert json.loads(json.dumps(gate.to_dict()))["measure"] == "RR@10"


def test_a_worse_model_is_refused_by_the_mean_with_the_interval_beside_it(table, dataset, fakes):
    gate = _filled(table, Worse(fakes)).evaluate(dataset, by_vector(table), ["RR@10"])
    with pytest.raises(GateError, match=r"more than the 0.005 allowed: new against old: RR@10 -0\.\d+ \(95 % interval"):
        gate.raise_if_worse()
    gate.raise_if_worse(max_loss=1)
    with pytest.raises(ArgumentError, match="max_loss is 0 or more"):
        gate.raise_if_worse(-0.1)


def test_the_mean_difference_may_be_as_large_as_allowed(filled, table, dataset):
    gate = filled.evaluate(dataset, by_vector(table), ["RR@10"])
    backwards = type(gate)(_exchanged(gate.result), gate.measure, ())
    loss = gate.comparison.difference
    backwards.raise_if_worse(max_loss=loss)
    with pytest.raises(GateError):
        backwards.raise_if_worse(max_loss=loss - 0.001)


def _exchanged(result):
    from dataclasses import replace

    per_query = {"old": result.per_query["new"], "new": result.per_query["old"]}
    return replace(result, per_query=per_query)


def test_the_default_searches_by_words_too_where_they_are_indexed(filled, table, dataset):
    hybrid = filled.evaluate(dataset, measures=["RR@10"])
    table.drop_index("text_idx")
    vector = filled.evaluate(dataset, measures=["RR@10"])
    assert hybrid.result.means["old"]["RR@10"] > vector.result.means["old"]["RR@10"]
    assert vector.result.means["new"]["RR@10"] == 1
    assert filled.evaluate(dataset).measure == "nDCG@10"


def test_it_serves_with_the_reranker_and_says_what_that_costs(filled, table, dataset):
    serving = by_vector(table, Same())
    gate = filled.evaluate(dataset, serving, ["RR@10"])
    assert gate.result.retrievers == ("old", "new", "old without reranker", "new without reranker")
    assert gate.notes == ()
    gate = filled.evaluate(dataset, by_vector(table, OfOldOnly()), ["RR@10"])
    assert gate.result.means["new"]["RR@10"] < gate.result.means["new without reranker"]["RR@10"]
    [note] = gate.notes
    assert "was it trained on candidates of the old embedder? Published runs fell from 70.6 to 62.1" in note
    assert serving.vector_columns == ("vector",)
    assert serving.encoder is None


def test_a_guard_that_was_fitted_for_the_old_model_is_replaced_and_named(filled, table, dataset):
    plain = by_vector(table)
    model = BlendModel("reranker", {"reranker_score": 1.0})
    guard = FittedBlendReranker(Same(), model=model, fitted_for=fitted_for(Same(), plain, ("vector",), 10))
    gate = filled.evaluate(dataset, plain.with_reranker(guard), ["RR@10"])
    [note] = gate.notes
    assert "was fitted for the old embedder and will refuse the new one (FittedForError)" in note
    assert "lance_rerank.fit_blend" in note
    assert gate.result.means["new"]["RR@10"] == gate.result.means["new without reranker"]["RR@10"] == 1


def test_nothing_is_written(filled, table, dataset):
    version = filled._table.version
    filled.evaluate(dataset, by_vector(table), ["RR@10"])
    table.checkout_latest()
    assert table.version == version


def test_what_cannot_be_compared(filled, table, dataset, encoder):
    with pytest.raises(ArgumentError, match="has to search the column 'vector' alone, it searches no vector column"):
        filled.evaluate(dataset, Retriever(table, query_type="fts"))
    with pytest.raises(ArgumentError, match=r"retriever is a lance_rerank\.Retriever, got str"):
        filled.evaluate(dataset, "hybrid")
    filled.verify()
    filled.swap()
    with pytest.raises(ColumnError, match="the table has no column"):
        filled.evaluate(dataset)


def test_an_old_encoder_is_kept_for_the_old_column(filled, table, dataset, fakes):
    gate = filled.evaluate(dataset, by_vector(table, encoder=fakes.HashEncoder(seed=1)), ["RR@10"])
    assert np.isclose(gate.result.means["new"]["RR@10"], 1)
    assert gate.result.means["old"]["RR@10"] < 0.8
