"""`lance-rerank fit-blend`: what judged queries teach of how far a reranker is to be trusted."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.recipe_file import read_recipe, refuse_options_beside
from lance_rerank.cli.recipes import Lexical, Recipe
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


def fit_blend(
    context: typer.Context,
    db: Db,
    table: TableName,
    data: Annotated[Path, typer.Option(help="A BEIR folder, with queries.jsonl and qrels/.")],
    retriever: Annotated[
        str, typer.Option(help="TYPE+RERANKER[:MODEL] as in hybrid+late-interaction; with --recipes a name in it.")
    ],
    output: Annotated[Path, typer.Option(help="Write what was learned to this file.")],
    split: Annotated[
        str, typer.Option(help="Which file of qrels/ to learn from: never the one that is reported on.")
    ] = "dev",
    measure: Annotated[str, typer.Option(help="What to choose by, as ir-measures writes it.")] = "nDCG@10",
    recipes: Annotated[Path | None, typer.Option(metavar="FILE", help="Take the retriever from a TOML file.")] = None,
    candidates: Candidates = 100,
    lexical: LexicalFolder = None,
    freshness: Freshness = "warn",
    syntax: Syntax = False,
    fuzzy: Fuzzy = 0,
    id_column: IdColumn = "id",
    as_json: AsJson = False,
) -> None:
    """Learn from judged queries how to combine a reranker with the legs of the search.

    The file is for +guard:FILE after the same reranker. A blend or guard that the retriever has already is left out.
    """
    from lance_rerank.datasets import Dataset
    from lance_rerank.evaluation.blend import fit_blend

    require_folder(output)
    of_options = Lexical.of_options(lexical, freshness, syntax, fuzzy)
    if recipes is None:
        recipe = replace(Recipe.parse(retriever), candidates=candidates, lexical=of_options)
    else:
        refuse_options_beside(recipes, context)
        recipe = read_recipe(recipes, retriever)
    if recipe.reranker == "none":
        raise ArgumentError(f"{retriever!r} has no reranker to combine with its legs; name one: {retriever}+RERANKER")
    recipe = replace(recipe, blend=False, guard=None, min_score=None)
    judged = Dataset.from_beir(data, split)
    [made] = make_retrievers(open_table(db, table), {retriever: recipe}, id_column=id_column).values()
    for query in islice(judged.queries.values(), 1):
        ask_once(made, query)
    with bar("search") as progress:
        fitted = fit_blend(made, judged, measure=measure, progress=lambda _, done, total: progress(done, total))
    fitted.save(output)
    talk(f"written to {output}; search by it: {recipe}+guard:{output}")
    if as_json:
        estimate = None if fitted.estimate is None else asdict(fitted.estimate)
        print(json.dumps({"retriever": retriever, "form": fitted.model.form, "estimate": estimate}))
        return
    print(fitted.estimate)
