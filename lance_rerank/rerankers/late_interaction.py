"""Reranking with token vectors that are stored in the table: no document is encoded at query time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lance_rerank import arrow, lance
from lance_rerank.columns.record import ColumnRecord, require_encoder
from lance_rerank.errors import ColumnError, QueryError
from lance_rerank.multivector.maxsim import Ragged, maxsim
from lance_rerank.rerankers.base import BaseReranker, Scores
from lance_rerank.rerankers.fusion import ReturnScore
from lance_rerank.types import FloatArray, TokenEncoder

logger = logging.getLogger(__name__)


class LateInteractionReranker(BaseReranker):
    """Scores rows by exact MaxSim between the query's token vectors and those stored in the table.

    The candidates' vectors alone are read, by row id, or taken from the results when they are there. Rows whose
    vectors are missing get a null score.

    Parameters
    ----------
    encoder : TokenEncoder
        The one that filled the column.
    table : lancedb.table.Table, optional
        Where the vectors are stored. Without it they have to be among the results: select the column.
    vectors : str, default "colbert"
        The multivector column, as `add_multivector_column` makes it.
    column, top_n, return_score
        As in `BaseReranker`. LanceDB is made to return ``_rowid``, which is left out again unless `return_score` is
        "all".

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
        vectors: str = "colbert",
        column: str | Sequence[str] = "text",
        top_n: int | None = None,
        return_score: ReturnScore = "relevance",
    ) -> None:
        self.table = None if table is None else lance.require_sync_table(table, "LateInteractionReranker")
        self.needs_row_id = self.table is not None
        super().__init__(column=column, top_n=top_n, return_score=return_score)
        self.encoder = encoder
        self.vectors = vectors
        self._accepted: set[str | None] = set()  # fingerprints of the column that were compared with the encoder's
        if self.table is not None and vectors not in self.table.schema.names:
            raise self._no_column()

    def __str__(self) -> str:
        return f"LateInteractionReranker({self.encoder}, vectors={self.vectors!r})"

    @property
    def reads(self) -> tuple[str, ...]:
        """The multivector column, when there is no table to fetch it from."""
        return () if self.table is not None else (self.vectors,)

    def score_rows(self, query: str, rows: pa.Table) -> Scores:
        """Return MaxSim for each row, null where the row has no stored vectors."""
        tokens = self.encoder.encode_queries([query])[0]
        if not len(tokens):
            raise QueryError(f"the query {query!r} has no tokens for {self.encoder} to compare")
        self._require_encoder()
        if self.vectors in rows.column_names:
            scores = maxsim(tokens, Ragged.from_arrow(rows.column(self.vectors)))
        elif self.table is None:
            raise ColumnError(
                f"column {self.vectors!r} is not in the search results (there: {', '.join(rows.column_names)}). Select "
                f"it, .select([..., {self.vectors!r}]), or give the reranker the table: table=..."
            )
        else:
            self.require_row_ids(rows)
            scores = self._score_stored(tokens, rows.column(arrow.ROW_ID).to_numpy())
        if np.isnan(scores).all():
            logger.warning(
                "none of %d candidates has token vectors in %r, so none is ranked: run add_multivector_column again",
                len(scores),
                self.vectors,
            )
        return pa.array(scores, from_pandas=True)

    def _no_column(self) -> ColumnError:
        return ColumnError(
            f"the table has no column {self.vectors!r} of token vectors. Make it: lance_rerank.add_multivector_column("
            f"table, source='text', into={self.vectors!r}, encoder=encoder)"
        )

    def _require_encoder(self) -> None:
        if self.table is None:
            return
        schema = self.table.schema
        if self.vectors not in schema.names:
            raise self._no_column()
        record = ColumnRecord.of(schema, self.vectors)
        if record is not None and record.encoder not in self._accepted:
            require_encoder(record, self.encoder.fingerprint, self.vectors)
            self._accepted.add(record.encoder)

    def _score_stored(self, tokens: FloatArray, row_ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> FloatArray:
        assert self.table is not None
        stored = lance.take_rows(self.table, row_ids, [self.vectors])
        if stored.num_rows < len(row_ids):
            # The rows may be newer than this handle: added, or moved by a compaction, since it was opened.
            self.table.checkout_latest()
            stored = lance.take_rows(self.table, row_ids, [self.vectors])
        # Rows come in storage order and without those deleted meanwhile: bring the scores back to the rows' order.
        stored_ids = stored.column(arrow.ROW_ID).to_numpy()
        order = np.argsort(stored_ids)
        place = np.searchsorted(stored_ids, row_ids, sorter=order).clip(max=max(0, len(order) - 1))
        scores = np.full(len(row_ids), np.nan, np.float32)
        if len(order):
            source = order[place]
            found = stored_ids[source] == row_ids
            scores[found] = maxsim(tokens, Ragged.from_arrow(stored.column(self.vectors)))[source[found]]
        return scores
