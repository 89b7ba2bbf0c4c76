"""`lance-rerank evaluate`: how good several ways to search a table are, by judged queries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lance_rerank.cli import gate
from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.recipe_file import read_recipes, refuse_options_beside
from lance_rerank.cli.recipes import FORM, Lexical, Recipe
from lance_rerank.cli.retrievers import ask_once, make_retrievers
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
from lance_rerank.extras import require

if TYPE_CHECKING:
    from lance_rerank.datasets import Dataset
    from lance_rerank.evaluation import Diagnosis, EvaluationResult
    from lance_rerank.evaluation.searching import OnError
    from lance_rerank.search.retriever import Retriever

MEASURES = "nDCG@10,RR@10,Success@5,R@100"
_RETRIEVERS = "vector,fts,hybrid"
_COMMA = re.compile(r",(?![^(]*\))")  # not those within parentheses, as in nDCG(gains={0:0,1:2})@10


def evaluate(
    context: typer.Context,
    db: Db,
    table: TableName,
    data: Annotated[Path, typer.Option(help="A BEIR folder, with queries.jsonl and qrels/.")],
    split: Annotated[str, typer.Option(help="Which file of qrels/ to evaluate on.")] = "test",
    measures: Annotated[str, typer.Option(help="Separated by commas, as ir-measures writes them.")] = MEASURES,
    retrievers: Annotated[
        str | None,
        typer.Option(
            help=f"Separated by commas: {FORM} as in vector,hybrid+late-interaction+blend.  [default: {_RETRIEVERS}]"
        ),
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Retrievers from a TOML file, a table each; after those named.")
    ] = None,
    candidates: Candidates = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N queries, for a quick look.")] = None,
    lexical: LexicalFolder = None,
    freshness: Freshness = "warn",
    syntax: Syntax = False,
    fuzzy: Fuzzy = 0,
    id_column: IdColumn = "id",
    latency: Annotated[
        bool, typer.Option("--latency", help="Time every stage: queries are asked one at a time, then by four threads.")
    ] = False,
    on_error: Annotated[
        str, typer.Option(help="A query that fails: raise, or count it as finding nothing and go on.")
    ] = "raise",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare the others with this retriever only.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="End with exit code 3 where the last retriever's mean is further below the first's than this, "
            "'nDCG@10 -0.005' (with --baseline: any other's below its), or where any mean is below a number, "
            "'nDCG@10 >= 0.5'. May be given again.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep what is found in this folder, and take from it what is there.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Write each retriever's ranking to this folder, for trec_eval.")
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Say where relevant documents are lost, and what to do first.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a report to this file, as HTML that opens from disk.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the whole result to this file, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure retrievers on judged queries.

    The exit code is 3 where a requirement of --fail-under is not met; results are printed and written all the same.
    """
    from lance_rerank.datasets import Dataset
    from lance_rerank.evaluation import evaluate

    require_folder(output)
    require_folder(report)
    if report is not None:
        require("jinja2", extra="report")  # before the work, not after it
    named = _named(retrievers, recipes, candidates, Lexical.of_options(lexical, freshness, syntax, fuzzy))
    chosen = named | _from_file(context, recipes, named)
    wanted = parts(measures, "--measures")
    requirements = gate.parse_requirements(fail_under)
    for requirement in requirements:
        requirement.require_checkable(wanted, list(chosen), baseline)
    if baseline is not None and baseline not in chosen:
        raise ArgumentError(f"--baseline {baseline!r} is none of the retrievers {', '.join(chosen)}")
    judged = first_queries(Dataset.from_beir(data, split), limit)
    made = make_retrievers(open_table(db, table), chosen, id_column=id_column)
    _warm_up(made, judged, on_error)
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
    diagnosis = _diagnosis(result) if diagnose else None
    _write(result, output, runs)
    if report is not None:
        result.to_html(report, diagnosis=diagnosis)
        talk(f"report written to {report}")
    breaches = [breach for requirement in requirements for breach in requirement.check(result, baseline)]
    if as_json:
        told = {} if diagnosis is None else {"diagnosis": diagnosis.to_dict()}
        print(json.dumps(result.to_dict() | told | gate.as_dict(requirements, breaches)))
    else:
        _print(result, baseline)
        if diagnosis is not None:
            print(f"\n{diagnosis}")
    gate.end(requirements, breaches)


def _named(retrievers: str | None, file: Path | None, candidates: int, lexical: Lexical | None) -> dict[str, Recipe]:
    """Return the recipes that the options name, by what they are written as."""
    if retrievers is None and file is not None:
        return {}
    written = parts(_RETRIEVERS if retrievers is None else retrievers, "--retrievers")
    recipes = [replace(Recipe.parse(one), candidates=candidates, lexical=lexical) for one in written]
    return {str(recipe): recipe for recipe in recipes}


def _from_file(context: typer.Context, file: Path | None, named: Mapping[str, Recipe]) -> dict[str, Recipe]:
    if file is None:
        return {}
    if not named:
        refuse_options_beside(file, context)
    recipes = read_recipes(file)
    for name in recipes:
        if name in named:
            raise ArgumentError(f"two retrievers are called {name!r}: one of --retrievers, one in {file}; rename that")
    return recipes


def _warm_up(retrievers: Mapping[str, Retriever], data: Dataset, on_error: str) -> None:
    """Ask each one query: the first pays for loading models, and is not to be measured."""
    for query in islice(data.queries.values(), 1):
        for retriever in retrievers.values():
            with suppress(Exception) if on_error == "count" else nullcontext():
                ask_once(retriever, query)


def _diagnosis(result: EvaluationResult) -> Diagnosis:
    with bar("diagnose") as progress:
        return result.diagnose(progress=lambda name, done, total: progress(done, total, name))


def _write(result: EvaluationResult, output: Path | None, runs: Path | None) -> None:
    if output is not None:
        result.to_json(output)
        talk(f"written to {output}")
    if runs is not None:
        result.to_trec(runs)
        talk(f"rankings written to {runs}")


def _print(result: EvaluationResult, baseline: str | None) -> None:
    print(result)
    if len(result.retrievers) > 1:
        print(f"\n{result.comparisons(baseline=baseline)}")
    for name, taken in result.latency.items():
        print(f"\n{name}: {taken}")


def parts(text: str, option: str) -> list[str]:
    """Return what stands between the commas of an option.

    Raises
    ------
    ArgumentError
        Nothing does.
    """
    found = [part.strip() for part in _COMMA.split(text) if part.strip()]
    if not found:
        raise ArgumentError(f"{option} names nothing")
    return found


def first_queries(data: Dataset, limit: int | None) -> Dataset:
    """Return the data set with its first queries only."""
    if limit is None:
        return data
    queries = dict(islice(data.queries.items(), limit))
    return replace(data, queries=queries, qrels={query_id: data.qrels[query_id] for query_id in queries})
