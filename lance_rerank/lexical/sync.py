"""Bringing a Tantivy index to a table's version, at a cost in proportion to what changed.

A fragment whose data files and deletions are those that the index knows is not looked at. Of one that lost rows the
list of deletions is read, of a new one its rows: those that only moved, as in a compaction, are told by a digest and
are not indexed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tantivy

from lance_rerank import lance
from lance_rerank.arrow import IntArray
from lance_rerank.errors import ConflictError, LanceRerankError, LexicalIndexError
from lance_rerank.lexical.schema import META, ROW, STATE, LexicalSettings
from lance_rerank.lexical.storage import FragmentState, Generation, IndexState, Rows

WINDOW = 2048  # rows read at a time
HEAP = 128_000_000  # bytes of documents in memory before Tantivy writes a segment
THREADS = 2
LONGEST_KEY = 30_000  # bytes; Tantivy finds nothing by terms of more than 65,530

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync did.

    Attributes
    ----------
    version : int
        The table's version that the index now mirrors.
    added, updated, deleted : int
        Rows.
    null_keys : int
        Rows of the table that have no key, or one of more than 30,000 bytes, and are not in the index.
    duplicate_keys : int
        Rows whose key an earlier row has too: a search for one finds all of them.
    """

    version: int
    added: int = 0
    updated: int = 0
    deleted: int = 0
    null_keys: int = 0
    duplicate_keys: int = 0

    def __str__(self) -> str:
        if not (self.added or self.updated or self.deleted):
            text = f"version {self.version}: nothing to do"
        else:
            text = f"version {self.version}: {self.added:,} added, {self.updated:,} updated, {self.deleted:,} deleted"
        if self.null_keys:
            text += f"; {self.null_keys:,} rows without a key are not indexed"
        if self.duplicate_keys:
            text += f"; {self.duplicate_keys:,} rows have the key of another row"
        return text


@dataclass
class Changes:
    """How a table differs from what an index knows.

    Attributes
    ----------
    kept : dict
        Fragments that are as the index knows them.
    changed : dict
        Fragments to read: what the index will know them as, less their rows.
    shrunk : dict
        Fragments of which only the deletions changed: what the index knows them as.
    gone : list
        Fragments that the index knows and the table no longer has, or has with other contents.
    """

    kept: dict[int, FragmentState] = field(default_factory=dict)
    changed: dict[int, FragmentState] = field(default_factory=dict)
    shrunk: dict[int, FragmentState] = field(default_factory=dict)
    gone: list[FragmentState] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.shrunk or self.gone)


def find_changes(data: Any, settings: LexicalSettings, state: IndexState | None) -> Changes:
    """Return which fragments differ, from metadata alone."""
    known = dict(state.fragments) if state else {}
    changes = Changes()
    for fragment in data.get_fragments():
        files = tuple(lance.fragment_file(data, fragment, name) or "" for name in settings.names)
        deletions = lance.deletions(fragment)
        before = known.pop(fragment.fragment_id, None)
        now = FragmentState(files, deletions)
        if before is not None and before.files == files and before.deletions == deletions:
            changes.kept[fragment.fragment_id] = before
        elif before is not None and before.files == files and not before.null_keys:
            changes.shrunk[fragment.fragment_id] = before
        else:
            changes.changed[fragment.fragment_id] = now
            changes.gone += [before] if before is not None else []
    changes.gone += known.values()
    return changes


def synchronise(
    generation: Generation, data: Any, progress: Progress | None = None, *, dry_run: bool = False
) -> SyncResult:
    """Bring a generation to a dataset's version and return what was done; with `dry_run`, what there is to do.

    Raises
    ------
    ConflictError
        Another program is writing to the index.
    LexicalIndexError
        The index cannot be written; it is as it was.
    """
    if dry_run:
        return _Sync(generation, data, None, progress).run()
    try:
        writer = generation.index.writer(HEAP, THREADS)
    except ValueError as error:
        if "LockBusy" in str(error):  # by something that does not know of `sole_writer`
            raise ConflictError(f"another program is writing to {generation.folder}") from error
        raise LexicalIndexError(f"the index in {generation.root} cannot be written: {error}") from error
    try:
        sync = _Sync(generation.reopened(), data, writer, progress)  # as it is now that no one else writes
        result = sync.run()
        sync.commit()
    except BaseException as error:
        with suppress(ValueError):  # a writer that met a full disk is dead already
            writer.rollback()
        if isinstance(error, OSError | ValueError) and not isinstance(error, LanceRerankError):
            raise LexicalIndexError(
                f"the index in {generation.root} cannot be written, and is as it was: {error}"
            ) from error
        raise
    finally:
        with suppress(ValueError):
            writer.wait_merging_threads()  # and lets go of its lock
        generation.let_others_read()
    return result


class _Sync:
    """One run: reads what changed, hands it to the writer, and counts."""

    def __init__(
        self, generation: Generation, data: Any, writer: tantivy.IndexWriter | None, progress: Progress | None
    ) -> None:
        self.generation = generation
        self.settings = generation.settings
        self.state = generation.state
        self.data = data
        self.writer = writer
        self.progress = progress
        self.key_type = pa.int64() if self.settings.key_kind == "integer" else pa.string()
        self.changes = find_changes(data, self.settings, self.state)
        self.fragments = dict(self.changes.kept)
        self.matched: list[IntArray] = []  # digests of rows that only moved
        self.added: list[pa.Array] = []  # keys of rows that are new, or have another text
        self.left: list[Rows] = []  # of fragments that lost rows

    def run(self) -> SyncResult:
        removed = self._removed()
        self._read_changed(np.unique(removed.digests))
        alive = np.concatenate([np.empty(0, np.int64), *self.matched, *self._twins()])
        dead = ~np.isin(removed.digests, alive)
        dead_keys = removed.keys.filter(pa.array(dead)).unique()
        self.dead = np.unique(removed.digests[dead])
        added = pa.concat_arrays([pa.array([], self.key_type), *self.added])
        updated = _count_in(added, dead_keys)
        duplicates = self._duplicates(added, dead_keys)
        self.new = IndexState(self.data.version, self.fragments, duplicates, bool(self.data.has_stable_row_ids))
        return SyncResult(
            self.new.version,
            added=len(added) - updated,
            updated=updated,
            deleted=len(dead_keys) - _count_in(dead_keys, added),
            null_keys=self.new.null_keys,
            duplicate_keys=self.new.duplicate_keys,
        )

    def commit(self) -> None:
        assert self.writer is not None
        for digest in self.dead.tolist():
            self.writer.delete_documents_by_term(ROW, digest)
        self.writer.delete_documents_by_term(META, "state")
        document = tantivy.Document()
        document.add_text(META, "state")
        document.add_bytes(STATE, self.new.to_json())
        self.writer.add_document(document)
        self.writer.commit()
        self.generation.drop_unused_rows(self.new)

    def _removed(self) -> Rows:
        """Return the rows that the table no longer has where it had them."""
        removed = [self.generation.read_rows(before) for before in self.changes.gone]
        for fragment_id, before in self.changes.shrunk.items():
            fragment = self.data.get_fragment(fragment_id)
            rows, live = self.generation.read_rows(before), lance.live_places(fragment)
            now = FragmentState(before.files, lance.deletions(fragment))
            alive = np.isin(rows.places, live)
            if alive.sum() < len(live):  # rows came back, as they do when an older version is restored
                self.changes.changed[fragment_id] = now
                removed.append(rows)
                continue
            removed.append(rows.where(~alive))
            self.left.append(rows.where(alive))
            self._note(fragment_id, now, self.left[-1])
        return Rows.join(removed, self.key_type)

    def _note(self, fragment_id: int, now: FragmentState, rows: Rows, null_keys: int = 0) -> None:
        rows_file = "" if self.writer is None else self.generation.write_rows(rows)
        self.fragments[fragment_id] = FragmentState(now.files, now.deletions, rows_file, len(rows), null_keys)

    def _read_changed(self, removed: IntArray) -> None:
        """Index the rows of changed fragments that were not there before, and note where all of them are."""
        fragments = {fragment_id: self.data.get_fragment(fragment_id) for fragment_id in self.changes.changed}
        expected, done = sum(fragment.count_rows() for fragment in fragments.values()), 0
        for fragment_id, fragment in fragments.items():
            parts, null_keys = [], 0
            for batch in _batches(fragment, self.settings):
                rows, values = self._rows(batch)
                new = ~_is_among(rows.digests, removed)
                self.matched.append(rows.digests[~new])
                self.added.append(rows.keys.filter(pa.array(new)))
                if self.writer is not None:
                    _add_documents(self.writer, rows.digests, values, new, self.settings)
                parts.append(rows)
                null_keys += batch.num_rows - len(rows)
                done += batch.num_rows
                if self.progress:
                    self.progress(done, expected)
            self._note(fragment_id, self.changes.changed[fragment_id], Rows.join(parts, self.key_type), null_keys)

    def _rows(self, batch: pa.RecordBatch) -> tuple[Rows, list[list[Any]]]:
        """Return the rows of a batch that have a key, and their values, a list a column."""
        usable = batch.column(self.settings.key).is_valid()
        if self.settings.key_kind == "string":
            short = pc.less_equal(pc.binary_length(batch.column(self.settings.key)), LONGEST_KEY)
            usable = pc.and_(usable, pc.fill_null(short, False))
        if not pc.all(usable).as_py():
            batch = batch.filter(usable)
        places = (batch.column("_rowaddr").to_numpy() & 0xFFFFFFFF).astype(np.int64)
        values = [batch.column(name).to_pylist() for name in self.settings.names]
        digests = np.fromiter(map(_digest, zip(*values, strict=True)), np.int64, len(places))
        return Rows(batch.column(self.settings.key).cast(self.key_type), digests, places), values

    def _twins(self) -> list[IntArray]:
        """Return the digests of rows that stayed where they are, if one of them may equal a removed one."""
        if self.state is None or not self.state.duplicate_keys:
            return []
        kept = [self.generation.read_rows(before) for before in self.changes.kept.values()]
        return [rows.digests for rows in (*kept, *self.left)]

    def _duplicates(self, added: pa.Array, dead_keys: pa.Array) -> int:
        """Return how many rows have the key of another; all keys are looked through only if there may be such rows."""
        if self.writer is None:
            return 0
        moved = np.concatenate([np.empty(0, np.int64), *self.matched])
        if self.state is not None and not self.state.duplicate_keys and len(np.unique(moved)) == len(moved):
            distinct = added.unique()
            unknown = distinct.filter(pc.invert(pc.is_in(distinct, dead_keys))).to_pylist()
            searcher = self.generation.searcher
            if len(distinct) == len(added) and not any(searcher.doc_freq(self.settings.key, key) for key in unknown):
                return 0
        keys = [self.generation.read_rows(fragment).keys for fragment in self.fragments.values()]
        every = pa.concat_arrays([pa.array([], self.key_type), *keys])
        return len(every) - int(pc.count_distinct(every).as_py())


def _is_among(values: IntArray, ordered: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which values are among sorted ones; `numpy.isin` would sort them for each batch."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def _count_in(values: pa.Array, among: pa.Array) -> int:
    return int(pc.sum(pc.is_in(values, among)).as_py() or 0) if len(values) and len(among) else 0


def _batches(fragment: Any, settings: LexicalSettings) -> Iterator[pa.RecordBatch]:
    scanner = fragment.scanner(columns=list(settings.names), with_row_address=True, batch_size=WINDOW)
    yield from (batch for batch in scanner.to_batches() if batch.num_rows)


def _digest(row: tuple[Any, ...]) -> int:
    digest = blake2b(repr(row).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


_ADD = {
    "text": tantivy.Document.add_text,
    "string": tantivy.Document.add_text,
    "integer": tantivy.Document.add_integer,
    "float": tantivy.Document.add_float,
    "boolean": tantivy.Document.add_boolean,
}


def _add_documents(
    writer: tantivy.IndexWriter,
    digests: IntArray,
    values: list[list[Any]],
    new: np.ndarray[Any, np.dtype[np.bool_]],
    settings: LexicalSettings,
) -> None:
    adders = [_ADD[settings.key_kind], *(_ADD[kind] for _, kind in settings.columns)]
    for digest, is_new, *row in zip(digests.tolist(), new.tolist(), *values, strict=True):
        if not is_new:
            continue
        document = tantivy.Document()
        document.add_integer(ROW, digest)
        for add, name, value in zip(adders, settings.names, row, strict=True):
            if value is not None:
                add(document, name, value)
        writer.add_document(document)
