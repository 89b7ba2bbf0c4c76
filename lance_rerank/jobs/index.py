"""From a file of documents to a table that can be searched by words and by meaning."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import lancedb
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import Table

from lance_rerank import models
from lance_rerank.columns.backfill import Progress
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.errors import ArgumentError, ColumnError
from lance_rerank.jobs.indexes import VectorIndex, refresh_indexes, require_language, require_vector_index
from lance_rerank.jobs.sources import Documents
from lance_rerank.jobs.tables import TableModel, embedding_config, table_model, table_names
from lance_rerank.jobs.writer import VECTOR, Writer
from lance_rerank.types import Encoder


@dataclass(frozen=True, slots=True)
class IndexResult:
    """What `index_documents` did.

    Attributes
    ----------
    table : str
        The table's name.
    added, updated, unchanged : int
        Rows of the source that were new, that had changed, and that were passed over.
    without_text : int
        Rows of the source whose text is missing or blank. They are stored, and can be found by filters, but neither by
        words nor by meaning.
    rows : int
        Rows of the table, those included that the source does not have.
    vector_index : str or None
        The kind of the vector index; None where searches scan all vectors, which is exact.
    """

    table: str
    added: int
    updated: int
    unchanged: int
    without_text: int
    rows: int
    vector_index: str | None

    def __str__(self) -> str:
        done = f"{self.added:,} rows added, {self.updated:,} updated, {self.unchanged:,} unchanged"
        textless = f", {self.without_text:,} of them without text" if self.without_text else ""
        index = self.vector_index or "none, so vector search is exact"
        return f"{self.table}: {done}{textless}; {self.rows:,} rows in all; vector index: {index}"


def index_documents(
    source: str | os.PathLike[str],
    db: str | os.PathLike[str] | DBConnection,
    table: str,
    *,
    model: str | Path = models.DEFAULT_MODEL,
    text: str = "text",
    id_column: str = "id",
    language: str = "English",
    vector_index: VectorIndex = "auto",
    batch_size: int = 1000,
    overwrite: bool = False,
    encoder: Encoder | None = None,
    progress: Progress | None = None,
) -> IndexResult:
    """Bring the documents of a file into a LanceDB table that is searchable at once, and return what was done.

    The table keeps every column of the source and gets a column "vector", with LanceDB's own embedding function for
    sentence-transformers models: ``table.search("some words")`` works in any process. The text is indexed for
    full-text search. The source is read through and checked before the first row is written, and never held in memory;
    only its ids are.

    Run it again whenever the source has changed, or after a kill. Rows that the table has already are not embedded
    again, changed rows are replaced (with their token vectors, if the table has some, set to null: run
    `add_multivector_column` after), and rows that the source no longer has stay.

    Parameters
    ----------
    source : str or path
        A BEIR folder, of which only ``corpus.jsonl`` is read; or a file that ends in .jsonl, .csv or .parquet.
    db : str, path or lancedb.db.DBConnection
        The database or its address.
    table : str
        Made when it is not there.
    model : str or Path, default "all-MiniLM-L6-v2"
        A sentence-transformers model: a folder or a hub id. The table remembers a folder by its absolute path. LanceDB
        embeds queries without a model's query prompt; for a model that has one, search with
        ``Retriever(table, encoder=SentenceEncoder(model))``.
    text : str, default "text"
        The column to search, or a template such as ``"{title} {body}"`` that makes a column "text". In a BEIR folder
        "text" becomes title and text, joined by a blank as in BEIR's own experiments; the title stays a column too.
    id_column : str, default "id"
        What tells rows apart: strings or integers. In a BEIR folder it is always "id".
    language : str, default "English"
        For stemming and stop words in full-text search.
    vector_index : {"auto", "none", "ivf_flat", "ivf_pq", "ivf_hnsw_sq"}, default "auto"
        "auto" makes an ``ivf_flat`` for tables of more than 50,000 rows; below, a scan of all vectors is quick, and
        exact. "none" makes none, and leaves one that is there. ``ivf_pq`` is the smallest and needs
        ``.refine_factor(3)`` or more on searches: without it nDCG@10 fell from .511 to .421 on nl2bash.
    batch_size : int, default 1000
        Rows a commit: what a kill can cost.
    overwrite : bool, default False
        Begin with an empty table in place of the one that is there.
    encoder : Encoder, optional
        What computes the documents' vectors, for example on another device; they have to be those of `model`. By
        default ``SentenceEncoder(model)``.
    progress : callable, optional
        Called with (rows done, rows in all).

    Raises
    ------
    DatasetError, ColumnError
        About the source; or the model was trained on since it filled the table. Nothing was written.
    ArgumentError
        The table there is of another model or has other columns.
    ModelError
        The model cannot be loaded or failed. Batches written before stay; a second run goes on after them.

    Examples
    --------
    >>> import lance_rerank, lancedb
    >>> print(lance_rerank.index_documents("docs.csv", "data", "docs", text="{title} {body}"))  # doctest: +SKIP
    docs: 1,200 rows added, 0 updated, 0 unchanged; 1,200 rows in all; vector index: none, so vector search is exact
    >>> lancedb.connect("data").open_table("docs").search("rotate api keys").to_pandas()  # doctest: +SKIP
    """
    require_vector_index(vector_index)
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size!r}")
    require_language(language)
    documents = Documents(source, id_column=id_column, text=text, vector=VECTOR)
    named = TableModel(_location(model), documents.text_column)
    embedder: Encoder = encoder or SentenceEncoder(model)
    connection = db if isinstance(db, DBConnection) else lancedb.connect(str(db))
    if overwrite or table not in table_names(connection):
        opened = _create(connection, table, documents, named, embedder.dim)
    else:
        opened = connection.open_table(table)
        _require_fitting(opened, documents, named)
    writer = Writer(opened, documents, embedder, named.name, batch_size, progress)
    writer.run()
    opened.checkout_latest()
    kind = refresh_indexes(opened, text=documents.text_column, vector=VECTOR, language=language, kind=vector_index)
    return IndexResult(
        table, writer.added, writer.updated, writer.unchanged, writer.without_text, opened.count_rows(), kind
    )


def _location(model: str | Path) -> str:
    """Return where other processes, in other folders, find the model too."""
    location = models.resolve_model(model)
    return str(Path(location).resolve()) if Path(location).is_dir() else location


def _create(db: DBConnection, name: str, documents: Documents, model: TableModel, dim: int) -> Table:
    schema = documents.schema.append(pa.field(VECTOR, pa.list_(pa.float32(), dim)))
    return db.create_table(name, schema=schema, mode="overwrite", embedding_functions=[embedding_config(model, VECTOR)])


def _require_fitting(table: Table, documents: Documents, model: TableModel) -> None:
    """Raise unless the source's rows can be added to a table that is there."""
    advice = "Choose another table name, or begin anew with overwrite=True (--overwrite)"
    found = table_model(table, VECTOR)
    if found is None:
        raise ArgumentError(
            f"table {table.name!r} is there, without a column {VECTOR!r} that a sentence-transformers model fills. "
            f"{advice}"
        )
    if found.name != model.name:
        raise ArgumentError(
            f"table {table.name!r} has vectors of the model {found.name!r}, and this run would add those of "
            f"{model.name!r}: they cannot be compared. Name the table's model. {advice}"
        )
    if found.source != model.source:
        raise ArgumentError(
            f"table {table.name!r} embeds its column {found.source!r}, and this run would embed {model.source!r}. "
            f"{advice}"
        )
    for field in documents.schema:
        if not _fits(field, table.schema):
            there = table.schema.field(field.name).type if field.name in table.schema.names else "not there"
            raise ColumnError(
                f"column {field.name!r} is {field.type} in {documents.path} and {there} in table {table.name!r}. "
                f"{advice}"
            )


def _fits(field: pa.Field, schema: pa.Schema) -> bool:
    """Tell whether a table has a column that can hold another's values."""
    if field.name not in schema.names:
        return False
    there = pa.schema([schema.field(field.name)])
    try:
        return bool(pa.unify_schemas([there, pa.schema([field])], promote_options="permissive").types == there.types)
    except pa.ArrowException:
        return False
