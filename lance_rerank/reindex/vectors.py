"""What a job does its own way with a column of one vector a text."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.ledger import forget
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.columns.survey import Survey, survey
from lance_rerank.columns.vector_spool import VectorSpool
from lance_rerank.columns.vectors import KIND, VectorColumn
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.reindex.checks import vector_column
from lance_rerank.reindex.evaluating import Recipes, recipes_by_vector
from lance_rerank.reindex.former import Former, note_values, require_known
from lance_rerank.reindex.models import Model
from lance_rerank.reindex.plan import ROWS_THAT_APPS_ADD, Plan
from lance_rerank.reindex.state import Lease
from lance_rerank.reindex.sweeping import Sweeper, Swept, cover
from lance_rerank.reindex.transforming import TransformedTexts
from lance_rerank.reindex.verifying import Examine, examined, without_vector
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Encoder

logger = logging.getLogger(__name__)

RECORD = "lance_rerank"  # the key of a field's metadata that holds its `ColumnRecord`


class OneVector:
    """A job on a column that LanceDB searches by an embedding function or by vectors."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    # --- filling ---------------------------------------------------------------------------------------------------

    def require_column(self, schema: pa.Schema) -> None:
        """Raise `ColumnError` unless the live column is there, as it was when the plan was made."""
        vector_column(schema, self._plan.column)

    def fingerprint(self, model: Model) -> str:
        """Return what tells a model from others."""
        return model.sketch()

    def record(self) -> ColumnRecord:
        """Return what the new column says of itself."""
        return ColumnRecord(self._plan.source, self._plan.fingerprint, self._plan.dtype, kind=KIND)

    def spool(self, folder: Path) -> VectorSpool:
        """Open what was embedded so far."""
        return VectorSpool(folder, self._plan.dim, self._plan.dtype)

    def column(self, encoder: Encoder, spool: Any, before_batch: Callable[[], None]) -> VectorColumn:
        """Return what the new column is filled with."""
        return VectorColumn(encoder.encode_documents, spool, self._plan.batch_size, before_batch)

    # --- looking ---------------------------------------------------------------------------------------------------

    def examine(self, encoder: Encoder, size: int, seed: int, texts: TransformedTexts | None) -> Examine:
        """Return what looks at the vectors of a sample."""
        return partial(examined, self._plan.sources, encoder, size, seed, texts)

    def recipes(self, table: Table, encoder: Encoder, retriever: Retriever | None) -> Recipes:
        """Return what is compared on judged queries."""
        return recipes_by_vector(table, self._plan, encoder, retriever)

    # --- swapping --------------------------------------------------------------------------------------------------

    def remember(self, table: Table, former: Former, lease: Lease) -> dict[str, Any]:
        """Note what the old column holds, unless that was noted when the job began."""
        if not former.embeds_texts or not (lease.state.notes or {}).get("noted"):
            note_values(table, self._plan.column, former.source, lease.renew)
        return {}

    def commit_swap(
        self, table: Table, names: lance.ColumnSwap, former: Former, dual_writing: bool
    ) -> lance.SchemaCommit:
        """Put the new column in place, with the function that searches and fills it."""
        plan = self._plan
        function = plan.model.function
        new = [] if function is None else [{**function, "source_column": plan.source, "vector_column": names.live}]
        return lance.swap_columns(
            table,
            names,
            embedding_functions=[*new, *(former.entry_for(names.retired) if dual_writing else [])],
            metadata_updates={
                lance.model_key(names.live): plan.fingerprint,
                lance.model_key(names.retired): former.fingerprint,
            },
            field_metadata={names.live: {RECORD: None}},
        )

    def commit_rollback(self, table: Table, names: lance.ColumnSwap, former: Former) -> lance.SchemaCommit:
        """Put the old column back, with its function."""
        return lance.swap_columns(
            table,
            names.reversed(),
            embedding_functions=former.entry_for(names.live),
            metadata_updates={lance.model_key(names.live): former.fingerprint, lance.model_key(names.retired): None},
            field_metadata={names.shadow: dict(self.record().metadata())},
        )

    def follow(self, table: Table, lease: Lease) -> None:
        """Bring up to date what is made of the live column: nothing is, of single vectors."""

    def notes_for_apps(self, former: Former, dual_writing: bool) -> tuple[str, ...]:
        """Return what apps have to know after the swap."""
        plan, notes = self._plan, []
        if plan.model.function is None:
            notes.append(
                f'search("text") finds nothing by {plan.column!r} any more, and add() fills it no more: '
                f"{plan.model.name} has no LanceDB function. Search by Retriever(table, encoder=...) or by vectors, "
                "and add rows with theirs"
            )
        elif former.function is not None and dual_writing:
            notes.append("add() fills both columns until drop_old(): apps load both models for that")
        if plan.transform is not None:
            notes.append(ROWS_THAT_APPS_ADD)
        if plan.dim != plan.old_dim:
            notes.append(f"queries that are vectors have to have {plan.dim} dimensions now, before {plan.old_dim}")
        notes.append(
            "writers that had begun before the swap may still bring rows with vectors of the old model: call swap() "
            "again when they are through"
        )
        return tuple(notes)

    def forget_live(self, table: Table) -> None:
        """Remove the notes on the live column's values: apps fill it, and nobody else looks at them."""
        forget(lance.dataset(table), self._plan.column)

    # --- rolling back ----------------------------------------------------------------------------------------------

    def refill(self, table: Table, former: Former, column: str, allow_nulls: bool, lease: Lease, folder: Path) -> Swept:
        """Give rows that came or changed since the swap the old model's vectors.

        Raises
        ------
        ArgumentError
            The model is not known, or rows would lose a vector that cannot be made again, and that was not allowed.
        ModelError
            The model cannot be loaded, or is another one now.
        """
        table.checkout_latest()
        found = survey(table, column, former.source)
        if not found.outdated:
            cover(table, column, former.index, lease)
            return Swept()
        encoder = _former_encoder(table, former, column, allow_nulls)
        if encoder is None:
            if not allow_nulls and column != self._plan.column:
                require_known(former, without_vector(table, column, former.source), column)
            return Swept()
        if not allow_nulls:
            _require_texts(table, former, column, found)
        stored = table.schema.field(column).type
        dim = (stored.storage_type if lance.is_hidden(stored) else stored).list_size
        with VectorSpool(folder / "former", dim, "float32") as spool:
            vectors = VectorColumn(encoder.encode_documents, spool, self._plan.batch_size, lease.renew)
            return Sweeper(table, former.source, vectors, lease).sweep(column, former.index)


def _former_encoder(table: Table, former: Former, column: str, allow_nulls: bool) -> Encoder | None:
    try:
        return former.encoder(table, column)
    except ModelError as error:
        if not allow_nulls:
            raise ModelError(
                f"{error}. Rows that came or changed since the swap need vectors of that model; without them: "
                "rollback(allow_nulls=True)"
            ) from error
        logger.warning("rows that came since the swap get no vector of the old model: %s", error)
        return None


def _require_texts(table: Table, former: Former, column: str, found: Survey) -> None:
    """Refuse to take vectors from rows without a text, which the engine would."""
    lost = table.count_rows(f"`{former.source}` IS NULL AND `{column}` IS NOT NULL")
    if lost:
        raise ArgumentError(
            f"{found.outdated:,} rows have to be given vectors of the old model, and {lost:,} rows without a text "
            f"in {former.source!r} could lose theirs by that. Accept it: rollback(allow_nulls=True)"
        )
