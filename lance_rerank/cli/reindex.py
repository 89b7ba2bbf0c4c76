"""`lance-rerank reindex`: another model for a vector column of a live table, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lance_rerank.cli import gate, reindex_run
from lance_rerank.cli.confirm import EXIT_CODE, confirm
from lance_rerank.cli.evaluate import MEASURES
from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import talk
from lance_rerank.cli.recipes import Lexical
from lance_rerank.cli.reindex_job import Place, Settings, as_plain, begin_or_go_on, fill, load_plan, passed, show
from lance_rerank.cli.reindex_judging import Judging, Serving
from lance_rerank.cli.reindex_options import (
    MODEL_HELP,
    BatchSize,
    Column,
    Dtype,
    DualWriting,
    Executor,
    Index,
    Limit,
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
from lance_rerank.cli.tables import AsJson, Candidates, Db, Freshness, Fuzzy, IdColumn, LexicalFolder, Syntax, TableName
from lance_rerank.cli.wording import in_commands
from lance_rerank.errors import ArgumentError

_NEXT = {
    **dict.fromkeys(("embed", "write", "catch-up", "index"), ("backfill",)),
    "ready": ("verify", "swap", "abort"),
    "swap": ("swap", "rollback"),
    "swapped": ("rollback", "drop-old"),
    "rollback": ("rollback",),
    "rolled-back": ("verify", "swap", "abort"),
    "drop-old": ("drop-old",),
}


def plan(
    db: Db,
    table: TableName,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    column: Column = None,
    source: Source = None,
    dtype: Dtype = None,
    index: Index = "auto",
    batch_size: BatchSize = None,
    work_dir: WorkDir = None,
    sample: Sample = 200,
    save: Annotated[Path | None, typer.Option("--save", help="Write the plan to this file, for backfill.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what would be done, how long it takes and how each step is undone; nothing is written to the table."""
    require_folder(save)
    place = Place(db, table, column)
    made = Settings(model, source, dtype, index, batch_size, work_dir, sample).plan(place.open(), column)
    if save is not None:
        made.save(save)
    show(made, as_json=as_json)
    if save is not None:
        talk(f"written to {save}; begin: {place.command('backfill')} --plan {save}")


def backfill(
    db: Db,
    table: TableName,
    plan: Annotated[Path | None, typer.Option("--plan", help="Run the plan of this file.")] = None,
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
    as_json: AsJson = False,
) -> None:
    """Fill and index the new column while apps search the old one. Run it again after a kill, or to catch up."""
    from lance_rerank.reindex import ReindexJob

    place = Place(db, table, column)
    if plan is not None:
        if model is not None:
            raise ArgumentError(f"--model is not for a plan that is made: {plan} names its own")
        job = ReindexJob(load_plan(plan), place.open())
    else:
        job, _ = begin_or_go_on(place, Settings(model, source, dtype, index, batch_size, work_dir, sample))
    show(fill(job, executor, workers), as_json=as_json)
    talk(f"next: {place.command('verify')}")


def verify(
    db: Db,
    table: TableName,
    column: Column = None,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Rows to embed again.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Sweep rows that came or changed since, and look at the new column. The exit code is 3 where it is wrong."""
    job, _ = Place(db, table, column).find()
    found = job.verify(sample, seed)
    show(found, as_json=as_json)
    if not passed(found.raise_if_wrong):
        raise typer.Exit(gate.EXIT_CODE)


def evaluate(
    context: typer.Context,
    db: Db,
    table: TableName,
    data: Annotated[Path, typer.Option(help="A BEIR folder, with queries.jsonl and qrels/.")],
    split: Split = "test",
    column: Column = None,
    measures: Measures = MEASURES,
    retriever: ServingRetriever = None,
    recipes: Recipes = None,
    max_loss: MaxLoss = 0.005,
    candidates: Candidates = 100,
    limit: Limit = None,
    lexical: LexicalFolder = None,
    freshness: Freshness = "warn",
    syntax: Syntax = False,
    fuzzy: Fuzzy = 0,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Measure the new column against the old one on judged queries, by the retriever that serves.

    The exit code is 3 where the new column's mean is further below the old one's than --max-loss.
    """
    job, _ = Place(db, table, column).find()
    of_options = Lexical.of_options(lexical, freshness, syntax, fuzzy)
    serving = Serving(retriever, recipes, candidates, of_options, id_column)
    made = serving.make(context, Place(db, table).open(), job.plan.column)
    found = Judging.of(data, split, measures, limit, made).judge(job)
    is_good = passed(lambda: found.raise_if_worse(max_loss))
    if as_json:
        print(json.dumps(found.to_dict() | {"max_loss": max_loss, "ok": is_good}))
    else:
        show(found, as_json=False)
    if not is_good:
        raise typer.Exit(gate.EXIT_CODE)


def swap(
    db: Db,
    table: TableName,
    column: Column = None,
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Swap a column that verify did not find right, too.")] = False,
    dual_writing: DualWriting = False,
    as_json: AsJson = False,
) -> None:
    """Put the new column in the old one's place, in one commit. The old one is kept.

    The exit code is 4 where that was not confirmed. Run it again after a kill, or to sweep what late writers brought.
    """
    place = Place(db, table, column)
    job, state = place.find()
    can_begin = state.phase in ("ready", "rolled-back") and (force or (state.notes or {}).get("verified") is not None)
    if can_begin and not confirm(reindex_run.question(job.plan), "the swap", yes=yes):
        raise typer.Exit(EXIT_CODE)
    show(job.swap(not force, dual_writing=dual_writing), as_json=as_json)
    reindex_run.say_what_is_left(place)


def rollback(
    db: Db,
    table: TableName,
    column: Column = None,
    allow_nulls: Annotated[
        bool, typer.Option("--allow-nulls", help="Go back even where rows then have no vector of the old model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put the old column back in one commit; all rows written since get vectors of the old model first."""
    job, _ = Place(db, table, column).find()
    show(job.rollback(allow_nulls), as_json=as_json)


def drop_old(db: Db, table: TableName, column: Column = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Drop the old column, and what lies beside the table: no way leads back. The exit code is 4 if not confirmed."""
    job, state = Place(db, table, column).find()
    question = f"Drop the old vectors of {job.plan.table}.{job.plan.column}? They cannot be had back."
    if state.phase == "swapped" and not confirm(question, "dropping the old column", yes=yes):
        raise typer.Exit(EXIT_CODE)
    job.drop_old()
    _over(job.plan.job, "the old column is dropped", as_json)


def abort(db: Db, table: TableName, column: Column = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Take a job that was not swapped back, so that the table is as it was. The exit code is 4 if not confirmed."""
    from lance_rerank.reindex.state import NOT_SWAPPED

    job, state = Place(db, table, column).find()
    question = f"Take {state} on {state.column!r} back? What it embedded is deleted."
    if state.phase in NOT_SWAPPED and not confirm(question, "taking the job back", yes=yes):
        raise typer.Exit(EXIT_CODE)
    job.abort()
    _over(job.plan.job, "the table is as it was", as_json)


def status(db: Db, table: TableName, column: Column = None, as_json: AsJson = False) -> None:
    """Say how far a job is, whoever runs it, and what can be done next."""
    from lance_rerank.reindex import ReindexJob

    place = Place(db, table, column)
    opened = place.open()
    found = [ReindexJob.open(opened, state.column).status() for state in place.states(opened)]
    if as_json:
        print(json.dumps({"jobs": [as_plain(one) for one in found]}))
        return
    for one in found:
        print(in_commands(str(one)))
        if not one.running:
            its = Place(db, table, one.column)
            print("\n".join(f"  next: {its.command(step)}" for step in _NEXT.get(one.phase, ())))
    if not found:
        print(f"nothing is being reindexed in {table}")


COMMANDS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "backfill": backfill,
    "verify": verify,
    "evaluate": evaluate,
    "swap": swap,
    "rollback": rollback,
    "drop-old": drop_old,
    "status": status,
    "abort": abort,
    "run": reindex_run.run,
}


def _over(job: str, told: str, as_json: bool) -> None:
    print(json.dumps({"job": job, "done": told}) if as_json else f"job {job} is over: {told}")
