"""Options that the commands for training share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseModel = Annotated[
    str, typer.Option("--model", help="What training begins with: a saved model's folder or a hub id.")
]
Output = Annotated[Path, typer.Option("--output", help="The folder for the trained model.")]
Examples = Annotated[
    Path | None, typer.Option("--examples", help="Train on a Parquet file of examples, as `mine` writes it.")
]
Data = Annotated[
    Path | None, typer.Option("--data", help="In place of --examples: a BEIR folder, whose judgements are trained on.")
]
Split = Annotated[str, typer.Option("--split", help="Which file of qrels/ in --data to train on.")]
DevData = Annotated[
    Path | None,
    typer.Option(
        "--dev-data",
        help="A BEIR folder of queries to measure and judge by.  [default: --data, where it has that split]",
    ),
]
DevSplit = Annotated[str, typer.Option("--dev-split", help="Which file of its qrels/ to measure and judge by.")]
TestSplit = Annotated[
    str | None, typer.Option("--test-split", help="Which file of its qrels/ has the last word; asked once.")
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="How often to go through the examples.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="The highest in the course of training.")]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Where texts are cut off in training.  [default: the model's limit]"),
]
Seed = Annotated[int, typer.Option("--seed", help="Of what is drawn by lot.")]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="What the model computes in: auto, float32 or bfloat16.")
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option("--evaluate-every", min=1, help="Steps between measurements on dev.  [default: a fifth of all]"),
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, help="End after that many measurements without a better one.  [default: never]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped, where there is one.")]
Force = Annotated[
    bool, typer.Option("--force", help="Train though there is nothing to learn, or though dev queries are trained on.")
]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Do not judge the model: train it, and that is all.")]
MaxLoss = Annotated[
    float, typer.Option("--max-loss", min=0, help="How far the gate lets a mean be below what it is compared with.")
]
DevDb = Annotated[str | None, typer.Option("--db", help="The database where candidates for dev and test are searched.")]
DevTable = Annotated[str | None, typer.Option("--table", help="The table's name.")]
FirstStageName = Annotated[
    str,
    typer.Option(
        "--retriever", help="The first stage, which finds them: hybrid, vector, fts; with --recipes a name in it."
    ),
]
Recipes = Annotated[Path | None, typer.Option("--recipes", metavar="FILE", help="Take the retriever from a TOML file.")]
Blend = Annotated[bool, typer.Option("--blend", help="Judge the model blended with the first stage.")]
