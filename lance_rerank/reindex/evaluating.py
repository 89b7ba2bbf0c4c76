"""The old column against the new one on a user's own queries, with the reranker that will serve."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, GateError
from lance_rerank.evaluation.evaluate import evaluate
from lance_rerank.evaluation.measures import DEFAULT_MEASURES
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.significance import Comparison
from lance_rerank.reindex.plan import Plan
from lance_rerank.rerankers.blend import BlendReranker
from lance_rerank.rerankers.fitted import FittedBlendReranker
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Encoder

if TYPE_CHECKING:
    from ir_measures import Measure

logger = logging.getLogger(__name__)

OLD, NEW = "old", "new"
BARE = " without reranker"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Gate:
    """What `ReindexJob.evaluate` found: whether the new column is good enough to be searched.

    Attributes
    ----------
    result : EvaluationResult
        Of "old" and "new", as they are to serve, and, where they have a reranker, of both without it.
    measure : str
        The one that decides: the first.
    notes : tuple of str
        What has to be done besides, for instance to fit a reranker again.

    Examples
    --------
    >>> from lance_rerank.evaluation import evaluate_runs
    >>> runs = {"old": {"q1": ["d1", "d2"]}, "new": {"q1": ["d2", "d1"]}}
    >>> gate = Gate(evaluate_runs(runs, {"q1": {"d2": 1}}, ["RR@10"]), "RR@10", ())
    >>> gate.comparison.difference
    0.5
    >>> gate.raise_if_worse()
    """

    result: EvaluationResult
    measure: str
    notes: tuple[str, ...]

    @property
    def comparison(self) -> Comparison:
        """The new column against the old one, as they are to serve, on the same queries."""
        return self.result.compare(OLD, NEW, self.measure)

    def raise_if_worse(self, max_loss: float = 0.005) -> None:
        """Raise `GateError` where the mean of the new column is more than `max_loss` below that of the old one.

        The difference of the means decides, over all judged queries. Its interval stands in the message and decides
        nothing: with few queries a difference may be their luck, in either direction.

        Raises
        ------
        GateError
            The new column is worse by more than that.
        ArgumentError
            `max_loss` is negative.
        """
        if not max_loss >= 0:
            raise ArgumentError(f"max_loss is 0 or more, got {max_loss!r}")
        found = self.comparison
        if found.difference < -max_loss - _ROUNDING:
            raise GateError(
                f"the new column is worse than the old one by more than the {max_loss} allowed: {found}. "
                + " ".join([*self.notes, "Keep the old column: abort()"])
            )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = self.comparison
        return {
            "measure": self.measure,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "notes": list(self.notes),
            "result": self.result.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join([str(self.result), "", str(self.comparison), *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Recipes:
    """What is compared on judged queries.

    Attributes
    ----------
    asked : mapping of str to Retriever
        "old" and "new", and, where it tells something, both without their reranker.
    notes : tuple of str
        What is to be known of them.
    """

    asked: Mapping[str, Retriever]
    notes: tuple[str, ...] = ()


def compare_columns(recipes: Recipes, dataset: Dataset, measures: Sequence[str | Measure] | None) -> Gate:
    """Return how the new column does against the old one."""
    result = evaluate(recipes.asked, dataset, measures or DEFAULT_MEASURES)
    measure = result.measures[0]
    note = _note_on_reranker(result, measure, fitted=bool(recipes.notes))
    return Gate(result, measure, (*recipes.notes, *note))


def recipes_by_vector(table: Table, plan: Plan, encoder: Encoder, retriever: Retriever | None) -> Recipes:
    """Return the recipe that serves, on the old column and on the new one, of one vector a text.

    Raises
    ------
    ArgumentError
        The retriever does not search the live column.
    ColumnError
        The new column is not there.
    """
    serving = retriever or _default(table)
    _require_live(serving, plan)
    old = _with(serving, table, plan.column, serving.encoder)
    notes: list[str] = []
    new = _with(serving, table, plan.shadow, encoder)
    if isinstance(old.reranker, FittedBlendReranker):
        fitted = old.reranker
        new = new.with_reranker(
            BlendReranker(fitted.inner, top_n=fitted.top_n, min_score=None, return_score="relevance")
        )
        notes.append(note_on_fitted(fitted))
    asked = {OLD: old, NEW: new}
    if old.reranker is not None:
        asked |= {name + BARE: one.with_reranker(None) for name, one in asked.items()}
    return Recipes(asked, tuple(notes))


def note_on_fitted(fitted: FittedBlendReranker) -> str:
    """Return what has to be done with a reranker that was fitted on the old column."""
    return (
        f"{fitted} was fitted for the old embedder and will refuse the new one (FittedForError): 'new' is reranked "
        "by BlendReranker around the same inner reranker. Serve that from the swap on, until the guard is fitted "
        "again on the new vectors: lance_rerank.fit_blend(retriever, dataset)."
    )


def _note_on_reranker(result: EvaluationResult, measure: str, fitted: bool) -> list[str]:
    """Return a note where the reranker takes from the new column what it is better by.

    A gain that is smaller behind a reranker is no sign of that: a good one mends what the old column got wrong, too.
    """
    means: Mapping[str, float] = {name: result.means[name][measure] for name in result.retrievers}
    if fitted or NEW + BARE not in means:
        return []
    gain, bare = means[NEW] - means[OLD], means[NEW + BARE] - means[OLD + BARE]
    harms = means[NEW] < means[NEW + BARE] - _ROUNDING
    if not harms and not gain < min(0.0, bare) - _ROUNDING:
        return []
    return [
        f"the new column gains {bare:+.4f} without the reranker and {gain:+.4f} with it, which takes it from "
        f"{means[NEW + BARE]:.4f} to {means[NEW]:.4f}: was it trained on candidates of the old embedder? Published "
        "runs fell from 70.6 to 62.1 behind a reranker that was not tuned for the new candidates. Train it again on "
        "those, or blend it: lance_rerank.fit_blend(retriever, dataset)."
    ]


def _default(table: Table) -> Retriever:
    indexed = any(index.index_type == "FTS" for index in table.list_indices())
    return Retriever(table, query_type="hybrid" if indexed else "vector")


def _require_live(retriever: Retriever, plan: Plan) -> None:
    if not isinstance(retriever, Retriever):
        raise ArgumentError(f"retriever is a lance_rerank.Retriever, got {type(retriever).__name__}")
    if retriever.vector_columns != (plan.column,):
        searched = ", ".join(map(repr, retriever.vector_columns)) or "no vector column"
        raise ArgumentError(f"the retriever has to search the column {plan.column!r} alone, it searches {searched}")


def _with(retriever: Retriever, table: Table, column: str, encoder: Any) -> Retriever:
    """Return the same recipe on another column and by another model, at the table's latest version."""
    lance.the_vector_column(table.schema, column)
    other = copy.copy(retriever)
    other.table = table
    other.vector_columns = (column,)
    other.encoder = encoder
    other._checked = (None, ())
    return other
