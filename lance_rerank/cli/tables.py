"""Tables as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lancedb.table import Table

Db = Annotated[str, typer.Option("--db", help="The database: a folder, or an address such as s3://bucket/path.")]
TableName = Annotated[str, typer.Option("--table", help="The table's name.")]
IdColumn = Annotated[str, typer.Option("--id-column", help="The column that tells rows apart.")]
Candidates = Annotated[int, typer.Option("--candidates", help="Rows fetched a leg, before reranking.")]
LexicalFolder = Annotated[
    Path | None,
    typer.Option("--lexical", metavar="INDEX", help="A Tantivy index, in place of the table's own full-text index."),
]
Freshness = Annotated[
    str, typer.Option(help="When the table is newer than the Tantivy index: warn, error, sync or scan.")
]
Syntax = Annotated[bool, typer.Option("--syntax", help="With --lexical: read queries in Tantivy's query language.")]
Fuzzy = Annotated[int, typer.Option(help="With --lexical: how many letters of a word may differ, 0 to 2.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def open_table(db: str, name: str) -> Table:
    """Return a table of a database that is there.

    Raises
    ------
    ArgumentError
        The database or the table does not exist.
    """
    if "://" not in db and not Path(db).is_dir():
        raise ArgumentError(
            f"there is no database folder {db}; make one: lance-rerank index SOURCE --db {db} --table NAME"
        )
    import lancedb

    from lance_rerank.jobs.tables import table_names

    connection = lancedb.connect(db)
    names = table_names(connection)
    if name not in names:
        raise ArgumentError(f"{db} has no table {name!r}; its tables are: {', '.join(names) or 'none'}")
    return connection.open_table(name)
