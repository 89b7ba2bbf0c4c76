"""`lance-rerank mine`: negatives to train on, for judged queries or by labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.recipe_file import read_recipe, refuse_options_beside
from lance_rerank.cli.recipes import Lexical, Recipe
from lance_rerank.cli.retrievers import make_retrievers, text_column
from lance_rerank.cli.tables import (
    AsJson,
    Candidates,
    Db,
    Freshness,
    Fuzzy,
    IdColumn,
    LexicalFolder,
    Syntax,
    TableName,
    open_table,
)
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lancedb.table import Table

    from lance_rerank.datasets import Dataset, TrainingSet
    from lance_rerank.rerankers import CrossEncoderReranker
    from lance_rerank.search.retriever import Retriever

_NONE = "none"


def mine(
    context: typer.Context,
    db: Db,
    table: TableName,
    output: Annotated[Path, typer.Option(help="Write the examples to this file, as Parquet.")],
    data: Annotated[
        Path | None, typer.Option(help="A BEIR folder, with queries.jsonl and qrels/, or a Parquet file of examples.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which file of qrels/ to mine for.")] = "train",
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="In place of --data: mine by the labels in this column.")
    ] = None,
    retriever: Annotated[
        str, typer.Option(help="What finds candidates: TYPE[+RERANKER[:MODEL]]; with --recipes a name in it.")
    ] = "vector",
    recipes: Annotated[Path | None, typer.Option(metavar="FILE", help="Take the retriever from a TOML file.")] = None,
    per_query: Annotated[int, typer.Option(help="How many negatives for each query.")] = 7,
    judge: Annotated[
        str, typer.Option(help="Who scores the candidates: tfidf, bm25, none, or another model than the table's.")
    ] = "tfidf",
    margin: Annotated[
        str, typer.Option(help="How much less than the positive a negative has to score, as a part of that; or none.")
    ] = "0.05",
    near_duplicates: Annotated[
        str, typer.Option(help="From this part of shared words on a text is a positive in other words; or none.")
    ] = "0.5",
    ranks: Annotated[
        str, typer.Option(metavar="FIRST-LAST", help="The judge's ranks that may be kept, as in 5-50 or 5-.")
    ] = "1-",
    checker: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A cross-encoder that is asked about those to be kept.")
    ] = None,
    checker_margin: Annotated[float, typer.Option(help="How much less a negative has to score by it.")] = 0.0,
    explicit: Annotated[
        Path | None,
        typer.Option(help="Negatives that users gave: JSON, a line each, with doc_id, query_id or query, and reason."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only N queries, or rows, drawn by lot.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn by lot.")] = 0,
    candidates: Candidates = 100,
    lexical: LexicalFolder = None,
    freshness: Freshness = "warn",
    syntax: Syntax = False,
    fuzzy: Fuzzy = 0,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Find documents that look relevant and are not, to train on."""
    from lance_rerank.mining import mine_negatives
    from lance_rerank.mining.explicit import read_explicit

    require_folder(output)
    settings: dict[str, Any] = {
        "per_query": per_query,
        "margin": _number("--margin", margin),
        "near_duplicates": _number("--near-duplicates", near_duplicates),
        "ranks": _ranks(ranks),
        "n_queries": limit,
        "seed": seed,
        "id_column": id_column,
    }
    if (data is None) == (label is None):
        raise ArgumentError("name judged queries, --data FOLDER, or a column of labels, --label COLUMN; one of them")
    opened = open_table(db, table)
    settings["column"] = text_column(opened)
    source: Retriever | Table = opened
    if data is None:
        if checker is not None or explicit is not None:
            raise ArgumentError("--checker and --explicit are for judged queries, --data FOLDER")
        settings["label"] = label
    else:
        if recipes is None:
            of_options = Lexical.of_options(lexical, freshness, syntax, fuzzy)
            recipe = replace(Recipe.parse(retriever), candidates=candidates, lexical=of_options)
        else:
            refuse_options_beside(recipes, context)
            recipe = read_recipe(recipes, retriever)
        [source] = make_retrievers(opened, {retriever: recipe}, id_column=id_column).values()
        settings["queries"] = _queries(data, split)
        settings |= {"judge": None if judge == _NONE else judge, "checker_margin": checker_margin}
        settings["explicit"] = () if explicit is None else read_explicit(explicit)
        settings["checker"] = None if checker is None else _cross_encoder(checker)
    with bar("mine") as progress:
        result = mine_negatives(source, progress=progress, **settings)
    result.save(output)
    talk(f"written to {output}")
    print(json.dumps(result.report.to_dict()) if as_json else result)


def _queries(path: Path, split: str) -> Dataset | TrainingSet:
    from lance_rerank.datasets import Dataset, TrainingSet

    return TrainingSet.load(path) if path.suffix == ".parquet" else Dataset.from_beir(path, split)


def _cross_encoder(model: str) -> CrossEncoderReranker:
    from lance_rerank.rerankers import CrossEncoderReranker

    return CrossEncoderReranker(model)


def _number(option: str, text: str) -> float | None:
    if text == _NONE:
        return None
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{option} is a number or {_NONE}, got {text!r}") from None


def _ranks(text: str) -> tuple[int, int | None]:
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or (last and not last.isdecimal()):
        raise ArgumentError(f"--ranks is FIRST-LAST, as in 5-50, or FIRST- for all from there on, got {text!r}")
    return int(first), int(last) if last else None
