"""The phases of a backfill: embed, write, catch up, index."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import ColumnEncoder, Progress, Target, backfill
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.survey import survey
from lance_rerank.columns.transformed import TransformedColumn
from lance_rerank.columns.vectors import VectorColumn
from lance_rerank.reindex import indexes
from lance_rerank.reindex.embedding import TextPass
from lance_rerank.reindex.journal import Journal
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.pool import WorkerPool
from lance_rerank.reindex.state import Clock, Lease, Phase
from lance_rerank.reindex.transforming import TransformedTexts

logger = logging.getLogger(__name__)

CATCH_UP_ROUNDS = 8  # over a table that others add to meanwhile; what comes later is swept before the swap
INDEX_LEASES = 6  # an index cannot say that it is still being built, so the lease is renewed for as many times as long

OnPhase = Callable[[Phase], None]


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a run of a backfill did.

    Attributes
    ----------
    job, column, shadow : str
        What was filled, and for which column.
    rows : int
        Rows that were given a vector in this run.
    embedded : int
        Texts that the model was asked for in this run; equal texts, and those embedded before, cost nothing.
    without_text : int
        Rows met in this run whose text is null, or of which the transform makes none; they have no vector.
    zero_vectors : int
        Texts embedded in this run whose vector is zero, which no cosine search finds; or that have no token vectors.
    commits : int
        Column files committed in this run, one a fragment.
    late : int
        Rows that came or changed at the very end, and have to be caught up with before the swap.
    index : str or None
        The index on the new column.
    seconds : float
        How long it took.
    """

    job: str
    column: str
    shadow: str
    rows: int
    embedded: int
    without_text: int
    zero_vectors: int
    commits: int
    late: int
    index: str | None
    seconds: float

    def __str__(self) -> str:
        commits = "1 commit" if self.commits == 1 else f"{self.commits:,} commits"
        parts = [f"{self.shadow}: {self.rows:,} rows in {commits}, {self.embedded:,} texts embedded"]
        counted = ((self.without_text, "rows without text left null"), (self.zero_vectors, "zero vectors"))
        parts += [f"{number:,} {what}" for number, what in counted if number]
        parts.append(f"index {self.index}" if self.index else "no index")
        if self.late:
            parts.append(f"{self.late:,} rows came late: run backfill() again before the swap")
        return ", ".join(parts)


class Filling:
    """One run of a backfill, by the holder of the lease."""

    def __init__(
        self,
        table: Table,
        plan: Plan,
        record: ColumnRecord,
        lease: Lease,
        journal: Journal,
        clock: Clock,
        progress: Progress | None,
        on_phase: OnPhase | None,
    ) -> None:
        self._table = table
        self._plan = plan
        self._record = record
        self._lease = lease
        self._journal = journal
        self._clock = clock
        self._progress = progress
        self._on_phase = on_phase
        self._rows = self._without_text = self._commits = 0

    def run(
        self, vectors: VectorColumn, workers: WorkerPool | None = None, texts: TransformedTexts | None = None
    ) -> BackfillReport:
        """Go through the phases that are left, and return what was done; workers embed the bulk of the texts."""
        started = self._clock()
        column: ColumnEncoder = TransformedColumn(vectors, texts.of) if texts else vectors
        if self._plan.shadow not in self._table.schema.names:
            self._enter("embed")
            TextPass(self._table, self._plan.sources, vectors, self._progress, workers, texts).run()
            self._enter("write")
            self._fill(column, rounds=1)
        self._enter("catch-up")
        self._fill(column, rounds=CATCH_UP_ROUNDS)
        index = self._indexed(column)
        late = survey(self._table, self._plan.shadow, self._plan.sources).outdated
        report = BackfillReport(
            self._plan.job,
            self._plan.column,
            self._plan.shadow,
            self._rows,
            vectors.embedded,
            self._without_text,
            vectors.zero_vectors,
            self._commits,
            late,
            index,
            self._clock() - started,
        )
        self._lease.release("ready")
        self._note("ready")
        return report

    def _enter(self, phase: Phase, leases: int = 1) -> None:
        self._lease.advance(phase, leases)
        self._note(phase)

    def _note(self, phase: Phase) -> None:
        self._journal.record(self._clock(), phase, {"rows": self._rows, "commits": self._commits})
        logger.info("reindexing %s.%s: %s", self._plan.table, self._plan.column, phase)
        if self._on_phase:
            self._on_phase(phase)

    def _fill(self, column: ColumnEncoder, rounds: int) -> None:
        plan = self._plan
        target = Target(self._table, plan.shadow, plan.sources, column, self._record.metadata())
        done = backfill(target, self._advance, rounds)
        self._rows += done.rows
        self._without_text += done.without_text
        self._commits += done.fragments

    def _advance(self, done: int, total: int) -> None:
        self._lease.renew()
        if self._progress:
            self._progress(done, total)

    def _indexed(self, column: ColumnEncoder) -> str | None:
        """Build the index if it is not there, and leave no rows of the column out of it; return what it is."""
        plan, table = self._plan, self._table
        if plan.index is None or not table.count_rows(f"`{plan.shadow}` IS NOT NULL"):
            return None
        self._enter("index", INDEX_LEASES)
        if not lance.indices_of(table, plan.shadow):
            indexes.build(table, plan.shadow, plan.index)
        # Rows that came meanwhile are filled before the index is extended: LanceDB cannot add nulls alone.
        self._fill(column, rounds=CATCH_UP_ROUNDS)
        if indexes.unindexed_rows(table, plan.shadow):
            indexes.extend(table, plan.shadow)
        return str(plan.index)
