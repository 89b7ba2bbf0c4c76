"""`lance-rerank train`: an embedder, a cross-encoder or a ColBERT model of one's own, and whether to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from lance_rerank.cli.progress import Report
from lance_rerank.cli.recipe_file import read_recipe, refuse_options_beside
from lance_rerank.cli.recipes import Recipe
from lance_rerank.cli.retrievers import make_retrievers, text_column
from lance_rerank.cli.tables import AsJson, Candidates, IdColumn, open_table
from lance_rerank.cli.train_options import (
    BaseModel,
    Blend,
    Data,
    DevData,
    DevDb,
    DevSplit,
    DevTable,
    Epochs,
    EvaluateEvery,
    Examples,
    FirstStageName,
    Force,
    LearningRate,
    MaxLoss,
    MaxTokens,
    NoGate,
    Output,
    Patience,
    PrecisionName,
    Recipes,
    Resume,
    Seed,
    Split,
    TestSplit,
)
from lance_rerank.cli.train_run import FirstStage, Material, Run, chosen, told_as_options
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lancedb.table import Table

    from lance_rerank.training import TrainedModel


def embedder(
    model: BaseModel,
    output: Output,
    examples: Examples = None,
    data: Data = None,
    split: Split = "train",
    dev_data: DevData = None,
    dev_split: DevSplit = "dev",
    test_split: TestSplit = None,
    corpus_db: Annotated[
        str | None, typer.Option(help="Rank the documents of a table of this database, not those of --dev-data.")
    ] = None,
    corpus_table: Annotated[str | None, typer.Option(help="That table's name.")] = None,
    id_column: IdColumn = "id",
    loss: Annotated[
        str, typer.Option(help="multiple-negatives, or cached-multiple-negatives for batches beyond the memory.")
    ] = "multiple-negatives",
    negatives: Annotated[int, typer.Option(min=0, help="How many negatives a query meets in an epoch.")] = 1,
    matryoshka: Annotated[
        str | None, typer.Option(metavar="DIMS", help="Lengths vectors may be cut to later, as in 256,128.")
    ] = None,
    epochs: Epochs = 1,
    batch_size: Annotated[int, typer.Option(min=2, help="Queries a step.")] = 64,
    learning_rate: LearningRate = 5e-5,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    resume: Resume = False,
    force: Force = False,
    no_gate: NoGate = False,
    max_loss: MaxLoss = 0.005,
    as_json: AsJson = False,
) -> None:
    """Train a model that turns texts into vectors, and judge it in a search by vector.

    The exit code is 3 where the gate says not to ship the model; it is kept and the verdict printed all the same.
    """
    from lance_rerank.models import Precision
    from lance_rerank.training import train_embedder
    from lance_rerank.training.embedder import Loss
    from lance_rerank.training.serving import Serving

    of_loss: Loss = chosen("--loss", loss, get_args(Loss))
    of_precision: Precision = chosen("--precision", precision, get_args(Precision))
    dimensions = None if matryoshka is None else _dimensions(matryoshka)
    run = Run("embedder", model, output, seed, resume, force, not no_gate, max_loss, as_json)
    material = Material.read(examples, data, split, dev_data, dev_split, test_split)
    run.require_possible(material, patience)
    corpus = _table(corpus_db, corpus_table, "--corpus-db", "--corpus-table")
    column = "text" if corpus is None else text_column(corpus)

    def train(progress: Report) -> TrainedModel:
        return train_embedder(
            model,
            material.examples,
            output=output,
            dev=material.dev,
            corpus=corpus,
            id_column=id_column,
            text_column=column,
            loss=of_loss,
            negatives=negatives,
            matryoshka=dimensions,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            seed=seed,
            precision=of_precision,
            evaluate_every=evaluate_every,
            patience=patience,
            resume=resume,
            progress=lambda done, total, _: progress(done, total, "train"),
        )

    with told_as_options():
        run.go(material, train, lambda: Serving(corpus=corpus, id_column=id_column, text_column=column))


def cross_encoder(
    context: typer.Context,
    model: BaseModel,
    output: Output,
    examples: Examples = None,
    data: Data = None,
    split: Split = "train",
    dev_data: DevData = None,
    dev_split: DevSplit = "dev",
    test_split: TestSplit = None,
    db: DevDb = None,
    table: DevTable = None,
    retriever: FirstStageName = "vector",
    recipes: Recipes = None,
    candidates: Candidates = 100,
    id_column: IdColumn = "id",
    blend: Blend = False,
    loss: Annotated[str, typer.Option(help="bce, mse, margin-mse, ranknet, listnet or lambda.")] = "bce",
    negatives: Annotated[int, typer.Option(min=1, help="How many negatives a query meets in an epoch.")] = 4,
    epochs: Epochs = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a query and a document a step.")] = 32,
    learning_rate: LearningRate = 5e-5,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    resume: Resume = False,
    force: Force = False,
    no_gate: NoGate = False,
    max_loss: MaxLoss = 0.005,
    as_json: AsJson = False,
) -> None:
    """Train a model that reads query and document together, and judge it behind the first stage it is to rerank.

    The exit code is 3 where the gate says not to ship the model; it is kept and the verdict printed all the same.
    """
    from lance_rerank.models import Precision
    from lance_rerank.training import train_cross_encoder
    from lance_rerank.training.pairs import Loss

    of_loss: Loss = chosen("--loss", loss, get_args(Loss))
    of_precision: Precision = chosen("--precision", precision, get_args(Precision))
    run = Run("cross-encoder", model, output, seed, resume, force, not no_gate, max_loss, as_json)
    material = Material.read(examples, data, split, dev_data, dev_split, test_split)
    run.require_possible(material, patience)
    stage = _first_stage(context, material, db, table, retriever, recipes, candidates, id_column)

    def train(progress: Report) -> TrainedModel:
        return train_cross_encoder(
            model,
            material.examples,
            output=output,
            dev=material.dev,
            candidates=None if stage is None else stage.found(progress),
            loss=of_loss,
            negatives=negatives,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            seed=seed,
            precision=of_precision,
            evaluate_every=evaluate_every,
            patience=patience,
            resume=resume,
            progress=lambda done, total, _: progress(done, total, "train"),
        )

    with told_as_options():
        run.go(material, train, lambda: None if stage is None else stage.serving(blend))


def colbert(
    context: typer.Context,
    model: BaseModel,
    output: Output,
    examples: Examples = None,
    data: Data = None,
    split: Split = "train",
    dev_data: DevData = None,
    dev_split: DevSplit = "dev",
    test_split: TestSplit = None,
    db: DevDb = None,
    table: DevTable = None,
    retriever: FirstStageName = "vector",
    recipes: Recipes = None,
    candidates: Candidates = 100,
    id_column: IdColumn = "id",
    blend: Blend = False,
    loss: Annotated[
        str, typer.Option(help="contrastive, or distillation of the teacher's scores in the examples.")
    ] = "contrastive",
    negatives: Annotated[
        int | None,
        typer.Option(min=0, help="Negatives a query meets in an epoch.  [default: 1; all of them for distillation]"),
    ] = None,
    epochs: Epochs = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries a step; for distillation pairs.")] = 32,
    learning_rate: LearningRate = 5e-5,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    precision: PrecisionName = "auto",
    evaluate_every: EvaluateEvery = None,
    patience: Patience = None,
    resume: Resume = False,
    force: Force = False,
    no_gate: NoGate = False,
    max_loss: MaxLoss = 0.005,
    as_json: AsJson = False,
) -> None:
    """Train late interaction from a ColBERT checkpoint or any encoder, and judge it behind its first stage.

    The exit code is 3 where the gate says not to ship the model; it is kept and the verdict printed all the same.
    """
    from lance_rerank.models import Precision
    from lance_rerank.training import train_colbert
    from lance_rerank.training.colbert import Loss

    of_loss: Loss = chosen("--loss", loss, get_args(Loss))
    of_precision: Precision = chosen("--precision", precision, get_args(Precision))
    run = Run("colbert", model, output, seed, resume, force, not no_gate, max_loss, as_json)
    material = Material.read(examples, data, split, dev_data, dev_split, test_split)
    run.require_possible(material, patience)
    stage = _first_stage(context, material, db, table, retriever, recipes, candidates, id_column)

    def train(progress: Report) -> TrainedModel:
        return train_colbert(
            model,
            material.examples,
            output=output,
            dev=material.dev,
            candidates=None if stage is None else stage.found(progress),
            loss=of_loss,
            negatives=negatives,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_tokens=max_tokens,
            seed=seed,
            precision=of_precision,
            evaluate_every=evaluate_every,
            patience=patience,
            resume=resume,
            progress=lambda done, total, _: progress(done, total, "train"),
        )

    with told_as_options():
        run.go(material, train, lambda: None if stage is None else stage.serving(blend))


def _first_stage(
    context: typer.Context,
    material: Material,
    db: str | None,
    table: str | None,
    retriever: str,
    recipes: Path | None,
    candidates: int,
    id_column: str,
) -> FirstStage | None:
    """Return what finds the candidates of the dev queries, None where there are no such queries."""
    searched = _table(db, table, "--db", "--table")
    if material.dev is None:
        return None
    if searched is None:
        raise ArgumentError("the dev queries need candidates to rerank: name where they are found, --db and --table")
    recipe = _recipe(context, retriever, recipes, candidates)
    [made] = make_retrievers(searched, {retriever: recipe}, id_column=id_column).values()
    return FirstStage(made, material.dev, text_column(searched))


def _recipe(context: typer.Context, name: str, file: Path | None, candidates: int) -> Recipe:
    """Return the recipe of a first stage."""
    if file is None:
        recipe = replace(Recipe.parse(name), candidates=candidates)
    else:
        refuse_options_beside(file, context)
        recipe = read_recipe(file, name)
    if recipe.reranker != "none":
        raise ArgumentError(f"--retriever {name} reranks already: name the first stage alone, {recipe.query_type}")
    return recipe


def _table(db: str | None, name: str | None, db_option: str, name_option: str) -> Table | None:
    """Return the table that two options name together, None where they name none."""
    if db is None and name is None:
        return None
    if db is None or name is None:
        raise ArgumentError(f"{db_option} and {name_option} go together: a database, and a table of it")
    return open_table(db, name)


def _dimensions(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentError(f"--matryoshka is numbers separated by commas, as in 256,128; got {text!r}")
    return [int(part) for part in parts]


COMMANDS: dict[str, Callable[..., None]] = {"embedder": embedder, "cross-encoder": cross_encoder, "colbert": colbert}
