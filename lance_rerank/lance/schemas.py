"""What LanceDB takes a column for, and the column types that are hidden from that."""

from __future__ import annotations

import pyarrow as pa
from lancedb.util import infer_vector_column_dim, is_vector_column

from lance_rerank.errors import ColumnError


def is_hidden(data_type: pa.DataType) -> bool:
    """Tell whether a column type is one this package hides from LanceDB's search for "the" vector column.

    That search knows fixed-size lists of floats. The same bytes typed as ``fixed_shape_tensor``, alone or in a list,
    are passed over by it and still readable, indexable and searchable by name.
    """
    if pa.types.is_list(data_type):
        data_type = data_type.value_type
    return isinstance(data_type, pa.FixedShapeTensorType)


def token_dim(data_type: pa.DataType) -> int | None:
    """Return the dimension of a column of token vectors, hidden or not; None for any other type."""
    if not pa.types.is_list(data_type):
        return None
    tokens = data_type.value_type
    if isinstance(tokens, pa.FixedShapeTensorType):
        return int(tokens.storage_type.list_size)
    return int(tokens.list_size) if pa.types.is_fixed_size_list(tokens) else None


def is_int8(data_type: pa.DataType) -> bool:
    """Tell whether a column of token vectors holds 8-bit integers."""
    tokens = data_type.value_type
    return bool(tokens.value_type == pa.int8())


def visible_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that a search returns when the caller selects none: all but the hidden ones."""
    return [field.name for field in schema if not is_hidden(field.type)]


def vector_columns(schema: pa.Schema) -> dict[str, int]:
    """Return LanceDB's candidates for "the" vector column with their dimensions."""
    return {f.name: int(infer_vector_column_dim(f.type) or 0) for f in schema if is_vector_column(f.type)}


def the_vector_column(schema: pa.Schema, name: str | None = None, dim: int | None = None) -> str:
    """Return the vector column to search: the one named, or the only one there is (of this dimension).

    Raises
    ------
    ColumnError
        There is none, or more than one to choose from.
    """
    columns = vector_columns(schema)
    if name is not None:
        if name not in schema.names:
            raise ColumnError(
                f"the table has no column {name!r}; its vector columns are: {', '.join(columns) or 'none'}"
            )
        if name not in columns and not is_hidden(schema.field(name).type):
            raise ColumnError(f"column {name!r} is no vector column but {schema.field(name).type}")
        return name
    fitting = [column for column, size in columns.items() if dim is None or size == dim]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        size = "" if dim is None else f" of {dim} dimensions"
        raise ColumnError(f"the table has no vector column{size} (columns: {', '.join(schema.names)})")
    raise ColumnError(
        f"the table has several vector columns ({', '.join(fitting)}): name the one to search, "
        f"vector_column_name={fitting[0]!r}"
    )
