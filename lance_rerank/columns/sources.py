"""What a column is computed from: one column of texts, or several read as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension

Source = str | tuple[str, ...]
"""A column; or several, a row of which is a struct, null where the first of them is: that one is the text."""


def names_of(source: Source) -> list[str]:
    """Return the columns to read."""
    return [source] if isinstance(source, str) else list(source)


def type_of(schema: pa.Schema, source: Source) -> pa.DataType:
    """Return the type of what `read` returns."""
    if isinstance(source, str):
        return schema.field(source).type
    return pa.struct([schema.field(name) for name in source])


def read(rows: pa.RecordBatch | pa.Table, source: Source) -> pa.Array:
    """Return the sources of rows that were scanned."""
    columns = [rows.column(name) for name in names_of(source)]
    whole = [without_extension(_combined(column)) for column in columns]
    if isinstance(source, str):
        return whole[0]
    return pa.StructArray.from_arrays(whole, names=list(source), mask=whole[0].is_null())


def files_of(data: Any, fragment: Any, source: Source) -> str | None:
    """Return what tells the files that hold a fragment's sources from others, None where there are no texts."""
    paths = [lance.fragment_file(data, fragment, name) for name in names_of(source)]
    return None if paths[0] is None else "\n".join(dict.fromkeys(path or "" for path in paths))


def has_text(source: Source) -> str:
    """Return a filter for the rows that have a text."""
    return f"`{names_of(source)[0]}` IS NOT NULL"


def missing_from(names: Sequence[str], source: Source) -> list[str]:
    """Return the columns to read that a table lacks."""
    return [name for name in names_of(source) if name not in names]


def _combined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
