"""What `evaluate` found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.significance import Comparison, compare


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found; prints as a table.

    Attributes
    ----------
    dataset, split : str
        What was evaluated on.
    n_queries : int
        The judged queries of the split; each counts in every mean.
    measures, retrievers : tuple of str
        As ir-measures prints them (``MRR@10`` becomes ``RR@10``), and as they were named; in the order given.
    means : dict
        ``means[retriever][measure]``: the mean over all queries. (NumQ, NumRel and NumRet are sums, as in ir-measures.)
    per_query : dict
        ``per_query[retriever][query_id][measure]``.
    milliseconds : dict of str to float
        Wall-clock time a query, by retriever: the median over blocks of queries.
    runs : dict
        ``runs[retriever][query_id]``: the ids of the retrieved documents, the best first.

    Examples
    --------
    >>> result = EvaluationResult(
    ...     "manual", "test", 1, ("RR@10",), ("plain", "reranked"),
    ...     means={"plain": {"RR@10": 0.5}, "reranked": {"RR@10": 1.0}},
    ...     per_query={"plain": {"q1": {"RR@10": 0.5}}, "reranked": {"q1": {"RR@10": 1.0}}},
    ...     milliseconds={"plain": 2.0, "reranked": 31.5},
    ...     runs={"plain": {"q1": ["d2", "d1"]}, "reranked": {"q1": ["d1", "d2"]}},
    ... )
    >>> print(result)
    manual, split test, 1 query
    <BLANKLINE>
    retriever    RR@10  ms/query
    plain       0.5000     2.00*
    reranked   1.0000*    31.50
    <BLANKLINE>
    * best of its column (of the measures the highest, of ms/query the lowest)
    """

    dataset: str
    split: str
    n_queries: int
    measures: tuple[str, ...]
    retrievers: tuple[str, ...]
    means: dict[str, dict[str, float]]
    per_query: dict[str, dict[str, dict[str, float]]] = field(repr=False)
    milliseconds: dict[str, float]
    runs: dict[str, dict[str, list[str]]] = field(repr=False)

    def __str__(self) -> str:
        queries = "1 query" if self.n_queries == 1 else f"{self.n_queries:,} queries"
        columns = [
            _Column(name, "{:.4f}", [self.means[row][name] for row in self.retrievers]) for name in self.measures
        ]
        columns.append(_Column("ms/query", "{:.2f}", [self.milliseconds[row] for row in self.retrievers], best=min))
        table = _table(self.retrievers, columns)
        return "\n".join([f"{self.dataset}, split {self.split}, {queries}", "", *table])

    def compare(self, a: str, b: str, measure: str | None = None) -> Comparison:
        """Return how much better retriever ``b`` is than ``a`` on the same queries, with a 95 % interval.

        Parameters
        ----------
        a, b : str
            Names of two retrievers.
        measure : str, optional
            By default the first.

        Raises
        ------
        ArgumentError
            There is no such retriever or measure.
        """
        measure = self.measures[0] if measure is None else measure
        if measure not in self.measures:
            raise ArgumentError(f"{measure!r} was not evaluated; there are {', '.join(self.measures)}")
        for name in (a, b):
            if name not in self.retrievers:
                raise ArgumentError(f"{name!r} was not evaluated; there are {', '.join(self.retrievers)}")
        pairs = [(self.per_query[a][query][measure], self.per_query[b][query][measure]) for query in self.per_query[a]]
        return compare(a, b, measure, [after - before for before, after in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, with lists for tuples; the dicts in it are this result's own, not copies."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the result as JSON, and write it to ``path`` where one is given."""
        text = json.dumps(self.to_dict())
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> EvaluationResult:
        """Return the result that `to_json` wrote.

        Parameters
        ----------
        source : str or path
            The file, or the JSON itself: text that starts with a brace. Fields that are not known are ignored.

        Raises
        ------
        ArgumentError
            The text is not JSON or lacks a field.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArgumentError(
                f"not the JSON of an evaluation result: {error}; expected what to_json wrote"
            ) from error
        names = [item.name for item in fields(cls)]
        missing = [name for name in names if not isinstance(values, dict) or name not in values]
        if missing:
            raise ArgumentError(f"no evaluation result: it lacks {', '.join(missing)}; expected what to_json wrote")
        known = {name: values[name] for name in names}
        return cls(**(known | {"measures": tuple(known["measures"]), "retrievers": tuple(known["retrievers"])}))


@dataclass(frozen=True)
class _Column:
    title: str
    template: str
    values: Sequence[float]
    best: Callable[[Sequence[float]], float] = max

    def cells(self, marked: bool) -> list[str]:
        """Return the values as text; where two print alike, both are marked."""
        texts = [self.template.format(value) for value in self.values]
        best = self.template.format(self.best(self.values)) if marked else None
        return [f"{text}{'*' if text == best else ' '}" for text in texts]


def _table(rows: Sequence[str], columns: Sequence[_Column]) -> list[str]:
    """Return the lines of a table; with a single row there is no best to mark."""
    marked = len(rows) > 1
    written = [[f"{title} ", *cells] for title, cells in ((column.title, column.cells(marked)) for column in columns)]
    names = ["retriever", *rows]
    left = max(map(len, names))
    widths = [max(map(len, cells)) for cells in written]
    lines = [
        "  ".join([name.ljust(left), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()
        for name, *cells in zip(names, *written, strict=True)
    ]
    if marked:
        lines += ["", "* best of its column (of the measures the highest, of ms/query the lowest)"]
    return lines
