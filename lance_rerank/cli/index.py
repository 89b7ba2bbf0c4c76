"""`lance-rerank index`: from a file of documents to a searchable table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.retrievers import TOKENS, text_column
from lance_rerank.cli.tables import AsJson, Db, IdColumn, TableName, open_table

if TYPE_CHECKING:
    from lance_rerank.columns.backfill import BackfillResult
    from lance_rerank.columns.multivector import Dtype
    from lance_rerank.jobs.indexes import VectorIndex


def index(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A BEIR folder, or a file: .jsonl, .csv or .parquet.")
    ],
    db: Db,
    table: TableName,
    model: Annotated[
        str, typer.Option(help="A sentence-transformers model: a folder or a hub id.")
    ] = "all-MiniLM-L6-v2",
    text: Annotated[str, typer.Option(help="The column to search, or a template such as '{title} {body}'.")] = "text",
    id_column: IdColumn = "id",
    language: Annotated[str, typer.Option(help="For stemming and stop words in full-text search.")] = "English",
    vector_index: Annotated[
        str,
        typer.Option(help="auto, none, ivf_flat, ivf_pq or ivf_hnsw_sq; auto makes an ivf_flat for large tables only."),
    ] = "auto",
    colbert: Annotated[
        bool, typer.Option("--colbert/--no-colbert", help=f"Store token vectors too, in the column {TOKENS!r}.")
    ] = False,
    colbert_model: Annotated[
        str | None, typer.Option(help="What makes the token vectors; by default the model of the other vectors.")
    ] = None,
    colbert_dtype: Annotated[
        str, typer.Option(help="How token vectors are stored: float16, float32 or int8, which takes half of float16.")
    ] = "float16",
    colbert_means: Annotated[
        bool, typer.Option("--colbert-means", help="Store their means too, which search --type multivector goes by.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew if the table is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Index documents for search.

    Makes a table with vectors and a full-text index. Run it again to bring the table up to date, or to go on after
    it was stopped: rows that are there already are not embedded again.
    """
    from lance_rerank.jobs import index_documents
    from lance_rerank.jobs.indexes import FLAT_UP_TO

    with bar("embed texts") as progress:
        result = index_documents(
            source,
            db,
            table,
            model=model,
            text=text,
            id_column=id_column,
            language=language,
            vector_index=cast("VectorIndex", vector_index),  # checked there
            overwrite=overwrite,
            progress=progress,
        )
    if result.vector_index is None and vector_index == "auto":
        talk(f"no vector index: up to {FLAT_UP_TO:,} rows a scan of all vectors is quick, and exact")
    with_tokens = colbert or colbert_means or colbert_model is not None
    tokens = _add_token_vectors(db, table, colbert_model or model, colbert_dtype) if with_tokens else None
    if tokens is None and result.added + result.updated and TOKENS in open_table(db, table).schema.names:
        talk(f"{result.added + result.updated:,} rows have no token vectors yet; run this again with --colbert")
    means = _add_means(db, table) if colbert_means else None
    if as_json:
        print(json.dumps({**asdict(result), "token_vectors": tokens and asdict(tokens)}))
        return
    print(result)
    for added in (tokens, means):
        if added:
            print(added)


def _add_means(db: str, table: str) -> BackfillResult:
    from lance_rerank.columns import add_mean_vector_column

    with bar("average token vectors") as progress:
        return add_mean_vector_column(open_table(db, table), TOKENS, f"{TOKENS}_mean", progress=progress)


def _add_token_vectors(db: str, table: str, model: str, dtype: str) -> BackfillResult:
    from lance_rerank.columns import add_multivector_column
    from lance_rerank.multivector import ColBERTEncoder

    opened = open_table(db, table)
    is_new = TOKENS not in opened.schema.names
    with bar("encode tokens") as progress:
        result = add_multivector_column(
            opened,
            source=text_column(opened),
            into=TOKENS,
            encoder=ColBERTEncoder(model),
            dtype=cast("Dtype", dtype),  # checked there
            progress=progress,
        )
    if is_new:
        talk(f"apps that select no columns now read {TOKENS!r} too, which is large: let them select what they need")
    return result
