"""`lance-rerank evaluate`: how good several ways to search a table are, by judged queries."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.recipes import Lexical, Recipe, make_retrievers
from lance_rerank.cli.tables import AsJson, Candidates, Db, IdColumn, LexicalFolder, TableName, open_table
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lance_rerank.datasets import Dataset
    from lance_rerank.evaluation.searching import OnError

_COMMA = re.compile(r",(?![^(]*\))")  # not those within parentheses, as in nDCG(gains={0:0,1:2})@10


def evaluate(
    db: Db,
    table: TableName,
    data: Annotated[Path, typer.Option(help="A BEIR folder, with queries.jsonl and qrels/.")],
    split: Annotated[str, typer.Option(help="Which file of qrels/ to evaluate on.")] = "test",
    measures: Annotated[
        str, typer.Option(help="Separated by commas, as ir-measures writes them.")
    ] = "nDCG@10,RR@10,Success@5,R@100",
    retrievers: Annotated[
        str, typer.Option(help="Separated by commas: TYPE[+RERANKER[:MODEL]] as in vector,hybrid+late-interaction.")
    ] = "vector,fts,hybrid",
    candidates: Candidates = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N queries, for a quick look.")] = None,
    lexical: LexicalFolder = None,
    id_column: IdColumn = "id",
    latency: Annotated[
        bool, typer.Option("--latency", help="Time every stage: queries are asked one at a time, then by four threads.")
    ] = False,
    on_error: Annotated[
        str, typer.Option(help="A query that fails: raise, or count it as finding nothing and go on.")
    ] = "raise",
    cache: Annotated[
        Path | None, typer.Option(help="Keep what is found in this folder, and take from it what is there.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Write each retriever's ranking to this folder, for trec_eval.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the whole result to this file, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure retrievers on judged queries."""
    from lance_rerank.datasets import Dataset
    from lance_rerank.evaluation import evaluate

    recipes = [Recipe.parse(recipe) for recipe in _parts(retrievers, "--retrievers")]
    wanted = _parts(measures, "--measures")
    judged = _first(Dataset.from_beir(data, split), limit)
    made = make_retrievers(
        open_table(db, table),
        recipes,
        candidates=candidates,
        id_column=id_column,
        lexical=None if lexical is None else Lexical(lexical),
    )
    for retriever in made.values():  # the first query of each pays for loading models; it is not to be measured
        with suppress(Exception) if on_error == "count" else nullcontext():
            retriever.retrieve(next(iter(judged.queries.values())))
    with bar("evaluate") as progress:
        result = evaluate(
            made,
            judged,
            wanted,
            latency=latency,
            on_error=cast("OnError", on_error),  # checked there
            cache=cache,
            progress=lambda name, done, total: progress(done, total, name),
        )
    if output is not None:
        result.to_json(output)
        talk(f"written to {output}")
    if runs is not None:
        result.to_trec(runs)
        talk(f"rankings written to {runs}")
    if as_json:
        print(result.to_json())
        return
    print(result)
    if len(made) > 1:
        print(f"\n{result.comparisons()}")
    for name, taken in result.latency.items():
        print(f"\n{name}: {taken}")


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip() for part in _COMMA.split(text) if part.strip()]
    if not parts:
        raise ArgumentError(f"{option} names nothing")
    return parts


def _first(data: Dataset, limit: int | None) -> Dataset:
    """Return the data set with its first queries only."""
    if limit is None:
        return data
    queries = dict(islice(data.queries.items(), limit))
    return replace(data, queries=queries, qrels={query_id: data.qrels[query_id] for query_id in queries})
