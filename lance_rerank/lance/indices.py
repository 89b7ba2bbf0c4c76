"""Indices by the columns they are of, and their names.

An index knows its column by the field id. When the column gets another name the index stays with it and keeps its own:
after a swap ``vector_idx`` is of the retired column, and ``create_index("vector")`` makes a ``vector_idx_2`` beside the
one that the new column has already. LanceDB's default name is the column's with ``_idx``. So that such names go on to
say which column an index is of, and what asks for ``vector_idx`` gets the index that is searched, there is
`rename_indices_after`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lance
from lance.dataset import Index
from lancedb.table import Table

from lance_rerank.errors import ArgumentError, UnsupportedError
from lance_rerank.lance.commits import commit_retried, dataset
from lance_rerank.lance.schema_edit import SchemaEdit
from lance_rerank.lance.swap import ColumnSwap


def default_index_name(column: str) -> str:
    """Return the name that LanceDB gives to a column's index when the caller gives none."""
    return f"{column}_idx"


def indices_of(table: Table, column: str) -> list[str]:
    """Return the names of a column's indices in a table's latest version, those of hidden and nested columns too.

    Raises
    ------
    ColumnError
        The table has no such column.
    """
    return _indices_of(dataset(table), column)


def _indices_of(data: lance.LanceDataset, column: str) -> list[str]:
    ids = SchemaEdit(data).ids_of(column)
    return [str(index.name) for index in data.describe_indices() if ids & set(index.fields)]


def rename_indices_after(table: Table, swap: ColumnSwap) -> dict[str, str]:
    """Give indices that are named after a column's name before a swap its name of now; return old to new names.

    Run again, or after a swap whose indices have names of their own, it does nothing.

    Raises
    ------
    ConflictError
        Other writers changed these indices on every attempt.
    """
    before = {swap.live: swap.shadow, swap.retired: swap.live}
    data = dataset(table)
    names = {
        default_index_name(old): default_index_name(now)
        for now, old in before.items()
        if default_index_name(old) in _indices_of(data, now)
    }
    if names:
        rename_indices(table, names)
    return names


def rename_indices(table: Table, names: Mapping[str, str]) -> None:
    """Give vector indices other names, in one commit that rebuilds nothing; names may be exchanged.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store; is moved to its latest version.
    names : mapping
        Old names to new ones.

    Raises
    ------
    ArgumentError
        There is no index of an old name, or another one has a new name.
    UnsupportedError
        An index is no vector index: the settings of others are not carried along.
    ConflictError
        Other writers changed these indices on every attempt.
    """

    def change(data: lance.LanceDataset) -> lance.LanceOperation.CreateIndex:
        present = {str(index.name): index for index in data.describe_indices()}
        _require_names(present, names)
        pairs = [(old, segment) for old in names for segment in present[old].segments]
        removed = [_segment(present[old], segment, old) for old, segment in pairs]
        renamed = [_segment(present[old], segment, names[old]) for old, segment in pairs]
        return lance.LanceOperation.CreateIndex(renamed, removed)

    commit_retried(table, change, f"rename {', '.join(names)}")
    table.checkout_latest()


def _require_names(present: Mapping[str, Any], names: Mapping[str, str]) -> None:
    listed = ", ".join(present) or "none"
    if missing := [name for name in names if name not in present]:
        raise ArgumentError(f"the table has no index {missing[0]!r} (indices: {listed})")
    kept = present.keys() - names.keys()
    if len({*names.values(), *kept}) < len(present):
        raise ArgumentError(f"{dict(names)} would give two indices one name (indices: {listed})")
    for name in names:
        if not present[name].type_url.endswith("VectorIndexDetails"):
            raise UnsupportedError(f"only vector indices can be renamed, {name!r} is a {present[name].index_type}")


def _segment(index: Any, segment: Any, name: str) -> Index:
    """Return a part of an index as a commit names it; what it does not say, Lance reads from the index's files."""
    return Index(
        uuid=segment.uuid,
        name=name,
        fields=index.fields,
        dataset_version=segment.dataset_version_at_last_update,
        fragment_ids=segment.fragment_ids,
        index_version=segment.index_version,
        created_at=segment.created_at,
        base_id=segment.base_id,
        covering_fields=segment.covering_fields,
    )
