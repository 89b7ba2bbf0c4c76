"""What a cross-encoder is trained on: the rows that a loss looks at, one document, two, or all of a query's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.errors import DatasetError
from lance_rerank.training import preparing
from lance_rerank.training.batches import plan_batches

Loss = Literal["bce", "mse", "margin-mse", "ranknet", "listnet", "lambda"]
POINTWISE = ("bce", "mse")
LISTWISE = ("ranknet", "listnet", "lambda")
_HIGHEST_GRADE = 10  # for "lambda", whose gains are powers of two


class PairsRow(NamedTuple):
    """A query with the documents that a loss looks at together, and what it is to learn of them."""

    query_id: str
    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    weight: float = 1.0


def plan_rows(
    examples: TrainingSet, loss: str, *, negatives: int, epochs: int, batch_size: int, seed: int
) -> tuple[list[PairsRow], list[list[int]]]:
    """Return the rows of all epochs, and which of them make up each step.

    Raises
    ------
    DatasetError
        The examples hold nothing to learn from, or labels that the loss does not take.
    """
    queries = list(examples)
    _check(queries, loss)
    rows: list[PairsRow] = []
    batches: list[list[int]] = []
    for epoch in range(epochs):
        fresh = [row for query in queries for row in _rows(query, loss, negatives, epoch)]
        lengths = [len(row.query) + max(map(len, row.documents)) for row in fresh]
        pairs_per_row = math.ceil(sum(len(row.documents) for row in fresh) / len(fresh))
        plan = plan_batches(lengths, max(1, batch_size // pairs_per_row), seed=seed, epoch=epoch)
        batches += [[len(rows) + at for at in batch] for batch in plan]
        rows += fresh
    return rows, batches


def _check(queries: Sequence[TrainingQuery], loss: str) -> None:
    """Raise `DatasetError` where there is nothing to learn from, or a label that the loss does not take."""
    documents = [(query.query_id, document) for query in queries for document in query.documents]
    if not documents:
        raise DatasetError("there is nothing to train on: the training set is empty")
    labels = {document.label for _, document in documents}
    if len(labels) == 1:
        raise DatasetError(
            f"all {len(documents)} examples have the label {labels.pop():g}: a cross-encoder learns from differences. "
            "Add negatives, such as documents that the search finds and that do not answer"
        )
    highest = {"bce": 1, "lambda": _HIGHEST_GRADE}.get(loss, math.inf)
    beyond = next(((query_id, found) for query_id, found in documents if found.label > highest), None)
    if beyond is not None:
        query_id, found = beyond
        raise DatasetError(
            f"query {query_id!r} has document {found.doc_id!r} with the label {found.label:g}, and the loss {loss!r} "
            f"takes labels from 0 to {highest}. Divide them all by the highest, or use 'mse' or 'listnet'"
        )
    if loss == "margin-mse":
        _check_scores(documents)
    if loss not in POINTWISE and not any(_has_contrast(query) for query in queries):
        raise DatasetError(
            f"no query has documents with different labels, which the loss {loss!r} compares. Add negatives to the "
            "queries, or use 'bce'"
        )


def _check_scores(documents: Sequence[tuple[str, LabelledDocument]]) -> None:
    without = [(query_id, document.doc_id) for query_id, document in documents if document.score is None]
    if without and len(without) < len(documents):
        query_id, doc_id = without[0]
        raise DatasetError(
            f"{len(without)} of {len(documents)} examples have no score, document {doc_id!r} of query {query_id!r} the "
            "first: 'margin-mse' learns scores or, where there are none at all, labels. Score all, or none"
        )


def _has_contrast(query: TrainingQuery) -> bool:
    return len({document.label for document in query.documents}) > 1


def _rows(query: TrainingQuery, loss: str, negatives: int, epoch: int) -> Iterator[PairsRow]:
    """Yield what a query is to teach in an epoch."""
    chosen = [*query.positives, *preparing.in_turn(query.negatives, negatives, epoch)]
    if loss in POINTWISE:
        for one in chosen:
            yield PairsRow(query.query_id, query.text, (one.text,), (one.label,), one.weight)
    elif loss in LISTWISE and _has_contrast(query):
        texts, labels = zip(*((one.text, one.label) for one in chosen), strict=True)
        yield PairsRow(query.query_id, query.text, texts, labels)
    elif loss == "margin-mse":
        for better in chosen:
            for worse in chosen:
                if better.label > worse.label:
                    margin = _value(better) - _value(worse)
                    yield PairsRow(query.query_id, query.text, (better.text, worse.text), (margin,))


def _value(document: LabelledDocument) -> float:
    return document.label if document.score is None else document.score
