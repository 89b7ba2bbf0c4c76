"""Mean token vectors as a column of the table: what finds candidates where token vectors have no index."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import BackfillResult, Progress, Target, backfill
from lance_rerank.columns.record import ColumnRecord, require_same_record
from lance_rerank.errors import ColumnError
from lance_rerank.multivector.maxsim import Ragged
from lance_rerank.multivector.mean import mean_vectors

logger = logging.getLogger(__name__)

KIND = "mean"


class MeanVectorColumn:
    """Fills a column with the means of another column's token vectors."""

    expects = "token vectors"

    def __init__(self, dim: int) -> None:
        self.data_type = pa.fixed_shape_tensor(pa.float32(), [dim])
        self.storage = pa.list_(pa.float32(), dim)

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether a column holds lists of vectors."""
        return lance.token_dim(data_type) == self.storage.list_size

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return the means of lists of token vectors, null for an empty list and for vectors that cancel out."""
        means = mean_vectors(Ragged.from_arrow(sources))
        missing = np.isnan(means[:, 0])
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.nan_to_num(means).reshape(-1)), self.storage.list_size, mask=pa.array(missing)
        )


def add_mean_vector_column(
    table: object, vectors: str = "colbert", into: str = "colbert_mean", *, progress: Progress | None = None
) -> BackfillResult:
    """Store the mean of each row's token vectors, one vector a row, and return what was done.

    ``Retriever(table, query_type="multivector")`` finds its candidates by it where the token vectors have no index of
    LanceDB's, which takes no int8. Nothing is encoded. Like the token column it is hidden from LanceDB's search for
    "the" vector column; when the table is large, index it by its name, with ``distance_type="cosine"``. Run this again,
    or `sync_multivector_column`, after rows were added or changed, and before ``table.optimize()``: LanceDB 0.40 fails
    to optimize a vector index when all rows that came since have no vector.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    vectors, into : str
        The multivector column, as `add_multivector_column` makes it, and the column to make.
    progress : callable, optional
        Called with (rows done, rows in all).

    Raises
    ------
    ColumnError, ConflictError, UnsupportedError
        Each says what to do; fragments committed before the error stay, and a second run goes on after them.
    """
    opened = lance.require_sync_table(table, "add_mean_vector_column")
    opened.checkout_latest()
    if vectors not in opened.schema.names:
        raise ColumnError(
            f"the table has no column {vectors!r} of token vectors (columns: {', '.join(opened.schema.names)}). Make "
            f"it: lance_rerank.add_multivector_column(table, source='text', into={vectors!r}, encoder=encoder)"
        )
    dim = lance.token_dim(opened.schema.field(vectors).type)
    if dim is None:
        raise ColumnError(f"column {vectors!r} holds {opened.schema.field(vectors).type}, not token vectors")
    tokens = ColumnRecord.of(opened.schema, vectors)
    record = ColumnRecord(vectors, tokens.encoder if tokens else None, "float32", kind=KIND)
    if into in opened.schema.names:
        require_same_record(ColumnRecord.of(opened.schema, into), record, into)
    return backfill(Target(opened, into, vectors, MeanVectorColumn(dim), record.metadata()), progress)


def mean_columns(table: Table, vectors: str) -> list[str]:
    """Return the columns that hold the means of a multivector column."""
    records = {name: ColumnRecord.of(table.schema, name) for name in table.schema.names}
    return [name for name, record in records.items() if record and record.kind == KIND and record.source == vectors]


def sync_mean_columns(table: Table, vectors: str) -> None:
    """Bring the means of a multivector column up to date; those of a column that was made anew are left alone."""
    for name in mean_columns(table, vectors):
        try:
            logger.info("%s", add_mean_vector_column(table, vectors, name))
        except ColumnError as error:
            logger.warning(
                "the means in %r are left as they are: %s. To make them anew: table.drop_columns([%r]), then "
                "lance_rerank.add_mean_vector_column(table, %r, %r)",
                name,
                error,
                name,
                vectors,
                name,
            )
