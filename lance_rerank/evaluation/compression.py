"""How small token vectors may be stored before it shows, measured on the user's own documents and queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lance_rerank import lance
from lance_rerank.columns.multivector import ARROW_TYPES, MultivectorColumn
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.evaluation.evaluate import evaluate
from lance_rerank.multivector import Ragged, maxsim_many
from lance_rerank.types import FloatArray, Hit, TokenEncoder

DEPTH = 10
WINDOW = 256  # documents at a time
MEASURE = "nDCG@10"


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to store token vectors, and what it costs and keeps.

    Attributes
    ----------
    dtype : str
        "float32", "float16" or "int8".
    pool_factor : int
        How many tokens share a vector on average.
    bytes_per_document : float
        Of the vectors, before Lance's own few bytes a row.
    recall : float
        Share of the ten documents that rank first in float32 without pooling that rank among the first ten here.
    ndcg : float
        nDCG@10 on the judged queries.
    """

    dtype: str
    pool_factor: int
    bytes_per_document: float
    recall: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class CompressionLadder:
    """What `choose_compression` measured; prints as a table.

    Attributes
    ----------
    rungs : tuple of Rung
        From the largest to the smallest.
    chosen : Rung
        The smallest that keeps at least `recall_budget`.
    recall_budget : float
        As asked for.
    n_documents, n_queries : int
        What it was measured on.
    """

    rungs: tuple[Rung, ...]
    chosen: Rung
    recall_budget: float
    n_documents: int
    n_queries: int

    def __str__(self) -> str:
        lines = [
            f"{self.n_documents:,} documents, {self.n_queries:,} queries",
            "",
            f"{'stored as':<18}{'bytes/document':>15}{'recall@10':>11}{MEASURE:>10}",
        ]
        for rung in self.rungs:
            mark = "  <- chosen" if rung == self.chosen else ""
            lines.append(
                f"{rung.dtype + f', pooled {rung.pool_factor}x':<18}{rung.bytes_per_document:>15,.0f}"
                f"{rung.recall:>11.4f}{rung.ndcg:>10.4f}{mark}"
            )
        return "\n".join(lines)


def choose_compression(
    table: object,
    encoder: TokenEncoder,
    dataset: Dataset,
    recall_budget: float = 0.99,
    *,
    source: str = "text",
    id_column: str = "id",
    dtypes: Sequence[str] = ("float32", "float16", "int8"),
    pool_factors: Sequence[int] = (1, 2, 3, 4),
    max_documents: int = 10_000,
    max_queries: int = 500,
    progress: Callable[[int, int], None] | None = None,
) -> CompressionLadder:
    """Return every way to store token vectors with what it keeps of the exact ranking, and the smallest that suffices.

    Nothing is written. Each document is encoded once; its vectors are pooled and rounded as `add_multivector_column`
    would store them, and every query is scored against all documents exactly.

    Parameters
    ----------
    table : lancedb.table.Table
        The documents.
    encoder : TokenEncoder
        What would fill the column.
    dataset : Dataset
        Judged queries; use a dev split to choose, and another to report.
    recall_budget : float, default 0.99
        Least share of the exact first ten to keep.
    source, id_column : str
        The columns of texts and ids.
    dtypes, pool_factors : sequence
        What to try; "float32" without pooling is always measured, as the exact ranking.
    max_documents, max_queries : int
        Larger tables and sets are sampled, judged documents always among the sample.
    progress : callable, optional
        Called with (documents done, documents in all).

    Raises
    ------
    ArgumentError, ColumnError
        The table has no such columns, or none of the judged documents.
    """
    if not 0 < recall_budget <= 1:
        raise ArgumentError(f"recall_budget lies above 0 and at most at 1, got {recall_budget!r}")
    queries = dict(_spread_out(list(dataset.queries.items()), max_queries))
    judged = {doc_id for query_id in queries for doc_id in dataset.qrels[query_id]}
    documents = _documents(table, source, id_column, judged, max_documents)
    exact = ("float32", 1)
    forms = dict.fromkeys([exact, *((dtype, factor) for factor in pool_factors for dtype in dtypes)])
    columns = {form: MultivectorColumn(encoder, *form) for form in forms}
    scores, sizes = _score(columns, encoder, list(queries.values()), list(documents.values()), progress)

    ids = np.array(list(documents))
    tops = {
        form: np.argsort(-np.nan_to_num(matrix, nan=-np.inf), axis=1, kind="stable")[:, :DEPTH]
        for form, matrix in scores.items()
    }
    subset = Dataset("sample", dataset.split, None, queries, {query: dataset.qrels[query] for query in queries})
    rankings = {
        form: _Ranking({text: ids[row].tolist() for text, row in zip(queries.values(), top, strict=True)})
        for form, top in tops.items()
    }
    result = evaluate({str(form): ranking for form, ranking in rankings.items()}, subset, [MEASURE])
    rungs = [
        Rung(*form, sizes[form] / len(documents), _overlap(tops[exact], tops[form]), result.means[str(form)][MEASURE])
        for form in forms
    ]
    rungs.sort(key=lambda rung: -rung.bytes_per_document)
    chosen = [rung for rung in rungs if rung.recall >= recall_budget][-1]
    return CompressionLadder(tuple(rungs), chosen, recall_budget, len(documents), len(queries))


class _Ranking:
    """Answers queries with rankings that are there already."""

    def __init__(self, rankings: Mapping[str, list[str]]) -> None:
        self._rankings = rankings

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [
            [Hit(doc_id, None, rank) for rank, doc_id in enumerate(self._rankings[query][:k], 1)] for query in queries
        ]


def _spread_out(items: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Return at most `most` items, evenly from the whole sequence."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))
    return [items[i] for i in places.tolist()] if items else []


def _documents(table: object, source: str, id_column: str, judged: set[str], most: int) -> dict[str, str]:
    """Return ids and texts: the judged ones, and others evenly from the whole table."""
    data = lance.dataset(lance.require_sync_table(table, "choose_compression"))
    for name in (source, id_column):
        if name not in data.schema.names:
            raise ColumnError(f"the table has no column {name!r} (columns: {', '.join(data.schema.names)})")
    step = max(1, data.count_rows() // most)
    kept: dict[str, str] = {}
    rows = _rows(data, id_column, source)
    for place, (doc_id, text) in enumerate(rows):
        if text and text.strip() and (doc_id in judged or place % step == 0):
            kept[doc_id] = text
    if judged.isdisjoint(kept):
        raise ArgumentError(
            f"the table has none of the {len(judged)} judged documents under {id_column!r}; is it the right table, and "
            "the right id column?"
        )
    return kept


def _rows(data: object, id_column: str, source: str) -> Iterator[tuple[str, str | None]]:
    for batch in data.to_batches(columns=[id_column, source]):  # type: ignore[attr-defined]
        ids = (str(value) for value in batch.column(id_column).to_pylist())
        yield from zip(ids, batch.column(source).to_pylist(), strict=True)


Form = tuple[str, int]


def _score(
    columns: Mapping[Form, MultivectorColumn],
    encoder: TokenEncoder,
    queries: Sequence[str],
    texts: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[Form, FloatArray], dict[Form, int]]:
    """Return ``(n_queries, n_documents)`` scores and the bytes of all vectors, for each form."""
    tokens = encoder.encode_queries(queries)
    scores = {form: np.empty((len(queries), len(texts)), np.float32) for form in columns}
    sizes = dict.fromkeys(columns, 0)
    for start in range(0, len(texts), WINDOW):
        documents = encoder.encode_documents(list(texts[start : start + WINDOW]))
        for form, column in columns.items():
            stored = Ragged.from_arrow(column.store(documents))
            scores[form][:, start : start + WINDOW] = maxsim_many(tokens, stored)
            sizes[form] += int(stored.lengths.sum()) * stored.dim * ARROW_TYPES[form[0]].bit_width // 8
        if progress:
            progress(min(start + WINDOW, len(texts)), len(texts))
    return scores, sizes


def _overlap(exact: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    shared = [len(np.intersect1d(a, b)) for a, b in zip(exact, other, strict=True)]
    return float(np.mean(shared) / exact.shape[1])
