"""Judging the new column by queries, before it is searched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lance_rerank.cli.evaluate import first_queries, parts
from lance_rerank.cli.progress import talk
from lance_rerank.cli.recipe_file import read_recipe, refuse_options_beside
from lance_rerank.cli.recipes import Lexical, Recipe
from lance_rerank.cli.retrievers import make_retrievers
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lancedb.table import Table

    from lance_rerank.datasets import Dataset
    from lance_rerank.reindex import Gate, ReindexJob
    from lance_rerank.search.retriever import Retriever


@dataclass(frozen=True, slots=True)
class Serving:
    """What the options say of the retriever that serves, None for what they leave out."""

    retriever: str | None
    recipes: Path | None
    candidates: int
    lexical: Lexical | None
    id_column: str

    def recipe(self, context: typer.Context, table: Table) -> Recipe:
        """Return the recipe.

        Raises
        ------
        ArgumentError
            It is none, or searches no vectors.
        """
        if self.recipes is not None:
            refuse_options_beside(self.recipes, context)
            if self.retriever is None:
                raise ArgumentError(f"which retriever of {self.recipes} serves? Name it: --retriever NAME")
            recipe = read_recipe(self.recipes, self.retriever)
        else:
            parsed = Recipe.parse(self.retriever or _default(table, self.lexical))
            recipe = replace(parsed, candidates=self.candidates, lexical=self.lexical)
        if recipe.query_type == "fts":
            raise ArgumentError(f"--retriever {self.retriever} searches no vectors: there is nothing to compare")
        return recipe

    def make(self, context: typer.Context, table: Table, column: str | None) -> Retriever:
        """Return the retriever, on a table's live column."""
        recipe = self.recipe(context, table)
        name = self.retriever or str(recipe)
        return make_retrievers(table, {name: recipe}, id_column=self.id_column, column=column)[name]


@dataclass(frozen=True, slots=True)
class Judging:
    """A retriever, and the queries to judge both columns by."""

    dataset: Dataset
    measures: list[str]
    retriever: Retriever

    @classmethod
    def of(cls, data: Path, split: str, measures: str, limit: int | None, retriever: Retriever) -> Judging:
        """Return it, once it is sure that the data and the measures are there: hours may lie between.

        Raises
        ------
        ArgumentError, DatasetError
            They are not.
        """
        from lance_rerank.datasets import Dataset
        from lance_rerank.evaluation.measures import evaluators

        dataset = first_queries(Dataset.from_beir(data, split), limit)
        wanted = parts(measures, "--measures")
        evaluators(wanted, dataset.qrels)
        return cls(dataset, wanted, retriever)

    def judge(self, job: ReindexJob) -> Gate:
        """Return how the new column does against the old one."""
        talk(f"searching both columns for {len(self.dataset.queries):,} queries")
        return job.evaluate(self.dataset, self.retriever, self.measures)


def _default(table: Table, lexical: Lexical | None) -> str:
    has_words = lexical is not None or any(index.index_type == "FTS" for index in table.list_indices())
    return "hybrid" if has_words else "vector"
