"""Reranking with token vectors that are stored in the table; rows that have none yet are encoded at query time."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lance_rerank import arrow, lance
from lance_rerank.columns.multivector import MultivectorColumn
from lance_rerank.columns.record import ColumnRecord, require_encoder
from lance_rerank.errors import ArgumentError, ColumnError, ModelError, QueryError
from lance_rerank.fingerprint import PROBES
from lance_rerank.multivector.encoder import encode_token_queries
from lance_rerank.multivector.explanation import (
    Explanation,
    best_matches,
    document_names,
    pooled_names,
    query_names,
)
from lance_rerank.multivector.maxsim import Ragged, maxsim
from lance_rerank.rerankers.base import BaseReranker, Scores
from lance_rerank.rerankers.fusion import ReturnScore
from lance_rerank.rerankers.texts import TextSource
from lance_rerank.stages import stage
from lance_rerank.types import FloatArray, Hit, TokenEncoder

logger = logging.getLogger(__name__)

Missing = Literal["encode", "null"]
RowIds = npt.NDArray[np.uint64]


class LateInteractionReranker(BaseReranker):
    """Scores rows by exact MaxSim between the query's token vectors and those stored in the table.

    The candidates' vectors alone are read, by row id, or taken from the results when they are there. A candidate with
    a text and no vectors yet is encoded at query time, pooled and rounded as the column is, so that it scores as it
    will after a sync; how many there were is logged. Rows without text, and rows deleted since the search, get a null
    score.

    Parameters
    ----------
    encoder : TokenEncoder
        The one that filled the column.
    table : lancedb.table.Table, optional
        Where the vectors are stored. Without it they have to be among the results: select the column.
    vectors : str or None, default "colbert"
        The multivector column, as `add_multivector_column` makes it. None where nothing is stored: every candidate is
        encoded at query time, which costs what it costs.
    column : str or sequence of str, default "text"
        What is encoded at query time, as in `BaseReranker`. A column made by `add_multivector_column` says itself
        which texts it was computed from, and those are read.
    missing : {"encode", "null"}, default "encode"
        What becomes of a candidate without stored vectors: it is encoded, its text being taken from the results or
        else from the table; or it gets a null score.
    top_n, min_score, return_score
        As in `BaseReranker`. LanceDB is made to return ``_rowid``, which is left out again unless `return_score` is
        "all".

    Attributes
    ----------
    documents_encoded : int
        Documents that reranking encoded at query time so far; 0 as long as all vectors are stored.

    Raises
    ------
    RowIdError
        The rows carry neither vectors nor row ids: LanceDB's async vector and full-text queries without
        ``.with_row_id()``.
    ColumnError
        The column is missing, or its vectors have another dimension than the encoder's.

    References
    ----------
    Khattab and Zaharia, "ColBERT", SIGIR 2020, arXiv:2004.12832.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        *,
        table: object | None = None,
        vectors: str | None = "colbert",
        column: str | Sequence[str] = "text",
        missing: Missing = "encode",
        top_n: int | None = None,
        min_score: float | None = None,
        return_score: ReturnScore = "relevance",
    ) -> None:
        if missing not in get_args(Missing):
            raise ArgumentError(f"missing must be 'encode' or 'null', got {missing!r}")
        self.table = None if table is None else lance.require_sync_table(table, "LateInteractionReranker")
        # of our own, since it follows the table's versions: a column that was just synced is read as it is now
        self._latest = None if self.table is None else lance.latest_handle(self.table)
        self.needs_row_id = self.table is not None and vectors is not None
        super().__init__(column=column, top_n=top_n, min_score=min_score, return_score=return_score)
        self.encoder = encoder
        self.vectors = vectors
        self.missing: Missing = missing
        self.documents_encoded = 0
        self._counting = threading.Lock()
        self._accepted: set[str | None] = set()  # fingerprints of the column that were compared with the encoder's
        if self.table is not None and vectors is not None and vectors not in self.table.schema.names:
            raise self._no_column()

    def __str__(self) -> str:
        return f"LateInteractionReranker({self.encoder}, vectors={self.vectors!r})"

    def on_column(self, vectors: str, encoder: TokenEncoder) -> LateInteractionReranker:
        """Return the same reranker on another column, which another encoder filled."""
        other = copy.copy(self)
        other.vectors, other.encoder = vectors, encoder
        other.documents_encoded = 0
        other._accepted = set()
        return other

    def cache_key(self) -> str | None:
        """Return a text that is the same as long as the scores are; None for an encoder without a fingerprint."""
        model = self.encoder.fingerprint
        return model and f"LateInteractionReranker({model}, {self.vectors!r}, {self.column!r}, {self.missing!r})"

    def probe(self) -> list[float]:
        """Return MaxSim of fixed pairs of texts."""
        documents = self._recipe(None).stored(self.encoder, _encoded(self.encoder, list(PROBES)))
        return [float(score) for query in PROBES for score in maxsim(self._query_vectors(query), documents)]

    @property
    def reads(self) -> tuple[str, ...]:
        """The multivector column, when there is no table to fetch it from; the texts, when nothing is stored."""
        if self.vectors is None:
            return self.texts.columns
        return () if self.table is not None else (self.vectors,)

    def score_rows(self, query: str, rows: pa.Table) -> Scores:
        """Return MaxSim for each row, null where the row has no vectors and no text to make them from."""
        return self.score_tokens(self._query_vectors(query), rows)

    def score_tokens(self, tokens: FloatArray, rows: pa.Table) -> pa.Array:
        """Return what `score_rows` does, for a query that is encoded already: ``(n_tokens, dim)``."""
        if self.vectors is None:
            return pa.array(self._score_texts(tokens, self.texts.read(rows), self._recipe(None)), from_pandas=True)
        scores, missing = self._score_stored(tokens, rows, self.vectors)
        if len(missing) and self.missing == "encode":
            scores[missing] = self._score_missing(tokens, rows, missing)
        if len(scores) and np.isnan(scores).all():
            logger.warning(
                "none of %d candidates has token vectors in %r, so none is ranked: run add_multivector_column again",
                len(scores),
                self.vectors,
            )
        return pa.array(scores, from_pandas=True)

    def explain(self, query: str, row: Mapping[str, Any] | Hit) -> Explanation:
        """Return which token of a row each token of the query matched best, and how well: why it has its score.

        The row's vectors are taken from the row, else by its ``_rowid`` from the table, else made from its text, which
        is needed in any case. Tokens are named by the encoder's methods ``query_tokens`` and ``document_tokens``, as
        `ColBERTEncoder` has them; with an encoder that lacks them they go by positions, "token 3", and vectors of an
        older text go unnoticed, as they do where both texts have as many tokens.

        Parameters
        ----------
        query : str
            What was searched for.
        row : Mapping or Hit
            A row of ``search.to_list()``, or a hit of a `Retriever`.

        Raises
        ------
        ColumnError
            The text is not at hand, or the stored vectors are of an older one.
        ArgumentError
            The row has no text, has a null score, or is no longer in the table.
        QueryError
            The query has no tokens.
        """
        tokens = self._query_vectors(query)
        schema = self._schema()
        if schema is not None and self.vectors is not None:
            self._require_encoder(schema, self.vectors)
        recipe = self._recipe(schema)
        found = self._completed(_fields(row), recipe.texts.columns)
        text = recipe.texts.read(found)[0]
        document, names = self._document(found, text, recipe)
        matches = best_matches(tokens, document, query_names(self.encoder, query, len(tokens)), names)
        return Explanation(query, text or "", sum(match.similarity for match in matches), matches)

    # --- stored vectors ----------------------------------------------------------------------------------------

    def _query_vectors(self, query: str) -> FloatArray:
        with stage("encode"):
            tokens = encode_token_queries(self.encoder, [query])[0]
        if not len(tokens):
            raise QueryError(f"the query {query!r} has no tokens for {self.encoder} to compare")
        return tokens

    def _schema(self) -> pa.Schema | None:
        if self._latest is None:
            return None
        self._latest.checkout_latest()
        return self._latest.schema

    def _no_column(self) -> ColumnError:
        return ColumnError(
            f"the table has no column {self.vectors!r} of token vectors. Make it: lance_rerank.add_multivector_column("
            f"table, source='text', into={self.vectors!r}, encoder=encoder); or have every candidate encoded at query "
            "time: vectors=None"
        )

    def _require_encoder(self, schema: pa.Schema, vectors: str) -> None:
        if vectors not in schema.names:
            raise self._no_column()
        record = ColumnRecord.of(schema, vectors)
        if record is not None and record.encoder not in self._accepted:
            require_encoder(record, self.encoder.fingerprint, vectors)
            self._accepted.add(record.encoder)

    def _score_stored(self, tokens: FloatArray, rows: pa.Table, vectors: str) -> tuple[FloatArray, arrow.IntArray]:
        """Return each row's score, NaN where there is none, and which rows have no vectors, deleted ones left out."""
        if vectors in rows.column_names:
            self._require_encoder(rows.schema, vectors)
            column = rows.column(vectors)
            return maxsim(tokens, Ragged.from_arrow(column)), _nulls(column)
        if self.table is None:
            raise ColumnError(
                f"column {vectors!r} is not in the search results (there: {', '.join(rows.column_names)}). Select "
                f"it, .select([..., {vectors!r}]), or give the reranker the table: table=...; or have every "
                "candidate encoded at query time: vectors=None"
            )
        self.require_row_ids(rows)
        row_ids = rows.column(arrow.ROW_ID).to_numpy()
        with stage("fetch"):
            stored, places = self._take(row_ids, [vectors])
        self._require_encoder(stored.schema, vectors)  # that of the rows read: the table's own costs a round trip
        column = stored.column(vectors)
        found = np.flatnonzero(places >= 0)
        scores = np.full(len(row_ids), np.nan, np.float32)
        with stage("score"):
            scores[found] = maxsim(tokens, Ragged.from_arrow(column))[places[found]]
        return scores, np.flatnonzero(np.isin(places, _nulls(column)))

    def _take(self, row_ids: RowIds, columns: Sequence[str]) -> tuple[pa.Table, arrow.IntArray]:
        """Return rows of the table, and where among them each row id stands: -1 if the row was deleted meanwhile."""
        assert self.table is not None
        assert self._latest is not None
        self._latest.checkout_latest()
        try:
            rows = lance.take_rows(self._latest, row_ids, columns)
        except (RuntimeError, ValueError) as error:  # LanceDB has used both for a column that is gone
            if self.vectors in columns and self.vectors not in self._latest.schema.names:
                raise self._no_column() from error
            raise
        places = _places(row_ids, rows.column(arrow.ROW_ID).to_numpy())
        if (places < 0).any() and self.table.version < self._latest.version:
            # found in an older version, which the user's handle is at: deleted since, or moved by an update
            older = lance.take_rows(self.table, row_ids[places < 0], columns)
            if older.schema.equals(rows.schema):
                rows = pa.concat_tables([rows, older])
                places = _places(row_ids, rows.column(arrow.ROW_ID).to_numpy())
        return rows, places

    # --- vectors made at query time ----------------------------------------------------------------------------

    def _recipe(self, schema: pa.Schema | None) -> _Recipe:
        """Return how the column's vectors are made, as far as a schema says so."""
        if self.vectors is None:
            return _Recipe(self.texts, "float32")
        if schema is None or self.vectors not in schema.names:
            return _Recipe(self.texts)
        record = ColumnRecord.of(schema, self.vectors)
        if record is None:
            return _Recipe(self.texts, _comparable_dtype(schema.field(self.vectors).type))
        return _Recipe(TextSource([record.source]), record.dtype, record.pool_factor)

    def _score_missing(self, tokens: FloatArray, rows: pa.Table, missing: arrow.IntArray) -> FloatArray:
        """Return scores for the rows without vectors, NaN for those that have no text either."""
        schema = self._schema()
        recipe = self._recipe(rows.schema if schema is None else schema)
        texts = self._texts(recipe.texts, rows, missing)
        scores = self._score_texts(tokens, texts, recipe)
        if encoded := sum(text is not None for text in texts):
            logger.warning(
                "%d of %d candidates had no token vectors in %r and were encoded at query time: "
                "sync_multivector_column(table, %r, encoder=encoder) stores them",
                encoded,
                rows.num_rows,
                self.vectors,
                self.vectors,
            )
        return scores

    def _texts(self, source: TextSource, rows: pa.Table, places: arrow.IntArray) -> list[str | None]:
        """Return the texts of some of the rows: from the rows, else from the table, else None."""
        wanted = list(source.columns)
        if set(wanted) <= set(rows.column_names):
            return source.read(rows.select(wanted).take(pa.array(places)))
        schema = self._schema()
        in_table = schema is not None and set(wanted) <= set(schema.names)
        if not in_table or arrow.ROW_ID not in rows.column_names:
            logger.warning(
                "%d of %d candidates have no token vectors in %r, and no column %s to encode them from: select it too",
                len(places),
                rows.num_rows,
                self.vectors,
                " or ".join(map(repr, wanted)),
            )
            return [None] * len(places)
        fetched, found = self._take(rows.column(arrow.ROW_ID).to_numpy()[places], wanted)
        texts = source.read(fetched)
        return [texts[place] if place >= 0 else None for place in found]

    def _score_texts(self, tokens: FloatArray, texts: list[str | None], recipe: _Recipe) -> FloatArray:
        """Return scores for texts that are encoded now, NaN where there is none."""
        scores = np.full(len(texts), np.nan, np.float32)
        readable = [text for text in texts if text is not None]
        if readable:
            documents = recipe.stored(self.encoder, _encoded(self.encoder, readable))
            with self._counting:
                self.documents_encoded += len(readable)
            scores[[text is not None for text in texts]] = maxsim(tokens, documents)
        return scores

    # --- one row, explained ------------------------------------------------------------------------------------

    def _completed(self, row: Mapping[str, Any], texts: Sequence[str]) -> pa.Table:
        """Return one row's texts and, where they are at hand, its vectors: from the row, else from the table."""
        wanted = [*texts, *([] if self.vectors is None else [self.vectors])]
        found = {
            name: _as_column(row[name], name) if name == self.vectors else pa.array([row[name]], from_pandas=True)
            for name in wanted
            if name in row
        }
        row_id = row.get(arrow.ROW_ID)
        if self.table is not None and row_id is not None:
            found |= self._fetched(row_id, [name for name in wanted if name not in row])
        for name in texts:
            if name not in found:
                raise ColumnError(
                    f"explain names the tokens of the row's text, and column {name!r} is not in the row (there: "
                    f"{', '.join(row)}). Select it, .select([..., {name!r}]) or a Retriever's select=[{name!r}]; or "
                    "give the reranker the table and the row its row id: table=..., .with_row_id(True)"
                )
        return pa.table(found)

    def _fetched(self, row_id: int, columns: list[str]) -> dict[str, pa.ChunkedArray]:
        """Return those of the columns that the table has, for one row."""
        schema = self._schema()
        there = [name for name in columns if schema is not None and name in schema.names]
        if not there:
            return {}
        fetched, _ = self._take(np.array([row_id], np.uint64), there)
        if not fetched.num_rows:
            raise ArgumentError(
                f"the row with {arrow.ROW_ID} {row_id} is no longer in the table: it was deleted, or moved by a "
                "compaction, since the search. Search again."
            )
        return {name: fetched.column(name) for name in there}

    def _document(self, row: pa.Table, text: str | None, recipe: _Recipe) -> tuple[Ragged, list[str]]:
        """Return a row's vectors, and what they are called."""
        column = row.column(self.vectors) if self.vectors in row.column_names else None
        stored = None if column is None or column.null_count else Ragged.from_arrow(column)
        if stored is None and text is None:
            raise _no_score("it has no text")
        if stored is None and column is not None and self.missing == "null":
            raise _no_score(f"it has no token vectors in {self.vectors!r}, and missing='null' lets none be made")
        if stored is not None and recipe.pool_factor == 1:
            names = document_names(self.encoder, text or "", int(stored.lengths[0]))
        else:
            vectors = _encoded(self.encoder, [text or ""])
            names = pooled_names(self.encoder, text or "", vectors[0], recipe.pool_factor)
            stored = stored or recipe.stored(self.encoder, vectors)
        if not stored.lengths[0]:
            raise _no_score("there are no tokens in it")
        if len(names) != stored.lengths[0]:
            pooled = (
                "" if self.table is not None else "; or the column is pooled: give the reranker the table, table=..."
            )
            raise ColumnError(
                f"column {self.vectors!r} holds {stored.lengths[0]} vectors for this row, and its text makes "
                f"{len(names)}: they are those of an older text. Bring the column up to date: "
                f"lance_rerank.sync_multivector_column(table, {self.vectors!r}, encoder=encoder){pooled}"
            )
        return stored, names


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a row's vectors are made: from what, and how they are pooled and rounded; by default as a column's are."""

    texts: TextSource
    dtype: str = "float16"
    pool_factor: int = 1

    def stored(self, encoder: TokenEncoder, documents: list[FloatArray]) -> Ragged:
        """Return documents' vectors as the column would give them back."""
        return Ragged.from_arrow(MultivectorColumn(encoder, self.dtype, self.pool_factor).store(documents))


def _fields(row: Mapping[str, Any] | Hit) -> Mapping[str, Any]:
    if not isinstance(row, Hit):
        return row
    return row.row if row.row_id is None else {arrow.ROW_ID: row.row_id, **row.row}


def _encoded(encoder: TokenEncoder, texts: list[str]) -> list[FloatArray]:
    documents = encoder.encode_documents(texts)
    if len(documents) != len(texts):
        raise ModelError(f"{encoder} answered with {len(documents)} documents for {len(texts)} texts")
    return documents


def _nulls(column: pa.ChunkedArray) -> arrow.IntArray:
    return np.flatnonzero(column.is_null().to_numpy()) if column.null_count else np.empty(0, np.int64)


def _places(wanted: RowIds, there: RowIds) -> arrow.IntArray:
    """Return where each of the wanted row ids stands among those that are there, in whatever order, or -1."""
    if not len(there):
        return np.full(len(wanted), -1)
    order = np.argsort(there)
    nearest = order[np.searchsorted(there, wanted, sorter=order).clip(max=len(there) - 1)]
    return np.where(there[nearest] == wanted, nearest, -1)


def _comparable_dtype(data_type: Any) -> str:
    """Return what vectors are rounded to that are compared with those of a column that does not say how it was made."""
    while hasattr(data_type, "value_type"):
        data_type = data_type.value_type
    return {pa.float16(): "float16", pa.int8(): "int8"}.get(data_type, "float32")


def _as_column(value: Any, name: str) -> pa.Array:
    """Return one row's vectors, as they come out of Arrow in Python: int8 where the numbers are whole, else float32."""
    if value is None:
        return pa.nulls(1)
    vectors = [np.asarray(vector).tolist() for vector in value]
    if not all(isinstance(vector, list) and len(vector) == len(vectors[0]) for vector in vectors):
        raise ColumnError(
            f"a row's {name!r} is expected to be its token vectors, a list of equally long lists of numbers"
        )
    whole = bool(vectors) and isinstance(vectors[0][0], int)
    dim = len(vectors[0]) if vectors else 1
    return pa.array([vectors], pa.list_(pa.list_(pa.int8() if whole else pa.float32(), dim)))


def _no_score(why: str) -> ArgumentError:
    return ArgumentError(f"the row has a null score, so there is nothing to explain: {why}")
