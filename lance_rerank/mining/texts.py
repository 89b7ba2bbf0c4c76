"""Texts of a table's rows: by row, by document id, and of some rows drawn by lot; never of the whole table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import arrow, lance
from lance_rerank.errors import ColumnError
from lance_rerank.rerankers.texts import TextSource
from lance_rerank.types import Hit

_IDS = 10_000  # in one filter
_ROWS = 2_000  # of a sample, read at a time


class TextReader:
    """Reads the texts of a table's rows.

    Parameters
    ----------
    table : lancedb.table.Table
        Of ``lancedb.connect``.
    column : str or sequence of str
        Where a row's text comes from, as in `BaseReranker`.
    id_column : str
        The column that tells documents apart.

    Raises
    ------
    ColumnError
        The table lacks one of the columns.
    """

    def __init__(self, table: Table, column: str | Sequence[str], id_column: str) -> None:
        self.table = table
        self.source = TextSource(column)
        self.id_column = id_column
        for name in self._columns:
            if name not in table.schema.names:
                hint = "id_column=" if name == id_column else "column="
                columns = ", ".join(table.schema.names)
                raise ColumnError(f"the table has no column {name!r} (columns: {columns}); name another: {hint}...")

    def of_hits(self, answers: Iterable[Iterable[Hit]]) -> list[dict[str, str | None]]:
        """Return the texts of each answer's documents by id, in their order; None for one that has none.

        A document that comes several times, as passages of one do, has the text of its first row.
        """
        firsts = [_firsts(hits) for hits in answers]
        by_row = self._of_rows({hit.row_id for hits in firsts for hit in hits if hit.row_id is not None})
        by_id = self.of_ids({hit.doc_id for hits in firsts for hit in hits if hit.row_id not in by_row})
        return [{hit.doc_id: by_row.get(hit.row_id, by_id.get(hit.doc_id)) for hit in hits} for hits in firsts]

    def of_ids(self, doc_ids: Collection[str]) -> dict[str, str | None]:
        """Return the texts of the documents that are there, by id; None for one that has none."""
        texts: dict[str, str | None] = {}
        known = list(self._as_stored(sorted(doc_ids)))
        for start in range(0, len(known), _IDS):
            wanted = lance.any_of(self.id_column, known[start : start + _IDS])
            rows = self.table.search().where(wanted).select(self._columns).limit(None).to_arrow()
            for doc_id, text in zip(rows[self.id_column].to_pylist(), self.source.read(rows), strict=True):
                texts.setdefault(str(doc_id), text)
        return texts

    def sample(self, n_rows: int, seed: int) -> Iterator[list[str]]:
        """Yield the texts of rows drawn by lot, some at a time; all rows where there are no more."""
        total = self.table.count_rows()
        drawn = np.sort(np.random.default_rng(seed).permutation(total)[:n_rows])
        for start in range(0, len(drawn), _ROWS):
            offsets = drawn[start : start + _ROWS].tolist()
            rows = self.table.take_offsets(offsets).select(list(self.source.columns)).to_arrow()
            yield [text for text in self.source.read(rows) if text is not None]

    def _of_rows(self, row_ids: set[int]) -> dict[int | None, str | None]:
        if not row_ids:
            return {}
        rows = lance.take_rows(self.table, np.array(sorted(row_ids), np.uint64), list(self.source.columns))
        return dict(zip(arrow.row_ids(rows), self.source.read(rows), strict=True))

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys([self.id_column, *self.source.columns]))

    def _as_stored(self, doc_ids: Iterable[str]) -> Iterator[Any]:
        """Yield the ids as the column holds them, less those that it cannot hold."""
        if not pa.types.is_integer(self.table.schema.field(self.id_column).type):
            yield from doc_ids
            return
        for doc_id in doc_ids:
            if doc_id.removeprefix("-").isdecimal():
                yield int(doc_id)


def _firsts(hits: Iterable[Hit]) -> list[Hit]:
    """Return the first hit of each document."""
    seen: dict[str, Hit] = {}
    for hit in hits:
        seen.setdefault(hit.doc_id, hit)
    return list(seen.values())
