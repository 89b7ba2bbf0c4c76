"""Queries: their words, their vectors, and what LanceDB says of those that cannot run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.query import BooleanQuery, BoostQuery, FullTextQuery, LanceFtsQueryBuilder, LanceVectorQueryBuilder

from lance_rerank.errors import ArgumentError, ColumnError, MissingIndexError, QueryError


def query_text(query: object) -> str | None:
    """Return the words of a query: a string as it is, those of LanceDB's full-text query objects, else None."""
    if query is None or isinstance(query, str):
        return query
    if isinstance(query, BoostQuery):
        return query_text(query.positive)
    if isinstance(query, BooleanQuery):
        wanted = [query_text(part) for occur, part in query.queries if str(occur.value).upper() != "MUST_NOT"]
        return " ".join(text for text in wanted if text)
    if isinstance(query, FullTextQuery):
        return str(query.query)  # every other kind has it
    raise QueryError(f"a query is a string or a LanceDB full-text query, got {type(query).__name__}")


def run_search(search: object) -> pa.Table:
    """Return a search's rows: an Arrow table as it is, a LanceDB vector query run with row ids."""
    if isinstance(search, pa.Table):
        return search
    if isinstance(search, LanceVectorQueryBuilder | LanceFtsQueryBuilder):
        return search.with_row_id(True).to_arrow()
    raise ArgumentError(f"expected Arrow tables or LanceDB queries, got {type(search).__name__}")


_DIMENSIONS = re.compile(r"query dim\((\d+)\) doesn't match the column (\S+) vector dim\((\d+)\)")


def is_of_another_dimension(error: ValueError) -> bool:
    """Tell whether LanceDB refused a query's vector because the column's have another dimension."""
    return _DIMENSIONS.search(str(error)) is not None


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what LanceDB says of a search that cannot run into an error that says what to do."""
    try:
        yield
    except ValueError as error:
        if "INVERTED index" in str(error):
            raise MissingIndexError(
                "the table has no full-text index, which the full-text leg of this search needs. Build one: "
                "from lancedb.index import FTS; table.create_index('text', config=FTS())"
            ) from error
        if found := _DIMENSIONS.search(str(error)):
            query_dim, column, dim = found.groups()
            raise ColumnError(
                f"column {column!r} holds vectors of {dim} dimensions and the query's has {query_dim}: they come from "
                "different encoders. Use the one that filled the column."
            ) from error
        raise


def embed_query(functions: Mapping[str, Any], column: str, query: str) -> npt.NDArray[np.float32]:
    """Return the query's vector ``(dim,)`` from the embedding function that the table names for a column.

    Raises
    ------
    ColumnError
        The column has no embedding function.
    """
    config = functions.get(column)
    if config is None:
        raise ColumnError(
            f"column {column!r} has no embedding function to turn the query {query!r} into a vector. "
            "Pass the vector yourself (vector=...) or, to a Retriever, an encoder=..."
        )
    return np.asarray(config.function.compute_query_embeddings_with_retry(query)[0], np.float32)
