"""An index's folder: which Tantivy index is current, which rows of the table are in it, and what it was made with.

::

    <path>/index.json                what the index was made with, and the name of the current generation
    <path>/generation-<id>/          Tantivy's files; one document among them holds the `IndexState`
    <path>/generation-<id>/rows/     a file a fragment of the table: keys, digests and places of its indexed rows

The state is committed together with the documents it describes, so that a kill leaves the old state or the new one.
A rebuild makes a second generation and puts its name into ``index.json``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import tantivy
from filelock import FileLock, Timeout

from lance_rerank.arrow import IntArray
from lance_rerank.errors import ConflictError, LexicalIndexError
from lance_rerank.lexical.schema import FORMAT, META, STATE, LexicalSettings

logger = logging.getLogger(__name__)

_INDEX, _ROWS = "index.json", "rows"
ATTEMPTS = 5
MOST_FRAGMENTS = 32  # in each of which a row is looked for; beyond, it takes less time to ask the table for its key


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one fragment: ``(n_rows,)`` each.

    Attributes
    ----------
    keys : pyarrow.Array
        Of the key column.
    digests : ndarray
        int64: of the key and all indexed columns together.
    places : ndarray
        int64: which rows of the fragment, deleted ones counted.
    """

    keys: pa.Array
    digests: IntArray
    places: IntArray

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def join(cls, parts: Sequence[Rows], key_type: pa.DataType) -> Self:
        """Return the rows of all parts, of none too."""
        keys = pa.concat_arrays([pa.array([], key_type), *(rows.keys for rows in parts)])
        nothing = np.empty(0, np.int64)
        return cls(
            keys,
            np.concatenate([nothing, *(rows.digests for rows in parts)]),
            np.concatenate([nothing, *(rows.places for rows in parts)]),
        )

    @classmethod
    def of(cls, noted: pa.Table) -> Self:
        """Return rows that were noted by `to_arrow`."""
        noted = noted.combine_chunks()
        keys, digests, places = (noted.column(i) for i in range(3))
        one = keys.chunk(0) if keys.num_chunks else pa.array([], keys.type)
        return cls(one, digests.to_numpy(), places.to_numpy())

    def to_arrow(self) -> pa.Table:
        """Return the rows as a table."""
        return pa.table([self.keys, pa.array(self.digests), pa.array(self.places)], ["key", "digest", "place"])

    def where(self, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Self:
        """Return some of the rows."""
        return type(self)(self.keys.filter(pa.array(kept)), self.digests[kept], self.places[kept])


@dataclass(frozen=True, slots=True)
class FragmentState:
    """Which rows of a fragment of the table are in the index.

    Attributes
    ----------
    files : tuple of str
        The data files that hold the indexed columns.
    deletions : str or None
        Which of the fragment's rows were deleted, as Lance names the list.
    rows_file : str
        Where the rows are noted.
    rows, null_keys : int
        How many are in the index, and how many are not for want of a key.
    """

    files: tuple[str, ...]
    deletions: str | None
    rows_file: str = ""
    rows: int = 0
    null_keys: int = 0


@dataclass(frozen=True, slots=True)
class IndexState:
    """Which state of the table an index mirrors; kept in the index itself.

    Attributes
    ----------
    version : int
        The table's.
    fragments : dict
        By Lance's fragment id.
    duplicate_keys : int
        Rows whose key an earlier row has too.
    stable_row_ids : bool
        Whether the table's row ids are numbers of their own, and not the places of rows in fragments.
    """

    version: int
    fragments: dict[int, FragmentState] = field(default_factory=dict)
    duplicate_keys: int = 0
    stable_row_ids: bool = False

    @property
    def rows(self) -> int:
        """How many rows of the table are in the index."""
        return sum(fragment.rows for fragment in self.fragments.values())

    @property
    def null_keys(self) -> int:
        """How many rows of the table are not, for want of a key."""
        return sum(fragment.null_keys for fragment in self.fragments.values())

    def to_json(self) -> bytes:
        """Return the state as it is kept."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return the state that `to_json` wrote."""
        stored = json.loads(text)
        fragments = {
            int(fragment_id): FragmentState(**{**values, "files": tuple(values["files"])})
            for fragment_id, values in stored.pop("fragments").items()
        }
        return cls(fragments=fragments, **stored)


class Generation:
    """A Tantivy index that is open, as it was at one commit; `reopened` returns a later one.

    Parameters
    ----------
    root : Path
        The index's folder.
    settings : LexicalSettings
        What it was made with.
    name : str
        Of the generation.
    folder : Path, optional
        Where a copy of Tantivy's files is, for a folder that cannot be written to: to read, too, Tantivy makes a lock.
    """

    def __init__(self, root: Path, settings: LexicalSettings, name: str, folder: Path | None = None) -> None:
        self.root = root
        self.settings = settings
        self.name = name
        self.folder = folder or root / name
        self._watched = (str(root / _INDEX), str(root / name / "meta.json"))
        self._stamp = self._seen()
        # versions of the table that were found to have the rows of this generation, and not to
        self.known_equal = self.known_different = -1
        self._noted: dict[int, Rows] | None = None
        try:
            self.index = tantivy.Index.open(str(self.folder))
            settings.register(self.index)
            self.index.reload()
            self.schema = self.index.schema
            self.searcher = self.index.searcher()
            self.state = self._state()
        except (ValueError, KeyError, TypeError, OSError) as error:
            if any(sign in str(error) for sign in _UNWRITABLE):
                raise PermissionError(f"{self.folder} cannot be written to") from error
            raise LexicalIndexError(f"the index in {root} is damaged ({error}). {HOW_TO_REBUILD}") from error

    def reopened(self) -> Self:
        """Return the same generation as it is now."""
        return type(self)(self.root, self.settings, self.name, self.folder)

    def is_current(self) -> bool:
        """Return whether nothing was committed since this was opened, by a sync or a rebuild of any process."""
        return self._stamp == self._seen()

    def _seen(self) -> list[tuple[int, int, int]]:
        """Return what changes with every commit."""
        seen = []
        for path in self._watched:
            try:
                status = os.stat(path)
            except OSError:
                seen.append((0, 0, 0))
            else:
                seen.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return seen

    def _state(self) -> IndexState | None:
        found = self.searcher.search(tantivy.Query.term_query(self.schema, META, "state"), 1, count=False).hits
        if not found:
            return None
        return IndexState.from_json(bytes(self.searcher.doc(found[0][1]).get_first(STATE) or b""))

    def rows_path(self, rows_file: str) -> Path:
        """Return where a fragment's rows are noted."""
        return self.folder / _ROWS / rows_file

    def read_rows(self, fragment: FragmentState) -> Rows:
        """Return the rows of a fragment that are in the index."""
        try:
            with pa.memory_map(str(self.rows_path(fragment.rows_file))) as file:
                return Rows.of(pa.ipc.open_file(file).read_all())
        except (OSError, pa.ArrowInvalid) as error:
            raise LexicalIndexError(
                f"the index in {self.root} has lost its notes of which rows are in it ({error}). {HOW_TO_REBUILD}"
            ) from error

    def row_ids(self, digests: Sequence[int]) -> IntArray | None:
        """Return LanceDB's ids of rows by their digests, -1 where one is not known; None where that cannot be told."""
        state = self.state
        if state is None or state.duplicate_keys or state.stable_row_ids or len(state.fragments) > MOST_FRAGMENTS:
            return None
        if self._noted is None:
            try:
                self._noted = {fragment_id: self.read_rows(rows) for fragment_id, rows in state.fragments.items()}
            except LexicalIndexError as error:  # of an older commit, mostly; rows are found by their keys all the same
                logger.info("%s", error)
                return None
        wanted = np.array(digests, np.int64)
        found = np.full(len(wanted), -1)
        for fragment_id, rows in self._noted.items():
            if len(rows):
                nearest = np.searchsorted(rows.digests, wanted).clip(max=len(rows) - 1)
                here = rows.digests[nearest] == wanted
                found[here] = (fragment_id << 32) + rows.places[nearest[here]]
        return found

    def write_rows(self, rows: Rows) -> str:
        """Note the rows of a fragment in a new file, in the order of their digests, and return its name."""
        name = f"{uuid.uuid4().hex}.arrow"
        (self.folder / _ROWS).mkdir(exist_ok=True)
        noted = rows.to_arrow().sort_by("digest")
        with pa.OSFile(str(self.rows_path(name)), "wb") as file, pa.ipc.new_file(file, noted.schema) as writer:
            writer.write_table(noted)
        return name

    def let_others_read(self) -> None:
        """Give Tantivy's lists of files, which it keeps from other users, the permissions of its other files."""
        files = [path for path in self.folder.glob("*.store") if path.is_file()]
        for name in ("meta.json", ".managed.json"):
            if files:
                with suppress(OSError):
                    (self.folder / name).chmod(files[0].stat().st_mode)

    def drop_unused_rows(self, new: IndexState) -> None:
        """Remove notes that are of neither the new state nor the one before, which other processes may still read."""
        states = [new] if self.state is None else [new, self.state]
        used = {fragment.rows_file for state in states for fragment in state.fragments.values()}
        for path in (self.folder / _ROWS).iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)


_UNWRITABLE = ("Permission denied", "PermissionDenied", "Read-only file system", "ReadOnlyFilesystem")

HOW_TO_REBUILD = "Build it anew: index.rebuild(), TantivyIndex.open(..., rebuild=True), or lance-rerank lexical rebuild"


def read_index_file(root: Path) -> dict[str, Any] | None:
    """Return what an index's folder says of itself, None where there is no index.

    Raises
    ------
    LexicalIndexError
        It says nothing that can be read, or is of another release.
    """
    try:
        content = json.loads((root / _INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise LexicalIndexError(f"{root / _INDEX} cannot be read ({error}). {HOW_TO_REBUILD}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise LexicalIndexError(
            f"the index in {root} has format {found!r}, and this release of lance_rerank reads {FORMAT}. "
            f"{HOW_TO_REBUILD}"
        )
    for name, kind in (("table", str), ("generation", str), ("settings", dict)):
        if not isinstance(content.get(name), kind):
            raise LexicalIndexError(f"{root / _INDEX} does not say its {name}. {HOW_TO_REBUILD}")
    return content


@contextmanager
def sole_writer(root: Path) -> Iterator[None]:
    """Hold the right to write to an index's folder; a process that dies lets go of it.

    Raises
    ------
    ConflictError
        Another process, or thread, has it.
    LexicalIndexError
        The folder cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".write.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ConflictError(
            f"another process is writing to the index in {root}. Wait for it, sync(wait_s=60), and see that one "
            "process alone keeps the index up to date"
        ) from error
    except OSError as error:
        raise LexicalIndexError(f"the index in {root} cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


def create_generation(root: Path, settings: LexicalSettings) -> Generation:
    """Return a new, empty generation, which is not the current one yet."""
    name = f"generation-{uuid.uuid4().hex}"
    try:
        (root / name / _ROWS).mkdir(parents=True)
        tantivy.Index(settings.tantivy_schema(), path=str(root / name), reuse=False)
        return Generation(root, settings, name)
    except (OSError, ValueError, LexicalIndexError) as error:
        shutil.rmtree(root / name, ignore_errors=True)
        raise LexicalIndexError(f"the index in {root} cannot be written: {error}") from error


def copy_generation(generation: Generation, root: Path) -> Generation:
    """Return a copy of a generation in another folder, as links where the disk is the same one."""
    copied = copy_files(generation.folder, root / generation.name)
    return Generation(root, generation.settings, generation.name, copied)


def copy_files(folder: Path, to: Path) -> Path:
    """Copy a generation's files, and return where they are.

    Tantivy writes each file once and never changes it, but for its lists of them: these are copied, others linked.
    """
    for _ in range(ATTEMPTS):
        try:
            (to / _ROWS).mkdir(parents=True)
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.endswith(".lock"):
                    _link(path, to / path.relative_to(folder))
            tantivy.Index.open(str(to)).reload()
            return to
        except (FileNotFoundError, ValueError):  # another process has just committed, and removed old files
            shutil.rmtree(to, ignore_errors=True)
    raise LexicalIndexError(
        f"the index in {folder} changes faster than it can be copied, or is damaged. {HOW_TO_REBUILD}"
    )


def _link(path: Path, to: Path) -> None:
    if path.name in ("meta.json", ".managed.json"):
        shutil.copy2(path, to)
        return
    try:
        os.link(path, to)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copy2(path, to)


def make_current(generation: Generation, table_uri: str) -> None:
    """Let an index's folder name this generation, and drop the others."""
    content = {
        "format": FORMAT,
        "table": table_uri,
        "generation": generation.name,
        "settings": generation.settings.to_json(),
    }
    part = generation.root / f"{_INDEX}.{uuid.uuid4().hex}.part"
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(part, generation.root / _INDEX)
    drop_other_generations(generation)


def drop_other_generations(generation: Generation) -> None:
    """Remove all generations but this one: older ones, and those whose builder was killed."""
    for path in generation.root.glob("generation-*"):
        if path.name != generation.name:
            shutil.rmtree(path, ignore_errors=True)
