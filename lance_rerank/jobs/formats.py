"""The files that documents come in, read a chunk at a time: a BEIR folder, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lance_rerank.datasets.beir import json_objects, numbered_documents
from lance_rerank.errors import DatasetError

CHUNK = 1024
LONGEST_FIELD = 1 << 24  # characters of a CSV field: more than a document has, and what a quote left open runs into

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file, and the numbers of the lines, or rows, that they came from."""

    rows: pa.Table
    numbers: Sequence[int]


class Format(Protocol):
    """One way in which a file holds documents."""

    unit: str
    """What the numbers of a chunk count: "line" or "row"."""

    def schema(self, texts: Collection[str]) -> pa.Schema:
        """Return the columns, after a look at the whole file; those in `texts` are strings, whatever they look like."""
        ...

    def chunks(self, schema: pa.Schema) -> Iterator[Chunk]:
        """Yield the rows in the order of the file, with these columns."""
        ...


class BeirFolder:
    """The ``corpus.jsonl`` of a BEIR folder: id, title and text."""

    unit = "line"
    default_text = "{title} {text}"  # what BEIR's own loaders embed and index

    def __init__(self, folder: Path) -> None:
        self._path = folder / "corpus.jsonl"

    def schema(self, texts: Collection[str]) -> pa.Schema:  # noqa: ARG002 (all three are strings)
        """Return the three columns."""
        return pa.schema({name: pa.string() for name in ("id", "title", "text")})

    def chunks(self, schema: pa.Schema) -> Iterator[Chunk]:
        """Yield the documents."""
        for group in _grouped(numbered_documents(self._path)):
            rows = [{"id": d.doc_id, "title": d.title, "text": d.text} for _, d in group]
            yield Chunk(pa.Table.from_pylist(rows, schema), [place.number for place, _ in group])


class JsonLines:
    """A file with one JSON object a line; columns are all fields that any of them has."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self._path = path

    def _objects(self) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
        return _grouped(json_objects(self._path, '{"id": "d1", "text": "..."}'))

    def schema(self, texts: Collection[str]) -> pa.Schema:  # noqa: ARG002 (JSON says itself what is a string)
        """Return all fields with types that hold every value: numbers widen, anything else is an error."""
        merged = pa.schema([])
        for group in self._objects():
            try:
                merged = _with_fields_of(merged, [row for _, row in group])
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                for place, row in group:  # once more, one by one, to name the line
                    with _complaints(str(place)):
                        merged = _with_fields_of(merged, [row])
        return merged

    def chunks(self, schema: pa.Schema) -> Iterator[Chunk]:
        """Yield the objects' fields."""
        for group in self._objects():
            with _complaints(f"{group[0][0]} and on"):
                rows = pa.Table.from_pylist([row for _, row in group], schema)
            yield Chunk(rows, [place.number for place, _ in group])


class CsvFile:
    """A CSV file with a header; columns are numbers or truth values where every value is one, else strings.

    Empty fields are null. Digits with leading zeros, and 19 digits or more, are codes rather than numbers: strings.
    """

    unit = "line"

    def __init__(self, path: Path) -> None:
        self._path = path

    def schema(self, texts: Collection[str]) -> pa.Schema:
        """Return the header's columns with the narrowest types that hold every value."""
        types: dict[str, pa.DataType] = {}
        for chunk in self._strings():
            for name in chunk.rows.column_names:
                narrowest = pa.string() if name in texts else _narrowest(chunk.rows.column(name))
                types[name] = _wider(types.get(name, pa.null()), narrowest)
        return pa.schema(types)

    def chunks(self, schema: pa.Schema) -> Iterator[Chunk]:
        """Yield the rows."""
        for chunk in self._strings():
            yield Chunk(chunk.rows.select(schema.names).cast(schema), chunk.numbers)

    def _strings(self) -> Iterator[Chunk]:
        records = self._records()
        _, header = next(records, (0, []))
        if len(set(header)) < len(header) or not all(header):
            raise DatasetError(f"{self._path}, line 1: the header is {', '.join(header)}; expected a name a column")
        for group in _grouped(records):
            columns = zip(*(record for _, record in group), strict=True)
            arrays = [pa.array([value or None for value in column], pa.string()) for column in columns]
            yield Chunk(pa.table(arrays, header), [number for number, _ in group])

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each record that is not blank with the line it starts at."""
        csv.field_size_limit(LONGEST_FIELD)
        with _complaints(str(self._path)), self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            width, start = 0, 1
            for record in reader:
                width = width or len(record)
                if record and len(record) != width:
                    raise DatasetError(
                        f"{self._path}, line {start}: {len(record)} fields; expected {width} as in the header"
                    )
                if record:
                    yield start, record
                start = reader.line_num + 1


class ParquetFile:
    """A Parquet file."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        self._path = path

    def schema(self, texts: Collection[str]) -> pa.Schema:  # noqa: ARG002 (types are written in the file)
        """Return the file's columns."""
        with _complaints(str(self._path)), pq.ParquetFile(self._path) as file:
            return file.schema_arrow.remove_metadata()

    def chunks(self, schema: pa.Schema) -> Iterator[Chunk]:
        """Yield the rows; other columns are not read."""
        start = 1
        with _complaints(str(self._path)), pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(CHUNK, columns=schema.names):
                rows = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                yield Chunk(rows, range(start, start + rows.num_rows))
                start += rows.num_rows


def _grouped(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, CHUNK)):
        yield group


@contextmanager
def _complaints(source: str) -> Iterator[None]:
    """Turn what Arrow and csv say of a file into a `DatasetError` that names it."""
    try:
        yield
    except (pa.ArrowException, csv.Error, OverflowError, UnicodeError) as error:
        raise DatasetError(f"{source}: {error}") from error


def _with_fields_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Schema:
    seen = pa.schema(list(pa.array(rows).type))
    return pa.unify_schemas([schema, seen], promote_options="permissive")


_NUMBERS = (pa.int64(), pa.float64())
_CODES = r"^[+-]?(0\d|\d{19})"


def _narrowest(values: pa.ChunkedArray) -> pa.DataType:
    """Return the first of null, int64, float64, bool and string that holds these strings without loss."""
    if values.null_count == len(values):
        return pa.null()
    if not pc.any(pc.match_substring_regex(values, _CODES)).as_py():
        for data_type in (*_NUMBERS, pa.bool_()):
            try:
                values.cast(data_type)
            except pa.ArrowInvalid:
                continue
            return data_type
    return pa.string()


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type for a column whose values are of the one type here and of the other there."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.float64() if one in _NUMBERS and other in _NUMBERS else pa.string()
