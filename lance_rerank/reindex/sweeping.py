"""Rows that came or changed since a column was filled: found by the ledger, given their vectors, and indexed again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import ColumnEncoder, Target, backfill
from lance_rerank.columns.sources import Source
from lance_rerank.columns.survey import survey
from lance_rerank.columns.transformed import TransformedColumn
from lance_rerank.columns.vectors import VectorColumn
from lance_rerank.errors import ConflictError
from lance_rerank.reindex import indexes
from lance_rerank.reindex.filling import INDEX_LEASES
from lance_rerank.reindex.indexes import IndexSpec
from lance_rerank.reindex.state import Lease
from lance_rerank.reindex.transforming import TransformedTexts

logger = logging.getLogger(__name__)

ROUNDS = 8  # over a table that others write to meanwhile
SWEEPS = 3  # each with an index brought up to date, during which more may come


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Attributes
    ----------
    rows : int
        Rows that were given a vector.
    embedded : int
        Texts that the model was asked for.
    left : int
        Rows that came or changed at the very end.
    """

    rows: int = 0
    embedded: int = 0
    left: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.rows + other.rows, self.embedded + other.embedded, other.left)


class StoredAs:
    """Vectors as a column holds them already: hidden or not, and in floats of its size."""

    def __init__(self, vectors: ColumnEncoder, stored: pa.DataType) -> None:
        self._vectors = vectors
        self.data_type = stored
        self.storage = stored.storage_type if isinstance(stored, pa.ExtensionType) else stored
        self.expects = vectors.expects

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether vectors can be made of a column of this type."""
        return self._vectors.accepts(data_type)

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return the texts' vectors."""
        return self._vectors.encode(sources).cast(self.storage)


class Sweeper:
    """Brings one column, whatever its name is at the time, up to date with the texts beside it.

    Parameters
    ----------
    table : lancedb.table.Table
        The job's own handle.
    source : str or tuple of str
        The texts, or what they are made of.
    vectors : VectorColumn
        The model that the column's vectors come from, with what it embedded before.
    lease : Lease
        Renewed while columns are written and indexed.
    texts : TransformedTexts, optional
        What makes them of several columns.
    """

    def __init__(
        self,
        table: Table,
        source: Source,
        vectors: VectorColumn,
        lease: Lease,
        texts: TransformedTexts | None = None,
    ) -> None:
        self._table = table
        self._source = source
        self._lease = lease
        self._vectors = vectors
        self._column: ColumnEncoder = TransformedColumn(vectors, texts.of) if texts else vectors

    def sweep(self, column: str, index: IndexSpec | None) -> Swept:
        """Sweep until nothing is left, or others have added to it that many times; then the index covers all of it.

        Rows are found by the ledger, and not by nulls alone: a writer that read the schema just before a swap fills the
        new column with the old model's vectors.
        """
        done = Swept()
        for _ in range(SWEEPS):
            done += self._once(column)
            cover(self._table, column, index, self._lease)
            left = survey(self._table, column, self._source).outdated
            done = Swept(done.rows, done.embedded, left)
            if not left:
                break
        return done

    def _once(self, column: str) -> Swept:
        before = self._vectors.embedded
        self._table.checkout_latest()
        stored = self._table.schema.field(column).type
        encoder = self._column if self._column.data_type.equals(stored) else StoredAs(self._column, stored)
        target = Target(self._table, column, self._source, encoder, {})
        done = backfill(target, lambda *_: self._lease.renew(), ROUNDS)
        return Swept(done.rows, self._vectors.embedded - before)


def cover(table: Table, column: str, index: IndexSpec | None, lease: Lease) -> None:
    """Let a column's index hold all of its vectors: extend it, or build it where there is none or that fails.

    Where other writers thwart each attempt the index stays as it is. Searches then read what it lacks besides.
    """
    table.checkout_latest()
    names = lance.indices_of(table, column)
    lease.renew(INDEX_LEASES)
    if names:
        for _ in range(indexes.ATTEMPTS):
            if not lacking(lance.dataset(table), table, column):
                return
            indexes.extend(table, column)
        if names != [lance.default_index_name(column)] or not lacking(lance.dataset(table), table, column):
            return
    if index is not None and table.count_rows(f"`{column}` IS NOT NULL"):
        try:
            indexes.build(table, column, index)
        except ConflictError as error:
            logger.warning("the index on %r lacks rows for now: %s", column, error)


def lacking(data: Any, table: Table, column: str) -> int | None:
    """Return how many rows with a vector a column's index lacks, None where it has none.

    LanceDB's own count has rows without a vector, too, which no index can hold.
    """
    names = lance.indices_of(table, column)
    if not names:
        return None
    segments = [part for index in data.describe_indices() if index.name == names[0] for part in index.segments]
    covered = set().union(*(set(part.fragment_ids) for part in segments))
    others = (fragment for fragment in data.get_fragments() if fragment.fragment_id not in covered)
    return sum(fragment.count_rows(filter=f"`{column}` IS NOT NULL") for fragment in others)
