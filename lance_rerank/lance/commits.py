"""The Lance dataset under a table: its files, and commits to it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.file import LanceFileWriter
from lance.fragment import DataFile
from lancedb.table import LanceTable, Table

from lance_rerank.errors import ColumnError, ConflictError, UnsupportedError

logger = logging.getLogger(__name__)

ATTEMPTS = 20  # in a row that other writers thwart, before they are said to be too busy


def dataset(table: Table) -> lance.LanceDataset:
    """Return the Lance dataset under a table, at its latest version.

    Raises
    ------
    UnsupportedError
        The table is remote, so its files are out of reach.
    """
    if not isinstance(table, LanceTable):
        raise UnsupportedError(f"writing columns needs a local or object-store table, not a {type(table).__name__}")
    try:
        opened = table.to_lance()
    except ValueError as error:  # the handle's version was cleaned up
        if not is_gone(error):
            raise
        table.checkout_latest()
        opened = table.to_lance()
    opened.checkout_latest()
    return opened


def is_gone(error: BaseException) -> bool:
    """Tell whether something could not be read because a clean-up of old versions has removed it.

    Lance and Arrow raise several classes for that.
    """
    return isinstance(error, OSError | ValueError) and "not found" in str(error).lower()


def files_of(table: Table) -> list[str]:
    """Return the names of all files with rows, or deletions of rows, of the version that a table's handle is at."""
    fragments = table.to_lance().get_fragments()
    paths = [file.path for fragment in fragments for file in fragment.metadata.files]
    return [*paths, *(name for fragment in fragments if (name := deletions(fragment)))]


@dataclass(frozen=True, slots=True)
class Commit:
    """What came of a commit that is made anew whenever another one thwarts it.

    Attributes
    ----------
    before : lance.LanceDataset
        At the version it was made for. Commits that it does not conflict with may have landed since.
    after : lance.LanceDataset
        At the version it made; `before` where there was nothing to commit.
    attempts : int
        How often it was tried.
    """

    before: lance.LanceDataset
    after: lance.LanceDataset
    attempts: int

    @property
    def version(self) -> int:
        """The version it made."""
        return int(self.after.version)

    @property
    def committed(self) -> bool:
        """Whether there was anything to commit."""
        return self.version > self.before.version


def commit_retried(table: Table, change: Callable[[lance.LanceDataset], Any], what: str) -> Commit:
    """Commit what `change` makes of a table's latest version, and again of a later one while others' commits thwart it.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    change : callable
        Given the dataset at its latest version, returns the operation to commit against it; None for nothing.
    what : str
        In words, after "to", for the error.

    Raises
    ------
    ConflictError
        Other writers thwarted every attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        data = dataset(table)
        operation = change(data)
        if operation is None:
            return Commit(data, data, attempt)
        try:
            return Commit(data, commit(data, operation), attempt)
        except CommitConflictError as error:
            logger.info("another commit came before this one to %s, which is made again: %s", what, error)
    raise ConflictError(
        f"other writers' commits came in between on each of {ATTEMPTS} attempts to {what}. Nothing was changed: try "
        "again when fewer columns and settings of the table are being changed."
    )


def commit(data: lance.LanceDataset, operation: Any) -> lance.LanceDataset:
    """Commit an operation against the version that `data` was read at, and return the dataset at the version it made.

    Raises
    ------
    OSError
        The commit conflicts with one that landed since.
    """
    return lance.LanceDataset.commit(data, operation, read_version=data.version)


def write_column_file(data: lance.LanceDataset, name: str, batches: Iterator[pa.Array], storage: pa.DataType) -> str:
    """Write one column of one fragment to a new file of the dataset and return its path in ``data/``."""
    path = f"{uuid.uuid4()}.lance"
    schema = pa.schema([pa.field(name, storage)])
    with LanceFileWriter(
        f"{data.uri.rstrip('/')}/data/{path}",
        schema,
        version=data.data_storage_version,
        storage_options=data._storage_options,
    ) as writer:
        for array in batches:
            writer.write_batch(pa.record_batch([array], schema=schema))
    return path


def replace_column(data: lance.LanceDataset, fragment_id: int, path: str) -> None:
    """Commit a column file as one fragment's values, against the version that `data` was read at.

    Other columns, other fragments and every index of other columns stay as they are. An append or a delete that
    landed meanwhile is no conflict; an update or a compaction of this fragment is.

    Raises
    ------
    OSError
        The commit conflicts with one that landed since.
    """
    group = lance.LanceOperation.DataReplacementGroup(fragment_id, DataFile.create(data, path))
    commit(data, lance.LanceOperation.DataReplacement([group]))


def fragment_file(data: lance.LanceDataset, fragment: Any, column: str) -> str | None:
    """Return the path of the file that holds a fragment's values of a column, None where they are all null.

    Raises
    ------
    ColumnError
        The table has no such column.
    """
    ids = _leaf_ids(_field(data, column))
    return next((file.path for file in fragment.metadata.files if ids & set(file.fields)), None)


def field_id(data: lance.LanceDataset, column: str) -> int:
    """Return what a column is known by, whatever its name is and will be.

    Raises
    ------
    ColumnError
        The table has no such column.
    """
    return int(_field(data, column).id())


def _field(data: lance.LanceDataset, column: str) -> Any:
    field = next((field for field in data.lance_schema.fields() if field.name() == column), None)
    if field is None:
        raise ColumnError(f"the table has no column {column!r} any more (columns: {', '.join(data.schema.names)})")
    return field


def deletions(fragment: Any) -> str | None:
    """Return the name of the list of a fragment's deleted rows, None where there is none."""
    found = fragment.metadata.deletion_file
    return None if found is None else str(found.path(fragment.fragment_id))


def live_places(fragment: Any) -> npt.NDArray[np.int64]:
    """Return which of a fragment's rows are not deleted, counted from 0."""
    rows = fragment.scanner(columns=[], with_row_address=True).to_table()
    return (rows.column("_rowaddr").to_numpy() & 0xFFFFFFFF).astype(np.int64)


def _leaf_ids(field: Any) -> set[int]:
    """Return the ids that data files carry for a field: those of its innermost children."""
    children = field.children()
    return set().union(*map(_leaf_ids, children)) if children else {field.id()}


class SideDataset:
    """A small Lance dataset in a table's own folder, for notes on one column."""

    def __init__(self, data: lance.LanceDataset, name: str) -> None:
        self._uri = f"{data.uri.rstrip('/')}/_lance_rerank/{name}.lance"
        self._options = data._storage_options

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what was appended; nothing where there is no such dataset."""
        try:
            opened = lance.dataset(self._uri, storage_options=self._options)
        except (ValueError, OSError):
            return
        yield from opened.to_batches()

    def append(self, rows: pa.Table) -> None:
        """Add rows, in one commit."""
        lance.write_dataset(rows, self._uri, mode="append", storage_options=self._options)

    def drop(self) -> None:
        """Remove it with all that was appended; it is no error where there is none."""
        lance.LanceDataset.drop(self._uri, storage_options=self._options, ignore_not_found=True)


def add_hidden_column(table: Table, name: str, data_type: pa.DataType, metadata: Mapping[str, str]) -> None:
    """Add a column of nulls, a change of metadata alone. Hidden types keep running apps' searches as they are.

    Another writer that adds the same column first is no error: the table then has it.

    Raises
    ------
    ConflictError
        Other writers changed the table's columns on every attempt.
    """
    for _ in range(ATTEMPTS):
        try:
            table.add_columns(pa.field(name, data_type, metadata=dict(metadata)))
        except RuntimeError as error:  # LanceDB's for a commit that another one preempted
            logger.info("another commit came before the one that adds %r: %s", name, error)
            table.checkout_latest()
            if name in table.schema.names:
                return
            cause = error
        else:
            return
    raise ConflictError(
        f"other writers' commits came in between on each of {ATTEMPTS} attempts to add the column {name!r}. Nothing "
        "was changed: try again when fewer of them write."
    ) from cause
