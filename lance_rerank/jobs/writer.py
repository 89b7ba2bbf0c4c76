"""Rows on their way into a table: which are new, what their vectors are, and one commit a batch."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.backfill import Progress
from lance_rerank.errors import LanceRerankError, ModelError
from lance_rerank.fingerprint import require_fills, sketch
from lance_rerank.jobs.sources import Documents
from lance_rerank.types import Encoder, FloatArray

VECTOR = "vector"
_SLICE = 256  # texts between two reports of progress


class Writer:
    """Writes the documents that a table does not have yet, batch by batch, and counts them."""

    def __init__(
        self,
        table: Table,
        documents: Documents,
        encoder: Encoder,
        model: str,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self.added = self.updated = self.unchanged = self.without_text = 0
        self._table = table
        self._documents = documents
        self._encoder = encoder
        self._model = model
        self._model_is_noted = False
        self._batch_size = batch_size
        self._progress = progress
        self._schema = pa.schema([table.schema.field(name) for name in documents.schema.names])
        self._known = self._digests_of_table()

    def run(self) -> None:
        """Write all of them."""
        rows = self._schema.empty_table()
        for chunk in self._documents.chunks():
            rows = pa.concat_tables([rows, self._without_known(chunk.cast(self._schema))])
            while rows.num_rows >= self._batch_size:
                self._write(rows.slice(0, self._batch_size))
                rows = rows.slice(self._batch_size)
            self._report()
        if rows.num_rows:
            self._write(rows)
            self._report()

    def _digests_of_table(self) -> dict[Any, int]:
        """Return, by id, a digest of each row's content."""
        scanner = lance.dataset(self._table).scanner(columns=self._schema.names, batch_size=1024)
        known: dict[Any, int] = {}
        for batch in scanner.to_batches():
            rows = pa.Table.from_batches([batch]).select(self._schema.names)
            known.update(zip(rows.column(self._documents.id_column).to_pylist(), _digests(rows), strict=True))
        return known

    def _without_known(self, rows: pa.Table) -> pa.Table:
        ids = rows.column(self._documents.id_column).to_pylist()
        texts = rows.column(self._documents.text_column).to_pylist()
        self.without_text += sum(_is_blank(text) for text in texts)
        new = [self._known.get(doc_id) != digest for doc_id, digest in zip(ids, _digests(rows), strict=True)]
        self.unchanged += new.count(False)
        return rows.filter(pa.array(new, pa.bool_()))

    def _write(self, rows: pa.Table) -> None:
        """Embed and commit some rows."""
        texts = rows.column(self._documents.text_column).to_pylist()
        rows = rows.append_column(self._table.schema.field(VECTOR), self._vectors(texts))
        self._note_model()
        ids = rows.column(self._documents.id_column).to_pylist()
        updated = sum(doc_id in self._known for doc_id in ids)
        # by pylance, since LanceDB would by itself embed a batch that has no vectors, null texts and all
        data = lance.dataset(self._table)
        if updated:
            merge = data.merge_insert(self._documents.id_column)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(self._with_derived_columns(rows))
        else:
            data.insert(rows)
        self.updated += updated
        self.added += len(ids) - updated

    def _note_model(self) -> None:
        """Note of an empty table which model fills it, and see of another that it is the one that did."""
        if self._model_is_noted:
            return
        key = lance.model_key(VECTOR)
        noted = lance.schema_metadata(self._table).get(key)
        if noted is None and not self._known:
            lance.update_schema_metadata(self._table, {key: sketch(self._encoder, self._model)})
        require_fills(self._encoder, noted, VECTOR, self._model)
        self._model_is_noted = True

    def _with_derived_columns(self, rows: pa.Table) -> pa.Table:
        """Return the rows with nulls for token vectors and the like, which a changed text has made wrong."""
        for field in self._table.schema:
            if lance.is_hidden(field.type) and field.name not in rows.column_names:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        return rows

    def _vectors(self, texts: list[str | None]) -> pa.Array:
        """Return a vector for each text, null where there is none."""
        dim = self._encoder.dim
        vectors = np.zeros((len(texts), dim), np.float32)
        present = [i for i, text in enumerate(texts) if not _is_blank(text)]
        # longest first, so that little is spent on padding, and a batch too large for memory is met at once
        present.sort(key=lambda i: -len(texts[i] or ""))
        for start in range(0, len(present), _SLICE):
            places = present[start : start + _SLICE]
            vectors[places] = self._encoded([texts[i] or "" for i in places])
            self._report(start + len(places))
        missing = np.ones(len(texts), bool)
        missing[present] = False
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim, mask=pa.array(missing))

    def _encoded(self, texts: list[str]) -> FloatArray:
        try:
            vectors = self._encoder.encode_documents(texts)
        except LanceRerankError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self._encoder} failed on {len(texts)} texts: {type(error).__name__}: {error}. Rows written before "
                "stay; run this again to go on after them"
            ) from error
        if vectors.shape != (len(texts), self._encoder.dim) or not np.isfinite(vectors).all():
            raise ModelError(
                f"{self._encoder} answered with an array of shape {vectors.shape} for {len(texts)} texts, or with NaN; "
                f"expected {len(texts)} vectors of {self._encoder.dim} finite numbers"
            )
        return vectors

    def _report(self, embedded: int = 0) -> None:
        if self._progress:
            self._progress(self.unchanged + self.added + self.updated + embedded, self._documents.n_rows)


def _digests(rows: pa.Table) -> Iterator[int]:
    """Yield a number for each row that changes with any of its values."""
    for row in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        yield int.from_bytes(blake2b(repr(row).encode(errors="surrogatepass"), digest_size=8).digest())


def _is_blank(text: str | None) -> bool:
    return not (text and text.strip())
