"""Options that several of the commands for reindexing have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = "The new model: a sentence-transformers folder or a hub id."

Column = Annotated[str | None, typer.Option("--column", help="The vector column; needed where the table has several.")]
Model = Annotated[str | None, typer.Option("--model", help=f"{MODEL_HELP} Needed to begin, not to go on.")]
Source = Annotated[
    str | None, typer.Option("--source", help="The column of texts; by default that of the table's embedding function.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="How vectors are stored: float32 or float16; by default as now.")
]
Index = Annotated[
    str,
    typer.Option("--index", help="The new column's index: auto is the kind there is now; none, ivf_flat, ivf_pq, ..."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Texts embedded at a time: what a kill can cost.  [default: 64]"),
]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        "--work-dir", help="Where embedded texts wait; by default in the table's folder, where that is local."
    ),
]
Sample = Annotated[int, typer.Option("--sample", min=1, help="Texts to measure the model's speed on.")]
Data = Annotated[Path | None, typer.Option("--data", help="A BEIR folder, with queries.jsonl and qrels/, to judge by.")]
Split = Annotated[str, typer.Option("--split", help="Which file of qrels/ to judge by.")]
Measures = Annotated[
    str, typer.Option("--measures", help="Separated by commas, as ir-measures writes them; the first decides.")
]
ServingRetriever = Annotated[
    str | None,
    typer.Option(
        "--retriever",
        help="What serves, as in hybrid+late-interaction; with --recipes a name in it. By default hybrid where there "
        "is a full-text index, else vector.",
    ),
]
Recipes = Annotated[Path | None, typer.Option("--recipes", metavar="FILE", help="Take the retriever from a TOML file.")]
MaxLoss = Annotated[
    float, typer.Option("--max-loss", min=0, help="How far the new column's mean may be below the old one's.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries, for a quick look.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DualWriting = Annotated[
    bool, typer.Option("--dual-writing", help="Let add() fill the old column, too: apps then load both models.")
]
Executor = Annotated[
    str, typer.Option("--executor", help="Where texts are embedded: local, or ray for the actors of a Ray cluster.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes or actors that embed, each with a model of its own.  [default: this process; on Ray one a GPU]",
    ),
]
