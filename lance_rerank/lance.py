"""Where this package leans on LanceDB's internals: query builders' private hooks, embedding metadata, commits.

LanceDB makes no promise about these, so they are gathered here, the dependency is pinned to one minor version, and
`tests/test_lance.py` fails when one of them moves.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import DataFile
from lancedb.background_loop import LOOP
from lancedb.expr import Expr, col
from lancedb.query import (
    AsyncFTSQuery,
    AsyncHybridQuery,
    AsyncVectorQuery,
    BooleanQuery,
    BoostQuery,
    FullTextQuery,
    LanceFtsQueryBuilder,
    LanceHybridQueryBuilder,
    LanceVectorQueryBuilder,
)
from lancedb.table import AsyncTable, LanceTable, Table
from lancedb.util import infer_vector_column_dim, is_vector_column

from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, ColumnError, MissingIndexError, QueryError, UnsupportedError

Projection = list[str] | dict[str, Any] | None
Filter: TypeAlias = "str | Expr"
BATCH_ROWS = 32_768  # a read; LanceDB's own 1,024 cost more to hand over than to read

# --- queries ---------------------------------------------------------------------------------------------------


def query_text(query: object) -> str | None:
    """Return the words of a query: a string as it is, those of LanceDB's full-text query objects, else None."""
    if query is None or isinstance(query, str):
        return query
    if isinstance(query, BoostQuery):
        return query_text(query.positive)
    if isinstance(query, BooleanQuery):
        wanted = [query_text(part) for occur, part in query.queries if str(occur.value).upper() != "MUST_NOT"]
        return " ".join(text for text in wanted if text)
    if isinstance(query, FullTextQuery):
        return str(query.query)  # every other kind has it
    raise QueryError(f"a query is a string or a LanceDB full-text query, got {type(query).__name__}")


def run_search(search: object) -> pa.Table:
    """Return a search's rows: an Arrow table as it is, a LanceDB vector query run with row ids."""
    if isinstance(search, pa.Table):
        return search
    if isinstance(search, LanceVectorQueryBuilder | LanceFtsQueryBuilder):
        return search.with_row_id(True).to_arrow()
    raise ArgumentError(f"expected Arrow tables or LanceDB queries, got {type(search).__name__}")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what LanceDB says of a search that cannot run into an error that says what to do."""
    try:
        yield
    except ValueError as error:
        if "INVERTED index" in str(error):
            raise MissingIndexError(
                "the table has no full-text index, which the full-text leg of this search needs. Build one: "
                "from lancedb.index import FTS; table.create_index('text', config=FTS())"
            ) from error
        if found := re.search(r"query dim\((\d+)\) doesn't match the column (\S+) vector dim\((\d+)\)", str(error)):
            query_dim, column, dim = found.groups()
            raise ColumnError(
                f"column {column!r} holds vectors of {dim} dimensions and the query's has {query_dim}: they come from "
                "different encoders. Use the one that filled the column."
            ) from error
        raise


# --- schemas ---------------------------------------------------------------------------------------------------


def is_hidden(data_type: pa.DataType) -> bool:
    """Tell whether a column type is one this package hides from LanceDB's search for "the" vector column.

    That search knows fixed-size lists of floats. The same bytes typed as ``fixed_shape_tensor``, alone or in a list,
    are passed over by it and still readable, indexable and searchable by name.
    """
    if pa.types.is_list(data_type):
        data_type = data_type.value_type
    return isinstance(data_type, pa.FixedShapeTensorType)


def token_dim(data_type: pa.DataType) -> int | None:
    """Return the dimension of a column of token vectors, hidden or not; None for any other type."""
    if not pa.types.is_list(data_type):
        return None
    tokens = data_type.value_type
    if isinstance(tokens, pa.FixedShapeTensorType):
        return int(tokens.storage_type.list_size)
    return int(tokens.list_size) if pa.types.is_fixed_size_list(tokens) else None


def is_int8(data_type: pa.DataType) -> bool:
    """Tell whether a column of token vectors holds 8-bit integers."""
    tokens = data_type.value_type
    return bool(tokens.value_type == pa.int8())


def has_index(table: Table, column: str) -> bool:
    """Tell whether a column has an index."""
    return any(column in index.columns for index in table.list_indices())


def visible_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that a search returns when the caller selects none: all but the hidden ones."""
    return [field.name for field in schema if not is_hidden(field.type)]


def vector_columns(schema: pa.Schema) -> dict[str, int]:
    """Return LanceDB's candidates for "the" vector column with their dimensions."""
    return {f.name: int(infer_vector_column_dim(f.type) or 0) for f in schema if is_vector_column(f.type)}


def the_vector_column(schema: pa.Schema, name: str | None = None, dim: int | None = None) -> str:
    """Return the vector column to search: the one named, or the only one there is (of this dimension).

    Raises
    ------
    ColumnError
        There is none, or more than one to choose from.
    """
    columns = vector_columns(schema)
    if name is not None:
        if name not in schema.names:
            raise ColumnError(
                f"the table has no column {name!r}; its vector columns are: {', '.join(columns) or 'none'}"
            )
        if name not in columns and not is_hidden(schema.field(name).type):
            raise ColumnError(f"column {name!r} is no vector column but {schema.field(name).type}")
        return name
    fitting = [column for column, size in columns.items() if dim is None or size == dim]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        size = "" if dim is None else f" of {dim} dimensions"
        raise ColumnError(f"the table has no vector column{size} (columns: {', '.join(schema.names)})")
    raise ColumnError(
        f"the table has several vector columns ({', '.join(fitting)}): name the one to search, "
        f"vector_column_name={fitting[0]!r}"
    )


def embed_query(functions: Mapping[str, Any], column: str, query: str) -> npt.NDArray[np.float32]:
    """Return the query's vector ``(dim,)`` from the embedding function that the table names for a column.

    Raises
    ------
    ColumnError
        The column has no embedding function.
    """
    config = functions.get(column)
    if config is None:
        raise ColumnError(
            f"column {column!r} has no embedding function to turn the query {query!r} into a vector. "
            "Pass the vector yourself (vector=...) or, to a Retriever, an encoder=..."
        )
    return np.asarray(config.function.compute_query_embeddings_with_retry(query)[0], np.float32)


def require_sync_table(table: object, what: str) -> Table:
    """Return the table, or raise `UnsupportedError` when it is an async one."""
    if isinstance(table, AsyncTable):
        raise UnsupportedError(
            f"{what} takes a table of lancedb.connect(...), not of connect_async(...). Open the same table with "
            "lancedb.connect for it, which works in async searches too and off the event loop; the async form "
            "of hybrid is lance_rerank.hybrid_async."
        )
    if not isinstance(table, Table):
        raise ArgumentError(f"{what} takes a LanceDB table, got {type(table).__name__}")
    return table


def require_async_table(table: object, what: str) -> AsyncTable:
    """Return the table, or raise `ArgumentError` when it is no async one."""
    if not isinstance(table, AsyncTable):
        raise ArgumentError(
            f"{what} takes a table of lancedb.connect_async(...), got {type(table).__name__}. For a table of "
            "lancedb.connect(...) use lance_rerank.hybrid."
        )
    return table


def require_same_table(reranker: object, table: Table) -> None:
    """Raise `ArgumentError` when a reranker reads from another table than the one that is searched."""
    own = getattr(reranker, "table", None)
    if isinstance(own, LanceTable) and isinstance(table, LanceTable) and own.uri != table.uri:
        raise ArgumentError(
            f"{type(reranker).__name__} reads from table {own.name!r} and the search is of {table.name!r}: row ids of "
            f"one mean nothing in the other. Give the reranker the table that is searched: table=..."
        )


def require_index_of(index: Any, table: Table) -> None:
    """Raise `ArgumentError` when a lexical index is of another table than the one that is searched."""
    if isinstance(table, LanceTable):  # where a remote table lies is not ours to know
        _require_same_place(index, table.uri, table.name)


async def require_index_of_async(index: Any, table: AsyncTable) -> None:
    """Raise `ArgumentError` when a lexical index is of another table than the async one that is searched."""
    _require_same_place(index, await table.uri(), table.name)


def _require_same_place(index: Any, uri: str, name: str) -> None:
    own = index.table
    if isinstance(own, LanceTable) and _absolute(own.uri) != _absolute(uri):
        raise ArgumentError(
            f"{type(index).__name__} is an index of table {own.name!r} ({own.uri}) and the search is of {name!r} "
            f"({uri}): keys of one mean nothing in the other. Pass the index of the table that is searched: lexical=..."
        )


def _absolute(uri: str) -> str:
    """Return a local path in full, which async tables give as it was typed; other addresses as they are."""
    return uri if "://" in uri else os.path.abspath(uri)


def latest_handle(table: Table) -> Table:
    """Return a second handle on a table, which can be moved to the latest version without moving the user's."""
    if not isinstance(table, LanceTable):
        return table
    return table._conn.open_table(table.name, namespace_path=table._namespace_path)


def take_rows(table: Table, row_ids: npt.NDArray[np.uint64], columns: Sequence[str]) -> pa.Table:
    """Return the rows with these ids, with ``_rowid``: in storage order, and less the rows deleted meanwhile."""
    query = table.take_row_ids(row_ids.tolist()).select(list(columns)).with_row_id()
    return query.to_arrow()


# --- full-text legs that are not LanceDB's ----------------------------------------------------------------------


def quoted(column: str) -> str:
    """Return a column's name as LanceDB's SQL has it, whatever letters are in it."""
    return "`" + column.replace("`", "``") + "`"


def any_of(column: str, values: Sequence[int | str]) -> str:
    """Return the filter that keeps the rows with one of these values."""
    if not values:
        return "false"  # IN () is no SQL
    written = ("'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value) for value in values)
    return f"{quoted(column)} IN ({','.join(written)})"


@dataclass(frozen=True, slots=True)
class LegRequest:
    """What a search wants of its full-text leg.

    Attributes
    ----------
    columns : list, dict or None
        As in ``select``; None for all.
    limit : int
        How many rows.
    where : str or Expr, optional
        A filter.
    prefilter : bool, default True
        Filter before the search; else drop from its rows those that do not pass.
    """

    columns: Projection
    limit: int
    where: Filter | None = None
    prefilter: bool = True


@dataclass(frozen=True, slots=True)
class RowRead:
    """A read of rows of a table, with ``_rowid``, in storage order: those that pass all filters, or those named.

    Of the rows that are named by their ids, those that are not there any more are left out.
    """

    columns: Projection
    where: tuple[Filter, ...] = ()
    limit: int | None = None
    row_ids: tuple[int, ...] | None = None

    def run(self, table: Table, timeout: timedelta | None = None, use_lsm: bool | None = None) -> pa.Table:
        """Return the rows of a sync table."""
        # its own to_arrow() goes to LanceDB's event loop once a batch and more; this goes there once
        return LOOP.run(self.run_async(table._table, timeout, use_lsm))

    async def run_async(
        self, table: AsyncTable, timeout: timedelta | None = None, use_lsm: bool | None = None
    ) -> pa.Table:
        """Return the rows of an async table."""
        if self.row_ids is not None:
            named = table.take_row_ids(list(self.row_ids))
            named = named if self.columns is None else named.select(self.columns)
            try:  # LanceDB knows no timeout here
                seconds = None if timeout is None else timeout.total_seconds()
                return await asyncio.wait_for(named.with_row_id().to_arrow(), seconds)
            except TimeoutError as error:
                raise TimeoutError(f"reading {len(self.row_ids)} rows took more time than {timeout}") from error
        read = table.query()
        for condition in self.where:
            read = read.where(condition)
        if self.columns is not None:
            read = read.select(self.columns)
        if self.limit is not None:
            read = read.limit(self.limit)
        if use_lsm is not None:
            read = read.use_lsm(use_lsm)
        batches = await read.with_row_id().to_batches(max_batch_length=BATCH_ROWS, timeout=timeout)
        return pa.Table.from_batches(await batches.read_all(), schema=batches.schema)


LegSteps = Generator[RowRead, pa.Table, pa.Table]
"""A leg at work: it yields what it has to read of the table, is sent the rows, and returns its own rows."""


class FullTextLeg(Protocol):
    """What takes the place of LanceDB's full-text search in a hybrid search."""

    def prepare(self) -> None:
        """Do what has to be done before any leg reads the table."""
        ...

    def steps(self, query: Any, request: LegRequest) -> LegSteps:
        """Return the leg's rows, best first, with ``_score`` and ``_rowid``, by reads of the table."""
        ...

    def describe(self, query: Any, request: LegRequest) -> str:
        """Return the leg in one line, for plans."""
        ...


def _advance(steps: LegSteps, rows: pa.Table | None) -> RowRead | pa.Table:
    """Return the leg's next read, or its rows when it is through."""
    try:
        return steps.send(rows)
    except StopIteration as finished:
        return finished.value


def run_leg(steps: LegSteps, table: Table, timeout: timedelta | None = None, use_lsm: bool | None = None) -> pa.Table:
    """Return a leg's rows, read from a sync table."""
    step = _advance(steps, None)
    while isinstance(step, RowRead):
        step = _advance(steps, step.run(table, timeout, use_lsm))
    return step


async def run_leg_async(
    steps: LegSteps, table: AsyncTable, timeout: timedelta | None = None, use_lsm: bool | None = None
) -> pa.Table:
    """Return a leg's rows, read from an async table; what the leg does in between is done in threads.

    The rows come from the very handle that the vector leg searches, and so from the same version of the table: row ids
    of another would not tell that both legs found the same row.
    """
    step = await asyncio.to_thread(_advance, steps, None)
    while isinstance(step, RowRead):
        step = await asyncio.to_thread(_advance, steps, await step.run_async(table, timeout, use_lsm))
    return step


def _analysis(description: str, rows: pa.Table, started: float) -> str:
    milliseconds = (time.perf_counter() - started) * 1000
    return f"{description}, metrics=[output_rows={rows.num_rows}, elapsed={milliseconds:.1f}ms]"


class LegQuery:
    """A leg of ours with the methods that LanceDB's sync hybrid builder calls on its full-text query."""

    def __init__(self, native: LanceFtsQueryBuilder, table: Table, leg: FullTextLeg, words: str | None) -> None:
        if native._phrase_query:
            raise UnsupportedError(
                "phrase_query() is of LanceDB's full-text search. With a lexical index write the phrase in quotes, in "
                "its query syntax: syntax=True"
            )
        self._table = table
        self._use_lsm = native._use_lsm
        self._leg = leg
        self._searched = native._query
        self._query = words  # what the reranker is told
        self._request = LegRequest(native._columns, native._limit, native._where, not native._postfilter)

    def with_row_id(self, _: bool) -> LegQuery:
        """Return this query, whose rows always come with their ids."""
        return self

    def to_arrow(self, *, timeout: timedelta | None = None) -> pa.Table:
        """Return the leg's rows."""
        return run_leg(self._leg.steps(self._searched, self._request), self._table, timeout, self._use_lsm)

    def explain_plan(self) -> str:
        """Return the leg in one line."""
        return self._leg.describe(self._searched, self._request)

    def analyze_plan(self) -> str:
        """Run the leg, and return it in one line with what it took."""
        started = time.perf_counter()
        return _analysis(self.explain_plan(), self.to_arrow(), started)


class AsyncLegQuery:
    """A leg of ours with the methods that LanceDB's async hybrid query calls on its full-text query."""

    def __init__(
        self, table: AsyncTable, leg: FullTextLeg, searched: Any, request: LegRequest, use_lsm: bool | None
    ) -> None:
        self._table = table
        self._leg = leg
        self._searched = searched
        self._request = request
        self._use_lsm = use_lsm

    async def to_arrow(self, timeout: timedelta | None = None) -> pa.Table:
        """Return the leg's rows."""
        steps = self._leg.steps(self._searched, self._request)
        return await run_leg_async(steps, self._table, timeout, self._use_lsm)

    async def explain_plan(self, _: bool | None = False) -> str:
        """Return the leg in one line."""
        return self._leg.describe(self._searched, self._request)

    async def analyze_plan(self, _: str = "aggregate") -> str:
        """Run the leg, and return it in one line with what it took."""
        started = time.perf_counter()
        return _analysis(await self.explain_plan(), await self.to_arrow(), started)


# --- hybrid builders -------------------------------------------------------------------------------------------


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


class HybridBuilder(HybridSeams, LanceHybridQueryBuilder):
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
            vector = embed_query(self._table.embedding_functions, self._vector_column, words)
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
                fts_query.to_arrow(timeout=timeout), vector_query.to_arrow(timeout=timeout)
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


# --- commits ---------------------------------------------------------------------------------------------------


def dataset(table: Table) -> lance.LanceDataset:
    """Return the Lance dataset under a table, at its latest version.

    Raises
    ------
    UnsupportedError
        The table is remote, so its files are out of reach.
    """
    if not isinstance(table, LanceTable):
        raise UnsupportedError(f"writing columns needs a local or object-store table, not a {type(table).__name__}")
    opened = table.to_lance()
    opened.checkout_latest()
    return opened


def files_of(table: Table) -> list[str]:
    """Return the names of all files with rows, or deletions of rows, of the version that a table's handle is at."""
    fragments = table.to_lance().get_fragments()
    paths = [file.path for fragment in fragments for file in fragment.metadata.files]
    return [*paths, *(name for fragment in fragments if (name := deletions(fragment)))]


def write_column_file(data: lance.LanceDataset, name: str, batches: Iterator[pa.Array], storage: pa.DataType) -> str:
    """Write one column of one fragment to a new file of the dataset and return its path in ``data/``."""
    path = f"{uuid.uuid4()}.lance"
    schema = pa.schema([pa.field(name, storage)])
    with LanceFileWriter(
        f"{data.uri.rstrip('/')}/data/{path}",
        schema,
        version=data.data_storage_version,
        storage_options=data._storage_options,
    ) as writer:
        for array in batches:
            writer.write_batch(pa.record_batch([array], schema=schema))
    return path


def replace_column(data: lance.LanceDataset, fragment_id: int, path: str) -> None:
    """Commit a column file as one fragment's values, against the version that `data` was read at.

    Other columns, other fragments and every index of other columns stay as they are. An append or a delete that
    landed meanwhile is no conflict; an update or a compaction of this fragment is.

    Raises
    ------
    OSError
        The commit conflicts with one that landed since.
    """
    group = lance.LanceOperation.DataReplacementGroup(fragment_id, DataFile.create(data, path))
    lance.LanceDataset.commit(data, lance.LanceOperation.DataReplacement([group]), read_version=data.version)


def fragment_file(data: lance.LanceDataset, fragment: Any, column: str) -> str | None:
    """Return the path of the file that holds a fragment's values of a column, None where they are all null.

    Raises
    ------
    ColumnError
        The table has no such column.
    """
    field = next((field for field in data.lance_schema.fields() if field.name() == column), None)
    if field is None:
        raise ColumnError(f"the table has no column {column!r} any more (columns: {', '.join(data.schema.names)})")
    ids = _leaf_ids(field)
    return next((file.path for file in fragment.metadata.files if ids & set(file.fields)), None)


def deletions(fragment: Any) -> str | None:
    """Return the name of the list of a fragment's deleted rows, None where there is none."""
    found = fragment.metadata.deletion_file
    return None if found is None else str(found.path(fragment.fragment_id))


def live_places(fragment: Any) -> npt.NDArray[np.int64]:
    """Return which of a fragment's rows are not deleted, counted from 0."""
    rows = fragment.scanner(columns=[], with_row_address=True).to_table()
    return (rows.column("_rowaddr").to_numpy() & 0xFFFFFFFF).astype(np.int64)


def _leaf_ids(field: Any) -> set[int]:
    """Return the ids that data files carry for a field: those of its innermost children."""
    children = field.children()
    return set().union(*map(_leaf_ids, children)) if children else {field.id()}


class SideDataset:
    """A small Lance dataset in a table's own folder, for notes on one column."""

    def __init__(self, data: lance.LanceDataset, column: str) -> None:
        self._uri = f"{data.uri.rstrip('/')}/_lance_rerank/{column}.lance"
        self._options = data._storage_options

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what was appended; nothing where there is no such dataset."""
        try:
            opened = lance.dataset(self._uri, storage_options=self._options)
        except (ValueError, OSError):
            return
        yield from opened.to_batches()

    def append(self, rows: pa.Table) -> None:
        """Add rows, in one commit."""
        lance.write_dataset(rows, self._uri, mode="append", storage_options=self._options)


def add_hidden_column(table: Table, name: str, data_type: pa.DataType, metadata: Mapping[str, str]) -> None:
    """Add a column of nulls, a change of metadata alone. Hidden types keep running apps' searches as they are.

    Another writer that adds the same column first is no error: the table then has it.
    """
    try:
        table.add_columns(pa.field(name, data_type, metadata=dict(metadata)))
    except RuntimeError:  # LanceDB's for a commit that another one preempted
        table.checkout_latest()
        if name not in table.schema.names:
            raise
