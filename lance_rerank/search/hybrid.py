"""Hybrid search that fetches more than it returns: LanceDB's own builder plus `candidates`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tantivy
from lancedb.query import FullTextQuery
from lancedb.rerankers import Reranker
from lancedb.table import AsyncTable

from lance_rerank import arrow, lance
from lance_rerank.errors import ArgumentError, QueryError
from lance_rerank.lexical.index import Freshness
from lance_rerank.rerankers.base import BaseReranker, columns_read
from lance_rerank.rerankers.fusion import RRFReranker
from lance_rerank.search.lexical import LexicalIndex, LexicalLeg, lexical_leg, searched, words_needed
from lance_rerank.types import FloatArray

DEFAULT_CANDIDATES = 100
Normalize = Literal["score", "rank"]


class _Candidates(lance.HybridSeams):
    """What `candidates` and `rerank` mean, for the sync and the async builder."""

    _candidates = DEFAULT_CANDIDATES
    full_text_leg: LexicalLeg | None = None

    def searched(self, query: object, text: object) -> tuple[Any, str | None]:
        """Return what the full-text leg searches for, and the words that are embedded and told to the reranker."""
        return searched(self.full_text_leg, query, text)

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
        return lance.adding(selected, {name: name for name in missing})

    def combine(self, query: object, vector_results: pa.Table, fts_results: pa.Table, page: slice) -> pa.Table:
        """Return the page of the reranked union."""
        with words_needed(self.reranker, lance.query_text(query), "give it some, .text('...')"):
            return self._combined(query, vector_results, fts_results, page)

    def _combined(self, query: object, vector_results: pa.Table, fts_results: pa.Table, page: slice) -> pa.Table:
        reranker = self.reranker
        if not isinstance(reranker, BaseReranker):
            return lance.lancedb_combine(query, vector_results, fts_results, page, reranker, self.normalize)
        candidates = arrow.union([vector_results, fts_results])
        rows = candidates.rows
        if self.normalize == "rank":
            legs = [lance.by_rank(vector_results, arrow.DISTANCE), lance.by_rank(fts_results, arrow.SCORE)]
            candidates = arrow.union(legs)
        ranked = reranker.ranked(rows, reranker.relevance(query, candidates))
        if reranker.return_score != "all":
            ranked = arrow.without(ranked, [arrow.DISTANCE, arrow.SCORE])
        return ranked.slice(page.start, page.stop - page.start)


class HybridQuery(_Candidates, lance.HybridBuilder):
    """LanceDB's hybrid query builder that over-fetches; made by `hybrid`."""

    def __init__(
        self, table: Any, query: Any, vector_column: str, fts_columns: Any, full_text_leg: LexicalLeg | None
    ) -> None:
        super().__init__(table, query, vector_column, fts_columns=fts_columns)
        self.full_text_leg = full_text_leg
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

    def __init__(self, inner: Any, table: AsyncTable, query: Any, full_text_leg: LexicalLeg | None) -> None:
        super().__init__(inner, table)
        self.query = query
        self.full_text_leg = full_text_leg
        self.rerank()

    def text(self, words: str) -> Self:
        """Tell the reranker these words, where the query is a ``tantivy.Query`` and has none."""
        if not isinstance(self.query, tantivy.Query):
            raise ArgumentError("the query has words of its own; .text('...') is for a tantivy.Query, which has none")
        self.spoken = words
        return self

    def rerank(self, reranker: Reranker | None = None, normalize: Normalize = "score") -> Self:
        """Rerank the union of both legs in a thread; without an argument by reciprocal rank fusion."""
        super().rerank(reranker or RRFReranker(), normalize)
        self.return_row_ids(isinstance(reranker, BaseReranker) and reranker.return_score == "all")
        return self


def hybrid(
    table: Any,
    query: str | FullTextQuery | tantivy.Query | None = None,
    *,
    vector: npt.ArrayLike | None = None,
    lexical: LexicalIndex | None = None,
    vector_column_name: str | None = None,
    fts_columns: str | Sequence[str] | None = None,
    freshness: Freshness = "warn",
    syntax: bool = False,
    fuzzy: int = 0,
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
    query : str, FullTextQuery or tantivy.Query, optional
        What to search for; embedded by the table's own embedding function. May also be given by ``.text(...)``. A
        ``tantivy.Query``, for `lexical`, has no words: give `vector` or, by ``.text(...)``, the words it stands for.
    vector : array-like, optional
        The query's vector ``(dim,)``, where the table has no embedding function or to save its work.
    lexical : TantivyIndex, optional
        Searched instead of LanceDB's full-text index, which the table then needs none of. Rows are fetched by the
        index's key: on tables of more than some 100,000 rows give that column a ``BTree`` index.
    vector_column_name : str, optional
        Needed when the table has several vector columns.
    fts_columns : str or list of str, optional
        The full-text columns to search; by default all that are indexed. Not for `lexical`.
    freshness : {"error", "warn", "sync", "scan"}, default "warn"
        What to do when `lexical` is behind the table, as in `TantivyIndex.search`.
    syntax : bool, default False
        Read the query in Tantivy's query language. The vector and the reranker get it as it is typed.
    fuzzy : {0, 1, 2}, default 0
        How many letters of a word may differ, for `lexical`.

    Raises
    ------
    ArgumentError
        The arguments do not go together, or `lexical` is an index of another table.
    ColumnError, MissingIndexError, QueryError
        The table or the query cannot be searched this way; the message says what to do.
    """
    lance.require_sync_table(table, "hybrid")
    leg = lexical_leg(lexical, fts_columns=fts_columns, freshness=freshness, syntax=syntax, fuzzy=fuzzy)
    if leg is not None:
        lance.require_index_of(leg.index, table)
    numbers = None if vector is None else _as_vector(vector)
    column = lance.the_vector_column(table.schema, vector_column_name, None if numbers is None else numbers.shape[-1])
    builder = HybridQuery(table, query, column, [fts_columns] if isinstance(fts_columns, str) else fts_columns, leg)
    if numbers is not None:
        builder.vector(numbers)
    elif isinstance(query, str) and query.strip():
        builder.embed(query)
    return builder


async def hybrid_async(
    table: AsyncTable,
    query: str | FullTextQuery | tantivy.Query,
    *,
    vector: npt.ArrayLike | None = None,
    lexical: LexicalIndex | None = None,
    vector_column_name: str | None = None,
    fts_columns: str | Sequence[str] | None = None,
    freshness: Freshness = "warn",
    syntax: bool = False,
    fuzzy: int = 0,
) -> AsyncHybridQuery:
    """Return the same search for a table of ``lancedb.connect_async``; ``await`` it, then its ``to_arrow()``.

    The query is embedded, `lexical` searched and the candidates reranked in threads: the event loop stays free.
    Parameters and errors are those of `hybrid`; `lexical` is an index of the same table opened by ``lancedb.connect``.
    """
    lance.require_async_table(table, "hybrid_async")
    leg = lexical_leg(lexical, fts_columns=fts_columns, freshness=freshness, syntax=syntax, fuzzy=fuzzy)
    if leg is not None:
        await lance.require_index_of_async(leg.index, table)
    wanted, words = searched(leg, query)
    if wanted is None or (words is not None and not words.strip()):
        raise QueryError("the query is empty: a hybrid search needs words to search for")
    numbers = None if vector is None else _as_vector(vector)
    schema = await table.schema()
    column = lance.the_vector_column(schema, vector_column_name, None if numbers is None else numbers.shape[-1])
    embedded = None
    if numbers is None:
        if words is None:
            raise QueryError("a tantivy.Query has no words to make the query's vector of: pass it, vector=...")
        embedded = await asyncio.to_thread(lance.EmbeddedQuery, table, column, words, schema.metadata)
    vector = numbers if embedded is None else embedded.vector
    inner = await lance.async_hybrid_inner(table, vector, column, wanted if leg is None else words, fts_columns)
    search = AsyncHybridQuery(inner, table, query, leg)
    search.embedded = embedded
    return search


def _as_vector(vector: npt.ArrayLike) -> FloatArray:
    numbers = np.asarray(vector, np.float32)
    if numbers.ndim not in (1, 2):
        raise ArgumentError(
            f"vector has the shape (dim,), or (n_tokens, dim) for a multivector column; got {numbers.shape}"
        )
    return numbers
