"""Embed all texts of a table to the spool, before the table is touched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.sources import Source, files_of, missing_from, names_of, read
from lance_rerank.columns.vectors import VectorColumn
from lance_rerank.errors import ColumnError, ConflictError, LanceRerankError
from lance_rerank.reindex.pool import WorkerPool

logger = logging.getLogger(__name__)

WINDOW = 2048  # rows a worker whose texts are sorted by length together, and in memory at a time
PASSES = 10  # over a table that others add to meanwhile; what comes later is embedded when the column is written

Progress = Callable[[int, int], None]


class Texts(Protocol):
    """What makes texts of rows."""

    def of(self, sources: pa.Array, row_ids: Sequence[int] | None = None) -> list[str | None]:
        """Return the texts, None for a row that has none."""
        ...


class TextPass:
    """Goes through the texts of a table until there are no new ones.

    Fragments are read at the version that is the latest then. A file of texts that was read through is not read again:
    rows are deleted from it, and none are added or changed.
    """

    def __init__(
        self,
        table: Table,
        source: Source,
        column: VectorColumn,
        progress: Progress | None,
        workers: WorkerPool | None = None,
        transformed: Texts | None = None,
    ) -> None:
        self._table = table
        self._source = source
        self._column = column
        self._progress = progress
        self._workers = workers
        self._transformed = transformed
        self._window = WINDOW * (workers.size if workers else 1)
        self._read: set[str] = set()
        self._texts: list[str] = []
        self._row_ids: list[int] = []
        self._rows_done = self._rows_in_all = 0

    def run(self) -> None:
        """Embed what is not spooled.

        Raises
        ------
        ColumnError
            The column of texts was dropped, or has another type now.
        ModelError
            The model failed. What was embedded before is spooled.
        ConflictError
            Files were removed while they were read, on each of several passes.
        """
        gone: Exception | None = None
        for _ in range(PASSES):
            waiting = self._waiting(lance.dataset(self._table))
            if not waiting:
                return
            self._rows_in_all = self._rows_done + sum(fragment.count_rows() for _, fragment in waiting)
            try:
                for _, fragment in waiting:
                    self._collect(fragment)
                gone = None
            except (OSError, ValueError) as error:
                if isinstance(error, LanceRerankError) or not lance.is_gone(error):
                    raise
                gone = error
                logger.info("a file went away while it was read; its rows are looked for again: %s", error)
            self._embed()
            if gone is None:
                self._read |= {path for path, _ in waiting}
        if gone is not None:
            raise ConflictError(
                f"the table's files were removed while they were read, in {PASSES} passes. What was embedded is kept: "
                "run this again when old versions are not being cleaned up."
            ) from gone

    def _waiting(self, data: Any) -> list[tuple[str, Any]]:
        """Return the fragments that were not read, with the file that holds their texts."""
        missing, text = missing_from(data.schema.names, self._source), names_of(self._source)[0]
        if missing or not self._column.accepts(data.schema.field(text).type):
            raise ColumnError(
                f"column {(missing or [text])[0]!r} was there when the plan was made, and is gone or of another type "
                f"now (the table has {', '.join(data.schema.names)}). Take the job back with abort(), and plan anew"
            )
        paths = ((files_of(data, fragment, self._source), fragment) for fragment in data.get_fragments())
        return [(path, fragment) for path, fragment in paths if path is not None and path not in self._read]

    def _collect(self, fragment: Any) -> None:
        """Take up a fragment's texts, and embed them when there are enough to sort: fragments may be tiny."""
        columns = names_of(self._source)
        scanner = fragment.scanner(columns=columns, with_row_id=True, batch_size=WINDOW, batch_readahead=1)
        for batch in scanner.to_batches():
            rows, row_ids = read(batch, self._source), batch.column("_rowid").to_pylist()
            texts = self._transformed.of(rows, row_ids) if self._transformed else rows.to_pylist()
            held = [(text, row_id) for text, row_id in zip(texts, row_ids, strict=True) if text is not None]
            self._texts += [text for text, _ in held]
            self._row_ids += [row_id for _, row_id in held]
            self._rows_done += len(texts) - len(held)
            if len(self._texts) >= self._window:
                self._embed()

    def _embed(self) -> None:
        embed_all = self._workers.embed if self._workers else None
        self._column.spool(self._texts, self._row_ids, self._advance, embed_all)
        self._texts, self._row_ids = [], []

    def _advance(self, rows: int) -> None:
        self._rows_done += rows
        if self._progress and rows:
            self._progress(self._rows_done, max(self._rows_in_all, self._rows_done))
