"""What is looked at before a plan is made, so that nothing comes up after hours of embedding."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

import lancedb
import pyarrow as pa
from lancedb.table import LanceTable, Table

from lance_rerank import lance
from lance_rerank.columns.mean import KIND as MEANS
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, UnsupportedError
from lance_rerank.reindex.indexes import require_choice
from lance_rerank.reindex.state import read_state

MARGIN = 1.05  # of the bytes that are needed


def check_arguments(
    dtype: object,
    dtypes: Collection[str],
    index: str,
    batch_size: object,
    sample: object,
    pool_factor: object = None,
) -> None:
    """Raise `ArgumentError` where an argument of a plan is none that it could be."""
    require_choice(index)
    if dtype is not None and dtype not in dtypes:
        raise ArgumentError(f"dtype must be one of {', '.join(dtypes)}, got {dtype!r}")
    numbers = (("batch_size", batch_size), ("sample", sample), ("pool_factor", pool_factor))
    for name, number in numbers:
        given = 1 if number is None and name != "sample" else number
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ArgumentError(f"{name} must be at least 1, got {number!r}")


def require_table(table: object, what: str) -> Table:
    """Return a second handle on a table that can be written, at its latest version.

    Raises
    ------
    UnsupportedError
        The table is remote or async, has a write-ahead log, its handle is pinned to a version, or its folder is
        read-only.
    """
    given = lance.require_sync_table(table, what)
    if not isinstance(given, LanceTable):
        raise UnsupportedError(f"{what} needs a local or object-store table, not a {type(given).__name__}")
    if _is_pinned(given):
        raise UnsupportedError(
            f"this handle on {given.name!r} is pinned to version {given.version}, and a column is replaced in the "
            "latest one. Call table.checkout_latest() first, or open the table again."
        )
    opened = lance.latest_handle(given)
    if lance.dataset(opened).mem_wal_index_details() is not None:
        raise UnsupportedError(
            f"table {given.name!r} has a write-ahead log (MemWAL): rows in it are not in the table yet, and would be "
            "missed. Merge the log and take it away first."
        )
    if (folder := local_folder(opened.uri)) is not None:
        for path in (folder, folder / "data", folder / "_versions"):
            if path.exists() and not os.access(path, os.W_OK):
                raise UnsupportedError(f"the table's folder cannot be written: {path}. Reindexing adds files to it.")
    return opened


def _is_pinned(table: LanceTable) -> bool:
    """Tell whether a handle was checked out at a version, by asking it for what neither kind can do."""
    try:
        table.drop_columns([f"no-such-column-{uuid.uuid4().hex}"])
    except (ValueError, RuntimeError) as error:
        return "specific version" in str(error)
    return False


def local_folder(uri: str) -> Path | None:
    """Return the folder of a local table or database, None for an object store."""
    path = uri.removeprefix("file://")
    return None if "://" in path else Path(path)


def vector_column(schema: pa.Schema, column: str | None) -> tuple[str, pa.DataType]:
    """Return the vector column to replace, named or the only one, and its type.

    Raises
    ------
    ColumnError
        There is none, several to choose from, or the one named holds something else.
    """
    if column is not None and column not in schema.names and column.partition(".")[0] in schema.names:
        raise ColumnError(f"{column!r} is a part of a nested column; only columns of the table itself can be reindexed")
    if column is None and len(found := lance.vector_columns(schema)) > 1:
        raise ColumnError(
            f"the table has several vector columns ({', '.join(found)}): name the one to replace, column="
        )
    name = lance.the_vector_column(schema, column)
    data_type = schema.field(name).type
    record = ColumnRecord.of(schema, name)
    if record is not None and record.kind == MEANS:
        raise ColumnError(
            f"column {name!r} holds means of the token vectors in {record.source!r} and follows them: reindex "
            f"these, column={record.source!r}"
        )
    if lance.is_hidden(data_type):
        raise ColumnError(
            f"column {name!r} is hidden from searches ({data_type}): it is no column that apps search by default, but "
            "one that this package made. Name the live vector column."
        )
    if not pa.types.is_fixed_size_list(data_type) or not pa.types.is_floating(data_type.value_type):
        raise ColumnError(f"column {name!r} holds {data_type}; one vector of floats a row was expected")
    if not schema.field(name).nullable:
        raise ColumnError(
            f"column {name!r} may not be null, but after the swap rows are added that have no value in it. Allow it "
            f"first: table.alter_columns({{'path': {name!r}, 'nullable': True}})"
        )
    return name, data_type


def table_at(uri: str) -> Table:
    """Return the table of a plan that was read from a file.

    Raises
    ------
    ArgumentError
        It cannot be opened.
    """
    database, _, folder = uri.rstrip("/").rpartition("/")
    try:
        return lancedb.connect(database).open_table(folder.removesuffix(".lance"))
    except (ValueError, OSError, RuntimeError) as error:
        raise ArgumentError(f"the plan's table at {uri} cannot be opened: {error}. Pass it: table=...") from error


def holds_tokens(schema: pa.Schema, column: str) -> bool:
    """Tell whether a column of a table holds token vectors."""
    return column in schema.names and lance.token_dim(schema.field(column).type) is not None


def source_column(table: Table, column: str, source: str | None) -> str:
    """Return the column of texts that a vector column comes from: the one named, or that of its embedding function.

    Raises
    ------
    ColumnError
        None is named and the table names none, it is not there, or it holds something else than texts.
    """
    schema = table.schema
    if source is None:
        entries = lance.embedding_entries({k.decode(): v for k, v in (schema.metadata or {}).items()})
        named = [entry["source_column"] for entry in entries if entry["vector_column"] == column]
        if not named:
            raise ColumnError(
                f"column {column!r} has no embedding function that says which column it comes from: name it, "
                f"source=... (columns: {', '.join(schema.names)})"
            )
        source = str(named[0])
    if source not in schema.names:
        if source.partition(".")[0] in schema.names:
            raise ColumnError(f"{source!r} is a part of a nested column; texts come from columns of the table itself")
        raise ColumnError(f"the table has no column {source!r} to read texts from (columns: {', '.join(schema.names)})")
    data_type = schema.field(source).type
    if not (pa.types.is_string(data_type) or pa.types.is_large_string(data_type)):
        raise ColumnError(f"column {source!r} holds {data_type}, not texts: name a column of strings, source=...")
    return source


def require_columns(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise `ColumnError` where a transform would read columns that are not there, or one twice."""
    for name in columns:
        if name not in schema.names:
            raise ColumnError(
                f"the table has no column {name!r} for the transform to read (columns: {', '.join(schema.names)})"
            )
    if len(set(columns)) != len(columns):
        raise ColumnError(f"a transform reads each column once, got {', '.join(columns)}")


def require_no_job(table: Table, column: str) -> None:
    """Raise `ConflictError` where a job is on the column already."""
    if (state := read_state(table, column)) is not None:
        raise ConflictError(
            f"column {column!r} is being reindexed by {state} since before. Go on with it, "
            f"lance_rerank.ReindexJob.open(table, {column!r}).backfill(), or take it back with its .abort()"
        )


def require_disk(uri: str, table_bytes: int, work_dir: str | None, spool_bytes: int) -> None:
    """Raise `UnsupportedError` where the bytes to be written do not fit; object stores are taken to have room."""
    needed: dict[Path, int] = {}
    for place, size in (
        (local_folder(uri), table_bytes),
        (Path(work_dir) if work_dir else local_folder(uri), spool_bytes),
    ):
        if place is not None:
            mount = _mount(place)
            needed[mount] = needed.get(mount, 0) + size
    for mount, size in needed.items():
        free = shutil.disk_usage(mount).free
        if free < size * MARGIN:
            raise UnsupportedError(
                f"not enough disk: reindexing writes about {_megabytes(size)} under {mount}, where {_megabytes(free)} "
                "are free. Make room, or let the embedded texts wait elsewhere: work_dir=..."
            )


def work_folder(uri: str, work_dir: str | None, job: str) -> Path:
    """Return the folder of a job's journal and spool.

    Raises
    ------
    ArgumentError
        The table is on an object store, and no work_dir is named.
    """
    if work_dir is not None:
        return Path(work_dir) / job
    folder = local_folder(uri)
    if folder is None:
        raise ArgumentError(
            f"table {uri} is on an object store: name a local folder for what is embedded until it is committed, "
            "work_dir=..."
        )
    return folder / "_lance_rerank" / "reindex" / job


def _mount(path: Path) -> Path:
    """Return the topmost folder on a path's file system."""
    found = path.resolve()
    while not found.exists():
        found = found.parent
    while found != found.parent and found.parent.stat().st_dev == found.stat().st_dev:
        found = found.parent
    return found


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
