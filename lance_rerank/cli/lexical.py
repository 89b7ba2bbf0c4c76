"""`lance-rerank lexical`: build a Tantivy index beside a table, and keep it up to date."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lance_rerank.cli.progress import bar
from lance_rerank.cli.tables import AsJson, Db, TableName, open_table
from lance_rerank.errors import ArgumentError, ConflictError

if TYPE_CHECKING:
    from lance_rerank.lexical import SyncResult

Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="The index's folder.")]
Key = Annotated[str, typer.Option(help="The column that tells rows apart: integers or strings.")]
Columns = Annotated[str, typer.Option(help="The columns to index, separated by commas.")]
Language = Annotated[str, typer.Option(help="Whose endings and stop words are left out; 'none' leaves out none.")]
Tokenizer = Annotated[
    str, typer.Option(help="words, whitespace, ngram or raw; or by column, as in title=ngram,text=words.")
]
StopWords = Annotated[bool, typer.Option(help="Leave out the language's commonest words.")]
AsciiFolding = Annotated[bool, typer.Option(help="Let café and cafe match each other.")]


def build(
    index: Folder,
    db: Db,
    table: TableName,
    key: Key = "id",
    columns: Columns = "text",
    language: Language = "English",
    tokenizer: Tokenizer = "words",
    stop_words: StopWords = True,
    ascii_folding: AsciiFolding = True,
    as_json: AsJson = False,
) -> None:
    """Build an index of some columns of a table; one that is there with these settings is brought up to date."""
    _build(index, db, table, key, columns, language, tokenizer, stop_words, ascii_folding, as_json, rebuild=False)


def rebuild(
    index: Folder,
    db: Db,
    table: TableName,
    key: Key = "id",
    columns: Columns = "text",
    language: Language = "English",
    tokenizer: Tokenizer = "words",
    stop_words: StopWords = True,
    ascii_folding: AsciiFolding = True,
    as_json: AsJson = False,
) -> None:
    """Build an index anew, with these settings, whatever is there; until it is done, searches use the old one."""
    _build(index, db, table, key, columns, language, tokenizer, stop_words, ascii_folding, as_json, rebuild=True)


def sync(
    index: Folder,
    db: Db,
    table: TableName,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another process that is writing.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Bring an index to the table's latest version."""
    from lance_rerank.lexical import TantivyIndex

    opened = TantivyIndex.load(index, table=open_table(db, table))
    with bar("index rows") as progress:
        try:
            result = opened.sync(wait_s=wait, progress=progress)
        except ConflictError as error:
            raise ConflictError(f"another process is writing to {index}; wait longer: --wait 60") from error
    _print(result, as_json)


def status(index: Folder, db: Db, table: TableName, as_json: AsJson = False) -> None:
    """Say how far an index is behind its table."""
    from lance_rerank.lexical import TantivyIndex

    found = TantivyIndex.load(index, table=open_table(db, table)).status()
    print(json.dumps(asdict(found) | {"behind": found.behind}) if as_json else found)


COMMANDS: dict[str, Callable[..., None]] = {"build": build, "sync": sync, "status": status, "rebuild": rebuild}


def _build(
    index: Path,
    db: str,
    table: str,
    key: str,
    columns: str,
    language: str,
    tokenizer: str,
    stop_words: bool,
    ascii_folding: bool,
    as_json: bool,
    rebuild: bool,
) -> None:
    from lance_rerank.lexical import TantivyIndex

    opened = open_table(db, table)
    with bar("index rows") as progress:
        made = TantivyIndex.open(
            index,
            table=opened,
            key=key,
            columns=[name.strip() for name in columns.split(",") if name.strip()],
            language=None if language.lower() == "none" else language,
            tokenizer=_tokenizers(tokenizer),
            stop_words=stop_words,
            ascii_folding=ascii_folding,
            rebuild=rebuild,
        )
        result = made.sync(wait_s=10, progress=progress)
    if rebuild:
        print(json.dumps(asdict(made.status())) if as_json else made.status())
    else:
        _print(result, as_json)


def _tokenizers(text: str) -> str | dict[str, str]:
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and tokenizer for name, _, tokenizer in pairs):
        raise ArgumentError(f"--tokenizer {text!r} is neither one name nor pairs such as title=ngram,text=words")
    return {name.strip(): tokenizer.strip() for name, _, tokenizer in pairs}


def _print(result: SyncResult, as_json: bool) -> None:
    print(json.dumps(asdict(result)) if as_json else result)
