"""Hybrid search that fetches more than it returns: LanceDB's own builder plus `candidates`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.query import FullTextQuery
from lancedb.rerankers import Reranker
from lancedb.table import AsyncTable

from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, QueryError
from lance_rerank.rerankers.base import BaseReranker, columns_read
from lance_rerank.rerankers.fusion import RRFReranker
from lance_rerank.types import FloatArray

DEFAULT_CANDIDATES = 100
Normalize = Literal["score", "rank"]


class _Candidates(lance.HybridSeams):
    """What `candidates` and `rerank` mean, for the sync and the async builder."""

    _candidates = DEFAULT_CANDIDATES

    def candidates(self, n: int) -> Self:
        """Fetch at least `n` rows from each leg, whatever the limit.

        The reranker sees the union, up to twice as many rows, and the page is cut from its answer, so that
        ``limit`` and ``offset`` walk through one ranking.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ArgumentError(f"candidates must be at least 1, got {n!r}")
        self._candidates = n
        return self

    def projection(self, schema: pa.Schema, selected: lance.Projection) -> lance.Projection:
        """Return the selected columns plus those the reranker reads; without a selection, all but hidden ones."""
        reads = [name for name in columns_read(self.reranker) if name in schema.names]
        if selected is None:
            visible = lance.visible_columns(schema)
            wanted = visible + [name for name in reads if name not in visible]
            return None if visible == schema.names else wanted
        missing = [name for name in reads if name not in selected]
        if isinstance(selected, dict):
            return selected | {name: name for name in missing}
        return list(selected) + missing

    def combine(self, query: object, vector_results: pa.Table, fts_results: pa.Table, page: slice) -> pa.Table:
        """Return the page of the reranked union."""
        reranker = self.reranker
        if not isinstance(reranker, BaseReranker):
            return lance.lancedb_combine(query, vector_results, fts_results, page, reranker, self.normalize)
        candidates = arrow.union([vector_results, fts_results])
        rows = candidates.rows
        if self.normalize == "rank":
            legs = [lance.by_rank(vector_results, arrow.DISTANCE), lance.by_rank(fts_results, arrow.SCORE)]
            candidates = arrow.union(legs)
        ranked = arrow.ranked(rows, reranker.relevance(query, candidates))
        if reranker.return_score != "all":
            ranked = arrow.without(ranked, [arrow.DISTANCE, arrow.SCORE])
        return ranked.slice(page.start, page.stop - page.start)


class HybridQuery(_Candidates, lance.HybridBuilder):
    """LanceDB's hybrid query builder that over-fetches; made by `hybrid`."""

    def __init__(self, table: Any, query: Any, vector_column: str, fts_columns: Any) -> None:
        super().__init__(table, query, vector_column, fts_columns=fts_columns)
        self.rerank()

    def rerank(self, reranker: Reranker | None = None, normalize: Normalize = "score") -> Self:
        """Rerank the union of both legs; without an argument by reciprocal rank fusion.

        Rerankers of this package see each leg's own scores; ``normalize="rank"`` gives them ranks instead. Others see
        what LanceDB would give them.
        """
        lance.require_same_table(reranker, self._table)
        super().rerank(reranker or RRFReranker(), normalize)
        if isinstance(reranker, BaseReranker):  # that it needs row ids does not mean that the caller wants them
            self.return_row_ids(reranker.return_score == "all")
        return self


class AsyncHybridQuery(_Candidates, lance.AsyncHybridBuilder):
    """LanceDB's async hybrid query that over-fetches and reranks off the event loop; made by `hybrid_async`."""

    def __init__(self, inner: Any, table: AsyncTable, words: str) -> None:
        super().__init__(inner, table)
        self.words = words
        self.rerank()

    def rerank(self, reranker: Reranker | None = None, normalize: Normalize = "score") -> Self:
        """Rerank the union of both legs in a thread; without an argument by reciprocal rank fusion."""
        super().rerank(reranker or RRFReranker(), normalize)
        self.return_row_ids(isinstance(reranker, BaseReranker) and reranker.return_score == "all")
        return self


def hybrid(
    table: Any,
    query: str | FullTextQuery | None = None,
    *,
    vector: npt.ArrayLike | None = None,
    vector_column_name: str | None = None,
    fts_columns: str | Sequence[str] | None = None,
) -> HybridQuery:
    """Return a hybrid search whose legs fetch more rows than it returns.

    LanceDB's own hybrid search uses ``limit`` for two things, how many rows a reranker sees and how many come out, so
    a reranker never gets to see row eleven. Here ``.candidates(n)`` sets the first, 100 a leg by default, and
    ``.limit(k)`` the second. Everything else is LanceDB's builder: ``where``, ``select``, ``limit``, ``offset``,
    ``distance_range``, ``nprobes``, ``to_arrow``, ``to_pandas``, ``to_list``, ``explain_plan``. Columns that a reranker
    reads need not be selected, and columns of token vectors are left out unless they are.

    Parameters
    ----------
    table : lancedb.table.Table
        Of ``lancedb.connect``.
    query : str or FullTextQuery, optional
        What to search for; embedded by the table's own embedding function. May also be given by ``.text(...)``.
    vector : array-like, optional
        The query's vector ``(dim,)``, where the table has no embedding function or to save its work.
    vector_column_name : str, optional
        Needed when the table has several vector columns.
    fts_columns : str or list of str, optional
        The full-text columns to search; by default all that are indexed.

    Raises
    ------
    ColumnError, MissingIndexError, QueryError
        The table or the query cannot be searched this way; the message says what to do.
    """
    lance.require_sync_table(table, "hybrid")
    numbers = None if vector is None else _as_vector(vector)
    column = lance.the_vector_column(table.schema, vector_column_name, None if numbers is None else numbers.shape[-1])
    builder = HybridQuery(table, query, column, [fts_columns] if isinstance(fts_columns, str) else fts_columns)
    if numbers is not None:
        builder.vector(numbers)
    elif isinstance(query, str) and query.strip():
        builder.vector(lance.embed_query(table.embedding_functions, column, query))
    return builder


async def hybrid_async(
    table: AsyncTable,
    query: str | FullTextQuery,
    *,
    vector: npt.ArrayLike | None = None,
    vector_column_name: str | None = None,
    fts_columns: str | Sequence[str] | None = None,
) -> AsyncHybridQuery:
    """Return the same search for a table of ``lancedb.connect_async``; ``await`` it, then its ``to_arrow()``.

    The query is embedded and the candidates are reranked in threads: the event loop stays free. Parameters and errors
    are those of `hybrid`.
    """
    import asyncio

    lance.require_async_table(table, "hybrid_async")
    text = lance.query_text(query)
    if text is None or not text.strip():
        raise QueryError("the query is empty: a hybrid search needs words to search for")
    numbers = None if vector is None else _as_vector(vector)
    schema = await table.schema()
    column = lance.the_vector_column(schema, vector_column_name, None if numbers is None else numbers.shape[-1])
    if numbers is None:
        functions = await table.embedding_functions()
        numbers = await asyncio.to_thread(lance.embed_query, functions, column, text)
    return AsyncHybridQuery(await lance.async_hybrid_inner(table, numbers, column, query, fts_columns), table, text)


def _as_vector(vector: npt.ArrayLike) -> FloatArray:
    numbers = np.asarray(vector, np.float32)
    if numbers.ndim not in (1, 2):
        raise ArgumentError(
            f"vector has the shape (dim,), or (n_tokens, dim) for a multivector column; got {numbers.shape}"
        )
    return numbers
