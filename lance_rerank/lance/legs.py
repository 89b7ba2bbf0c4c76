"""Full-text legs that are not LanceDB's: reads of a table, and what its hybrid builders call on a leg."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
from lancedb.background_loop import LOOP
from lancedb.expr import Expr
from lancedb.query import LanceFtsQueryBuilder
from lancedb.table import AsyncTable, Table

from lance_rerank.errors import UnsupportedError

Projection = list[str] | dict[str, Any] | None
Filter: TypeAlias = "str | Expr"
BATCH_ROWS = 32_768  # a read; LanceDB's own 1,024 cost more to hand over than to read


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
