"""Fill one column of a live table, fragment by fragment, without touching any other column or index.

Each fragment's values go to a file of their own, which one commit puts in place. Appends and deletes that land
meanwhile are no conflict; a fragment that was updated or compacted under us is read and encoded again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.commit import CommitConflictError
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension
from lance_rerank.columns.ledger import Ledger, digests
from lance_rerank.columns.sources import Source, missing_from, names_of, read, type_of
from lance_rerank.columns.spool import Spool
from lance_rerank.columns.survey import WINDOW, fragment_files, survey_fragment
from lance_rerank.errors import ColumnError, ConflictError, LanceRerankError, ModelError

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that other writers thwart, before they are said to be too busy

Progress = Callable[[int, int], None]


class ColumnEncoder(Protocol):
    """What a column is filled with."""

    data_type: pa.DataType
    """The column's type in the table's schema."""
    storage: pa.DataType
    """The same without extension types, as it is written."""

    expects: str
    """What the source column has to hold, in words."""

    def accepts(self, data_type: pa.DataType) -> bool:
        """Return whether values can be computed from a column of this type."""
        ...

    def encode(self, sources: pa.Array) -> pa.Array:
        """Return one value a source, of type `storage`; null for a source that has none."""
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
        Rows met in this run whose source is null, or gives no text; their value is null.
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


@dataclass(frozen=True)
class Target:
    """A column to fill, and what with.

    Attributes
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    column : str
        The column to fill.
    source : str or tuple of str
        The column it is computed from, or several.
    encoder : ColumnEncoder
        Computes the values.
    metadata : Mapping
        Of the column's field, if the column has to be made.
    spool : Spool or None
        Where encoded windows wait for their fragment to be committed.
    """

    table: Table
    column: str
    source: Source
    encoder: ColumnEncoder
    metadata: Mapping[str, str]
    spool: Spool | None = None


def backfill(target: Target, progress: Progress | None = None, rounds: int | None = None) -> BackfillResult:
    """Give every row whose value is missing, or that of an older text, its value, and return what was done.

    The column is added when the table lacks it. Run it again after a kill, or after rows were added or changed:
    values that are right are kept.

    Parameters
    ----------
    target : Target
        What to fill.
    progress : callable, optional
        Called with (rows done, rows in all) after each window.
    rounds : int, optional
        How often to look for rows to fill, those found included; by default until there are none. A table that others
        add to all the time may never come to that.

    Raises
    ------
    ColumnError
        The source is missing or of a type that the encoder cannot read, or the column exists with another type.
    ModelError
        The encoder raised; what was committed before stays.
    ConflictError
        Other writers changed the rows being filled on several attempts in a row.
    """
    table = target.table
    table.checkout_latest()
    _require_source(table.schema, target)
    if target.column not in table.schema.names:
        if not target.column or "." in target.column:
            raise ColumnError(f"a column's name is not empty and has no dot, got {target.column!r}")
        lance.add_hidden_column(table, target.column, target.encoder.data_type, target.metadata)
    stored = table.schema.field(target.column).type
    if not stored.equals(target.encoder.data_type):
        raise ColumnError(
            f"column {target.column!r} exists as {stored}; this encoder makes {target.encoder.data_type}. "
            f"Choose another name, or drop it first: table.drop_columns([{target.column!r}])"
        )
    tally = _Tally(progress)
    try:
        _fill(target, tally, rounds)
    finally:
        table.checkout_latest()  # what was committed shows through the caller's table, whatever happened after
    return BackfillResult(target.column, tally.encoded, tally.without_text, tally.fragments)


def _fill(target: Target, tally: _Tally, rounds: int | None) -> None:
    thwarted = 0
    ledger = Ledger(lance.dataset(target.table), target.column)
    while (rounds is None or rounds > 0) and (outdated := _outdated(target, ledger)):
        tally.expect(sum(outdated.values()))
        for fragment_id in outdated:
            if _fill_fragment(target, fragment_id, ledger, tally):
                thwarted = 0
                continue
            thwarted += 1
            if thwarted == ATTEMPTS:
                raise ConflictError(
                    f"other writers changed the rows being filled on each of {ATTEMPTS} attempts in a row to fill "
                    f"{target.column!r}. Nothing is lost: run this again when fewer updates arrive."
                )
            break  # fragments may have been rewritten: look again at what is missing
        else:
            rounds = None if rounds is None else rounds - 1


def _outdated(target: Target, ledger: Ledger) -> dict[int, int]:
    """Return the fragments with rows to fill, and how many rows each."""
    data = lance.dataset(target.table)
    found = {}
    for fragment in data.get_fragments():
        source_file, column_file = fragment_files(data, fragment, target.column, target.source)
        if column_file is not None and ledger.is_ours(source_file, column_file):
            continue
        if outdated := survey_fragment(data, fragment, target.column, target.source, ledger).outdated:
            found[fragment.fragment_id] = outdated
        elif column_file is not None:
            ledger.add([], source_file, column_file)  # looked through: no need to do it again
    return found


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
        if self._progress and rows:
            self._progress(self._done, self._expected)


def _fill_fragment(target: Target, fragment_id: int, ledger: Ledger, tally: _Tally) -> bool:
    """Write and commit one fragment's values; False when another writer changed the fragment meanwhile."""
    try:
        return _write_fragment(target, fragment_id, ledger, tally)
    except CommitConflictError as error:
        logger.info("fragment %d was changed by another writer and is filled again: %s", fragment_id, error)
    except (OSError, ValueError) as error:
        if isinstance(error, LanceRerankError) or not lance.is_gone(error):
            raise
        logger.info("files of fragment %d were removed by another writer; it is filled again: %s", fragment_id, error)
    return False


def _write_fragment(target: Target, fragment_id: int, ledger: Ledger, tally: _Tally) -> bool:
    """Write and commit one fragment's values; False when there is no such fragment any more."""
    data = lance.dataset(target.table)
    fragment = data.get_fragment(fragment_id)
    if fragment is None:
        return False
    counts = Counter[str]()
    keys: list[bytes] = []
    values = _fragment_values(data, fragment, target, ledger, counts, keys, tally)
    path = lance.write_column_file(data, target.column, values, target.encoder.storage)
    ledger.add(keys, fragment_files(data, fragment, target.column, target.source)[0], path)
    lance.replace_column(data, fragment_id, path)
    if target.spool:
        target.spool.clear()
    tally.encoded += counts["encoded"]
    tally.without_text += counts["without text"]
    tally.fragments += 1
    return True


def _fragment_values(
    data: Any,
    fragment: Any,
    target: Target,
    ledger: Ledger,
    counts: Counter[str],
    keys: list[bytes],
    tally: _Tally,
) -> Iterator[pa.Array]:
    """Yield the fragment's values in physical order, null where a row is deleted or has no text."""
    storage = target.encoder.storage
    has_values = lance.fragment_file(data, fragment, target.column) is not None
    columns = [*names_of(target.source), *([target.column] if has_values else [])]
    position = 0
    for batch in fragment.scanner(columns=columns, with_row_address=True, batch_size=WINDOW).to_batches():
        places = (batch.column("_rowaddr").to_numpy() & 0xFFFFFFFF).astype(np.int64)
        if not len(places):
            continue
        end = int(places[-1]) + 1
        sources = read(batch, target.source)
        stored = pa.nulls(len(sources), storage)
        if has_values:
            stored = without_extension(batch.column(target.column)).cast(storage)
        fresh = ledger.fresh(sources, stored) if has_values else ~_held(sources)
        values, encoded = _right_values(sources, stored, fresh, target)
        present = sources.is_valid().to_pylist()
        keys += [key for key, held in zip(digests(sources, values), present, strict=True) if held]
        yield _spread(values, places - position, end - position, storage)
        position = end
        # Of several columns a text is made, and a row of which none is made has no text.
        empty = int((_held(sources) & ~fresh & ~_held(values)).sum()) if isinstance(target.source, tuple) else 0
        counts["encoded"] += encoded - empty
        counts["without text"] += sources.null_count + empty
        tally.advance(encoded)
    if position < fragment.physical_rows:
        yield pa.nulls(fragment.physical_rows - position, storage)


def _right_values(
    sources: pa.Array, stored: pa.Array, fresh: npt.NDArray[np.bool_], target: Target
) -> tuple[pa.Array, int]:
    """Return the sources' values, those stored where they are right, and how many were computed."""
    wanted = np.flatnonzero(~fresh & _held(sources))
    computed = _encoded(target, sources.take(pa.array(wanted)))
    place = np.where(fresh & _held(stored), np.arange(len(sources)), -1)
    place[wanted] = len(sources) + np.arange(len(wanted))
    both = pa.concat_arrays([stored, computed])
    return both.take(pa.array(place, mask=place < 0)), len(wanted)


def _held(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which rows are not null."""
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def _encoded(target: Target, sources: pa.Array) -> pa.Array:
    if not len(sources):
        return pa.array([], target.encoder.storage)
    if target.spool and (kept := target.spool.get(sources)) is not None:
        return kept
    values = _computed(target.encoder, sources)
    if target.spool:
        target.spool.put(sources, values)
    return values


def _computed(encoder: ColumnEncoder, sources: pa.Array) -> pa.Array:
    try:
        values = encoder.encode(sources)
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(
            f"the encoder failed on {len(sources)} rows: {type(error).__name__}: {error}. What was committed before "
            "stays; run this again to go on. The cause is chained to this error."
        ) from error
    if len(values) != len(sources):
        raise ModelError(f"the encoder answered with {len(values)} values for {len(sources)} rows")
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


def _require_source(schema: pa.Schema, target: Target) -> None:
    if missing := missing_from(schema.names, target.source):
        raise ColumnError(f"the table has no column {missing[0]!r} to read from (columns: {', '.join(schema.names)})")
    data_type = type_of(schema, target.source)
    if not target.encoder.accepts(data_type):
        raise ColumnError(
            f"column {names_of(target.source)[0]!r} holds {data_type}, not {target.encoder.expects}: name one that does"
        )
