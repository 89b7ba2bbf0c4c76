"""LanceDB's hybrid builders, sync and async, with their private hooks turned into methods."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa
from lancedb.expr import Expr, col
from lancedb.query import AsyncFTSQuery, AsyncHybridQuery, AsyncVectorQuery, LanceHybridQueryBuilder
from lancedb.table import AsyncTable

from lance_rerank import arrow
from lance_rerank.errors import QueryError
from lance_rerank.lance.legs import AsyncLegQuery, FullTextLeg, LegQuery, LegRequest, Projection, quoted
from lance_rerank.lance.models import EmbeddedQuery, FollowsModel
from lance_rerank.lance.queries import clear_errors
from lance_rerank.lance.schemas import visible_columns


def adding(selected: list[str] | dict[str, Any], columns: Mapping[str, str]) -> list[str] | dict[str, Any]:
    """Return a selection with more columns, given as name in the results -> name in the table.

    A selection by a list keeps the table's names. One by expressions goes on as it began: among `Expr` objects LanceDB
    would take a text for a literal.
    """
    if not isinstance(selected, dict):
        return list(dict.fromkeys([*selected, *columns.values()]))
    typed = any(isinstance(expression, Expr) for expression in selected.values())
    return selected | {name: col(source) if typed else quoted(source) for name, source in columns.items()}


def _with_score(projection: list[str] | dict[str, Any], score: str) -> list[str] | dict[str, Any]:
    """Return the columns with a leg's score named among them: LanceDB warns on each query that leaves it out."""
    return adding(projection, {score: score})


UNUSED_TEXT = "-"  # LanceDB's builders want a text for their full-text leg even where another leg takes its place
NO_WORDS_TO_EMBED = (
    "a tantivy.Query has no words to make the query's vector of: pass the vector, vector=..., or the words that it "
    "stands for, .text('...')"
)


class HybridSeams:
    """What a hybrid search of ours decides, behind LanceDB's sync and async builders alike."""

    _candidates: int = 0
    _reranker: Any
    _norm: Any
    full_text_leg: FullTextLeg | None = None
    """What searches instead of LanceDB's full-text index."""

    @property
    def reranker(self) -> Any:
        """What ranks the union of the legs."""
        return self._reranker

    @property
    def normalize(self) -> str:
        """How scores are shown to the reranker: "score" or "rank"."""
        return str(self._norm)

    def return_row_ids(self, wanted: bool) -> None:
        """Return ``_rowid`` when this or the caller wants it, whatever LanceDB fetches for the reranker."""
        raise NotImplementedError

    def searched(self, query: object, text: object) -> tuple[Any, str | None]:
        """Return what the full-text leg searches for, and the words that are embedded and told to the reranker."""
        raise NotImplementedError

    def leg_limit(self, wanted: int) -> int:
        """Return how many rows each leg fetches for a page that ends at row `wanted`."""
        return max(self._candidates, wanted)

    def projection(self, schema: pa.Schema, selected: Projection) -> Projection:
        """Return the columns each leg fetches, given those the caller selected (None for all)."""
        raise NotImplementedError

    def selected_only(self, rows: pa.Table, schema: pa.Schema, selected: Projection) -> pa.Table:
        """Return the rows less the columns that only the reranker asked for."""
        fetched = self.projection(schema, selected) or ()
        return arrow.without(rows, set(fetched) - set(visible_columns(schema) if selected is None else selected))

    def combine(self, query: object, vector_results: pa.Table, fts_results: pa.Table, page: slice) -> pa.Table:
        """Return the page of the reranked union of both legs, ``_rowid`` included."""
        raise NotImplementedError


class HybridBuilder(FollowsModel, HybridSeams, LanceHybridQueryBuilder):
    """LanceDB's hybrid builder with its private hooks turned into the methods of `HybridSeams`."""

    _columns: Projection
    _limit: int | None
    _offset: int | None
    _fts_query: Any

    def return_row_ids(self, wanted: bool) -> None:
        """Return ``_rowid`` when this or the caller wants it."""
        self._with_row_id = self._caller_requested_row_id or wanted

    def _validate_query(self, query: Any, vector: Any = None, text: Any = None) -> tuple[Any, Any]:
        searched, words = self.searched(query, text)
        if searched is None:
            raise QueryError("a hybrid search needs words: pass the query, or call .text('...')")
        if words is not None and not words.strip():
            raise QueryError("the query is empty: a hybrid search needs words to search for")
        if vector is None:
            if words is None:
                raise QueryError(NO_WORDS_TO_EMBED)
            vector = self.embed(words)
        # LanceDB refuses a query and its vector together; ours is the text and the vector that stands for it
        if self.full_text_leg is None:
            return super()._validate_query(None, vector, searched)
        vector, _ = super()._validate_query(None, vector, words or UNUSED_TEXT)
        return vector, searched

    def _create_query_builders(self) -> None:
        selected: Projection = self._columns
        self._columns = self.projection(self._table.schema, selected)
        try:
            super()._create_query_builders()
        finally:
            self._columns = selected
        if (projection := self.projection(self._table.schema, selected)) is not None:
            self._vector_query.select(_with_score(projection, arrow.DISTANCE))
            self._fts_query.select(_with_score(projection, arrow.SCORE))
        limit = self.leg_limit((self._limit or 10) + (self._offset or 0))
        self._vector_query.limit(limit)
        self._fts_query.limit(limit)
        if self.full_text_leg is not None:
            _, words = self.searched(self._query, self._text)
            self._fts_query = LegQuery(self._fts_query, self._table, self.full_text_leg, words)

    def _run_hybrid(self, *, timeout: timedelta | None = None) -> pa.Table:
        if self.full_text_leg is not None:
            self.full_text_leg.prepare()
        with clear_errors():
            return super()._run_hybrid(timeout=timeout)

    def explain_plan(self, verbose: bool | None = False) -> str:
        """Return the plans of both legs."""
        if self.full_text_leg is None:
            return super().explain_plan(verbose)
        self._create_query_builders()
        plan = self._table._explain_plan(self._vector_query.to_query_object(), verbose=verbose)
        legs = [*plan.splitlines(), self._fts_query.explain_plan()]
        return "\n".join([str(self._reranker), *("    " + line for line in legs)])

    def analyze_plan(self, distributed_metrics: Literal["aggregate", "per_worker", "full"] = "aggregate") -> str:
        """Run both legs, and return their plans with what they took."""
        if self.full_text_leg is None:
            return super().analyze_plan(distributed_metrics)
        self._create_query_builders()
        query = self._vector_query.to_query_object()
        plan = self._table._analyze_plan(query, distributed_metrics=distributed_metrics)
        return "\n".join(["Vector Search Plan:", plan, "FTS Search Plan:", self._fts_query.analyze_plan()])

    def _combine_hybrid_results(  # LanceDB's is static and called through self
        self,
        *,
        fts_results: pa.Table,
        vector_results: pa.Table,
        fts_query: object,
        limit: int,
        offset: int | None = None,
        **_: Any,
    ) -> pa.Table:
        start = offset or 0
        return self.combine(fts_query, vector_results, fts_results, slice(start, start + limit))

    def _finish_hybrid_results(self, results: pa.Table) -> pa.Table:
        return super()._finish_hybrid_results(self.selected_only(results, self._table.schema, self._columns))


class AsyncHybridBuilder(HybridSeams, AsyncHybridQuery):
    """LanceDB's async hybrid query with the same seams; legs are awaited together, `combine` runs in a thread."""

    query: Any = ""
    """What was asked for; what LanceDB's own ``get_query`` says of a boolean query is empty."""
    spoken: str | None = None
    """Words for the reranker, where the query itself has none."""
    embedded: EmbeddedQuery | None = None
    """What the table's own model embedded; None where the caller passed the vector."""
    _selected: Projection = None
    _keep_row_ids: bool = False

    def return_row_ids(self, wanted: bool) -> None:
        """Return ``_rowid`` when this or the caller wants it."""
        self._keep_row_ids = wanted

    def select(self, columns: Any) -> AsyncHybridBuilder:
        """Return only these columns."""
        self._selected = columns
        return super().select(columns)

    async def _create_child_queries(self) -> tuple[AsyncFTSQuery, AsyncVectorQuery, int, int]:
        fts, vector, limit, offset = await super()._create_child_queries()
        projection = self.projection(await self._table.schema(), self._selected)
        for leg, score in ((fts, arrow.SCORE), (vector, arrow.DISTANCE)):
            leg.limit(self.leg_limit(limit + offset))
            if projection is not None and self._pk_fusion is None:
                leg.select(_with_score(projection, score))
        if self.full_text_leg is None:
            return fts, vector, limit, offset
        asked = vector._inner.to_query_request()  # of a full-text query it does not say whether to filter afterwards
        request = LegRequest(projection, self.leg_limit(limit + offset), asked.filter, not asked.postfilter)
        searched, _ = self.searched(self.query, self.spoken)
        leg = AsyncLegQuery(self._table, self.full_text_leg, searched, request, asked.use_lsm)
        return leg, vector, limit, offset

    async def _run_hybrid(self, *, max_batch_length: int | None = None, timeout: timedelta | None = None) -> Any:
        from lancedb.arrow import AsyncRecordBatchReader

        fts_query, vector_query, limit, offset = await self._create_child_queries()
        with clear_errors():
            fts, vector = await asyncio.gather(
                fts_query.to_arrow(timeout=timeout), self._vector_rows(vector_query, timeout)
            )
        if self._pk_fusion is not None:
            vector, fts = self._pk_fusion.stamp(vector, fts)
        page = slice(offset, offset + limit)
        _, words = self.searched(self.query, self.spoken)
        rows = await asyncio.to_thread(self.combine, words, vector, fts, page)
        if self._pk_fusion is not None:
            rows = self._pk_fusion.strip(rows)
        elif not (self._keep_row_ids or self._user_requested_row_id()):
            rows = arrow.without(rows, [arrow.ROW_ID])
        rows = self.selected_only(rows, await self._table.schema(), self._selected)
        return AsyncRecordBatchReader(rows, max_batch_length=max_batch_length)

    async def _vector_rows(self, leg: AsyncVectorQuery, timeout: timedelta | None) -> pa.Table:
        """Return the vector leg's rows; it is run again whenever the model changed under it."""
        if self.embedded is None:
            return await leg.to_arrow(timeout=timeout)
        first, asked = self.embedded.vector, leg.to_query_object()

        async def run(vector: Any) -> pa.Table:
            if vector is first:
                return await leg.to_arrow(timeout=timeout)
            again = self._table._sync_query_to_async(asked.model_copy(update={"vector": vector.tolist()}))
            return await again.to_arrow(timeout=timeout)

        return await self.embedded.answer_async(run)


def lancedb_combine(
    query: object, vector_results: pa.Table, fts_results: pa.Table, page: slice, reranker: Any, normalize: str
) -> pa.Table:
    """Return the page of a hybrid search as LanceDB itself combines it: for rerankers that are not ours."""
    return LanceHybridQueryBuilder._combine_hybrid_results(
        fts_results=fts_results,
        vector_results=vector_results,
        norm=normalize,
        fts_query=query,
        reranker=reranker,
        limit=page.stop - page.start,
        with_row_ids=True,
        offset=page.start,
    )


def by_rank(results: pa.Table, column: str) -> pa.Table:
    """Return a leg with its scores replaced by ranks, as LanceDB's ``normalize="rank"`` does."""
    return LanceHybridQueryBuilder._rank(results, column) if column in results.column_names else results


async def async_hybrid_inner(table: AsyncTable, vector: Any, column: str, text: Any, fts_columns: Any) -> Any:
    """Return the native half of an async hybrid query; without a text, one whose full-text leg is not run."""
    words = UNUSED_TEXT if text is None else text
    query = table.query().nearest_to(vector).column(column).nearest_to_text(words, columns=fts_columns)
    return query._inner
