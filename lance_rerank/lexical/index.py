"""A Tantivy index beside a LanceDB table, which knows how far behind the table it is."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import tantivy

from lance_rerank import lance
from lance_rerank.arrow import IntArray
from lance_rerank.errors import ArgumentError, ConflictError, LexicalIndexError, MissingIndexError, StaleIndexError
from lance_rerank.lexical.clauses import Expand, ParsedQuery, TextField
from lance_rerank.lexical.language import syntax_query
from lance_rerank.lexical.query import plain_query
from lance_rerank.lexical.schema import META, ROW, LexicalSettings
from lance_rerank.lexical.snippets import LexicalExplanation, Snippet, explanation, snippet
from lance_rerank.lexical.storage import (
    HOW_TO_REBUILD,
    Generation,
    copy_files,
    copy_generation,
    create_generation,
    drop_other_generations,
    make_current,
    read_index_file,
    sole_writer,
)
from lance_rerank.lexical.sync import Progress, SyncResult, find_changes, synchronise
from lance_rerank.types import FloatArray, Hit

logger = logging.getLogger(__name__)

Freshness = Literal["error", "warn", "sync", "scan"]
SYNC_WAIT_S = 10.0  # how long a search with freshness="sync" waits for another process that writes
ORPHAN_AGE_S = 86_400.0  # of copies made by freshness="scan", after which their process is taken to be dead


@dataclass(frozen=True, slots=True)
class Matches:
    """What a search found: keys of rows, best first.

    Attributes
    ----------
    keys : list of int or of str
        Values of the key column.
    scores : ndarray
        ``(n_keys,)`` float32: BM25, as Tantivy has it.
    exhausted : bool
        Whether there are no more, however many are asked for.
    ignored : tuple of str
        What of the query was not understood or left out, in words.
    row_ids : ndarray or None
        ``(n_keys,)`` int64: LanceDB's ids of the rows in the version of the table that the index mirrors, -1 where one
        is not known. In another version an id may be another row's: compare the key of what is read by it.
    """

    keys: list[Any]
    scores: FloatArray
    exhausted: bool
    ignored: tuple[str, ...] = ()
    row_ids: IntArray | None = None


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """How far an index is behind its table.

    Attributes
    ----------
    version : int or None
        The table's version that the index mirrors; None before the first sync.
    table_version : int
        The table's own.
    rows : int
        Rows in the index.
    added, updated, deleted : int
        Rows that a sync would touch.
    null_keys, duplicate_keys : int
        Rows that were left out for want of a key, and rows that share one with another row.
    """

    version: int | None
    table_version: int
    rows: int
    added: int
    updated: int
    deleted: int
    null_keys: int
    duplicate_keys: int

    @property
    def behind(self) -> int:
        """How many rows a sync would touch."""
        return self.added + self.updated + self.deleted

    def __str__(self) -> str:
        if self.version is None:
            return f"not built yet; the table has {self.added:,} rows"
        behind = f"{self.added:,} added, {self.updated:,} updated, {self.deleted:,} deleted since"
        text = f"{self.rows:,} rows of version {self.version}; " + (behind if self.behind else "up to date")
        if self.null_keys:
            text += f"; {self.null_keys:,} rows without a key are not indexed"
        if self.duplicate_keys:
            text += f"; {self.duplicate_keys:,} rows have the key of another row"
        return text


def stored_settings(path: str | Path) -> dict[str, Any] | None:
    """Return what an index was made with, as arguments of `TantivyIndex.open`; None where there is no index.

    Raises
    ------
    LexicalIndexError
        The index does not say.
    """
    content = read_index_file(Path(path).expanduser())
    if content is None:
        return None
    stored = content["settings"]
    try:
        columns = [name for name, _ in stored["columns"]]
        kept = {name: stored[name] for name in ("key", "language", "stop_words", "ascii_folding")}
        return {**kept, "columns": columns, "tokenizer": dict(stored["tokenizers"])}
    except (KeyError, TypeError, ValueError) as error:
        raise LexicalIndexError(f"the index in {path} does not say how it was made. {HOW_TO_REBUILD}") from error


class TantivyIndex:
    """A full-text index of some of a table's columns, in a folder of its own; made by `open`.

    One process keeps it up to date with `sync`, any number search it. Rows are found by a unique column of the user's,
    so that the index survives compaction, and a row that was deleted from the table is never returned.

    Examples
    --------
    >>> import lancedb, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> table = lancedb.connect(folder).create_table("docs", [
    ...     {"id": 1, "title": "Keys", "text": "rotate api keys"}, {"id": 2, "title": "Bread", "text": "bake it"}])
    >>> index = TantivyIndex.open(folder + "/docs.tantivy", table=table, key="id", columns=["title", "text"])
    >>> print(index.sync())
    version 1: 2 added, 0 updated, 0 deleted
    >>> index.search("rotating a key")
    [Hit(doc_id='1', score=..., rank=1)]
    >>> _ = table.add([{"id": 3, "title": "Locks", "text": "change a lock and its keys"}])
    >>> print(index.status())
    2 rows of version 1; 1 added, 0 updated, 0 deleted since
    >>> [hit.doc_id for hit in index.search("lock", freshness="scan")]
    ['3']
    """

    def __init__(
        self,
        path: Path,
        table: Any,
        settings: LexicalSettings,
        boosts: Mapping[str, float],
        expand: Expand | None,
    ) -> None:
        self.path = path
        self.table = table
        self.settings = settings
        self.key = settings.key
        self.boosts = dict(boosts)
        self.expand = expand
        self.fields: tuple[TextField, ...] = settings.fields(self.boosts)
        self._lock = threading.Lock()
        self._opened: Generation | None = None
        self._overlay: Generation | None = None
        self._overlay_folder: tempfile.TemporaryDirectory[str] | None = None
        self._readable: tempfile.TemporaryDirectory[str] | None = None  # a copy, where the folder cannot be written to
        self._told = -1  # the table's version of which it was last said that the index is behind

    def __repr__(self) -> str:
        return f"TantivyIndex({str(self.path)!r}, table={self.table.name!r}, key={self.key!r})"

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        table: object,
        key: str = "id",
        columns: Sequence[str] = ("text",),
        language: str | None = "English",
        tokenizer: str | Mapping[str, str] = "words",
        stop_words: bool = True,
        ascii_folding: bool = True,
        boosts: Mapping[str, float] | None = None,
        expand: Expand | None = None,
        rebuild: bool = False,
    ) -> Self:
        """Return the index in a folder, or one that the first `sync` will build there. Nothing is written yet.

        Parameters
        ----------
        path : str or Path
            A folder of the index's own, on a local disk.
        table : lancedb.table.Table
            Of ``lancedb.connect``.
        key : str, default "id"
            A column of integers or strings that no two rows share.
        columns : sequence of str
            Texts to search; numbers and booleans are indexed for ranges and sets in query syntax.
        language : str or None, default "English"
            Whose endings are cut off, so that "keys" finds "key".
        tokenizer : str or Mapping
            How texts are cut into words, for all columns or by column: "words" (at everything that is no letter or
            digit), "whitespace", "ngram" (all runs of three characters: parts of words match, and languages without
            spaces), or "raw" (the whole text is one word).
        stop_words : bool, default True
            Leave out the language's commonest words.
        ascii_folding : bool, default True
            Let "café" and "cafe" match each other.
        boosts : Mapping, optional
            What a match in a column counts for; 1 by default. May differ from one opening to the next.
        expand : callable, optional
            Called with a query's words; returns further words or phrases with weights: see
            `lance_rerank.lexical.synonyms`.
        rebuild : bool, default False
            Build the index anew at once, whatever is there.

        Raises
        ------
        ColumnError, ArgumentError
            The table has no such columns, or they cannot be indexed.
        LexicalIndexError
            The index is damaged, of another table, or was made with other settings.
        """
        opened = lance.require_sync_table(table, "TantivyIndex")
        names = [columns] if isinstance(columns, str) else list(columns)
        settings = LexicalSettings.of(opened.schema, key, names, language, tokenizer, stop_words, ascii_folding)
        for name, boost in (boosts or {}).items():
            if name not in settings.texts:
                raise ArgumentError(f"boosts names {name!r}, which is no text column of the index: {settings.texts}")
            if not 0 < boost < float("inf"):
                raise ArgumentError(f"a boost is a number above 0, got {boost!r} for {name!r}")
        index = cls(Path(path).expanduser(), opened, settings, boosts or {}, expand)
        if rebuild:
            index.rebuild()
        else:
            index._require_same()
        return index

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        table: object,
        boosts: Mapping[str, float] | None = None,
        expand: Expand | None = None,
    ) -> Self:
        """Return the index in a folder with the settings it was made with.

        Raises
        ------
        MissingIndexError
            There is none.
        LexicalIndexError
            The index is damaged, or of another table.
        """
        settings = stored_settings(path)
        if settings is None:
            raise MissingIndexError(f"there is no index in {path}. Build it: TantivyIndex.open(path, ...).sync()")
        return cls.open(path, table=table, boosts=boosts, expand=expand, **settings)

    # --- upkeep ------------------------------------------------------------------------------------------------

    def sync(self, *, wait_s: float = 0, progress: Progress | None = None) -> SyncResult:
        """Bring the index to the table's latest version, and return what was done.

        What it costs is in proportion to what changed. It is all or nothing: a process that is killed meanwhile leaves
        the index as it was.

        Parameters
        ----------
        wait_s : float, default 0
            How long to wait for another process that is writing to the index.
        progress : callable, optional
            Called with (rows read, rows to read).

        Raises
        ------
        ConflictError
            Another process is writing to the index, after `wait_s` still.
        LexicalIndexError
            The index is damaged, of another table, or cannot be written.
        """
        return self._as_sole_writer(self._sync, wait_s, progress)

    def rebuild(self, *, wait_s: float = 0, progress: Progress | None = None) -> SyncResult:
        """Build the index anew from the table, and return what was done; until it is done, searches use the old one.

        Parameters and errors are those of `sync`.
        """
        return self._as_sole_writer(self._rebuild, wait_s, progress)

    def _rebuild(self, progress: Progress | None) -> SyncResult:
        self.table.checkout_latest()
        generation = create_generation(self.path, self.settings)
        try:
            result = synchronise(generation, lance.dataset(self.table), progress)
        except BaseException:
            shutil.rmtree(generation.folder, ignore_errors=True)
            raise
        make_current(generation, self.table.uri)
        return result

    def status(self) -> IndexStatus:
        """Return how far the index is behind the table's latest version; rows that are new to it are read."""
        data = lance.dataset(self.table)
        generation = self._generation()
        if generation is None or generation.state is None:
            return IndexStatus(None, data.version, 0, data.count_rows(), 0, 0, 0, 0)
        try:
            ahead = synchronise(generation, data, dry_run=True)
        except LexicalIndexError:
            if generation.is_current():
                raise
            return self.status()  # another process has committed meanwhile, and removed the notes of this state
        state = generation.state
        return IndexStatus(
            state.version,
            data.version,
            state.rows,
            ahead.added,
            ahead.updated,
            ahead.deleted,
            state.null_keys,
            state.duplicate_keys,
        )

    def cache_key(self) -> str | None:
        """Return a text that is the same, in any process, as long as the answers are; None with a hook for words."""
        state = self._built().state
        if self.expand is not None or state is None:
            return None
        return json.dumps([str(self.path), self.settings.to_json(), self.boosts, state.to_json().decode()])

    # --- searching ---------------------------------------------------------------------------------------------

    def search(
        self,
        query: str | tantivy.Query,
        k: int = 10,
        *,
        syntax: bool = False,
        fuzzy: int = 0,
        freshness: Freshness = "warn",
    ) -> list[Hit]:
        """Return the best k rows by BM25, with their keys as ``doc_id``; to fetch or filter rows, use a `Retriever`.

        Parameters
        ----------
        query : str or tantivy.Query
            Any text. Nothing in it is an error.
        k : int, default 10
            Most hits.
        syntax : bool, default False
            Read the text in Tantivy's query language: ``title:word``, ``"a phrase"~2``, ``-word``, ``word^2``,
            ``id:[1 TO 5]``. What cannot be understood is left out and said in the log.
        fuzzy : {0, 1, 2}, default 0
            How many letters of a word may differ.
        freshness : {"error", "warn", "sync", "scan"}, default "warn"
            What to do when the table has a newer version than the index: raise; say it in the log, once a version;
            bring the index up to date first; or search a private copy of the index that is up to date, which needs no
            right to write to it.

        Raises
        ------
        MissingIndexError
            The index was never built.
        StaleIndexError
            ``freshness="error"``, and the index is behind.
        """
        found = self.matches(query, k, syntax=syntax, fuzzy=fuzzy, freshness=freshness)
        pairs = zip(found.keys, found.scores.tolist(), strict=True)
        return [Hit(str(key), score, rank, {self.key: key}) for rank, (key, score) in enumerate(pairs, 1)]

    def matches(
        self,
        query: str | tantivy.Query,
        k: int,
        *,
        among: Sequence[Any] | None = None,
        syntax: bool = False,
        fuzzy: int = 0,
        freshness: Freshness = "warn",
    ) -> Matches:
        """Return the keys of the best k rows; parameters as in `search`, and `among`: the keys to choose from."""
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ArgumentError(f"k must be at least 1, got {k!r}")
        generation = self._fresh(freshness)
        parsed = self._parsed(generation, query, syntax, fuzzy)
        if parsed.ignored:
            logger.warning("of the query %.100r was left out: %s", query, "; ".join(parsed.ignored))
        clauses = [(tantivy.Occur.Must, parsed.query)]
        if among is not None:
            chosen = tantivy.Query.term_set_query(generation.schema, self.key, [self._checked(key) for key in among])
            clauses.append((tantivy.Occur.Must, tantivy.Query.const_score_query(chosen, 0.0)))
        if syntax or not isinstance(query, str):  # such a query may match every document, and one is none of the user's
            ours = tantivy.Query.term_query(generation.schema, META, "state")
            clauses.append((tantivy.Occur.MustNot, ours))
        whole = parsed.query if len(clauses) == 1 else tantivy.Query.boolean_query(clauses)
        most = min(k, max(1, generation.searcher.num_docs))  # Tantivy makes room for as many as are asked for
        hits = generation.searcher.search(whole, most, count=False).hits
        addresses = [address for _, address in hits]
        keys = self._keys(generation, addresses)
        scores = np.array([score for score, _ in hits], np.float32)
        if len(set(keys)) < len(keys):
            first = sorted({key: place for place, key in reversed(list(enumerate(keys)))}.values())
            keys, scores, addresses = (
                [keys[place] for place in first],
                scores[first],
                [addresses[place] for place in first],
            )
        digests = generation.searcher.fast_field_values(ROW, addresses) if addresses else []
        return Matches(keys, scores, len(hits) < k, parsed.ignored, generation.row_ids(digests))

    def snippet(
        self,
        query: str | tantivy.Query,
        text: str | None,
        column: str | None = None,
        *,
        max_chars: int = 150,
        syntax: bool = False,
    ) -> Snippet:
        """Return the part of a row's text that shows best why it was found, with the places of the words that match.

        Parameters
        ----------
        query : str or tantivy.Query
            What was searched for.
        text : str or None
            The row's text, of the table.
        column : str, optional
            The column that the text is of; by default the first.
        max_chars : int, default 150
            Most characters.
        syntax : bool, default False
            As in `search`.
        """
        name = column or self.settings.texts[0]
        if name not in self.settings.texts:
            raise ArgumentError(f"{name!r} is no text column of the index: {', '.join(self.settings.texts)}")
        generation = self._built()
        parsed = self._parsed(generation, query, syntax, 0)
        return snippet(generation.searcher, parsed.query, generation.schema, name, text, max_chars)

    def explain(self, query: str | tantivy.Query, key: Any, *, syntax: bool = False) -> LexicalExplanation:
        """Return how a row's score for a query comes about, by its key.

        Raises
        ------
        ArgumentError
            No row with this key is in the index, or the query does not match it.
        """
        generation = self._built()
        parsed = self._parsed(generation, query, syntax, 0)
        of_row = tantivy.Query.term_query(generation.schema, self.key, self._checked(key))
        both = tantivy.Query.boolean_query([(tantivy.Occur.Must, parsed.query), (tantivy.Occur.Must, of_row)])
        found = generation.searcher.search(both, 1, count=False).hits
        if not found:
            raise ArgumentError(f"the query does not match a row whose {self.key} is {key!r} in the index")
        return explanation(parsed.query, generation.searcher, found[0][1], generation.schema)

    # --- inside ------------------------------------------------------------------------------------------------

    def _parsed(self, generation: Generation, query: str | tantivy.Query, syntax: bool, fuzzy: int) -> ParsedQuery:
        if isinstance(query, tantivy.Query):
            return ParsedQuery(query, ())
        if not isinstance(query, str):
            raise ArgumentError(f"a query is a string or a tantivy.Query, got {type(query).__name__}")
        if syntax:
            return syntax_query(
                generation.index, generation.schema, self.fields, query, fuzzy=fuzzy, expand=self.expand
            )
        return plain_query(generation.schema, self.fields, query, fuzzy=fuzzy, expand=self.expand)

    def _checked(self, key: Any) -> Any:
        expected = int if self.settings.key_kind == "integer" else str
        if isinstance(key, np.integer):
            key = int(key)
        if not isinstance(key, expected) or isinstance(key, bool):
            raise ArgumentError(f"keys of this index are of type {expected.__name__}, got {key!r}")
        return key

    def _keys(self, generation: Generation, addresses: list[tantivy.DocAddress]) -> list[Any]:
        if self.settings.key_kind == "integer":
            return list(generation.searcher.fast_field_values(self.key, addresses)) if addresses else []
        return [generation.searcher.doc(address).get_first(self.key) for address in addresses]

    def _require_same(self) -> None:
        """Raise unless what is in the folder was made with these settings, from this table."""
        content = read_index_file(self.path)
        if content is None:
            return
        different = self.settings.differences(content.get("settings", {}))
        if different:
            raise LexicalIndexError(
                f"the index in {self.path} was made with {'; '.join(different)}. Open it with the settings it was made "
                f"with, or with those you want: {HOW_TO_REBUILD}"
            )
        generation = self._generation()
        if content["table"] == self.table.uri or generation is None or not generation.state:
            return
        changes = find_changes(lance.dataset(self.table), self.settings, generation.state)
        if not (changes.kept or changes.shrunk):  # a database that was moved keeps its files
            raise LexicalIndexError(
                f"the index in {self.path} is of the table {content['table']} and not of {self.table.uri}. Give each "
                f"table a folder of its own. {HOW_TO_REBUILD}"
            )

    def _generation(self) -> Generation | None:
        """Return the index as it was last committed, by whatever process; None before it was built."""
        with self._lock:
            if self._opened is None or not self._opened.is_current():
                content = read_index_file(self.path)
                self._opened = None if content is None else self._open_generation(content["generation"])
            return self._opened

    def _open_generation(self, name: str) -> Generation:
        try:
            return Generation(self.path, self.settings, name)
        except PermissionError:
            copied = tempfile.TemporaryDirectory(prefix="lance_rerank-read-", ignore_cleanup_errors=True)
            self._readable, before = copied, self._readable
            files = copy_files(self.path / name, Path(copied.name) / name)
            del before  # only now: its files may be in use
            return Generation(self.path, self.settings, name, files)

    def _built(self) -> Generation:
        generation = self._generation()
        if generation is None or generation.state is None:
            raise MissingIndexError(f"there is no index in {self.path} yet. Build it: index.sync()")
        return generation

    def _as_sole_writer(
        self, work: Callable[[Progress | None], SyncResult], wait_s: float, progress: Progress | None
    ) -> SyncResult:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                with sole_writer(self.path):
                    return work(progress)
            except ConflictError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    def _sync(self, progress: Progress | None) -> SyncResult:
        generation = self._generation()
        if generation is None:
            return self._rebuild(progress)
        drop_other_generations(generation)
        self._drop_orphans()
        self.table.checkout_latest()
        return synchronise(generation, lance.dataset(self.table), progress)

    def _fresh(self, freshness: Freshness) -> Generation:
        """Return the index to search: as it is if it mirrors the table, else as `freshness` says."""
        if freshness not in get_args(Freshness):
            raise ArgumentError(f"freshness must be one of {', '.join(get_args(Freshness))}, got {freshness!r}")
        generation = self._generation()
        if freshness == "sync" and (generation is None or self._differs(generation)):
            self.sync(wait_s=SYNC_WAIT_S)
            return self._built()
        generation = self._built()
        if not self._differs(generation):
            return generation
        if freshness == "scan":
            return self._overlaid(generation)
        assert generation.state is not None
        mirrored, version = generation.state.version, self.table.version
        message = f"{self!r} mirrors version {mirrored} of the table, and the table's handle is at {version}"
        advice = "index.sync()" if version > mirrored else "table.checkout_latest(), and index.sync()"
        if freshness == "error":
            raise StaleIndexError(f"{message}. Bring them together, {advice}, or search with freshness='scan'")
        if self._told != version:
            self._told = version
            logger.warning(
                "%s: rows that were added or changed between the two are not found, or by their other text. Bring them "
                "together: %s",
                message,
                advice,
            )
        return generation

    def _differs(self, generation: Generation) -> bool:
        """Return whether the table, as its handle sees it, has other rows than the index."""
        version = self.table.version
        if generation.state is None:
            return True
        if version in (generation.known_equal, generation.known_different):
            return version == generation.known_different
        # also where versions are equal: the table may have been dropped and made again
        if find_changes(self.table.to_lance(), self.settings, generation.state):
            generation.known_different = version
            return True
        generation.known_equal = version
        return False

    def _overlaid(self, generation: Generation) -> Generation:
        """Return a private copy of the index, brought to the version that the table's handle sees."""
        with self._lock:
            overlay = self._overlay
            if overlay is None or overlay.name != generation.name or not overlay.folder.exists():
                self._overlay_folder = self._temporary_folder()
                overlay = copy_generation(generation, Path(self._overlay_folder.name))
            overlay.root.touch()  # so that it is not taken for one whose process is dead
            data = self.table.to_lance()
            if find_changes(data, self.settings, overlay.state):
                synchronise(overlay, data)
                overlay = overlay.reopened()
            self._overlay = overlay
            return overlay

    def _temporary_folder(self) -> tempfile.TemporaryDirectory[str]:
        """Return a folder that goes when the index, or its next copy, does."""
        try:  # on the same disk a copy is a matter of links
            return tempfile.TemporaryDirectory(prefix="scan-", dir=self.path, ignore_cleanup_errors=True)
        except OSError:
            return tempfile.TemporaryDirectory(prefix="lance_rerank-scan-", ignore_cleanup_errors=True)

    def _drop_orphans(self) -> None:
        for folder in self.path.glob("scan-*"):
            if time.time() - folder.stat().st_mtime > ORPHAN_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)
