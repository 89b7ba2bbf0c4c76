"""Change a table's schema while every column keeps its field id, and with it its data and its indices.

pyarrow's schemas carry no field ids, and Lance numbers the fields of a schema made from one anew. So Lance's own schema
is taken apart into the protobuf messages that it pickles as, and put together again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lance
from lancedb.table import Table

from lance_rerank.errors import ColumnError
from lance_rerank.lance.commits import Commit, commit_retried
from lance_rerank.lance.fields import Field
from lance_rerank.lance.metadata import update_map

logger = logging.getLogger(__name__)


class SchemaEdit:
    """A dataset's schema, to be changed and committed.

    Attributes
    ----------
    metadata : dict of str to bytes
        The schema's own metadata, among it LanceDB's ``embedding_functions``.
    fields : list of Field
        All fields, those of nested columns behind their parents.
    """

    def __init__(self, data: lance.LanceDataset) -> None:
        self._rebuild, (metadata, *fields) = data.lance_schema.__reduce__()
        self.metadata = {key: bytes(value) for key, value in json.loads(metadata).items()}
        self.fields = [Field(message) for message in fields]

    def lance_schema(self) -> Any:
        """Return the schema as a commit takes it."""
        metadata = json.dumps({key: list(value) for key, value in self.metadata.items()})
        return self._rebuild(metadata, *(field.encoded() for field in self.fields))

    @property
    def names(self) -> list[str]:
        """The names of the table's columns."""
        return [field.name for field in self.fields if field.parent_id is None]

    def column(self, name: str) -> Field:
        """Return a column of the table.

        Raises
        ------
        ColumnError
            There is none of this name, or it is a part of a nested one.
        """
        for field in self.fields:
            if field.parent_id is None and field.name == name:
                return field
        if name.partition(".")[0] in self.names:
            raise ColumnError(f"{name!r} is a part of a nested column; this takes columns of the table itself")
        raise ColumnError(f"the table has no column {name!r} (columns: {', '.join(self.names)})")

    def vectors(self, name: str) -> Field:
        """Return the field that holds a column's vectors: the column, or, of token vectors, the items of its lists.

        Raises
        ------
        ColumnError
            The column is missing, or holds something else.
        """
        column = self.column(name)
        inside = [field for field in self.fields if field.parent_id == column.id] if column.data_type == "list" else []
        vectors = inside[0] if len(inside) == 1 else column
        if not vectors.holds_vectors and not (inside and vectors.holds_int8):
            raise ColumnError(f"column {name!r} holds {vectors.data_type}, expected vectors of 16, 32 or 64-bit floats")
        return vectors

    def drop(self, name: str) -> None:
        """Leave a column out; its indices go with the commit."""
        ids = self.ids_of(name)
        self.fields = [field for field in self.fields if field.id not in ids]

    def ids_of(self, name: str) -> set[int]:
        """Return the ids of a column's field and of all fields inside it."""
        ids = {self.column(name).id}
        for field in self.fields:  # parents come before what is inside them
            if field.parent_id in ids:
                ids.add(field.id)
        return ids


Edit = Callable[[SchemaEdit], None]


@dataclass(frozen=True, slots=True)
class SchemaCommit:
    """What came of a change of a table's schema.

    Attributes
    ----------
    version : int
        The version it made.
    read_version : int
        The version it was made for. If `version` is not the next one, others' commits of rows and indices landed in
        between, and were kept.
    attempts : int
        How often it was tried: a column added, dropped or renamed meanwhile thwarts it.
    restored : tuple of str
        Keys of metadata that another commit changed in between, which this one undid and put back at once.
    """

    version: int
    read_version: int
    attempts: int
    restored: tuple[str, ...] = ()


def commit_schema(table: Table, edit: Edit, what: str) -> SchemaCommit:
    """Change a table's schema in one commit of metadata alone, and return what came of it.

    Appends, updates, deletes, compaction and index builds that land meanwhile are no conflict, and neither are they for
    handles opened before, which go on writing to the columns that they know.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store; is moved to its latest version.
    edit : callable
        Changes the schema it is given; called again, with a later one, while others' commits thwart this one.
    what : str
        In words, after "to", for the error.

    Raises
    ------
    ConflictError
        Other writers changed the table's columns on every attempt.
    """

    def project(data: lance.LanceDataset) -> lance.LanceOperation.Project:
        schema = SchemaEdit(data)
        edit(schema)
        # without preserves_nullability it would conflict with appends, and those of open handles with it from then on
        return lance.LanceOperation.Project(schema.lance_schema(), preserves_nullability=True)

    done = commit_retried(table, project, what)
    restored = _put_back(table, done, edit)
    table.checkout_latest()
    return SchemaCommit(done.version, int(done.before.version), done.attempts, restored)


# --- metadata that another commit changed in between -----------------------------------------------------------


def _put_back(table: Table, done: Commit, edit: Edit) -> tuple[str, ...]:
    """Put back what others changed in the metadata between the version read and the one made; return the keys.

    A whole schema was committed, and Lance sees no conflict between that and a commit of metadata alone.
    """
    if done.version == done.before.version + 1:
        return ()
    try:
        expected = SchemaEdit(done.after.checkout_version(done.version - 1))
    except (ValueError, OSError) as error:
        logger.warning("whether metadata was changed meanwhile cannot be told, that version is gone: %s", error)
        return ()
    edit(expected)
    lost = _Lost.between(expected, SchemaEdit(done.after))
    if lost.keys:
        commit_retried(table, lost.put_back, "put back metadata that was changed meanwhile")
    return lost.keys


@dataclass(frozen=True, slots=True)
class _Lost:
    """Metadata by field id, None for the schema's own: what each key is, and what it is to be."""

    values: dict[int | None, dict[str, tuple[bytes | None, bytes | None]]]

    @classmethod
    def between(cls, expected: SchemaEdit, actual: SchemaEdit) -> _Lost:
        is_now, is_to_be = _all_metadata(actual), _all_metadata(expected)
        differing = {
            place: {
                key: (is_now[place].get(key), wanted.get(key))
                for key in wanted.keys() | is_now[place].keys()
                if wanted.get(key) != is_now[place].get(key)
            }
            for place, wanted in is_to_be.items()
        }
        return cls({place: keys for place, keys in differing.items() if keys})

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(key for keys in self.values.values() for key in keys))

    def put_back(self, data: lance.LanceDataset) -> lance.LanceOperation.UpdateConfig | None:
        """Return the commit that does it, leaving keys alone that somebody has changed again."""
        present = _all_metadata(SchemaEdit(data))
        updates: dict[int | None, dict[str, str | None]] = {}
        for place, keys in self.values.items():
            for key, (lost, wanted) in keys.items():
                if place in present and present[place].get(key) == lost:
                    updates.setdefault(place, {})[key] = None if wanted is None else wanted.decode(errors="replace")
        if not updates:
            return None
        fields = {place: update_map(keys) for place, keys in updates.items() if place is not None}
        return lance.LanceOperation.UpdateConfig(
            schema_metadata_updates=update_map(updates.get(None, {})), field_metadata_updates=fields
        )


def _all_metadata(schema: SchemaEdit) -> dict[int | None, dict[str, bytes]]:
    return {None: schema.metadata, **{column.id: column.metadata for column in schema.fields}}
