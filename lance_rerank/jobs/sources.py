"""Documents to be indexed: one file's rows with an id and a text, checked from end to end before work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lance_rerank import arrow
from lance_rerank.errors import ColumnError, DatasetError
from lance_rerank.jobs.formats import BeirFolder, CsvFile, Format, JsonLines, ParquetFile
from lance_rerank.rerankers.texts import TextSource

FORMATS: dict[str, type[JsonLines] | type[CsvFile] | type[ParquetFile]] = {
    ".jsonl": JsonLines,
    ".csv": CsvFile,
    ".parquet": ParquetFile,
}
_EXPECTED = f"a BEIR folder (with corpus.jsonl) or a file that ends in {', '.join(FORMATS)}"


class Documents:
    """The rows of a file, with the text that is searched made where a template asks for it.

    Parameters
    ----------
    path : str or path
        A BEIR folder, or a file of JSON lines, CSV or Parquet.
    id_column : str
        Strings or integers, each once. In a BEIR folder it is always "id".
    text : str
        A column, or a template such as ``"{title} {body}"`` that makes a column "text", in place of one that is there.
        Of a BEIR folder, "text" is title and text, as BEIR's loaders have it.
    vector : str
        A column name that the rows must leave free.

    Attributes
    ----------
    schema : pyarrow.Schema
        The columns, those of the file first.
    id_column, text_column : str
        Where id and text are.
    n_rows : int
        How many rows there are.

    Raises
    ------
    DatasetError
        There is nothing to read, a line is malformed, or an id is missing or comes twice; names file and line.
    ColumnError
        A column is missing or cannot be what it is to be.
    """

    def __init__(self, path: str | os.PathLike[str], *, id_column: str, text: str, vector: str) -> None:
        self.path = Path(path)
        self._format = _format_of(self.path)
        if isinstance(self._format, BeirFolder):
            id_column, text = "id", BeirFolder.default_text if text == "text" else text
        self._template = TextSource(text) if "{" in text else None
        self.id_column = id_column
        self.text_column = "text" if self._template else text
        read = self._template.columns if self._template else (text,)
        self._stored = _storable(self._format.schema([id_column, *read]))
        self._check_columns(read, vector)
        self.schema = self._stored
        if self._template:
            self.schema = _with_text(pa.Table.from_pylist([], self._stored), []).schema
        self._require_strings()
        self.n_rows = self._count()

    def chunks(self) -> Iterator[pa.Table]:
        """Yield the rows in the order of the file, about a thousand at a time."""
        for chunk in self._format.chunks(self._stored):
            yield _with_text(chunk.rows, self._template.read(chunk.rows)) if self._template else chunk.rows

    def _check_columns(self, read: tuple[str, ...], vector: str) -> None:
        names = self._stored.names
        if not names:
            raise DatasetError(f"{self.path} holds no documents")
        for name in (self.id_column, *read):
            if name not in names:
                option = "id_column" if name == self.id_column else "text"
                raise ColumnError(
                    f"{self.path} has no column {name!r} (there: {', '.join(names)}); name one: {option}=..."
                )
        for name in names:
            if name == vector or name in arrow.RESERVED or "." in name:
                raise ColumnError(
                    f"{self.path} has a column {name!r}, a name the table cannot give it; rename it there"
                )

    def _require_strings(self) -> None:
        id_type, text_type = (self.schema.field(name).type for name in (self.id_column, self.text_column))
        if not (pa.types.is_string(id_type) or pa.types.is_integer(id_type)):
            raise ColumnError(f"column {self.id_column!r} of {self.path} holds {id_type}; ids are strings or integers")
        if not pa.types.is_string(text_type):
            raise ColumnError(
                f"column {self.text_column!r} of {self.path} holds {text_type}, not texts; name a string column, or "
                f"make a text of it: text='{{{self.text_column}}}'"
            )

    def _count(self) -> int:
        """Return the number of rows, each with an id of its own."""
        seen: dict[Any, int] = {}
        for chunk in self._format.chunks(pa.schema([self._stored.field(self.id_column)])):
            for number, doc_id in zip(chunk.numbers, chunk.rows.column(0).to_pylist(), strict=True):
                place = f"{self.path}, {self._format.unit} {number}"
                if doc_id is None or not str(doc_id).strip():
                    raise DatasetError(f"{place}: no {self.id_column!r}; expected an id in every row")
                if (first := seen.setdefault(doc_id, number)) != number:
                    raise DatasetError(
                        f"{place}: id {doc_id!r} was given before, at {self._format.unit} {first}; expected each once"
                    )
        if not seen:
            raise DatasetError(f"{self.path} holds no documents")
        return len(seen)


def _format_of(path: Path) -> Format:
    if path.is_dir():
        if (path / "corpus.jsonl").is_file():
            return BeirFolder(path)
        holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:20]) or "nothing"
        raise DatasetError(f"folder {path} has no corpus.jsonl; expected {_EXPECTED}. It holds: {holds}")
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}; expected {_EXPECTED}")
    if path.suffix.lower() not in FORMATS:
        raise DatasetError(f"{path} is none of the files that can be read; expected {_EXPECTED}")
    return FORMATS[path.suffix.lower()](path)


def _with_text(rows: pa.Table, texts: list[str | None]) -> pa.Table:
    column = pa.array(texts, pa.string())
    if "text" in rows.column_names:
        return rows.set_column(rows.column_names.index("text"), "text", column)
    return rows.append_column("text", column)


def _storable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_storable_type(field.type)).with_nullable(True) for field in schema])


def _storable_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type in which a column is stored: plain strings, and none that no value has shown yet."""
    kinds = pa.types
    if kinds.is_dictionary(data_type):
        return _storable_type(data_type.value_type)
    if kinds.is_null(data_type) or kinds.is_large_string(data_type) or kinds.is_string_view(data_type):
        return pa.string()
    if kinds.is_list(data_type):
        return pa.list_(_storable_type(data_type.value_type))
    if kinds.is_struct(data_type):
        return pa.struct([field.with_type(_storable_type(field.type)) for field in data_type])
    return data_type
