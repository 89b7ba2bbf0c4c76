"""What `evaluate` found."""

from __future__ import annotations

import itertools
import json
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lance_rerank.datasets import Dataset
from lance_rerank.datasets.trec import write_trec_run
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.diagnosis import Diagnosis, diagnose
from lance_rerank.evaluation.latency import Latency
from lance_rerank.evaluation.searching import Progress, Retrieves
from lance_rerank.evaluation.significance import Comparison, Comparisons, compare
from lance_rerank.evaluation.thresholds import Thresholds, thresholds

if TYPE_CHECKING:
    from lance_rerank.evaluation.report.subject import Diagnosed

_FAILURES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """What a result came from.

    Attributes
    ----------
    retrievers : dict
        By name; empty where runs were judged.
    dataset : Dataset
        What they were asked.
    """

    retrievers: dict[str, Retrieves]
    dataset: Dataset


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
        Wall-clock time a query, by retriever: the median over blocks of queries, as they were searched where the run
        comes from a cache. Empty for runs that were there already.
    runs : dict
        ``runs[retriever][query_id]``: the ids of the retrieved documents, the best first.
    failures : dict
        ``failures[retriever][query_id]``: the error in words, for the queries on which a retriever raised. They found
        nothing and count in every mean. Retrievers without failures are left out.
    latency : dict
        ``latency[retriever]``: the times of each stage, where `evaluate` was asked to take them; print one for a table.
    scores : dict
        ``scores[retriever][query_id]``: the scores of ``runs``, None for a document that could not be scored.
    queries, qrels : dict
        The texts of the queries by id, and what they were judged by: grades by query id and document id.
    sources : Sources or None
        What was evaluated, for questions that take another search. It is not saved.

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
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict, repr=False)
    scores: dict[str, dict[str, list[float | None]]] = field(default_factory=dict, repr=False)
    queries: dict[str, str] = field(default_factory=dict, repr=False)
    qrels: dict[str, dict[str, int]] = field(default_factory=dict, repr=False)
    sources: Sources | None = field(default=None, repr=False, compare=False, metadata={"saved": False})

    def __str__(self) -> str:
        queries = "1 query" if self.n_queries == 1 else f"{self.n_queries:,} queries"
        columns = [
            _Column(name, "{:.4f}", [self.means[row][name] for row in self.retrievers]) for name in self.measures
        ]
        columns += self._times()
        table = _table(self.retrievers, columns)
        failures = [_failures_in_words(name, failed) for name, failed in self.failures.items() if failed]
        return "\n".join(
            [f"{self.dataset}, split {self.split}, {queries}", "", *table, *([""] * bool(failures)), *failures]
        )

    def _times(self) -> list[_Column]:
        taken = [self.latency.get(row) for row in self.retrievers]
        if self.latency:
            found = [
                _Column(
                    f"{name} ms",
                    "{:.2f}",
                    [None if one is None else getattr(one.total, name) for one in taken],
                    best=min,
                )
                for name in ("p50", "p95", "p99")
            ]
            for threads in next(iter(self.latency.values())).queries_per_second:
                rates = [None if one is None else one.queries_per_second.get(threads) for one in taken]
                found.append(_Column(f"q/s x{threads}", "{:.1f}", rates))
            return found
        if not self.milliseconds:
            return []
        return [_Column("ms/query", "{:.2f}", [self.milliseconds.get(row) for row in self.retrievers], best=min)]

    def compare(self, a: str, b: str, measure: str | None = None) -> Comparison:
        """Return how much better retriever ``b`` is than ``a`` on the same queries, with p-value and interval.

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
        measure = self._evaluated_measure(measure)
        for name in (a, b):
            self._require_evaluated(name)
        pairs = [(self.per_query[a][query][measure], self.per_query[b][query][measure]) for query in self.per_query[a]]
        return compare(a, b, measure, [after - before for before, after in pairs])

    def comparisons(self, measure: str | None = None, baseline: str | None = None) -> Comparisons:
        """Return every pair of retrievers compared on the same queries, p-values corrected for all of them (Holm).

        Parameters
        ----------
        measure : str, optional
            By default the first.
        baseline : str, optional
            Compare each of the others against this one alone: fewer questions, so each needs less of a difference.

        Raises
        ------
        ArgumentError
            There is no such retriever or measure.
        """
        measure = self._evaluated_measure(measure)
        if baseline is None:
            pairs = list(itertools.combinations(self.retrievers, 2))
        else:
            self._require_evaluated(baseline)
            pairs = [(baseline, name) for name in self.retrievers if name != baseline]
        return Comparisons(self.compare(a, b, measure) for a, b in pairs).corrected()

    def _evaluated_measure(self, measure: str | None) -> str:
        if measure is not None and measure not in self.measures:
            raise ArgumentError(f"{measure!r} was not evaluated; there are {', '.join(self.measures)}")
        return self.measures[0] if measure is None else measure

    def _require_evaluated(self, name: str) -> None:
        if name not in self.retrievers:
            raise ArgumentError(f"{name!r} was not evaluated; there are {', '.join(self.retrievers)}")

    def thresholds(self, retriever: str, *, k: int | None = None) -> Thresholds:
        """Return what each least score of a retriever would return: precision, recall, hits a query; and calibration.

        A document that was not judged counts as not relevant.

        Parameters
        ----------
        retriever : str
            One that has `scores`; they may be in any unit.
        k : int, optional
            Take only the first k documents of each query, as a search for k does. By default all that were retrieved.

        Raises
        ------
        ArgumentError
            There is no such retriever, it has no scores, or no document is judged relevant.
        """
        self._require_evaluated(retriever)
        return thresholds(retriever, self.runs[retriever], self.scores.get(retriever, {}), self.qrels, k=k)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        texts: Mapping[str, str] | None = None,
        diagnosis: Diagnosed | None = None,
        title: str | None = None,
    ) -> Path:
        """Write a report as one HTML file, and return the file. It opens from disk, and asks no network.

        Tables, plots, and any query with two rankings side by side. Text of queries and documents can run no script in
        it. Needs the extra ``report``. All pairs are compared by all measures, which takes seconds for many queries.

        Parameters
        ----------
        path : str or path
            The file.
        texts : mapping of str to str, optional
            Texts of documents by id, to show beside the ids. By default those of the data set that was evaluated,
            where it has a corpus.
        diagnosis : optional
            What `diagnose` returned, to show it too.
        title : str, optional
            By default the names of data set and split.

        Raises
        ------
        MissingExtra
            Jinja2 is not installed.
        """
        from lance_rerank.evaluation.report import write_report

        dataset = None if self.sources is None else self.sources.dataset
        return write_report(self, path, dataset=dataset, texts=texts, diagnosis=diagnosis, title=title)

    def diagnose(
        self,
        *,
        sample: int | None = 300,
        depth: int = 10,
        seed: int = 0,
        retrievers: Mapping[str, Retrieves] | None = None,
        dataset: Dataset | None = None,
        progress: Progress | None = None,
    ) -> Diagnosis:
        """Return why each retriever is no better than it is, and what to do first.

        Queries are searched again for it: once more without the reranker, and deeper and past any approximate index
        where relevant documents (grades above 0) are missing. A retriever that is no `lance_rerank.Retriever`, or of
        a subclass of it, is diagnosed by its run alone, as are all of `evaluate_runs`.

        Parameters
        ----------
        sample : int, optional
            How many queries at most, drawn by `seed`; None for all.
        depth : int, default 10
            How many documents are the top: a relevant one below is lost.
        retrievers : mapping, optional
            By name; these are diagnosed, by default those that were evaluated. Without any, ``{}``, all are by their
            runs alone.
        dataset : Dataset, optional
            By default the one they were evaluated on.
        progress : callable, optional
            Called as ``progress(name, done, total)``; the total grows by the queries that are searched deeper.

        Raises
        ------
        ArgumentError
            The result was read from a file, and so knows no retrievers; or there is nothing to go by.
        """
        if retrievers is None and self.sources is None:
            named = ", ".join(f"{name!r}: ..." for name in self.retrievers)
            raise ArgumentError(
                "a result that was read from a file has no retrievers to ask again: pass them, "
                f"diagnose(retrievers={{{named}}}); or diagnose(retrievers={{}}) for what the runs alone tell"
            )
        if retrievers is None and self.sources is not None:
            asked: Mapping[str, Retrieves] = self.sources.retrievers
        else:
            asked = retrievers or {}
        return diagnose(
            tuple(retrievers or self.retrievers),
            asked,
            dataset or self._evaluated_dataset(),
            self.measures[0],
            runs=self.runs,
            scores=self.scores,
            failures=self.failures,
            sample=sample,
            depth=depth,
            seed=seed,
            progress=progress,
        )

    def _evaluated_dataset(self) -> Dataset:
        if self.sources is not None:
            return self.sources.dataset
        if not self.qrels:
            raise ArgumentError("this result was saved without its queries and judgements; pass dataset=...")
        return Dataset(self.dataset, self.split, None, self.queries, self.qrels)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the values by query, a row each: ``retriever``, ``query_id``, ``measure``, ``value``."""
        import pyarrow as pa
        from pyarrow import parquet

        rows = [
            (retriever, query_id, measure, float(value))
            for retriever, queries in self.per_query.items()
            for query_id, values in queries.items()
            for measure, value in values.items()
        ]
        types = {"retriever": pa.string(), "query_id": pa.string(), "measure": pa.string(), "value": pa.float64()}
        columns = list(zip(*rows, strict=True)) or [()] * len(types)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
        parquet.write_table(pa.table(arrays, names=list(types)), os.fspath(path))

    def to_trec(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write each run as a TREC file into a folder, and return the files by retriever.

        A file has the name of its retriever, with ``_`` for what is no letter, digit or one of ``+-.@``. Queries that
        found nothing have no line in it; `evaluate_runs` counts them all the same.

        Raises
        ------
        ArgumentError
            An id has white space, which the format cannot hold.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: folder / f"{stem}.run" for name, stem in _file_stems(self.retrievers).items()}
        for name, path in files.items():
            write_trec_run(path, self.runs[name], name)
        return files

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are saved, lists for tuples; the dicts in it are this result's own, not copies."""
        values = {item.name: getattr(self, item.name) for item in _saved(type(self))}
        values["latency"] = {name: latency.to_dict() for name, latency in self.latency.items()}
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
        needed = [item.name for item in _saved(cls) if item.default_factory is MISSING]
        missing = [name for name in needed if not isinstance(values, dict) or name not in values]
        if missing:
            raise ArgumentError(f"no evaluation result: it lacks {', '.join(missing)}; expected what to_json wrote")
        known = {item.name: values[item.name] for item in _saved(cls) if item.name in values}
        known["latency"] = {name: Latency.from_dict(taken) for name, taken in (known.get("latency") or {}).items()}
        return cls(**(known | {"measures": tuple(known["measures"]), "retrievers": tuple(known["retrievers"])}))


def _saved(cls: type[EvaluationResult]) -> list[Field[Any]]:
    return [item for item in fields(cls) if item.metadata.get("saved", True)]


def _failures_in_words(retriever: str, failed: dict[str, str]) -> str:
    count = "1 query" if len(failed) == 1 else f"{len(failed):,} queries"
    shown = [
        f"{query!r} ({textwrap.shorten(why, 100)})" for query, why in itertools.islice(failed.items(), _FAILURES_SHOWN)
    ]
    more = f", and {len(failed) - len(shown):,} more" if len(failed) > len(shown) else ""
    return f"{count} failed on {retriever!r}, counted as finding nothing: {', '.join(shown)}{more}"


def _file_stems(names: Sequence[str]) -> dict[str, str]:
    """Return a file name for each name: readable, and another for each, also where capitals do not count."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"[^\w.+@-]+", "_", name) or "_"
        candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        stems[name] = next(one for one in candidates if one.lower() not in taken)
        taken.add(stems[name].lower())
    return stems


@dataclass(frozen=True)
class _Column:
    title: str
    template: str
    values: Sequence[float | None]
    best: Callable[[Sequence[float]], float] = max

    def cells(self, marked: bool) -> list[str]:
        """Return the values as text, a dash for none; where two print alike, both are marked."""
        texts = ["-" if value is None else self.template.format(value) for value in self.values]
        there = [value for value in self.values if value is not None]
        best = self.template.format(self.best(there)) if marked and there else None
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
        times = [column.title for column in columns if column.best is min]
        of_times = "times" if len(times) > 1 else "".join(times)
        which = f"of the measures the highest, of {of_times} the lowest" if times else "the highest"
        lines += ["", f"* best of its column ({which})"]
    return lines
