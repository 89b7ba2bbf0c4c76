"""Token vectors as a column of the table."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import BackfillResult, Progress, Target, backfill
from lance_rerank.columns.mean import sync_mean_columns
from lance_rerank.columns.record import ColumnRecord, require_same_record
from lance_rerank.columns.spool import Spool
from lance_rerank.columns.survey import Survey, survey
from lance_rerank.errors import ArgumentError, ColumnError, ModelError
from lance_rerank.multivector import pool_tokens
from lance_rerank.multivector.maxsim import INT8_SCALE
from lance_rerank.types import FloatArray, TokenEncoder

Dtype = Literal["float16", "float32", "int8"]
ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}


class MultivectorColumn:
    """Fills a column with a token encoder's vectors, one list of vectors a row."""

    def __init__(self, encoder: TokenEncoder, dtype: str = "float16", pool_factor: int = 1) -> None:
        if dtype not in ARROW_TYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(ARROW_TYPES)}, got {dtype!r}")
        if not isinstance(pool_factor, int) or isinstance(pool_factor, bool) or pool_factor < 1:
            raise ArgumentError(f"pool_factor must be at least 1, got {pool_factor!r}")
        self._encoder = encoder
        self._pool_factor = pool_factor
        self._numpy_type = np.dtype(dtype)
        value = ARROW_TYPES[dtype]
        self.data_type = pa.list_(pa.fixed_shape_tensor(value, [encoder.dim]))
        self.storage = pa.list_(pa.list_(value, encoder.dim))

    expects = "texts"

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether a column holds strings."""
        return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return the texts' token vectors, a list of vectors each."""
        texts = sources.to_pylist()
        documents = self._encoder.encode_documents(texts)
        if len(documents) != len(texts):
            raise ModelError(f"{self._encoder} answered with {len(documents)} documents for {len(texts)} texts")
        return self.store(documents)

    def store(self, documents: list[FloatArray]) -> pa.Array:
        """Return documents' token vectors, each ``(n_tokens, dim)``, as they are stored: pooled and rounded."""
        for document in documents:
            if document.ndim != 2 or document.shape[1] != self._encoder.dim:
                raise ModelError(
                    f"{self._encoder} answered with vectors of shape {document.shape} for a text; "
                    f"(n_tokens, {self._encoder.dim}) was expected"
                )
        documents = [pool_tokens(document, self._pool_factor) for document in documents]
        offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self._flat(documents)), self._encoder.dim)
        return pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(self.storage)

    def _flat(self, documents: list[FloatArray]) -> np.ndarray[Any, Any]:
        numbers = np.concatenate([document.reshape(-1) for document in documents])
        if not np.isfinite(numbers).all():
            raise ModelError(f"{self._encoder} answered with NaN or infinite numbers; try precision='float32'")
        if self._numpy_type == np.int8:
            return np.rint(numbers * INT8_SCALE).clip(-INT8_SCALE, INT8_SCALE).astype(np.int8)
        with np.errstate(over="ignore"):
            flat = numbers.astype(self._numpy_type)
        if not np.isfinite(flat).all():
            raise ModelError(f"{self._encoder} answered with numbers too large for {flat.dtype}; use dtype='float32'")
        return flat


def add_multivector_column(
    table: object,
    source: str = "text",
    into: str = "colbert",
    *,
    encoder: TokenEncoder,
    dtype: Dtype = "float16",
    pool_factor: int = 1,
    progress: Progress | None = None,
    resume: bool = True,
) -> BackfillResult:
    """Store the token vectors of a text column in the table, and return what was done.

    The column is hidden from LanceDB's search for "the" vector column, so that ``table.search("text")`` of running
    apps goes on as before. Apps that select nothing will read it, though: let them select the columns they need. No
    other column and no index is touched. Run it again, or `sync_multivector_column`, to encode rows that were added or
    changed since.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    source, into : str
        The string column to encode and the column to make, by default "text" and "colbert".
    encoder : TokenEncoder
        For example `ColBERTEncoder`. Its fingerprint is kept with the column.
    dtype : {"float16", "float32", "int8"}, default "float16"
        How the numbers are stored. float16 changes no score by more than a thousandth; int8, ``round(127 x)``, takes
        half of that space, and LanceDB itself cannot search it.
    pool_factor : int, default 1
        How many tokens share a vector on average: see `lance_rerank.multivector.pool_tokens`.
    progress : callable, optional
        Called with (rows done, rows in all).
    resume : bool, default True
        Keep encoded rows in this user's cache until they are committed, so that after a kill a second run goes on
        where the first was. Needs an encoder with a fingerprint.

    Raises
    ------
    ColumnError, ModelError, ConflictError, UnsupportedError
        Each says what to do; fragments committed before the error stay, and a second run goes on after them.
    """
    opened = lance.require_sync_table(table, "add_multivector_column")
    record = ColumnRecord(source, encoder.fingerprint, dtype, pool_factor)
    if into in opened.schema.names:
        require_same_record(ColumnRecord.of(opened.schema, into), record, into)
    return _fill(_target(opened, into, record, encoder, resume), progress)


def sync_multivector_column(
    table: object, into: str = "colbert", *, encoder: TokenEncoder, progress: Progress | None = None
) -> BackfillResult:
    """Encode the rows that were added or whose text was changed since, as the column was made.

    Means of the column, made by `add_mean_vector_column`, are brought up to date too.

    Raises
    ------
    ColumnError
        There is no such column, or it was filled by another encoder.
    """
    opened = lance.require_sync_table(table, "sync_multivector_column")
    record = _record(opened, into)
    made_with = ColumnRecord(record.source, encoder.fingerprint, record.dtype, record.pool_factor)
    require_same_record(record, made_with, into)
    return _fill(_target(opened, into, record, encoder, True), progress)


def multivector_status(table: object, into: str = "colbert") -> Survey:
    """Return how many rows have their token vectors, lack them, or have those of an older text.

    Raises
    ------
    ColumnError
        There is no such column, or `add_multivector_column` did not make it.
    """
    opened = lance.latest_handle(lance.require_sync_table(table, "multivector_status"))
    return survey(opened, into, _record(opened, into).source)


def _fill(target: Target, progress: Progress | None) -> BackfillResult:
    result = backfill(target, progress)
    sync_mean_columns(target.table, target.column)
    return result


def _target(table: Table, into: str, record: ColumnRecord, encoder: TokenEncoder, resume: bool) -> Target:
    column = MultivectorColumn(encoder, record.dtype, record.pool_factor)
    metadata = record.metadata()
    spool = Spool(table.uri, into, *metadata.values()) if resume and encoder.fingerprint is not None else None
    return Target(table, into, record.source, column, metadata, spool)


def _record(table: Table, into: str) -> ColumnRecord:
    table.checkout_latest()
    if into not in table.schema.names:
        raise ColumnError(
            f"the table has no column {into!r} of token vectors (columns: {', '.join(table.schema.names)}). Make it: "
            f"lance_rerank.add_multivector_column(table, source='text', into={into!r}, encoder=encoder)"
        )
    record = ColumnRecord.of(table.schema, into)
    if record is None:
        raise ColumnError(f"column {into!r} was not made by add_multivector_column, so it does not say how")
    return record
