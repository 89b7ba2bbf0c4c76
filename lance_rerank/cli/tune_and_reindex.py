"""`lance-rerank tune-and-reindex`: a better embedder from judged queries, swapped in under the live table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lance_rerank.cli import gate
from lance_rerank.cli.evaluate import MEASURES
from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.reindex_judging import Serving
from lance_rerank.cli.reindex_options import Column, DualWriting, Executor, MaxLoss, Workers, Yes
from lance_rerank.cli.reindex_run import run
from lance_rerank.cli.retrievers import text_column
from lance_rerank.cli.tables import AsJson, Candidates, Db, IdColumn, TableName, open_table
from lance_rerank.errors import GateError

_STAGES = {"mine": "mine negatives", "train": "train", "judge": "judge on dev"}


def tune_and_reindex(
    context: typer.Context,
    db: Db,
    table: TableName,
    data: Annotated[Path, typer.Option(help="A BEIR folder with the splits train and dev, and perhaps test.")],
    output: Annotated[Path, typer.Option(help="The folder for the tuned model.")],
    model: Annotated[
        str | None, typer.Option(help="What training begins with.  [default: the model of the table]")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Who orders candidates for negatives: tfidf, bm25, or another model.")
    ] = "bm25",
    per_query: Annotated[int, typer.Option(min=1, help="Negatives to mine for each query.")] = 7,
    negatives: Annotated[int, typer.Option(min=0, help="How many of them a query meets in an epoch.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the training queries.")] = 1,
    batch_size: Annotated[int, typer.Option(min=2, help="Queries a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="The highest in the course of training.")] = 5e-5,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where texts are cut off in training.  [default: the model's limit]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn by lot.")] = 0,
    column: Column = None,
    retriever: Annotated[
        str | None, typer.Option(help="What serves, as in hybrid+late-interaction; by default hybrid or vector.")
    ] = None,
    candidates: Candidates = 100,
    id_column: IdColumn = "id",
    max_loss: MaxLoss = 0.005,
    executor: Executor = "local",
    workers: Workers = None,
    dual_writing: DualWriting = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Mine, train, judge on dev, reindex, evaluate on test with the reranker that serves, ask, and swap.

    Run it again after a kill: each stage that is done is kept. The exit code is 3 where the gate refuses the model or
    the new column, and 4 where the swap was not confirmed.
    """
    from lance_rerank.datasets import Dataset
    from lance_rerank.jobs.tuning import TuningSettings, tune_embedder, tuning_model

    require_folder(output)
    opened = open_table(db, table)
    splits = Dataset.from_beir(data, "train").splits
    serving = Serving(retriever, None, candidates, None, id_column).make(context, opened, column)
    settings = TuningSettings(
        model or tuning_model(serving, output),
        judge,
        per_query,
        negatives,
        epochs,
        batch_size,
        learning_rate,
        max_tokens,
        seed,
    )
    with bar("begin") as progress:
        label = ["begin"]
        tuned = tune_embedder(
            serving,
            Dataset.from_beir(data, "train"),
            output,
            settings=settings,
            max_loss=max_loss,
            column=text_column(opened),
            on_stage=lambda stage: label.append(_STAGES[stage]),
            progress=lambda done, total: progress(done, total, label[-1]),
        )
    talk(str(tuned))
    try:
        tuned.verdict.raise_if_not_ship()
    except GateError as error:
        talk(str(error))
        raise typer.Exit(gate.EXIT_CODE) from None
    run(
        context,
        db,
        table,
        model=tuned.verdict.model,
        column=column,
        executor=executor,
        workers=workers,
        data=data,
        split="test" if "test" in splits else "dev",
        measures=MEASURES,
        retriever=retriever,
        candidates=candidates,
        id_column=id_column,
        max_loss=max_loss,
        dual_writing=dual_writing,
        yes=yes,
        as_json=as_json,
    )
