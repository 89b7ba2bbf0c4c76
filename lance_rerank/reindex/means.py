"""Means of a token column, which have to follow it when other token vectors take its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import Target, backfill
from lance_rerank.columns.ledger import forget
from lance_rerank.columns.mean import KIND, MeanVectorColumn, mean_columns
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.errors import ConflictError, UnsupportedError
from lance_rerank.reindex import indexes
from lance_rerank.reindex.filling import INDEX_LEASES
from lance_rerank.reindex.indexes import IndexSpec, live_index
from lance_rerank.reindex.state import Lease
from lance_rerank.reindex.sweeping import lacking

NOTE = "means"  # those that are being made, by the job's notes
BEING_MADE = "a job that has not made all of it yet"  # in place of the encoder's fingerprint


def follow(table: Table, vectors: str, lease: Lease) -> None:
    """Make the means of a token column those of the vectors it holds now; run again, it does what is left.

    A search by means compares what they say of their encoder with its own. They say so last, so that until they are
    right it is refused. Means of another dimension are dropped and made anew.
    """
    table.checkout_latest()
    unfinished = (lease.state.notes or {}).get(NOTE) or {}
    columns = {**_means_and_indices(table, vectors), **unfinished}
    if not columns:
        return
    lease.note(**{NOTE: columns})
    for name, index in columns.items():
        _make(table, vectors, name, lease.renew)
        if index is not None:
            lease.renew(INDEX_LEASES)
            _cover(table, name, IndexSpec(**index))
    table.checkout_latest()
    lease.note(**{NOTE: None})


def _means_and_indices(table: Table, vectors: str) -> dict[str, Any]:
    """Return the columns of means of a token column with their indices, as a job's notes have it."""
    noted: dict[str, Any] = {}
    for name in mean_columns(table, vectors):
        try:
            spec = live_index(table, name)
        except UnsupportedError:  # of a kind that is not built here: LanceDB goes on with it as far as it covers
            spec = None
        noted[name] = None if spec is None else asdict(spec)
    return noted


def _make(table: Table, vectors: str, name: str, renew: Callable[[], None]) -> None:
    dim = lance.token_dim(table.schema.field(vectors).type)
    assert dim is not None
    encoder = MeanVectorColumn(dim)
    tokens = ColumnRecord.of(table.schema, vectors)
    record = ColumnRecord(vectors, tokens.encoder if tokens else None, "float32", kind=KIND)
    if name in table.schema.names and not table.schema.field(name).type.equals(encoder.data_type):
        forget(lance.dataset(table), name)
        lance.drop_column(table, name)
    making = replace(record, encoder=BEING_MADE)
    backfill(Target(table, name, vectors, encoder, making.metadata()), lambda *_: renew())
    if ColumnRecord.of(table.schema, name) != record:
        said = {key: value.encode() for key, value in record.metadata().items()}

        def relabel(schema: lance.SchemaEdit) -> None:
            column = schema.column(name)
            column.metadata = {**column.metadata, **said}

        lance.commit_schema(table, relabel, f"note the encoder of {name!r}")


def _cover(table: Table, name: str, spec: IndexSpec) -> None:
    """Let an index hold all means: one that holds some is extended, one of other vectors is built anew."""
    table.checkout_latest()
    left, names = lacking(lance.dataset(table), table, name), lance.indices_of(table, name)
    if left is not None and 0 < left < table.count_rows(f"`{name}` IS NOT NULL"):
        indexes.extend(table, name)
    if left is not None and lacking(lance.dataset(table), table, name) == 0:
        return
    for old in names:
        table.drop_index(old)
    try:
        indexes.build(table, name, spec)
    except (ConflictError, UnsupportedError) as error:
        indexes.logger.warning("the means in %r have no index for now: %s", name, error)
