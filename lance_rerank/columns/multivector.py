"""Token vectors as a column of the table."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lance_rerank import lance
from lance_rerank.columns.backfill import BackfillResult, Progress, backfill
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.types import FloatArray, TokenEncoder

Dtype = Literal["float16", "float32"]
ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


class MultivectorColumn:
    """Fills a column with a token encoder's vectors, one list of vectors a row."""

    def __init__(self, encoder: TokenEncoder, dtype: Dtype) -> None:
        if dtype not in ARROW_TYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(ARROW_TYPES)}, got {dtype!r}")
        self._encoder = encoder
        self._numpy_type = np.dtype(dtype)
        value = ARROW_TYPES[dtype]
        self.data_type = pa.list_(pa.fixed_shape_tensor(value, [encoder.dim]))
        self.storage = pa.list_(pa.list_(value, encoder.dim))

    def encode(self, texts: list[str]) -> pa.Array:
        """Return the texts' token vectors, a list of vectors each."""
        documents = self._encoder.encode_documents(texts)
        if len(documents) != len(texts):
            raise ModelError(f"{self._encoder} answered with {len(documents)} documents for {len(texts)} texts")
        for document in documents:
            if document.ndim != 2 or document.shape[1] != self._encoder.dim:
                raise ModelError(
                    f"{self._encoder} answered with vectors of shape {document.shape} for a text; "
                    f"(n_tokens, {self._encoder.dim}) was expected"
                )
        offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self._flat(documents)), self._encoder.dim)
        return pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(self.storage)

    def _flat(self, documents: list[FloatArray]) -> np.ndarray[Any, Any]:
        numbers = np.concatenate([document.reshape(-1) for document in documents])
        if not np.isfinite(numbers).all():
            raise ModelError(f"{self._encoder} answered with NaN or infinite numbers; try precision='float32'")
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
    progress: Progress | None = None,
) -> BackfillResult:
    """Store the token vectors of a text column in the table, and return what was done.

    The column is hidden from LanceDB's search for "the" vector column, so that ``table.search("text")`` of running
    apps goes on as before. Apps that select nothing will read it, though: let them select the columns they need. No
    other column and no index is touched. Run it again to encode rows that were added since.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    source, into : str
        The string column to encode and the column to make, by default "text" and "colbert".
    encoder : TokenEncoder
        For example `ColBERTEncoder`.
    dtype : {"float16", "float32"}, default "float16"
        How the numbers are stored; float16 changes no score by more than a thousandth.
    progress : callable, optional
        Called with (rows done, rows in all).

    Raises
    ------
    ColumnError, ModelError, ConflictError, UnsupportedError
        Each says what to do; fragments committed before the error stay, and a second run goes on after them.
    """
    opened = lance.require_sync_table(table, "add_multivector_column")
    return backfill(opened, column=into, source=source, encoder=MultivectorColumn(encoder, dtype), progress=progress)
