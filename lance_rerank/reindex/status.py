"""How far a job is, told by any process that has the table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.survey import Survey, survey
from lance_rerank.columns.vector_spool import spooled
from lance_rerank.reindex.checks import work_folder
from lance_rerank.reindex.indexes import unindexed_rows
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import Phase, read_state


@dataclass(frozen=True, slots=True)
class Status:
    """How far a reindexing is.

    Attributes
    ----------
    job, column, shadow, model : str
        What is done.
    phase : str
        "planned" before the first run; then "embed", "write", "catch-up", "index", "ready", and what comes after.
    running : bool
        Whether a process is at work, as far as can be known.
    owner : str or None
        That process: host, process id and a token.
    lease_until, started_at : float or None
        Seconds since 1970.
    rows : int
        Rows of the table.
    spooled : int
        Texts that are embedded and kept beside the table; 0 where that folder is not at hand.
    shadow_rows : Survey or None
        How far the new column is filled; None before it is there.
    unindexed : int or None
        Rows that the new column's index lacks; None before it is there.
    """

    job: str
    column: str
    shadow: str
    model: str
    phase: Phase
    running: bool = False
    owner: str | None = None
    lease_until: float | None = None
    started_at: float | None = None
    rows: int = 0
    spooled: int = 0
    shadow_rows: Survey | None = None
    unindexed: int | None = None

    def __str__(self) -> str:
        run = f"run by {self.owner}" if self.running else "not being run"
        lines = [f"job {self.job} on {self.column!r} with {self.model}: {self.phase}, {run}"]
        if self.started_at is not None:
            lines[0] += f", begun {datetime.fromtimestamp(self.started_at, UTC).strftime('%Y-%m-%d %H:%M')} UTC"
        lines.append(f"  {self.spooled:,} texts embedded for {self.rows:,} rows")
        if self.shadow_rows is not None:
            lines.append(f"  {self.shadow}: {self.shadow_rows}")
        if self.unindexed is not None:
            lines.append(f"  its index lacks {self.unindexed:,} rows")
        return "\n".join(lines)


def status_of(table: Table, plan: Plan, now: float) -> Status:
    """Return how far the job of a plan is."""
    state = read_state(table, plan.column)
    told = Status(plan.job, plan.column, plan.shadow, plan.model.name, "planned", rows=table.count_rows())
    if state is None or state.job != plan.job:
        return told
    filled = plan.shadow in table.schema.names
    return Status(
        told.job,
        told.column,
        told.shadow,
        told.model,
        state.phase,
        running=state.is_run(now),
        owner=state.owner,
        lease_until=state.expires_at if state.owner else None,
        started_at=state.started_at,
        rows=told.rows,
        spooled=spooled(work_folder(plan.uri, plan.work_dir, plan.job)),
        shadow_rows=survey(table, plan.shadow, plan.sources) if filled else None,
        unindexed=unindexed_rows(table, plan.shadow) if filled and lance.indices_of(table, plan.shadow) else None,
    )
