"""Recipes from a TOML file: a table a retriever, and above them what holds for all.

::

    candidates = 100

    [retrievers.plain]
    type = "hybrid"

    [retrievers.late]
    type = "hybrid"
    reranker = "late-interaction"
    candidates = 50
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lance_rerank.cli.recipes import QUERY_TYPES, READS_WORDS, RERANKERS, Lexical, Recipe
from lance_rerank.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class _Value:
    """What the value of a key may be: in words, as a test, and by name where there are few."""

    expected: str
    accepts: Callable[[Any], bool]
    names: tuple[str, ...] = ()


def _one_of(*names: str) -> _Value:
    return _Value(f"one of {', '.join(names)}", lambda value: value in names, names)


_TEXT = _Value("text in quotes", lambda value: isinstance(value, str) and bool(value.strip()))
_SWITCH = _Value("true or false", lambda value: isinstance(value, bool))
_COUNT = _Value("a whole number from 1 on", lambda value: type(value) is int and value > 0)
_LETTERS = _Value("0, 1 or 2", lambda value: type(value) is int and 0 <= value <= 2)
_NUMBER = _Value("a number", lambda value: type(value) in (int, float) and math.isfinite(value))

_FOR_ALL = {  # what may stand above the tables
    "candidates": _COUNT,
    "where": _TEXT,
    "nprobes": _COUNT,
    "refine_factor": _COUNT,
    "lexical": _TEXT,
    "freshness": _one_of("warn", "error", "sync", "scan"),
    "syntax": _SWITCH,
    "fuzzy": _LETTERS,
}
_KEYS = _FOR_ALL | {
    "type": _one_of(*QUERY_TYPES),
    "reranker": _one_of(*RERANKERS),
    "model": _TEXT,
    "blend": _SWITCH,
    "guard": _TEXT,
    "min_score": _NUMBER,
}
_HOW_LEXICAL = ("freshness", "syntax", "fuzzy")
_READ_BY = {  # types of search, for keys that some do not read
    **dict.fromkeys(("lexical", *_HOW_LEXICAL), READS_WORDS),
    **dict.fromkeys(("nprobes", "refine_factor"), ("hybrid", "vector", "multivector")),
}


def read_recipes(path: Path) -> dict[str, Recipe]:
    """Return the recipes of a file by name, in its order; relative paths in it start at its folder.

    Raises
    ------
    ArgumentError
        The file is no TOML or has no retrievers, or a key or a value is none; names the file, the table and the key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} is no TOML file: {error}") from error
    tables = values.pop("retrievers", {})
    for key, value in values.items():
        if isinstance(value, dict):
            raise ArgumentError(f"{path}: unknown table [{key}]; that of a retriever is [retrievers.{key}]")
        if key in _KEYS and key not in _FOR_ALL:
            raise ArgumentError(f"{path}: {key} is for one retriever, not for all; write it under [retrievers.NAME]")
    _check(str(path), values, _FOR_ALL)
    if not isinstance(tables, dict) or not tables:
        raise ArgumentError(f"{path} has no retrievers; write a table for each: [retrievers.NAME] and type = 'hybrid'")
    return {name: _recipe(path, name, table, values) for name, table in tables.items()}


def read_recipe(path: Path, name: str) -> Recipe:
    """Return one recipe of a file.

    Raises
    ------
    ArgumentError
        The file has none of that name, or is wrong.
    """
    recipes = read_recipes(path)
    if name not in recipes:
        raise ArgumentError(f"{path} has no retriever {name!r}; there are {', '.join(recipes)}")
    return recipes[name]


def refuse_options_beside(path: Path, context: typer.Context) -> None:
    """Raise where a command was given an option that is for the file to say.

    Raises
    ------
    ArgumentError
        There is one.
    """
    for option in ("candidates", "lexical", *_HOW_LEXICAL):
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise ArgumentError(f"--{option} is not for retrievers of a file: write {option} = ... into {path}")


def _recipe(path: Path, name: str, own: object, for_all: Mapping[str, Any]) -> Recipe:
    place = f"{path}, [retrievers.{name}]"
    if not isinstance(own, dict):
        raise ArgumentError(f"{place}: expected a table, got {own!r}")
    _check(place, own, _KEYS)
    if "type" not in own:
        raise ArgumentError(f"{place}: the key type is missing; expected {_KEYS['type'].expected}")
    query_type = own["type"]
    for key in own:
        if not _reads(query_type, key):
            raise ArgumentError(f"{place}: {key} is read by searches of type {_or(_READ_BY[key])}, not by {query_type}")
    settings = {key: value for key, value in for_all.items() if _reads(query_type, key)} | own
    lexical = {key: settings.pop(key) for key in ("lexical", *_HOW_LEXICAL) if key in settings}
    if "lexical" not in lexical:
        for key in own:
            if key in _HOW_LEXICAL:
                raise ArgumentError(f"{place}: {key} is for a Tantivy index; name one, lexical = 'FOLDER'")
    del settings["type"]
    try:
        return Recipe(query_type, **_with_paths(path.parent, settings), lexical=_lexical(path.parent, **lexical))
    except ArgumentError as error:
        raise ArgumentError(f"{place}: {error}") from error


def _check(place: str, values: Mapping[str, Any], known: Mapping[str, _Value]) -> None:
    for key, value in values.items():
        if key not in known:
            raise ArgumentError(f"{place}: unknown key {key!r}{_nearest(key, known)}; there are {', '.join(known)}")
        if not known[key].accepts(value):
            nearest = _nearest(str(value), known[key].names)
            raise ArgumentError(f"{place}: {key} = {value!r}{nearest}; expected {known[key].expected}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (the nearest is {close[0]!r})" if close else ""


def _reads(query_type: str, key: str) -> bool:
    return query_type in _READ_BY.get(key, QUERY_TYPES)


def _or(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _with_paths(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with paths that start at the file's folder; a model is one if it looks so, or is there."""
    found = dict(settings)
    if "guard" in found:
        found["guard"] = _beside(folder, found["guard"])
    model = found.get("model")
    if model is not None and (model.startswith((".", "~")) or _beside(folder, model).is_dir()):
        found["model"] = str(_beside(folder, model))
    return found


def _lexical(folder: Path, lexical: str | None = None, **how: Any) -> Lexical | None:
    return None if lexical is None else Lexical(_beside(folder, lexical), **how)


def _beside(folder: Path, path: str) -> Path:
    return folder / Path(path).expanduser()
