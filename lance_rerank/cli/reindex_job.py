"""The job on a table as the commands find it, begin it and go on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lance_rerank.cli.progress import bar, is_watched, talk
from lance_rerank.cli.tables import open_table
from lance_rerank.cli.wording import in_commands
from lance_rerank.errors import ArgumentError, GateError

if TYPE_CHECKING:
    from lancedb.table import Table

    from lance_rerank.columns.vectors import VectorDtype
    from lance_rerank.reindex import BackfillReport, Plan, ReindexJob
    from lance_rerank.reindex.executors import Executor
    from lance_rerank.reindex.indexes import IndexChoice
    from lance_rerank.reindex.state import JobState


@dataclass(frozen=True, slots=True)
class Place:
    """A table as the options name it, and its vector column where they do.

    Examples
    --------
    >>> Place("data", "my docs").command("drop-old")
    "lance-rerank reindex drop-old --db data --table 'my docs'"
    """

    db: str
    table: str
    column: str | None = None

    def open(self) -> Table:
        """Return the table.

        Raises
        ------
        ArgumentError
            It is not there.
        """
        return open_table(self.db, self.table)

    def command(self, step: str) -> str:
        """Return the command that does a step here."""
        column = [] if self.column is None else ["--column", self.column]
        return shlex.join(["lance-rerank", "reindex", step, "--db", self.db, "--table", self.table, *column])

    def states(self, table: Table) -> list[JobState]:
        """Return the jobs that are on the column, or on any where none is named."""
        from lance_rerank.reindex.state import jobs_of

        return [state for state in jobs_of(table) if self.column in (None, state.column)]

    def find(self) -> tuple[ReindexJob, JobState]:
        """Return the one job that is here, and what the table says of it.

        Raises
        ------
        ArgumentError
            There is none, or there are several.
        """
        table = self.open()
        states = self.states(table)
        if not states:
            where = self.table if self.column is None else f"{self.table}.{self.column}"
            raise ArgumentError(f"nothing is being reindexed in {where}; begin: {self.command('run')} --model MODEL")
        return self.only(table, states)

    def only(self, table: Table, states: list[JobState]) -> tuple[ReindexJob, JobState]:
        """Return the job of the one state there is."""
        from lance_rerank.reindex import ReindexJob

        if len(states) > 1:
            columns = ", ".join(state.column for state in states)
            raise ArgumentError(f"several columns of {self.table} are being reindexed: {columns}; name one: --column")
        return ReindexJob.open(table, states[0].column), states[0]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options say of a plan that is to be made."""

    model: str | None
    source: str | None = None
    dtype: str | None = None
    index: str = "auto"
    batch_size: int | None = None
    work_dir: Path | None = None
    sample: int = 200

    def plan(self, table: Table, column: str | None) -> Plan:
        """Return the plan; nothing is written."""
        from lance_rerank.reindex import plan_reindex

        return plan_reindex(
            table,
            column=column,
            source=self.source,
            model=self.model,
            dtype=cast("VectorDtype | None", self.dtype),  # checked there
            index=cast("IndexChoice", self.index),
            batch_size=self.batch_size,
            work_dir=self.work_dir,
            sample=self.sample,
        )


def begin_or_go_on(place: Place, settings: Settings) -> tuple[ReindexJob, str]:
    """Return the job that is on the column, else a new one; and its phase, "planned" for a new one.

    Raises
    ------
    ArgumentError
        There is no job and no model was named, there are several jobs, or the one there is has another model.
    """
    from lance_rerank.reindex import ReindexJob
    from lance_rerank.reindex.state import BEFORE_SWAP

    table = place.open()
    states = place.states(table)
    if states:
        job, state = place.only(table, states)
        _require_same_model(settings.model, job.plan, state.phase)
        if state.phase in (*BEFORE_SWAP, "swap"):
            told = f"going on with job {state.job} on {state.column!r} from phase {state.phase!r}"
            talk(f"{told}, with the settings it was begun with")
        return job, state.phase
    if settings.model is None:
        raise ArgumentError("nothing is being reindexed here yet; to begin, name the new model: --model MODEL")
    return ReindexJob(settings.plan(table, place.column), table), "planned"


def load_plan(file: Path) -> Plan:
    """Return the plan that `reindex plan --save` wrote.

    Raises
    ------
    ArgumentError
        The file holds none.
    """
    from lance_rerank.reindex import Plan

    try:
        return Plan.load(file)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} holds no plan of 'reindex plan --save': it is no text") from error
    except ArgumentError as error:
        raise ArgumentError(f"{file} holds no plan of 'reindex plan --save': {error}") from error


def fill(job: ReindexJob, executor: str, workers: int | None) -> BackfillReport:
    """Run the backfill under a bar that names its phases; where stderr is no terminal, say which begins."""
    label, watched = "embed", is_watched()
    with bar(label, unit="rows") as progress:

        def begin(phase: str) -> None:
            nonlocal label
            if phase != "ready":
                label = phase
                progress(0, None, phase)
                if not watched:
                    talk(f"phase: {phase}")

        return job.backfill(
            lambda done, total: progress(done, total, label),
            begin,
            executor=cast("Executor", executor),  # checked there
            workers=workers,
        )


def passed(check: Callable[[], None]) -> bool:
    """Return whether a gate lets a job pass; where it does not, say on stderr why."""
    try:
        check()
    except GateError as error:
        talk(f"failed: {in_commands(str(error))}")
        return False
    return True


class Results:
    """What a command found: printed at once, or as one JSON object at its end.

    Examples
    --------
    >>> results = Results(as_json=True)
    >>> results.show("phase", "ready")
    >>> results.end()
    {"phase": "ready"}
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._found: dict[str, Any] = {}

    def show(self, name: str, result: Any) -> None:
        """Take up a result under a name of its own."""
        if self._as_json:
            self._found[name] = as_plain(result)
        else:
            print(in_commands(str(result)))

    def note(self, **said: Any) -> None:
        """Take up what only the JSON has."""
        self._found |= said

    def end(self) -> None:
        """Print the JSON, where that is wanted."""
        if self._as_json:
            print(json.dumps(self._found))


def show(result: Any, *, as_json: bool) -> None:
    """Print the one result of a command."""
    print(json.dumps(as_plain(result)) if as_json else in_commands(str(result)))


def as_plain(result: Any) -> Any:
    """Return a result as JSON has it."""
    if isinstance(result, str):
        return result
    return result.to_dict() if hasattr(result, "to_dict") else asdict(result)


def _require_same_model(given: str | None, plan: Plan, phase: str) -> None:
    from lance_rerank.reindex.models import sentence_transformers_function

    if given is None or given == plan.model.name or sentence_transformers_function(given).name == plan.model.name:
        return
    end = "end it first: drop_old()" if phase in ("swapped", "drop-old") else "take it back first: abort()"
    raise ArgumentError(
        f"column {plan.column!r} is being reindexed with {plan.model.name}, not with {given}. Go on with that one "
        f"(leave --model out), or {end}"
    )
