"""The swap, its reverse, and the end of the old column: one commit each, between sweeps."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.ledger import forget
from lance_rerank.errors import ColumnError
from lance_rerank.reindex.former import Former
from lance_rerank.reindex.indexes import IndexSpec
from lance_rerank.reindex.journal import Journal
from lance_rerank.reindex.kinds import Kind
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import Clock, Lease, Phase
from lance_rerank.reindex.sweeping import Sweeper, Swept, cover
from lance_rerank.reindex.transforming import TransformedTexts
from lance_rerank.reindex.verifying import without_vector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap or a rollback did.

    Attributes
    ----------
    job, column : str
        The job, and the column that searches go by.
    phase : str
        "swapped" or "rolled-back".
    version : int or None
        The version that the commit made; None where the columns stood that way already.
    landed : int
        Commits of others between the version it was made for and its own: their rows were swept afterwards.
    swept, embedded : int
        Rows that were given a vector, before the commit and after it, and texts embedded for that.
    late : int
        Rows that came or changed at the very end: call this again to sweep them, too.
    without_vector : int
        Rows with a text that searches do not find, since they have no vector.
    indices : dict of str to str
        Indices that were renamed, old names to new ones.
    notes : tuple of str
        What apps have to know.
    seconds : float
        How long it took.
    """

    job: str
    column: str
    phase: Phase
    version: int | None
    landed: int
    swept: int
    embedded: int
    late: int
    without_vector: int
    indices: dict[str, str]
    notes: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        done = f"in version {self.version}" if self.version is not None else "already"
        parts = [f"{self.column}: {self.phase} {done}, {self.swept:,} rows swept"]
        if self.landed:
            parts.append(f"{self.landed:,} commits of others in between")
        if self.without_vector:
            parts.append(f"{self.without_vector:,} rows with a text have no vector")
        if self.late:
            parts.append(f"{self.late:,} rows came late: call it again")
        return "\n".join([", ".join(parts), *(f"  note: {note}" for note in self.notes)])


@dataclass
class _Tally:
    """What was done so far."""

    swept: Swept = field(default_factory=Swept)
    version: int | None = None
    landed: int = 0
    indices: dict[str, str] = field(default_factory=dict)

    def count(self, commit: lance.SchemaCommit) -> None:
        self.version = commit.version
        self.landed = commit.version - commit.read_version - 1


def column_swap(plan: Plan) -> lance.ColumnSwap:
    """Return the names of a job's columns before its swap and after it."""
    return lance.ColumnSwap(plan.column, shadow=plan.shadow, retired=f"{plan.column}_prev_{plan.job}")


def is_swapped(table: Table, plan: Plan) -> bool:
    """Return whether the new column has the live name, by the columns that are there: a kill may leave notes behind.

    Raises
    ------
    ColumnError
        Neither of the columns that tell is there, or both are.
    """
    table.checkout_latest()
    names, swap = table.schema.names, column_swap(plan)
    found = [name for name in (swap.shadow, swap.retired) if name in names]
    if len(found) != 1 or swap.live not in names:
        raise ColumnError(
            f"the columns of job {plan.job} are not there as they should be: expected {swap.live!r} and one of "
            f"{swap.shadow!r} and {swap.retired!r}, the table has {', '.join(names)}"
        )
    return found[0] == swap.retired


def new_and_old(table: Table, plan: Plan) -> tuple[str, str]:
    """Return the names that the new column and the old one have now."""
    swap = column_swap(plan)
    return (swap.live, swap.retired) if is_swapped(table, plan) else (swap.shadow, swap.live)


class Swapping:
    """One swap or rollback, by the holder of the lease."""

    def __init__(
        self, table: Table, plan: Plan, kind: Kind, lease: Lease, journal: Journal, clock: Clock, folder: Path
    ) -> None:
        self._table = table
        self._plan = plan
        self._kind = kind
        self._names = column_swap(plan)
        self._lease = lease
        self._journal = journal
        self._clock = clock
        self._folder = folder
        self._started = clock()

    # --- the swap --------------------------------------------------------------------------------------------------

    def swap(self, encoder: Any, dual_writing: bool, texts: TransformedTexts | None = None) -> SwapReport:
        """Put the new column in place, or go on where a kill stopped that, and sweep what landed meanwhile."""
        plan, tally = self._plan, _Tally()
        with self._kind.spool(self._folder) as spool:
            vectors = self._kind.column(encoder, spool, self._lease.renew)
            sweeper = Sweeper(self._table, plan.sources, vectors, self._lease, texts)
            if not is_swapped(self._table, plan):
                tally.swept += sweeper.sweep(self._names.shadow, plan.index)
                former = self._remembered(dual_writing)
                self._enter("swap")
                tally.count(self._kind.commit_swap(self._table, self._names, former, self._writes_both()))
            self._lease.renew()
            tally.indices = lance.rename_indices_after(self._table, self._names)
            self._drop_idle_index()
            tally.swept += sweeper.sweep(self._names.live, plan.index)
        self._kind.follow(self._table, self._lease)
        return self._done("swapped", tally, self._kind.notes_for_apps(self._former(), self._writes_both()))

    def _remembered(self, dual_writing: bool) -> Former:
        """Write down what rollback needs to know of the column that is live now."""
        former = Former.of(self._table, self._plan)
        noted = self._kind.remember(self._table, former, self._lease)
        self._lease.note(former=former.to_notes(), noted=True, dual_writing=dual_writing, **noted)
        return former

    def _drop_idle_index(self) -> None:
        """Drop the old column's index where nothing fills that column any more; a rollback builds it again.

        Rows that apps add then have no value in it, and LanceDB 0.40 fails to optimize an index for such rows alone.
        """
        former = self._former()
        if former.index is None or (former.embeds_texts and self._writes_both()):
            return
        for name in lance.indices_of(self._table, self._names.retired):
            self._table.drop_index(name)
        self._table.checkout_latest()

    # --- the rollback ----------------------------------------------------------------------------------------------

    def rollback(self, allow_nulls: bool) -> SwapReport:
        """Put the old column back, with vectors for all that was written since."""
        tally = _Tally()
        if is_swapped(self._table, self._plan):
            former = self._former()
            self._cover(self._names.retired, former.index)
            tally.swept += self._refill(former, self._names.retired, allow_nulls)
            self._enter("rollback")
            tally.count(self._kind.commit_rollback(self._table, self._names, former))
        notes = self._lease.state.notes or {}
        former = Former.from_notes(notes["former"]) if "former" in notes else Former.of(self._table, self._plan)
        self._lease.renew()
        tally.indices = lance.rename_indices_after(self._table, self._names.reversed())
        tally.swept += self._refill(former, self._names.live, allow_nulls)
        self._kind.follow(self._table, self._lease)
        self._lease.note(verified=None)
        return self._done("rolled-back", tally, ())

    # --- what both stand on ----------------------------------------------------------------------------------------

    def _writes_both(self) -> bool:
        return bool((self._lease.state.notes or {}).get("dual_writing"))

    def _former(self) -> Former:
        return Former.from_notes((self._lease.state.notes or {})["former"])

    def _refill(self, former: Former, column: str, allow_nulls: bool) -> Swept:
        return self._kind.refill(self._table, former, column, allow_nulls, self._lease, self._folder)

    def _cover(self, column: str, index: IndexSpec | None) -> None:
        cover(self._table, column, index, self._lease)

    def _enter(self, phase: Phase) -> None:
        self._lease.advance(phase)
        self._journal.record(self._clock(), phase, {})

    def _done(self, phase: Phase, tally: _Tally, notes: tuple[str, ...]) -> SwapReport:
        plan = self._plan
        report = SwapReport(
            job=plan.job,
            column=plan.column,
            phase=phase,
            version=tally.version,
            landed=tally.landed,
            swept=tally.swept.rows,
            embedded=tally.swept.embedded,
            late=tally.swept.left,
            without_vector=without_vector(self._table, plan.column, plan.source),
            indices=tally.indices,
            notes=notes,
            seconds=self._clock() - self._started,
        )
        self._lease.release(phase)
        self._journal.record(self._clock(), phase, {"version": tally.version, "rows": report.swept})
        return report


def drop_old_column(table: Table, plan: Plan, kind: Kind) -> None:
    """Drop the old column, and the notes on both: nothing is left but the live column and its model's fingerprint."""
    names = column_swap(plan)
    table.checkout_latest()
    if names.retired in table.schema.names:
        forget(lance.dataset(table), names.retired)
        lance.drop_column(table, names.retired)
    kind.forget_live(table)
    key = lance.model_key(names.retired)
    if key in lance.schema_metadata(table):
        lance.update_schema_metadata(table, {key: None})
