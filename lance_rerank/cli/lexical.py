"""`lance-rerank lexical`: build a Tantivy index beside a table, and keep it up to date."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lance_rerank.cli.progress import bar, talk
from lance_rerank.cli.tables import AsJson, Db, TableName, open_table
from lance_rerank.errors import ArgumentError, ConflictError, LexicalIndexError

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
    from lance_rerank.lexical import TantivyIndex

    opened = TantivyIndex.open(
        index,
        table=open_table(db, table),
        key=key,
        columns=_names(columns),
        language=_language(language),
        tokenizer=_tokenizers(tokenizer),
        stop_words=stop_words,
        ascii_folding=ascii_folding,
    )
    with bar("index rows") as progress:
        _print(opened.sync(wait_s=10, progress=progress), as_json)


def rebuild(
    index: Folder,
    db: Db,
    table: TableName,
    key: Annotated[str | None, typer.Option(help="As for build; each setting that is left out stays.")] = None,
    columns: Annotated[str | None, typer.Option(help="As for build.")] = None,
    language: Annotated[str | None, typer.Option(help="As for build.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="As for build.")] = None,
    stop_words: Annotated[bool | None, typer.Option("--stop-words/--no-stop-words", help="As for build.")] = None,
    ascii_folding: Annotated[
        bool | None, typer.Option("--ascii-folding/--no-ascii-folding", help="As for build.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build an index anew; until it is done, searches use the old one. One that is damaged needs its settings named."""
    from lance_rerank.lexical import TantivyIndex

    opened = open_table(db, table)
    given = {
        "key": key,
        "columns": columns and _names(columns),
        "tokenizer": tokenizer and _tokenizers(tokenizer),
        "stop_words": stop_words,
        "ascii_folding": ascii_folding,
    }
    settings = {**_settings(index), **{name: value for name, value in given.items() if value is not None}}
    if language is not None:
        settings["language"] = _language(language)
    if columns is not None and isinstance(settings.get("tokenizer"), dict):
        settings["tokenizer"] = {
            name: how for name, how in settings["tokenizer"].items() if name in settings["columns"]
        }
    made = TantivyIndex.open(index, table=opened, rebuild=True, **settings)
    print(json.dumps(asdict(made.status())) if as_json else made.status())


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


def _settings(index: Path) -> dict[str, Any]:
    """Return what the index that is there was made with, as far as it can be read."""
    from lance_rerank.lexical import stored_settings

    try:
        return stored_settings(index) or {}
    except LexicalIndexError as error:
        talk(f"{error}; settings that are not named are those of a new index")
        return {}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _language(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _tokenizers(text: str) -> str | dict[str, str]:
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and tokenizer for name, _, tokenizer in pairs):
        raise ArgumentError(f"--tokenizer {text!r} is neither one name nor pairs such as title=ngram,text=words")
    return {name.strip(): tokenizer.strip() for name, _, tokenizer in pairs}


def _print(result: SyncResult, as_json: bool) -> None:
    print(json.dumps(asdict(result)) if as_json else result)
