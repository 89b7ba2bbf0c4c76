"""Put one column in another's place, with the model that its vectors come from, in a single commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.lance.metadata import EMBEDDING_FUNCTIONS, Updates, embedding_entries
from lance_rerank.lance.schema_edit import SchemaCommit, SchemaEdit, commit_schema
from lance_rerank.lance.tables import require_sync_table


@dataclass(frozen=True, slots=True)
class ColumnSwap:
    """Which column takes whose place.

    Attributes
    ----------
    live : str
        The name that searches go by. The column that has it gives it up.
    shadow : str
        The column that takes the name `live`.
    retired : str
        The name that the old column gets. It is hidden from LanceDB's search for "the" vector column.

    Examples
    --------
    >>> swap = ColumnSwap(live="vector", shadow="vector_next", retired="vector_prev")
    >>> swap.reversed()
    ColumnSwap(live='vector', shadow='vector_prev', retired='vector_next')
    """

    live: str
    shadow: str
    retired: str

    def __post_init__(self) -> None:
        names = (self.live, self.shadow, self.retired)
        if len(set(names)) < 3:
            raise ArgumentError(f"a swap takes three different names, got {', '.join(map(repr, names))}")
        if any(not name or "." in name for name in names):
            raise ColumnError(f"a column's name is not empty and has no dot, got {', '.join(map(repr, names))}")

    def reversed(self) -> ColumnSwap:
        """Return the swap that takes this one back, whatever was written in between."""
        return ColumnSwap(self.live, shadow=self.retired, retired=self.shadow)


def swap_columns(
    table: object,
    swap: ColumnSwap,
    *,
    embedding_functions: Sequence[Mapping[str, Any]] | None,
    metadata_updates: Updates | None = None,
    field_metadata: Mapping[str, Updates] | None = None,
) -> SchemaCommit:
    """Give the shadow column the live name and hide the old one, in one commit with all that is said of them.

    Only the schema changes. Field ids, nullability, values and indices stay with their columns (`rename_indices_after`
    is for the names of the latter), and all other metadata stays what it is. Appends, updates, deletes, compaction and
    index builds that land meanwhile are kept; a column that is added, dropped or renamed meanwhile makes the swap begin
    again. Handles opened before go on writing to the column that they know. The columns may differ in dimension and in
    the size of their floats. With ``swap.reversed()`` this function takes it back.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store; is moved to its latest version.
    swap : ColumnSwap
        The names.
    embedding_functions : sequence of mappings, or None
        LanceDB's entries for the columns of this swap as they are to be afterwards, each with ``name``, ``model``,
        ``source_column`` and ``vector_column``; those of other columns stay. None leaves all as they are.
    metadata_updates : mapping, optional
        Keys of the schema's metadata to set, or, given as None, to remove.
    field_metadata : mapping, optional
        By the columns' names afterwards: keys of their fields' metadata to set, or to remove.

    Returns
    -------
    SchemaCommit
        The version made, and the one it was made for. Rows that landed in between were written for the old column: in
        the new one they have no value, or that of an older text.

    Raises
    ------
    ColumnError
        A column is missing, nested or no column of vectors, may not be null, or the name for the old one is taken.
    ArgumentError
        An entry of `embedding_functions` is for a column that the swap does not concern.
    UnsupportedError
        The table is remote or async.
    ConflictError
        Other writers changed the table's columns on every attempt.
    """
    change = _Change(swap, embedding_functions, metadata_updates or {}, field_metadata or {})
    of_table = require_sync_table(table, "swap_columns")
    return commit_schema(of_table, change.apply, f"put {swap.shadow!r} in the place of {swap.live!r}")


@dataclass(frozen=True, slots=True)
class _Change:
    """A swap as a function from one schema to another."""

    swap: ColumnSwap
    functions: Sequence[Mapping[str, Any]] | None
    metadata: Updates
    field_metadata: Mapping[str, Updates]

    def __post_init__(self) -> None:
        names = (self.swap.live, self.swap.retired)
        for asked, place in (
            *((entry.get("vector_column"), "embedding_functions") for entry in self.functions or ()),
            *((column, "field_metadata") for column in self.field_metadata),
        ):
            if asked not in names:
                raise ArgumentError(f"{place} of a swap are for {' and '.join(map(repr, names))}, got {asked!r}")

    def apply(self, schema: SchemaEdit) -> None:
        """Make a schema that of after the swap."""
        self._require_columns(schema)
        swap = self.swap
        live, shadow = schema.column(swap.live), schema.column(swap.shadow)
        old, new = schema.vectors(swap.live), schema.vectors(swap.shadow)
        (new.hide if old.is_hidden else new.show)()
        old.hide()
        live.name, shadow.name = swap.retired, swap.live
        for name, updates in self.field_metadata.items():
            column = schema.column(name)
            column.metadata = _updated(column.metadata, updates)
        schema.metadata = _updated(schema.metadata, self._with_functions(schema.metadata))

    def _require_columns(self, schema: SchemaEdit) -> None:
        swap = self.swap
        if swap.retired in schema.names:
            made = "" if swap.shadow in schema.names else f" and none {swap.shadow!r}: this swap was made before"
            raise ColumnError(f"the table has a column {swap.retired!r} already{made}")
        columns = [schema.column(name) for name in (swap.live, swap.shadow)]
        of_tokens = [schema.vectors(column.name) is not column for column in columns]
        if of_tokens[0] != of_tokens[1]:
            raise ColumnError(f"of {swap.live!r} and {swap.shadow!r} one holds token vectors, the other a vector a row")
        for column in columns:
            if not column.nullable:
                raise ColumnError(
                    f"column {column.name!r} may not be null, but after the swap rows are added that have no value in "
                    "the column that is not searched. Allow it first: "
                    f"table.alter_columns({{'path': {column.name!r}, 'nullable': True}})"
                )

    def _with_functions(self, metadata: Mapping[str, bytes]) -> Updates:
        if self.functions is None:
            return self.metadata
        concerned = {self.swap.live, self.swap.shadow, self.swap.retired}
        others = [entry for entry in embedding_entries(metadata) if entry["vector_column"] not in concerned]
        return {**self.metadata, **_entries([*others, *map(dict, self.functions)])}


def _updated(metadata: Mapping[str, bytes], updates: Updates) -> dict[str, bytes]:
    kept = {key: value for key, value in metadata.items() if key not in updates}
    return kept | {key: value.encode() for key, value in updates.items() if value is not None}


def _entries(entries: Sequence[Mapping[str, Any]]) -> Updates:
    return {EMBEDDING_FUNCTIONS: json.dumps(entries, indent=2) if entries else None}


def drop_column(table: object, name: str) -> SchemaCommit:
    """Drop a column with its indices and its embedding function, in one commit of metadata.

    Its values go from the files when compaction next writes them. Handles opened before cannot write it any more.

    Raises
    ------
    ColumnError
        The table has no such column.
    UnsupportedError
        The table is remote or async.
    ConflictError
        Other writers changed the table's columns on every attempt.
    """

    def drop(schema: SchemaEdit) -> None:
        schema.drop(name)
        entries = embedding_entries(schema.metadata)
        kept = [entry for entry in entries if entry["vector_column"] != name]
        if kept != entries:
            schema.metadata = _updated(schema.metadata, _entries(kept))

    return commit_schema(require_sync_table(table, "drop_column"), drop, f"drop the column {name!r}")
