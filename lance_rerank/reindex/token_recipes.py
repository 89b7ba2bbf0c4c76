"""The token vectors of now against the new ones on a user's own queries, by the recipe that will serve."""

from __future__ import annotations

import copy
from typing import Any

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.errors import ArgumentError
from lance_rerank.reindex.evaluating import NEW, OLD, Recipes, note_on_fitted
from lance_rerank.reindex.plan import Plan
from lance_rerank.rerankers.blend import BlendReranker, WrappingReranker
from lance_rerank.rerankers.fitted import FittedBlendReranker
from lance_rerank.rerankers.late_interaction import LateInteractionReranker
from lance_rerank.search.retriever import Retriever
from lance_rerank.search.tokens import TokenLeg
from lance_rerank.types import TokenEncoder


def recipes_by_tokens(table: Table, plan: Plan, encoder: TokenEncoder, retriever: Retriever | None) -> Recipes:
    """Return the recipe that serves, by the old token vectors and by the new ones.

    What does not read the column stays as it is: both rerank the same candidates, where the column does not find them.

    Raises
    ------
    ArgumentError
        There is no retriever, or one that does not use the live column.
    ColumnError
        The new column is not there.
    """
    lance.the_vector_column(table.schema, plan.shadow)
    if not isinstance(retriever, Retriever):
        given = "none is given" if retriever is None else f"got {type(retriever).__name__}"
        raise ArgumentError(f"{_wanted(plan)}; {given}")
    searches = retriever.query_type == "multivector" and retriever.vectors == plan.column
    late = _late(retriever.reranker)
    reranks = late is not None and late.vectors == plan.column
    if not searches and not reranks:
        raise ArgumentError(f"{_wanted(plan)}; {retriever.name!r} does not read that column")
    notes: list[str] = []
    old, new = (_at(retriever, table) for _ in range(2))
    if reranks:
        new = new.with_reranker(_replaced(retriever.reranker, plan, encoder, notes))
    if searches:
        notes += _search(old, new, plan, encoder)
    return Recipes({OLD: old, NEW: new}, tuple(notes))


def _wanted(plan: Plan) -> str:
    return (
        f"token vectors are compared by the recipe that serves: retriever=Retriever(table, reranker="
        f"LateInteractionReranker(encoder, table=table, vectors={plan.column!r})) with the encoder of now, or "
        f"Retriever(table, query_type='multivector', vectors={plan.column!r}, encoder=encoder)"
    )


def _late(reranker: Any) -> LateInteractionReranker | None:
    """Return the reranker that reads token vectors, also where it is wrapped in others."""
    while isinstance(reranker, WrappingReranker):
        reranker = reranker.inner
    return reranker if isinstance(reranker, LateInteractionReranker) else None


def _replaced(reranker: Any, plan: Plan, encoder: TokenEncoder, notes: list[str]) -> Any:
    if isinstance(reranker, LateInteractionReranker):
        return reranker.on_column(plan.shadow, encoder)
    inner = _replaced(reranker.inner, plan, encoder, notes)
    if isinstance(reranker, FittedBlendReranker):
        notes.append(note_on_fitted(reranker))
        return BlendReranker(inner, top_n=reranker.top_n, min_score=None, return_score="relevance")
    other = copy.copy(reranker)
    other.inner = inner
    return other


def _at(retriever: Retriever, table: Table) -> Retriever:
    """Return the same recipe at the table's latest version, which has the new column."""
    other = copy.copy(retriever)
    other.table = table
    other._checked = (None, ())
    return other


def _search(old: Retriever, new: Retriever, plan: Plan, encoder: TokenEncoder) -> list[str]:
    """Let the one search the old token vectors and the other the new ones; return what differs besides."""
    assert isinstance(old.encoder, TokenEncoder)
    [found_by] = old.vector_columns
    old._tokens = TokenLeg(old.table, old.encoder, plan.column, found_by)
    new._tokens = TokenLeg(new.table, encoder, plan.shadow)
    new.encoder, new.vectors, new.vector_columns = encoder, plan.shadow, (plan.shadow,)
    if found_by == plan.column:
        return []
    return [
        f"'old' finds its candidates by the means in {found_by!r}; of the new vectors there are none before the swap, "
        "so 'new' finds them by its index or among all rows, which is slower and misses less"
    ]
