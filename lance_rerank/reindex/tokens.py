"""What a job does its own way with a column of token vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.multivector import MultivectorColumn
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.survey import survey
from lance_rerank.columns.token_vectors import TokenColumn
from lance_rerank.columns.vector_spool import TokenSpool
from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.reindex.evaluating import Recipes
from lance_rerank.reindex.former import Former, token_encoder
from lance_rerank.reindex.means import follow
from lance_rerank.reindex.models import Model
from lance_rerank.reindex.plan import Plan
from lance_rerank.reindex.state import Lease
from lance_rerank.reindex.sweeping import Sweeper, Swept, cover
from lance_rerank.reindex.token_examining import examined
from lance_rerank.reindex.token_recipes import recipes_by_tokens
from lance_rerank.reindex.transforming import TransformedTexts
from lance_rerank.reindex.verifying import Examine
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import TokenEncoder

logger = logging.getLogger(__name__)


class TokenVectors:
    """A job on a column of `add_multivector_column`, which `sync_multivector_column` fills and rerankers read.

    Such a column says itself which encoder it comes from, in the metadata of its field, which goes with it.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    # --- filling ---------------------------------------------------------------------------------------------------

    def require_column(self, schema: pa.Schema) -> None:
        """Raise `ColumnError` unless the live column is there, as it was when the plan was made."""
        if self._plan.column not in schema.names:
            raise ColumnError(
                f"column {self._plan.column!r} of token vectors was there when the plan was made, and is gone "
                f"(columns: {', '.join(schema.names)}). Take the job back with abort()"
            )

    def fingerprint(self, model: Model) -> str:
        """Return what tells a model from others: what readers of the column compare."""
        return model.known_as()

    def record(self) -> ColumnRecord:
        """Return what the new column says of itself."""
        plan = self._plan
        return ColumnRecord(plan.source, plan.fingerprint, plan.dtype, plan.pool_factor)

    def spool(self, folder: Path) -> TokenSpool:
        """Open what was encoded so far."""
        return TokenSpool(folder)

    def column(self, encoder: TokenEncoder, spool: Any, before_batch: Callable[[], None]) -> TokenColumn:
        """Return what the new column is filled with."""
        form = MultivectorColumn(encoder, self._plan.dtype, self._plan.pool_factor)
        return TokenColumn(encoder, form, spool, self._plan.batch_size, before_batch)

    # --- looking ---------------------------------------------------------------------------------------------------

    def examine(self, encoder: TokenEncoder, size: int, seed: int, texts: TransformedTexts | None) -> Examine:  # noqa: ARG002 (there are none)
        """Return what looks at the vectors of a sample."""
        return partial(examined, self.record(), encoder, size, seed)

    def recipes(self, table: Table, encoder: TokenEncoder, retriever: Retriever | None) -> Recipes:
        """Return what is compared on judged queries."""
        return recipes_by_tokens(table, self._plan, encoder, retriever)

    # --- swapping --------------------------------------------------------------------------------------------------

    def remember(self, table: Table, former: Former, lease: Lease) -> dict[str, Any]:  # noqa: ARG002 (as of vectors)
        """Note nothing: what the old column holds was noted when it was filled."""
        return {}

    def commit_swap(
        self,
        table: Table,
        names: lance.ColumnSwap,
        former: Former,  # noqa: ARG002 (as of vectors)
        dual_writing: bool,  # noqa: ARG002
    ) -> lance.SchemaCommit:
        """Put the new column in place; LanceDB's functions have no part in it."""
        return lance.swap_columns(table, names, embedding_functions=None)

    def commit_rollback(
        self,
        table: Table,
        names: lance.ColumnSwap,
        former: Former,  # noqa: ARG002 (as of vectors)
    ) -> lance.SchemaCommit:
        """Put the old column back."""
        return lance.swap_columns(table, names.reversed(), embedding_functions=None)

    def follow(self, table: Table, lease: Lease) -> None:
        """Make the means of the live column those of what it holds now."""
        follow(table, self._plan.column, lease)

    def notes_for_apps(self, former: Former, dual_writing: bool) -> tuple[str, ...]:  # noqa: ARG002 (as of vectors)
        """Return what apps have to know after the swap."""
        plan = self._plan
        return (
            f"rerankers and searches by {plan.column!r} refuse the old encoder now (ColumnError): give them "
            f"{plan.model.name}",
            f"rows that are added or changed get token vectors by sync_multivector_column(table, {plan.column!r}, "
            "encoder=...) with the new encoder, or by verify()",
        )

    def forget_live(self, table: Table) -> None:
        """Keep the notes on the live column's values: `sync_multivector_column` goes by them."""

    # --- rolling back ----------------------------------------------------------------------------------------------

    def refill(self, table: Table, former: Former, column: str, allow_nulls: bool, lease: Lease, folder: Path) -> Swept:
        """Give rows that came or changed since the swap the old model's vectors.

        Raises
        ------
        ArgumentError
            The old model cannot be loaded by the name that the column says, or makes other vectors than it holds.
        """
        table.checkout_latest()
        found = survey(table, column, former.source)
        if not found.outdated:
            cover(table, column, former.index, lease)
            return Swept()
        record = ColumnRecord.of(table.schema, column)
        encoder = None if record is None else token_encoder(table, column, record)
        if encoder is None or record is None:
            if not allow_nulls and column != self._plan.column:
                raise ArgumentError(
                    f"{found.outdated:,} rows came or changed and lack token vectors of the old model in {column!r}, "
                    "and that model cannot be loaded by the name that the column says. Fill them first, lance_rerank."
                    f"sync_multivector_column(table, {column!r}, encoder=<the old one>); or go back without, "
                    f"rollback(allow_nulls=True), and sync {self._plan.column!r} then"
                )
            logger.warning("%d rows have no token vectors of the old model in %r", found.outdated, column)
            return Swept()
        form = MultivectorColumn(encoder, record.dtype, record.pool_factor)
        with TokenSpool(folder / "former") as spool:
            tokens = TokenColumn(encoder, form, spool, self._plan.batch_size, lease.renew)
            return Sweeper(table, former.source, tokens, lease).sweep(column, former.index)
