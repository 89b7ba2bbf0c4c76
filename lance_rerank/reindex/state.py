"""What a job says of itself in the table's own metadata, and who runs it: for every process that has the table."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.errors import ArgumentError, ConflictError

Phase = Literal[
    "planned", "embed", "write", "catch-up", "index", "ready", "swap", "swapped", "rollback", "rolled-back", "drop-old"
]
BEFORE_SWAP: tuple[Phase, ...] = ("planned", "embed", "write", "catch-up", "index", "ready")
NOT_SWAPPED: tuple[Phase, ...] = (*BEFORE_SWAP, "rolled-back")

LEASE_S = 600.0
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as it stands in the table's metadata.

    Attributes
    ----------
    job : str
        Its id.
    phase : str
        What it does or did last; "ready" when the new column can be verified and swapped.
    column, shadow, source : str
        The column to replace, the one that is to replace it, and the texts they come from.
    model : str
        For people.
    fingerprint : str
        What tells the model from others.
    plan : mapping
        The plan, so that another machine can go on.
    started_at : float
        Seconds since 1970.
    owner : str or None
        Who runs it: host, process, and a token; None where nobody does.
    expires_at : float
        When the owner has to have said again that it does.
    notes : mapping or None
        What later steps need to know of earlier ones.
    """

    job: str
    phase: Phase
    column: str
    shadow: str
    source: str
    model: str
    fingerprint: str
    plan: Mapping[str, Any]
    started_at: float
    owner: str | None = None
    expires_at: float = 0.0
    notes: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"job {self.job} (phase {self.phase!r}, model {self.model})"

    def is_run(self, now: float) -> bool:
        """Return whether somebody runs the job, as far as can be known: the lease holds, and the process lives."""
        return self.owner is not None and now < self.expires_at and not _is_dead(self.owner)


def state_key(column: str) -> str:
    """Return the key of the table's metadata for jobs on a column, of which there can be one."""
    return f"lance_rerank.reindex.{column}"


def read_state(table: Table, column: str) -> JobState | None:
    """Return the job on a column, None where there is none."""
    text = lance.table_metadata(table).get(state_key(column))
    return None if text is None else JobState(**json.loads(text))


def jobs_of(table: Table) -> list[JobState]:
    """Return the jobs on all columns of a table."""
    metadata = lance.table_metadata(table)
    return [JobState(**json.loads(text)) for key, text in metadata.items() if key.startswith(state_key(""))]


def what_to_do(phase: str) -> str:
    """Return, for an error, which step goes on with a job that is in a phase."""
    if phase in ("swap", "swapped"):
        return "Its columns are swapped, or about to be: swap() goes on, rollback() takes that back"
    if phase == "rollback":
        return "A rollback was begun: rollback() goes on with it"
    if phase == "drop-old":
        return "The old column is being dropped: drop_old() goes on with it"
    return "verify() and swap() come first" if phase in ("ready", "rolled-back") else "Run backfill() first"


class Lease:
    """The right to work on a column, held by one object in one process.

    Each change is made against the state that was read, so that of two holders one finds out before it writes more. It
    is renewed by a commit of the table's metadata, which touches no row and no index, once in half its time.

    Parameters
    ----------
    table : lancedb.table.Table
        This object's own handle.
    wanted : JobState
        The job to begin or to go on with.
    clock : callable
        Returns the seconds since 1970.
    lease_s : float
        How long the lease holds without being renewed.
    """

    def __init__(self, table: Table, wanted: JobState, clock: Clock, lease_s: float) -> None:
        self._table = table
        self._wanted = wanted
        self._clock = clock
        self._lease_s = lease_s
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._held: JobState | None = None

    @property
    def state(self) -> JobState:
        """The state as this holder wrote it last."""
        assert self._held is not None
        return self._held

    def acquire(self, phases: Sequence[Phase]) -> None:
        """Begin the job, or take it over from one who let go or died, if it is in one of these phases.

        Raises
        ------
        ConflictError
            Another job is on the column, or another process runs this one.
        ArgumentError
            The job is in another phase.
        """
        key = state_key(self._wanted.column)
        text = lance.table_metadata(self._table).get(key)
        found = None if text is None else JobState(**json.loads(text))
        if found is not None:
            self._require_free(found)
            if found.phase not in phases:
                wanted = ", ".join(phases)
                raise ArgumentError(
                    f"{found} is past that: this is for a job that is in {wanted}. {what_to_do(found.phase)}"
                )
        mine = self._owned(found or replace(self._wanted, started_at=self._clock()))
        if not lance.compare_and_set_metadata(self._table, key, text, _encoded(mine)):
            raise ConflictError(f"another process began a job on column {mine.column!r} at the same moment; look again")
        self._held = mine

    def renew(self, times: int = 1) -> None:
        """Hold on to it for so many times as long, when less than half of that is left.

        Raises
        ------
        ConflictError
            Another process has taken over.
        """
        if self.state.expires_at - self._clock() < times * self._lease_s / 2:
            self._write(self._owned(self.state, times))

    def advance(self, phase: Phase, times: int = 1) -> None:
        """Say that the job is in another phase, one that may take so many times as long without a renewal."""
        if phase == self.state.phase:
            self.renew(times)
        else:
            self._write(replace(self._owned(self.state, times), phase=phase))

    def note(self, **said: Any) -> None:
        """Write down what later steps need to know of this one, beside what was noted before."""
        notes = {**(self.state.notes or {}), **said}
        if notes != self.state.notes:
            self._write(replace(self._owned(self.state), notes=notes))

    def release(self, phase: Phase | None = None) -> None:
        """Let go of it, so that others need not wait, and say what phase it is in; no error when it was lost before."""
        if self._held is not None:
            free = replace(self._held, owner=None, expires_at=0.0, phase=phase or self._held.phase)
            key = state_key(free.column)
            lance.compare_and_set_metadata(self._table, key, _encoded(self._held), _encoded(free))
            self._held = None

    def remove(self) -> None:
        """Remove the job from the table's metadata: it is over."""
        self._replace(None)
        self._held = None

    def _owned(self, state: JobState, times: int = 1) -> JobState:
        return replace(state, owner=self._owner, expires_at=self._clock() + times * self._lease_s)

    def _require_free(self, found: JobState) -> None:
        until = datetime.fromtimestamp(found.expires_at, UTC).strftime("%H:%M:%S")
        if found.is_run(self._clock()) and found.owner != self._owner:
            raise ConflictError(
                f"{found} is being run by {found.owner} (host/process/token). Wait for it, or end that process; a "
                f"process that died elsewhere holds on until {until} UTC at most"
            )
        if found.job != self._wanted.job:
            raise ConflictError(
                f"column {found.column!r} is being reindexed by {found}. Go on with it or abort it first: "
                f"lance_rerank.ReindexJob.open(table, {found.column!r})"
            )

    def _write(self, state: JobState) -> None:
        self._replace(state)
        self._held = state

    def _replace(self, state: JobState | None) -> None:
        key, new = state_key(self.state.column), None if state is None else _encoded(state)
        if not lance.compare_and_set_metadata(self._table, key, _encoded(self.state), new):
            raise ConflictError(
                f"{self.state} was taken over by another process, which goes on with it. This one stops; what it wrote "
                "is kept"
            )


def _encoded(state: JobState) -> str:
    return json.dumps(asdict(state), sort_keys=True)


def _is_dead(owner: str) -> bool:
    """Return whether a process is known to be gone; one on another host, or another system, is not."""
    host, process, _ = owner.rsplit("/", 2)
    if host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
