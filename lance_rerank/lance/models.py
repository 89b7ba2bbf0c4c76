"""Queries that are searched for with the model of the very version that is searched.

LanceDB's handles read which model a column's vectors come from when they first need it, and never again. After a swap
one that sees the new version searches the new vectors with the old model, without an error. To read it for each query
is not enough: queries that are embedded before the swap and run after it remain.

But what LanceDB returns carries the schema's metadata of the version that was searched, whatever was selected. So a
query is embedded by the model that the handle's version names, and searched for; where the version that was searched
names another model, it is embedded by that one, and searched for again.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from lancedb.embeddings import EmbeddingFunctionRegistry
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import LanceTable

from lance_rerank.errors import ColumnError, ConflictError
from lance_rerank.fingerprint import require_fills
from lance_rerank.lance.functions import FunctionEncoder
from lance_rerank.lance.metadata import EMBEDDING_FUNCTIONS, MODEL_PREFIX, model_key
from lance_rerank.lance.queries import embed_query, is_of_another_dimension

Metadata = Mapping[bytes, bytes] | None
Vector = npt.NDArray[np.float32]

RUNS = 100  # of one query, each but the last thwarted by a swap
KEPT_MODELS = 2  # by a handle: the one in force, and the one before, which queries in flight may need


class _Models:
    """The embedding functions of one handle, made once for each state of the metadata that names them."""

    def __init__(self) -> None:
        self._made: dict[object, Mapping[str, Any]] = {}
        self._compared: set[tuple[object, str]] = set()
        self._lock = threading.Lock()

    def of(self, metadata: Metadata) -> Mapping[str, Any]:
        """Return the functions that metadata name, by vector column."""
        state = _naming_models(metadata)
        with self._lock:
            functions = self._made.pop(state, None)
            self._made[state] = _made(metadata) if functions is None else functions
            for oldest in list(self._made)[:-KEPT_MODELS]:
                del self._made[oldest]
                self._compared = {known for known in self._compared if known[0] != oldest}
            return self._made[state]

    def compared(self, metadata: Metadata, column: str) -> Mapping[str, Any]:
        """Return the functions, once a column's was seen to make such vectors as the column holds."""
        functions = self.of(metadata)
        noted = (metadata or {}).get(model_key(column).encode())
        state = (_naming_models(metadata), column)
        if noted is not None and column in functions and state not in self._compared:
            function = functions[column].function
            name = str(getattr(function, "name", None) or type(function).__name__)
            require_fills(FunctionEncoder(function), noted.decode(), column, name)
            self._compared.add(state)
        return functions


_MODELS: WeakKeyDictionary[Any, _Models] = WeakKeyDictionary()
_LOCK = threading.Lock()


def functions_named(table: Any, metadata: Metadata) -> Mapping[str, Any]:
    """Return the embedding functions that a version's metadata name, by vector column; each is made once a handle.

    Raises
    ------
    ColumnError
        One of them is not registered in this process.
    """
    return _models(table).of(metadata)


def _models(table: Any) -> _Models:
    with _LOCK:
        return _MODELS.setdefault(table, _Models())


def _naming_models(metadata: Metadata) -> tuple[tuple[bytes, bytes], ...]:
    """Return the part of the metadata that says which models there are."""
    named = (EMBEDDING_FUNCTIONS.encode(), MODEL_PREFIX.encode())
    return tuple(sorted((key, value) for key, value in (metadata or {}).items() if key.startswith(named)))


def _made(metadata: Metadata) -> Mapping[str, Any]:
    try:
        return EmbeddingFunctionRegistry.get_instance().parse_functions(metadata)
    except KeyError as error:
        raise ColumnError(
            f"the table's vectors come from the embedding function {error}, which this process has not registered: "
            "import the module that does"
        ) from error


def model_named(metadata: Metadata, column: str) -> str | None:
    """Return what metadata say of a column's model, as a text to compare; None where they name none."""
    named = metadata or {}
    entries = named.get(EMBEDDING_FUNCTIONS.encode())
    return None if entries is None else _model(entries, named.get(model_key(column).encode(), b""), column)


@lru_cache(maxsize=64)
def _model(entries: bytes, fingerprint: bytes, column: str) -> str | None:
    for entry in json.loads(entries):
        if entry["vector_column"] == column:
            return json.dumps([entry, fingerprint.decode()], sort_keys=True)
    return None


# --- queries ---------------------------------------------------------------------------------------------------


class EmbeddedQuery:
    """What is searched for in a column, and its vector by the model that a version of the table names.

    Parameters
    ----------
    table : lancedb.table.LanceTable
        The table that is searched.
    column : str
        The vector column.
    query : str or image
        What the column's embedding function takes.
    metadata : mapping, optional
        The schema's, of the version that the handle is at; read from the table if it is left out.

    Raises
    ------
    ColumnError
        The column has no embedding function, one that this process has not registered, or one that makes other vectors
        than the column was filled with: the model was trained on since, say.
    """

    def __init__(self, table: Any, column: str, query: Any, metadata: Metadata = None) -> None:
        self.column = column
        self.query = query
        self._table = table
        self._vectors: dict[str, Vector] = {}
        self._latest = self._embedded(metadata or table.schema.metadata)

    @property
    def model(self) -> str:
        """What tells the model that was last in force from others."""
        return self._latest

    @property
    def vector(self) -> Vector:
        """The vector by the model that was last in force."""
        return self._vectors[self._latest]

    def _embedded(self, metadata: Metadata) -> str:
        """Embed the query by the model that metadata name, unless that was done before, and return the model."""
        model = model_named(metadata, self.column) or ""  # which embed_query says what to do about
        if model not in self._vectors:
            functions = _models(self._table).compared(metadata, self.column)
            self._vectors[model] = embed_query(functions, self.column, self.query)
        return model

    def search(self) -> LanceVectorQueryBuilder:
        """Return LanceDB's vector search for it, which is run again whenever the model changed under it."""
        words = self.query if isinstance(self.query, str) else None
        return self.follow(LanceVectorQueryBuilder(self._table, self.vector, self.column, words))

    def follow(self, search: LanceVectorQueryBuilder) -> LanceVectorQueryBuilder:
        """Let a vector search for this query, of this table, be run again whenever the model changed under it."""
        if isinstance(self._table, LanceTable):  # what a server does is out of reach
            search._table = _FollowedTable(self._table, self)
        return search

    def answer(self, run: Callable[[Vector], Any]) -> Any:
        """Return what `run` finds for the vector in a version that names the model that made the vector.

        Raises
        ------
        ConflictError
            The model changed during each of very many runs.
        """
        for _ in range(RUNS):
            model = self._latest
            found, error = _outcome(partial(run, self._vectors[model]))
            # a search that a server runs says nothing of its version
            searched = (found.schema.metadata if error is None else None) or self._table.schema.metadata
            if self._was_right(model, searched, error):
                return found
        raise error or self._thwarted()

    async def answer_async(self, run: Callable[[Vector], Awaitable[Any]]) -> Any:
        """Return the same for an async table, embedding in a thread."""
        for _ in range(RUNS):
            model, found, error = self._latest, None, None
            try:
                found = await run(self._vectors[model])
            except ValueError as of_run:
                error = of_run
            searched = (None if found is None else found.schema.metadata) or (await self._table.schema()).metadata
            if await asyncio.to_thread(self._was_right, model, searched, error):
                return found
        raise error or self._thwarted()

    def _was_right(self, model: str, searched: Metadata, error: ValueError | None) -> bool:
        """Return whether a run was with the model of the version that it searched; raise an error that no swap made."""
        self._latest = self._embedded(searched)
        if error is not None and self._latest == model and not is_of_another_dimension(error):
            raise error
        return error is None and self._latest == model

    def _thwarted(self) -> ConflictError:
        return ConflictError(
            f"the model of column {self.column!r} changed during each of {RUNS} runs of a query: something swaps it to "
            "and fro"
        )


def _outcome(run: Callable[[], Any]) -> tuple[Any, ValueError | None]:
    """Return what was found, or the error by which LanceDB refuses a vector: of another dimension, among others."""
    try:
        return run(), None
    except ValueError as error:
        return None, error


class _FollowedTable:
    """The table as one vector search sees it: a search that read the vectors of another model is run again."""

    def __init__(self, table: Any, query: EmbeddedQuery) -> None:
        self._table = table
        self._query = query

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying asks of an object that has nothing yet
            raise AttributeError(name)
        return getattr(self._table, name)

    def _execute_query(self, query: Any, **options: Any) -> Any:
        def run(vector: Vector) -> Any:
            query.vector = vector.tolist()
            return self._table._execute_query(query, **options)

        return self._query.answer(run)


class FollowsModel:
    """Mixed into a hybrid builder, lets its vector leg be run again whenever the model changed under it."""

    _table: Any
    _vector_column: str
    _vector_query: LanceVectorQueryBuilder
    _embedded: EmbeddedQuery | None = None
    _leg_is_embedded: bool = False

    def embed(self, words: Any) -> Vector:
        """Return the vector for what is searched for, embedded when it is first asked for."""
        if self._embedded is None or self._embedded.query != words:
            self._embedded = EmbeddedQuery(self._table, self._vector_column, words)
        self._leg_is_embedded = True
        return self._embedded.vector

    def _create_query_builders(self) -> None:
        self._leg_is_embedded = False
        super()._create_query_builders()  # type: ignore[misc]
        if self._leg_is_embedded and self._embedded is not None:
            self._embedded.follow(self._vector_query)
