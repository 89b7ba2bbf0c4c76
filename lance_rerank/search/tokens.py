"""Where a search over token vectors gets its candidates: LanceDB's multivector index, or means of the vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from lancedb.table import Table

from lance_rerank import arrow, lance
from lance_rerank.columns.mean import mean_columns
from lance_rerank.columns.record import ColumnRecord, require_encoder
from lance_rerank.errors import ColumnError, QueryError
from lance_rerank.multivector.encoder import encode_token_queries
from lance_rerank.multivector.maxsim import Ragged
from lance_rerank.multivector.mean import mean_vectors
from lance_rerank.rerankers.late_interaction import LateInteractionReranker
from lance_rerank.types import FloatArray, TokenEncoder

logger = logging.getLogger(__name__)


class TokenLeg:
    """Finds candidates for the token vectors of a query, and scores them by exact MaxSim.

    LanceDB's index of token vectors estimates scores, so that its first ten are not the best ten, but they are among
    its first hundred: those are fetched and scored. See Lee et al., "Rethinking the Role of Token Retrieval in
    Multi-Vector Retrieval", NeurIPS 2023, for what the index does.

    Parameters
    ----------
    table : lancedb.table.Table
        Of ``lancedb.connect``.
    encoder : TokenEncoder
        The one that filled the column.
    vectors : str
        The multivector column.
    column : str, optional
        The column to find candidates by: `vectors` itself, or one of `add_mean_vector_column`. By default the first
        where it has an index, else the second where there is one, else `vectors`, whose every row is then read.

    Raises
    ------
    ColumnError
        There is no such column, or LanceDB cannot search it.
    """

    def __init__(self, table: Table, encoder: TokenEncoder, vectors: str, column: str | None = None) -> None:
        _require_tokens(table, vectors)
        self._table = table
        self._encoder = encoder
        self._late = LateInteractionReranker(encoder, table=table, vectors=vectors)
        self.vectors = vectors
        self.column = _searched_column(table, vectors, column)

    def encode(self, queries: Sequence[str]) -> list[FloatArray]:
        """Return each query's token vectors, ``(n_tokens, dim)``.

        Raises
        ------
        QueryError
            A query has no tokens.
        ModelError
            The encoder failed, or answered with something else.
        ColumnError
            The means to find candidates by were made of another encoder's vectors.
        """
        if self.column != self.vectors and (record := ColumnRecord.of(self._table.schema, self.column)):
            require_encoder(record, self._encoder.fingerprint, self.column)
        tokens = encode_token_queries(self._encoder, queries)
        for query, vectors in zip(queries, tokens, strict=True):
            if not len(vectors):
                raise QueryError(f"the query {query!r} has no tokens for {self._encoder} to compare")
        return tokens

    def search(self, tokens: FloatArray, fetch: Callable[[object], pa.Table]) -> pa.Table:
        """Return the rows found, best first, with minus their MaxSim as ``_distance``.

        Parameters
        ----------
        tokens : ndarray
            ``(n_tokens, dim)``: the query's vectors.
        fetch : callable
            Runs a LanceDB query with the columns, the limit and the filter that are wanted.
        """
        vector = tokens if self.column == self.vectors else mean_vectors(Ragged.from_list([tokens], tokens.shape[1]))[0]
        search = self._table.search(vector, vector_column_name=self.column, query_type="vector").distance_type("cosine")
        found = fetch(search)
        scores = self._late.score_tokens(tokens, found)
        distances = pc.negate(scores)
        place = found.column_names.index(arrow.DISTANCE)
        rows = found.set_column(place, pa.field(arrow.DISTANCE, pa.float32()), distances)
        return rows.take(pc.array_sort_indices(distances))  # nulls last


def _require_tokens(table: Table, vectors: str) -> None:
    if vectors not in table.schema.names:
        raise ColumnError(
            f"the table has no column {vectors!r} of token vectors (columns: {', '.join(table.schema.names)}). "
            f"Make it: lance_rerank.add_multivector_column(table, source='text', into={vectors!r}, encoder=encoder)"
        )
    data_type = table.schema.field(vectors).type
    if lance.token_dim(data_type) is None:
        raise ColumnError(f"column {vectors!r} holds {data_type}, not token vectors; vectors= names their column")


def _searched_column(table: Table, vectors: str, named: str | None) -> str:
    schema = table.schema
    column = named
    if named is not None:
        lance.the_vector_column(schema, named)
    elif lance.has_index(table, vectors):
        column = vectors
    else:
        column = next(iter(mean_columns(table, vectors)), None)
    advice = f"lance_rerank.add_mean_vector_column(table, {vectors!r})"
    if column in (vectors, None) and lance.is_int8(schema.field(vectors).type):
        raise ColumnError(
            f"column {vectors!r} holds int8, which LanceDB cannot search. Make means of the vectors to find candidates "
            f"by: {advice}"
        )
    if column is None:
        logger.warning(
            "column %r has no index, so each search reads all of it. Index it, table.create_index(%r, config="
            "lancedb.index.IvfRq(distance_type='cosine')), or make means of the vectors to find candidates by: %s",
            vectors,
            vectors,
            advice,
        )
    return column or vectors
