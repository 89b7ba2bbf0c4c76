"""Tables: which kind one is, whether two are one, second handles on them, and rows by their ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import AsyncTable, LanceTable, Table

from lance_rerank.errors import ArgumentError, UnsupportedError


def require_sync_table(table: object, what: str) -> Table:
    """Return the table, or raise `UnsupportedError` when it is an async one."""
    if isinstance(table, AsyncTable):
        raise UnsupportedError(
            f"{what} takes a table of lancedb.connect(...), not of connect_async(...). Open the same table with "
            "lancedb.connect for it, which works in async searches too and off the event loop; the async form "
            "of hybrid is lance_rerank.hybrid_async."
        )
    if not isinstance(table, Table):
        raise ArgumentError(f"{what} takes a LanceDB table, got {type(table).__name__}")
    return table


def require_async_table(table: object, what: str) -> AsyncTable:
    """Return the table, or raise `ArgumentError` when it is no async one."""
    if not isinstance(table, AsyncTable):
        raise ArgumentError(
            f"{what} takes a table of lancedb.connect_async(...), got {type(table).__name__}. For a table of "
            "lancedb.connect(...) use lance_rerank.hybrid."
        )
    return table


def require_same_table(reranker: object, table: Table) -> None:
    """Raise `ArgumentError` when a reranker reads from another table than the one that is searched."""
    own = getattr(reranker, "table", None)
    if isinstance(own, LanceTable) and isinstance(table, LanceTable) and own.uri != table.uri:
        raise ArgumentError(
            f"{type(reranker).__name__} reads from table {own.name!r} and the search is of {table.name!r}: row ids of "
            f"one mean nothing in the other. Give the reranker the table that is searched: table=..."
        )


def require_index_of(index: Any, table: Table) -> None:
    """Raise `ArgumentError` when a lexical index is of another table than the one that is searched."""
    if isinstance(table, LanceTable):  # where a remote table lies is not ours to know
        _require_same_place(index, table.uri, table.name)


async def require_index_of_async(index: Any, table: AsyncTable) -> None:
    """Raise `ArgumentError` when a lexical index is of another table than the async one that is searched."""
    _require_same_place(index, await table.uri(), table.name)


def _require_same_place(index: Any, uri: str, name: str) -> None:
    own = index.table
    if isinstance(own, LanceTable) and _absolute(own.uri) != _absolute(uri):
        raise ArgumentError(
            f"{type(index).__name__} is an index of table {own.name!r} ({own.uri}) and the search is of {name!r} "
            f"({uri}): keys of one mean nothing in the other. Pass the index of the table that is searched: lexical=..."
        )


def _absolute(uri: str) -> str:
    """Return a local path in full, which async tables give as it was typed; other addresses as they are."""
    return uri if "://" in uri else os.path.abspath(uri)


def latest_handle(table: Table) -> Table:
    """Return a second handle on a table, which can be moved to the latest version without moving the user's."""
    if not isinstance(table, LanceTable):
        return table
    return table._conn.open_table(table.name, namespace_path=table._namespace_path)


def take_rows(table: Table, row_ids: npt.NDArray[np.uint64], columns: Sequence[str]) -> pa.Table:
    """Return the rows with these ids, with ``_rowid``: in storage order, and less the rows deleted meanwhile."""
    query = table.take_row_ids(row_ids.tolist()).select(list(columns)).with_row_id()
    return query.to_arrow()


def has_index(table: Table, column: str) -> bool:
    """Tell whether a column has an index."""
    return any(column in index.columns for index in table.list_indices())
