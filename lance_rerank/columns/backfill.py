"""Fill one column of a live table, fragment by fragment, without touching any other column or index.

Each fragment's values go to a file of their own, which one commit puts in place. Appends and deletes that land
meanwhile are no conflict; a fragment that was updated or compacted under us is read and encoded again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.commit import CommitConflictError
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.errors import ColumnError, ConflictError, LanceRerankError, ModelError

logger = logging.getLogger(__name__)

WINDOW = 512  # rows encoded at a time: enough to sort by length, few enough that memory does not grow with the table
ATTEMPTS = 5  # in a row that other writers thwart, before they are said to be too busy

Progress = Callable[[int, int], None]


class ColumnEncoder(Protocol):
    """What a column is filled with."""

    data_type: pa.DataType
    """The column's type in the table's schema."""
    storage: pa.DataType
    """The same without extension types, as it is written."""

    def encode(self, texts: list[str]) -> pa.Array:
        """Return one value a text, of type `storage`."""
        ...


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What a backfill did.

    Attributes
    ----------
    column : str
        The column filled.
    rows : int
        Rows that were given a value in this run.
    without_text : int
        Rows met in this run whose source is null; their value is null.
    fragments : int
        Fragments committed in this run.
    """

    column: str
    rows: int
    without_text: int
    fragments: int

    def __str__(self) -> str:
        if not self.fragments:
            return f"{self.column}: nothing to do, every row with a text has its value"
        skipped = f", {self.without_text} rows without text left null" if self.without_text else ""
        fragments = "1 fragment" if self.fragments == 1 else f"{self.fragments} fragments"
        return f"{self.column}: {self.rows:,} rows encoded in {fragments}{skipped}"


def backfill(
    table: Table, *, column: str, source: str, encoder: ColumnEncoder, progress: Progress | None = None
) -> BackfillResult:
    """Give every row that has a source text and no value in `column` its value, and return what was done.

    The column is added when the table lacks it. Run it again after a kill, or after rows were added: fragments that
    are complete are passed over.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    column, source : str
        The column to fill and the string column it is computed from.
    encoder : ColumnEncoder
        Computes the values.
    progress : callable, optional
        Called with (rows done, rows in all) after each window.

    Raises
    ------
    ColumnError
        `source` is missing or no string column, or `column` exists with another type.
    ModelError
        The encoder raised; what was committed before stays.
    ConflictError
        Other writers changed the rows being filled on several attempts in a row.
    """
    table.checkout_latest()
    _require_source(table.schema, source)
    if column not in table.schema.names:
        if not column or "." in column:
            raise ColumnError(f"a column's name is not empty and has no dot, got {column!r}")
        lance.add_hidden_column(table, column, encoder.data_type)
    if not table.schema.field(column).type.equals(encoder.data_type):
        raise ColumnError(
            f"column {column!r} exists as {table.schema.field(column).type}; this encoder makes {encoder.data_type}. "
            f"Choose another name, or drop it first: table.drop_columns([{column!r}])"
        )
    tally = _Tally(progress)
    try:
        _fill(table, column, source, encoder, tally)
    finally:
        table.checkout_latest()  # what was committed shows through the caller's table, whatever happened after
    return BackfillResult(column, tally.encoded, tally.without_text, tally.fragments)


def _fill(table: Table, column: str, source: str, encoder: ColumnEncoder, tally: _Tally) -> None:
    thwarted = 0
    while missing := lance.fragments_missing(data := lance.dataset(table), column, source):
        tally.expect(sum(data.get_fragment(i).count_rows() for i in missing))
        for fragment_id in missing:
            if _fill_fragment(table, fragment_id, column, source, encoder, tally):
                thwarted = 0
                continue
            thwarted += 1
            if thwarted == ATTEMPTS:
                raise ConflictError(
                    f"other writers changed the rows being filled on each of {ATTEMPTS} attempts in a row to fill "
                    f"{column!r}. Nothing is lost: run this again when fewer updates arrive."
                )
            break  # fragments may have been rewritten: look again at what is missing


class _Tally:
    """Counts what was done; rows of a fragment that has to be done again are taken back."""

    def __init__(self, progress: Progress | None) -> None:
        self.encoded = self.without_text = self.fragments = 0
        self._progress = progress
        self._expected = self._done = 0

    def expect(self, rows: int) -> None:
        self._expected = self._done + rows

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._progress:
            self._progress(self._done, self._expected)


def _fill_fragment(
    table: Table, fragment_id: int, column: str, source: str, encoder: ColumnEncoder, tally: _Tally
) -> bool:
    """Write and commit one fragment's values; False when another writer changed the fragment meanwhile."""
    data = lance.dataset(table)
    fragment = data.get_fragment(fragment_id)
    if fragment is None:
        return False
    counts = Counter[str]()
    values = _fragment_values(fragment, source, encoder, counts, tally)
    path = lance.write_column_file(data, column, values, encoder.storage)
    try:
        lance.replace_column(data, fragment_id, path)
    except CommitConflictError as error:
        logger.info("fragment %d was changed by another writer and is filled again: %s", fragment_id, error)
        return False
    tally.encoded += counts["encoded"]
    tally.without_text += counts["without text"]
    tally.fragments += 1
    return True


def _fragment_values(
    fragment: Any, source: str, encoder: ColumnEncoder, counts: Counter[str], tally: _Tally
) -> Iterator[pa.Array]:
    """Yield the fragment's values in physical order, null where a row is deleted or has no text."""
    position = 0
    scanner = fragment.scanner(columns=[source], with_row_address=True, batch_size=WINDOW)
    for batch in scanner.to_batches():
        places = (batch.column("_rowaddr").to_numpy() & 0xFFFFFFFF).astype(np.int64)
        if not len(places):
            continue
        end = int(places[-1]) + 1
        texts = batch.column(source).to_pylist()
        present = [i for i, text in enumerate(texts) if text is not None]
        values = _encoded(encoder, [texts[i] for i in present])
        yield _spread(values, places[present] - position, end - position, encoder.storage)
        position = end
        counts["encoded"] += len(present)
        counts["without text"] += len(texts) - len(present)
        tally.advance(len(texts))
    if position < fragment.physical_rows:
        yield pa.nulls(fragment.physical_rows - position, encoder.storage)


def _encoded(encoder: ColumnEncoder, texts: list[str]) -> pa.Array:
    if not texts:
        return pa.array([], encoder.storage)
    try:
        values = encoder.encode(texts)
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(
            f"the encoder failed on {len(texts)} texts: {type(error).__name__}: {error}. What was committed before "
            "stays; run this again to go on. The cause is chained to this error."
        ) from error
    if len(values) != len(texts) or values.null_count:
        raise ModelError(
            f"the encoder answered with {len(values)} values, {values.null_count} of them null, for {len(texts)} texts"
        )
    return values


def _spread(values: pa.Array, places: npt.NDArray[np.int64], size: int, storage: pa.DataType) -> pa.Array:
    """Return `size` values, those given at their places and null between them."""
    if len(values) == size:
        return values
    index = np.full(size, -1, np.int64)
    index[places] = np.arange(len(places))
    if not len(values):
        return pa.nulls(size, storage)
    return values.take(pa.array(index, mask=index < 0))


def _require_source(schema: pa.Schema, source: str) -> None:
    if source not in schema.names:
        raise ColumnError(f"the table has no column {source!r} to read texts from (columns: {', '.join(schema.names)})")
    data_type = schema.field(source).type
    if not (pa.types.is_string(data_type) or pa.types.is_large_string(data_type)):
        raise ColumnError(f"column {source!r} holds {data_type}, not texts; name a string column")
