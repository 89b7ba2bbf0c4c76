"""Rows of a column as bytes, and columns without their extension types."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa


def row_bytes(column: pa.Array) -> Iterator[bytes]:
    """Yield the bytes of each row of texts, of vectors, of lists of vectors or of structs; nothing for a null."""
    column = without_extension(column)
    if pa.types.is_struct(column.type):
        for row in column.to_pylist():
            yield b"" if row is None else repr(tuple(row.values())).encode(errors="surrogatepass")
        return
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield from ((text or "").encode(errors="surrogatepass") for text in column.to_pylist())
        return
    if pa.types.is_fixed_size_list(column.type):
        size = column.type.list_size
        ends = (np.arange(len(column) + 1) + column.offset) * size
        numbers = column.values
    else:
        size = column.values.type.list_size
        ends = column.offsets.to_numpy().astype(np.int64) * size
        numbers = column.values.flatten()
    held = column.is_valid().to_numpy(zero_copy_only=False)
    if numbers.null_count:  # those of null rows
        numbers = numbers.fill_null(0)
    flat = numbers.to_numpy(zero_copy_only=True)
    for (start, end), valid in zip(pairwise(ends), held, strict=True):
        yield flat[start:end].tobytes() if valid else b""


def without_extension(column: pa.Array) -> pa.Array:
    """Return a column of vectors, or of lists of vectors, less the extension type that hides it."""
    if isinstance(column, pa.ExtensionArray):
        return column.storage
    if pa.types.is_list(column.type) and isinstance(column.values, pa.ExtensionArray):
        missing = column.is_null() if column.null_count else None
        return pa.ListArray.from_arrays(column.offsets, column.values.storage, mask=missing)
    return column
