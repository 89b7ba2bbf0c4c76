"""What is written beside a table's rows: metadata of its schema, and of the table itself.

They differ when several write at once. Metadata of the *schema* comes with every result, is a part of each commit that
renames or drops columns, and two writers of it conflict whatever keys they write. Metadata of the *table* comes with
nothing, no other commit carries it along, and writers conflict by key: the place for a job's state and its lease.

Both live through appends, updates, compaction and changes of columns. `Table.restore` takes both back to what they were
in the older version; overwriting the table keeps the table's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import lance
from lancedb.table import Table

from lance_rerank.errors import ArgumentError
from lance_rerank.lance.commits import commit_retried, dataset

Updates = Mapping[str, str | None]

EMBEDDING_FUNCTIONS = "embedding_functions"
"""The key of the schema's metadata under which LanceDB keeps which function fills which column."""
MODEL_PREFIX = "lance_rerank.model."
"""Of the keys of the schema's metadata that tell apart models which have one name: see `model_key`."""


def schema_metadata(table: Table) -> dict[str, str]:
    """Return the metadata of the schema of a table's latest version, LanceDB's ``embedding_functions`` among it."""
    return {key.decode(): value.decode() for key, value in (dataset(table).schema.metadata or {}).items()}


def table_metadata(table: Table) -> dict[str, str]:
    """Return the metadata of a table's latest version that is not its schema's."""
    return dict(dataset(table).metadata)


def update_schema_metadata(table: Table, updates: Updates) -> int:
    """Set keys of the schema's metadata, or remove those given as None, in one commit; return its version.

    Raises
    ------
    ConflictError
        Other writers thwarted the commit on every attempt.
    """
    change = lance.LanceOperation.UpdateConfig(schema_metadata_updates=update_map(updates))
    return commit_retried(table, lambda _: change, "change the schema's metadata").version


def update_table_metadata(table: Table, updates: Updates) -> int:
    """Set keys of the table's metadata, or remove those given as None, in one commit; return its version.

    Of two writers of one key the later one wins: `compare_and_set_metadata` is for keys that are fought over.

    Raises
    ------
    ConflictError
        Other writers thwarted the commit on every attempt.
    """
    change = lance.LanceOperation.UpdateConfig(table_metadata_updates=update_map(updates))
    return commit_retried(table, lambda _: change, "change the table's metadata").version


def compare_and_set_metadata(table: Table, key: str, expected: str | None, new: str | None) -> bool:
    """Set a key of the table's metadata if it has the value expected, and tell whether it did; None is for "no value".

    Of several that expect the same, in whatever processes, one is told True: the commit is made against the version in
    which the value was read, and Lance refuses it when a commit of the same key has landed since.

    Raises
    ------
    ArgumentError
        Both values are the same, so that nothing would tell who came first.
    ConflictError
        The value was as expected, and other writers thwarted the commit on every attempt.
    """
    if expected == new:
        raise ArgumentError(f"expected and new are both {new!r}: give a value that tells the writer from others")

    def change(data: lance.LanceDataset) -> lance.LanceOperation.UpdateConfig | None:
        if data.metadata.get(key) != expected:
            return None
        return lance.LanceOperation.UpdateConfig(table_metadata_updates=update_map({key: new}))

    return commit_retried(table, change, f"set {key!r} in the table's metadata").committed


def model_key(column: str) -> str:
    """Return the key of the schema's metadata that holds the fingerprint of the model behind a column.

    It tells a model from one that was trained on and has its name and folder: without it, handles that follow a change
    of model would take both for one. Set it with the swap that puts the model's column in place.
    """
    return f"{MODEL_PREFIX}{column}"


def embedding_entries(metadata: Mapping[str, str | bytes]) -> list[dict[str, Any]]:
    """Return what a schema's metadata say of embedding functions: name, model, source and vector column of each."""
    entries: list[dict[str, Any]] = json.loads(metadata.get(EMBEDDING_FUNCTIONS, b"[]"))
    return entries


def update_map(updates: Updates) -> lance.LanceOperation.UpdateMap:
    """Return updates of metadata as Lance's commits take them."""
    return lance.LanceOperation.UpdateMap(dict(updates))
