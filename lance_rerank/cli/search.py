"""`lance-rerank search`: one query, and what was found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lance_rerank.cli.progress import talk
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
from lance_rerank.errors import ArgumentError, LanceRerankError, QueryError

if TYPE_CHECKING:
    from lance_rerank.search.retriever import Retriever
    from lance_rerank.search.trace import Trace

_LEAST_TEXT = 20  # characters shown, however long the ids


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to search for.")],
    db: Db,
    table: TableName,
    query_type: Annotated[str, typer.Option("--type", help="hybrid, vector, fts or multivector.")] = "hybrid",
    candidates: Candidates = 100,
    k: Annotated[int, typer.Option("--k", "-k", help="Rows to show.")] = 10,
    where: Annotated[str | None, typer.Option(help="An SQL filter, applied before the search.")] = None,
    rerank: Annotated[
        str,
        typer.Option(
            help="none, rrf, cross-encoder:MODEL or late-interaction[:MODEL]; +blend or +guard:FILE after it."
        ),
    ] = "none",
    trace: Annotated[
        bool, typer.Option("--trace", help="Show every candidate's ranks and every stage's time.")
    ] = False,
    lexical: LexicalFolder = None,
    freshness: Freshness = "warn",
    syntax: Syntax = False,
    fuzzy: Fuzzy = 0,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Search a table and print the best rows."""
    if not query.strip():
        raise QueryError("the query is empty; give some words to search for")
    recipe = Recipe.parse(f"{query_type}+{rerank}")
    opened = open_table(db, table)
    recipe = replace(
        recipe, candidates=candidates, where=where, lexical=Lexical.of_options(lexical, freshness, syntax, fuzzy)
    )
    [retriever] = make_retrievers(opened, {str(recipe): recipe}, id_column=id_column).values()
    if trace:
        _run(retriever, query, k)  # the first run pays for loading models; the traced one is as in a running app
    found = _run(retriever, query, k)
    text = text_column(opened)
    if as_json:
        print(json.dumps(_as_dict(found, str(recipe), text, trace), ensure_ascii=False))
        return
    _print_table(found, text)
    if trace:
        print(f"\n{found}")


def _run(retriever: Retriever, query: str, k: int) -> Trace:
    try:
        return retriever.trace(query, k)
    except LanceRerankError:
        raise
    except ValueError as error:
        if retriever.where is None:
            raise
        raise ArgumentError(f"the filter --where {retriever.where!r} cannot be run: {error}") from error


def _as_dict(found: Trace, recipe: str, text: str, trace: bool) -> dict[str, Any]:
    hits = [
        {"rank": hit.rank, "doc_id": hit.doc_id, "score": hit.score, "text": hit.row.get(text)} for hit in found.hits
    ]
    result: dict[str, Any] = {"query": found.query, "recipe": recipe, "hits": hits}
    if trace:
        result["stages"] = [asdict(stage) for stage in found.stages]
        result["candidates"] = [asdict(candidate) for candidate in found.candidates]
    return result


def _print_table(found: Trace, text: str) -> None:
    """Print rank, id, score and as much of the text as the terminal has room for."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console

    if not found.hits:
        talk("nothing was found")
        return
    rows = [("rank", "id", "score", "text")]
    for hit in found.hits:
        score = "" if hit.score is None else f"{hit.score:.4f}"
        rows.append((str(hit.rank), hit.doc_id, score, " ".join(str(hit.row.get(text) or "").split())))
    id_width, score_width = (max(cell_len(row[column]) for row in rows) for column in (1, 2))
    for rank, doc_id, score, words in rows:
        start = f"{rank:>4}  {set_cell_size(doc_id, id_width)}  {score:>{score_width}}  "
        room = max(_LEAST_TEXT, Console().width - cell_len(start))
        print(start + (words if cell_len(words) <= room else set_cell_size(words, room - 1) + "…"))
