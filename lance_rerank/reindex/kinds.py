"""The two kinds of columns that a job replaces, and what each does its own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.vectors import VectorColumn
from lance_rerank.reindex.evaluating import Recipes
from lance_rerank.reindex.former import Former
from lance_rerank.reindex.models import Model
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import Lease
from lance_rerank.reindex.sweeping import Swept
from lance_rerank.reindex.tokens import TokenVectors
from lance_rerank.reindex.transforming import TransformedTexts
from lance_rerank.reindex.vectors import OneVector
from lance_rerank.reindex.verifying import Examine
from lance_rerank.search.retriever import Retriever


class Kind(Protocol):
    """What a text has in a column: one vector, or one a token."""

    def require_column(self, schema: pa.Schema) -> None:
        """Raise `ColumnError` unless the live column is there, as it was when the plan was made."""
        ...

    def fingerprint(self, model: Model) -> str:
        """Return what tells a model from others."""
        ...

    def record(self) -> ColumnRecord:
        """Return what the new column says of itself."""
        ...

    def spool(self, folder: Path) -> Any:
        """Open what was embedded so far."""
        ...

    def column(self, encoder: Any, spool: Any, before_batch: Callable[[], None]) -> VectorColumn:
        """Return what the new column is filled with."""
        ...

    def examine(self, encoder: Any, size: int, seed: int, texts: TransformedTexts | None) -> Examine:
        """Return what looks at the vectors of a sample."""
        ...

    def recipes(self, table: Table, encoder: Any, retriever: Retriever | None) -> Recipes:
        """Return what is compared on judged queries."""
        ...

    def remember(self, table: Table, former: Former, lease: Lease) -> dict[str, Any]:
        """Note what a rollback, or what follows the live column, needs to know; return what the job is to note."""
        ...

    def commit_swap(
        self, table: Table, names: lance.ColumnSwap, former: Former, dual_writing: bool
    ) -> lance.SchemaCommit:
        """Put the new column in place, in one commit."""
        ...

    def commit_rollback(self, table: Table, names: lance.ColumnSwap, former: Former) -> lance.SchemaCommit:
        """Put the old column back, in one commit."""
        ...

    def follow(self, table: Table, lease: Lease) -> None:
        """Bring up to date what is made of the live column."""
        ...

    def notes_for_apps(self, former: Former, dual_writing: bool) -> tuple[str, ...]:
        """Return what apps have to know after the swap."""
        ...

    def forget_live(self, table: Table) -> None:
        """Remove what was noted of the live column for the sake of the job alone."""
        ...

    def refill(self, table: Table, former: Former, column: str, allow_nulls: bool, lease: Lease, folder: Path) -> Swept:
        """Give rows that came or changed since the swap the old model's vectors."""
        ...


def kind_of(plan: Plan) -> Kind:
    """Return what a plan's column is filled with."""
    return TokenVectors(plan) if plan.kind == "tokens" else OneVector(plan)
