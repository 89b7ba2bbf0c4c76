"""What an embedder is trained on: a query, what answers it, and what it is to be told from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lance_rerank.datasets import TrainingQuery, TrainingSet
from lance_rerank.errors import DatasetError
from lance_rerank.training import preparing
from lance_rerank.training.batches import Exclusion, plan_batches


class ContrastRow(NamedTuple):
    """A query with one positive and its negatives of an epoch."""

    query_id: str
    query: str
    documents: tuple[str, ...]
    answers: frozenset[str]

    @property
    def exclusion(self) -> Exclusion:
        """What keeps it from a batch: its query again, or a document that answers it."""
        query = ("query", self.query)
        return Exclusion({query, *self.documents}, {query, *self.answers})


def plan_rows(
    examples: TrainingSet, *, negatives: int, epochs: int, batch_size: int, seed: int
) -> tuple[list[ContrastRow], list[list[int]]]:
    """Return the rows of all epochs, and which of them make up each step.

    Raises
    ------
    DatasetError
        The examples hold nothing to learn from.
    """
    queries = [query for query in examples if query.positives]
    if not queries:
        raise DatasetError(
            f"there is nothing to train on: none of the {len(examples)} queries has a document that answers it"
        )
    pool = list(dict.fromkeys(document.text for query in queries for document in query.documents))
    width = min(negatives, max(len(query.negatives) for query in queries))
    rows: list[ContrastRow] = []
    batches: list[list[int]] = []
    for epoch in range(epochs):
        fresh = _rows(queries, pool, width, epoch, seed)
        lengths = [sum(map(len, row.documents)) for row in fresh]
        plan = plan_batches(lengths, batch_size, seed=seed, epoch=epoch, exclusions=[row.exclusion for row in fresh])
        # alone and without a negative, a query has nothing to be told from
        batches += [[len(rows) + at for at in batch] for batch in plan if len(batch) > 1 or width]
        rows += fresh
    if not batches:
        raise DatasetError(
            "no two queries can share a batch, since all share a document that answers them, and none has negatives: "
            "there is nothing to tell the positives from. Add negatives, or queries with other answers"
        )
    return rows, batches


def _rows(
    queries: Sequence[TrainingQuery], pool: Sequence[str], width: int, epoch: int, seed: int
) -> list[ContrastRow]:
    rng = np.random.default_rng([seed, epoch, 1])
    rows = []
    for query in queries:
        answers = frozenset(document.text for document in query.positives)
        wrong = [document.text for document in query.negatives if document.text not in answers]
        for positive in query.positives:
            chosen = preparing.in_turn(wrong, width, epoch)
            while len(chosen) < width:
                chosen.append(_other(pool, answers.union(chosen), rng, query.query_id))
            rows.append(ContrastRow(query.query_id, query.text, (positive.text, *chosen), answers))
    return rows


def _other(pool: Sequence[str], not_these: frozenset[str], rng: np.random.Generator, query_id: str) -> str:
    start = int(rng.integers(len(pool)))
    for step in range(len(pool)):
        text = pool[(start + step) % len(pool)]
        if text not in not_these:
            return text
    raise DatasetError(
        f"query {query_id!r} lacks negatives, and there are no other documents to take their place: lower negatives"
    )
