"""`lance-rerank reindex run`: all steps up to the swap, from wherever the table's metadata say the job is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import typer

from lance_rerank.cli import confirm, gate
from lance_rerank.cli.evaluate import MEASURES
from lance_rerank.cli.progress import talk
from lance_rerank.cli.reindex_job import Place, Results, Settings, begin_or_go_on, fill, passed
from lance_rerank.cli.reindex_judging import Judging, Serving
from lance_rerank.cli.reindex_options import (
    BatchSize,
    Column,
    Data,
    Dtype,
    DualWriting,
    Executor,
    Index,
    MaxLoss,
    Measures,
    Model,
    Recipes,
    Sample,
    ServingRetriever,
    Source,
    Split,
    WorkDir,
    Workers,
    Yes,
)
from lance_rerank.cli.tables import AsJson, Candidates, Db, IdColumn, TableName
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lance_rerank.reindex import BackfillReport, Plan, ReindexJob

_DONE = 0
_BEFORE = ("planned", "embed", "write", "catch-up", "index", "ready")


def run(
    context: typer.Context,
    db: Db,
    table: TableName,
    model: Model = None,
    column: Column = None,
    source: Source = None,
    dtype: Dtype = None,
    index: Index = "auto",
    batch_size: BatchSize = None,
    work_dir: WorkDir = None,
    sample: Sample = 200,
    executor: Executor = "local",
    workers: Workers = None,
    data: Data = None,
    split: Split = "test",
    measures: Measures = MEASURES,
    retriever: ServingRetriever = None,
    recipes: Recipes = None,
    candidates: Candidates = 100,
    id_column: IdColumn = "id",
    max_loss: MaxLoss = 0.005,
    dual_writing: DualWriting = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Plan, backfill, verify, evaluate if there is --data, ask, and swap. Run it again after a kill: it goes on.

    The exit code is 3 where the new column is wrong, or worse by more than --max-loss, and 4 where the swap was not
    confirmed: without a terminal that needs --yes. The old column is kept.
    """
    if data is None and (retriever or recipes):
        raise ArgumentError("--retriever and --recipes say how to search the queries of --data, and there is none")
    place = Place(db, table, column)
    job, phase = begin_or_go_on(place, Settings(model, source, dtype, index, batch_size, work_dir, sample))
    judging = None
    if data is not None and phase in _BEFORE:
        serving = Serving(retriever, recipes, candidates, None, id_column).make(context, place.open(), job.plan.column)
        judging = Judging.of(data, split, measures, None, serving)
    results = Results(as_json=as_json)
    filling = partial(fill, job, executor, workers)
    code = _Run(job, place, results, filling, judging, max_loss, dual_writing, yes).go(phase)
    results.note(exit_code=code)
    results.end()
    if code != _DONE:
        raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Run:
    job: ReindexJob
    place: Place
    results: Results
    fill: Callable[[], BackfillReport]
    judging: Judging | None
    max_loss: float
    dual_writing: bool
    yes: bool

    def go(self, phase: str) -> int:
        """Go on from a phase, and return the exit code."""
        if phase in ("rollback", "rolled-back"):
            raise ArgumentError(
                f"job {self.job.plan.job} is in phase {phase!r}: somebody took its swap back. rollback() goes on with "
                "one that was stopped; after it verify() and swap() swap again, and abort() takes the job back"
            )
        if phase in ("swapped", "drop-old"):
            self.results.show("status", self.job.status())
            talk("all is done but for the old column" + (": its end was begun" if phase == "drop-old" else ""))
            say_what_is_left(self.place, with_rollback=phase == "swapped")
            return _DONE
        if phase in _BEFORE:
            if not self._prepare(phase):
                return gate.EXIT_CODE
            if not confirm.confirm(question(self.job.plan), "the swap", yes=self.yes):
                talk(f"the new column is kept. Go on: {self.place.command('run')} --yes")
                talk(f"or take it back: {self.place.command('abort')}")
                return confirm.EXIT_CODE
        self.results.show("swap", self.job.swap(dual_writing=self.dual_writing))  # also one that was stopped half-way
        say_what_is_left(self.place)
        return _DONE

    def _prepare(self, phase: str) -> bool:
        """Fill the column and look at it; return whether it may be swapped."""
        if phase == "planned":
            self.results.show("plan", self.job.plan)
        if phase != "ready":
            self.results.show("backfill", self.fill())
        found = self.job.verify()
        self.results.show("verification", found)
        if not passed(found.raise_if_wrong):
            return False
        if self.judging is None:
            return True
        judged = self.judging.judge(self.job)
        self.results.show("gate", judged)
        return passed(lambda: judged.raise_if_worse(self.max_loss))


def question(plan: Plan) -> str:
    """Return what is asked before a swap."""
    return f"Let {plan.table}.{plan.column} be searched by {plan.model.name} from now on? The old column is kept."


def say_what_is_left(place: Place, *, with_rollback: bool = True) -> None:
    """Say on stderr which commands take a swap back, and which ends it."""
    if with_rollback:
        talk(f"to take the swap back: {place.command('rollback')}")
    talk(f"when all is well, to drop the old column: {place.command('drop-old')}")
