"""LanceDB's handles and connections as they follow a change of model, for applications; `models` says how."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lancedb.db import LanceDBConnection
from lancedb.query import FullTextQuery, LanceHybridQueryBuilder
from lancedb.table import LanceTable
from lancedb.util import infer_vector_column_name

from lance_rerank.errors import UnsupportedError
from lance_rerank.lance.models import EmbeddedQuery, FollowsModel, functions_named, model_named

_STOCK = {name: vars(LanceTable)[name] for name in ("embedding_functions", "search")}
_WRITTEN_FOR = "0.40."
_LOCK = threading.Lock()


class _HybridQuery(FollowsModel, LanceHybridQueryBuilder):
    """LanceDB's hybrid builder, whose vector leg follows a change of model."""

    def _validate_query(self, query: Any, vector: Any = None, text: Any = None) -> tuple[Any, Any]:
        vector, text = super()._validate_query(query, vector, text)
        return (self.embed(vector) if isinstance(vector, str) else vector), text


class FollowingTable(LanceTable):
    """LanceDB's handle on a table, which follows a change of the models that its columns come from."""

    @property
    def embedding_functions(self) -> Mapping[str, Any]:
        """The embedding functions of the version that the handle is at, by vector column."""
        return functions_named(self, self.schema.metadata)

    def search(
        self,
        query: Any = None,
        vector_column_name: str | None = None,
        query_type: str = "auto",
        ordering_field_name: str | None = None,
        fts_columns: Any = None,
    ) -> Any:
        """Return the search that LanceDB's own handle does."""
        if query_type in ("auto", "vector") and not isinstance(query, list | np.ndarray | FullTextQuery | None):
            schema = self.schema
            column = infer_vector_column_name(schema, query_type, query, vector_column_name)
            if model_named(schema.metadata, column) is not None:
                return EmbeddedQuery(self, column, query, schema.metadata).search()
        stock = _STOCK["search"]
        search = stock(self, query, vector_column_name, query_type, ordering_field_name, fts_columns)
        if type(search) is LanceHybridQueryBuilder:
            return _HybridQuery(self, search._query, search._vector_column, search._fts_columns)
        return search

    def _wrap_branch_handle(self, *arguments: Any, **options: Any) -> FollowingTable:
        return follow(super()._wrap_branch_handle(*arguments, **options))


def follow(table: LanceTable) -> FollowingTable:
    """Return a handle that shares all with the one given, and follows a change of model.

    Raises
    ------
    UnsupportedError
        This is another version of LanceDB than it was written for, or not LanceDB's own table.
    """
    _require_known_version()
    if not isinstance(table, LanceTable):
        raise UnsupportedError(f"only tables of lancedb.connect(...) can be followed, got {type(table).__name__}")
    following = FollowingTable.__new__(FollowingTable)
    following.__dict__.update(table.__dict__)
    return following


def patch() -> None:
    """Let every handle of ``lancedb.connect`` in this process, opened or yet to be, follow a change of model.

    For applications whose handles are opened where `connect` cannot be put in; `unpatch` takes it back. Handles of
    ``connect_async`` are not touched. They read for each query which model there is, so that of theirs only queries in
    flight during a swap are searched for with the wrong one.

    Raises
    ------
    UnsupportedError
        This is another version of LanceDB than it was written for.
    """
    _require_known_version()
    with _LOCK:
        for name in _STOCK:
            setattr(LanceTable, name, vars(FollowingTable)[name])


def unpatch() -> None:
    """Take back what `patch` did."""
    with _LOCK:
        for name, stock in _STOCK.items():
            setattr(LanceTable, name, stock)


def _require_known_version() -> None:
    installed = importlib.metadata.version("lancedb")
    if not installed.startswith(_WRITTEN_FOR):
        raise UnsupportedError(
            f"following a change of model leans on how LanceDB {_WRITTEN_FOR}x runs a query, and {installed} is "
            "installed. Reopen tables after a swap instead."
        )


# --- connections -----------------------------------------------------------------------------------------------

Method = TypeVar("Method", bound=Callable[..., Any])


def _override(method: Method) -> Method:
    """Mark a method as LanceDB's connection wants it of those that stand in for its own."""
    method.__override__ = True  # type: ignore[attr-defined]
    return method


class FollowingConnection(LanceDBConnection):
    """LanceDB's connection, whose handles on tables follow a change of model; made by `connect`."""

    @_override
    def open_table(self, *arguments: Any, **options: Any) -> FollowingTable:
        """Return what LanceDB's connection does, as a handle that follows."""
        return follow(super().open_table(*arguments, **options))

    @_override
    def create_table(self, *arguments: Any, **options: Any) -> FollowingTable:
        """Return what LanceDB's connection does, as a handle that follows."""
        return follow(super().create_table(*arguments, **options))

    @_override
    def clone_table(self, *arguments: Any, **options: Any) -> FollowingTable:
        """Return what LanceDB's connection does, as a handle that follows."""
        return follow(super().clone_table(*arguments, **options))


def connect(
    uri: str | Path,
    *,
    read_consistency_interval: timedelta | None = None,
    storage_options: dict[str, str] | None = None,
    session: Any = None,
    manifest_enabled: bool = False,
    namespace_client_properties: dict[str, str] | None = None,
) -> FollowingConnection:
    """Return a connection as ``lancedb.connect`` does, whose tables are searched with the right model across a swap.

    When a handle gets to see a swap is for `read_consistency_interval` to say, as with LanceDB's own: by default after
    ``checkout_latest()`` or a write of its own. Until then it searches the version before the swap with the model of
    that version. Texts and images that are searched for are embedded by the model that is named by the version they are
    searched in, also those in flight during a swap; vectors that the caller passes are searched for as they are.

    Parameters
    ----------
    uri : str or Path
        A folder or an object store. Tables of LanceDB Cloud are not followed.
    read_consistency_interval, storage_options, session, manifest_enabled, namespace_client_properties
        As in ``lancedb.connect``.

    Raises
    ------
    UnsupportedError
        The address is one of LanceDB Cloud, or this is another version of LanceDB than it was written for.

    Examples
    --------
    >>> import tempfile
    >>> connect(tempfile.mkdtemp()).create_table("docs", [{"id": "a"}])
    FollowingTable(name='docs', ...)
    """
    _require_known_version()
    if isinstance(uri, str) and uri.startswith("db://"):
        raise UnsupportedError(f"{uri} is LanceDB Cloud, whose handles cannot be followed: use lancedb.connect")
    return FollowingConnection(
        uri,
        read_consistency_interval=read_consistency_interval,
        storage_options=storage_options,
        session=session,
        manifest_enabled=manifest_enabled,
        namespace_client_properties=namespace_client_properties,
    )
