"""From the columns of a row to the text a reranker reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Any

import pyarrow as pa

from lance_rerank.errors import ArgumentError, ColumnError


class TextSource:
    """Which columns make up the text of a row, and how.

    Parameters
    ----------
    column : str or sequence of str
        A column name; several names, whose texts are joined by line breaks; or a template such as
        ``"{title}\\n{text}"``, where ``{author.name}`` reaches into a struct column.

    Raises
    ------
    ArgumentError
        The template is malformed or names no column.
    """

    def __init__(self, column: str | Sequence[str]) -> None:
        if isinstance(column, str) and "{" in column:
            self._parts = _parse(column)
        else:
            names = [column] if isinstance(column, str) or not isinstance(column, Iterable) else list(column)
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ArgumentError(f"column must be a column name, a list of names or a template, got {column!r}")
            self._parts = [("\n" if i else "", name) for i, name in enumerate(names)]
        # dict.fromkeys: each column once, in the order in which the template names them
        self.columns = tuple(dict.fromkeys(path.partition(".")[0] for _, path in self._parts if path))

    def read(self, rows: pa.Table) -> list[str | None]:
        """Return one text a row; None where every column it is made of is null or blank.

        Raises
        ------
        ColumnError
            A column is not among the rows' columns.
        """
        missing = [name for name in self.columns if name not in rows.column_names]
        if missing:
            raise ColumnError(
                f"column {missing[0]!r} is not in the search results (there: {', '.join(rows.column_names)}). "
                f"If the table has it, select it too: .select([..., {missing[0]!r}]); "
                "otherwise name the table's text column: column=..."
            )
        values = {name: rows.column(name).to_pylist() for name in self.columns}
        return [self._render({name: values[name][i] for name in self.columns}) for i in range(rows.num_rows)]

    def _render(self, row: dict[str, Any]) -> str | None:
        texts = [(literal, _as_text(_reach(row, path)) if path else "") for literal, path in self._parts]
        if not any(text.strip() for _, text in texts):
            return None
        if len(texts) == 1:
            return texts[0][0] + texts[0][1]
        return "".join(literal + text for literal, text in texts).strip()


def _parse(template: str) -> list[tuple[str, str]]:
    try:
        fields = [(literal, path) for literal, path, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise ArgumentError(f"column template {template!r} is malformed: {error}") from error
    paths = [path for _, path in fields if path is not None]
    if not paths or not all(paths):
        raise ArgumentError(f"column template {template!r} names no column; write for example '{{title}}\\n{{text}}'")
    return [(literal, path or "") for literal, path in fields]


def _reach(row: dict[str, Any], path: str) -> Any:
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _as_text(value: Any) -> str:
    """Structs become `name: value` lines and lists are joined by commas: what a language model reads best."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_as_text(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_as_text(part) for part in value if part is not None)
    if isinstance(value, bytes):
        raise ColumnError("a binary column cannot be read as text; choose a string column")
    return str(value)
