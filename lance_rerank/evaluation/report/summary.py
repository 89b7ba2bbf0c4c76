"""The tables of a report: means with their intervals, and comparisons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lance_rerank.evaluation.report.subject import Reported
from lance_rerank.evaluation.significance import FEWEST_QUERIES, RESAMPLES, Comparison, Comparisons

_CHUNK = 2**20  # numbers in memory at a time
_ROOM = 0.08  # of a row's picture, left beside the longest interval

_Values = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the summary: as text, the best of its column, and the interval of a mean."""

    text: str
    best: bool = False
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison, and where its interval lies in the picture beside it (from 0 to 1)."""

    comparison: Comparison
    p: str
    low: float
    middle: float
    high: float
    zero: float

    @property
    def kind(self) -> str:
        """ "better", "worse" or "open"."""
        return self.comparison.verdict if _is_shown(self.comparison) else "open"


@dataclass(frozen=True, slots=True)
class Family:
    """All comparisons by one measure."""

    measure: str
    rows: list[Row]
    power: str


def intervals(result: Reported, *, seed: int = 0) -> dict[str, dict[str, Interval | None]]:
    """Return the 95 % interval of each mean, by retriever and measure: percentile bootstrap over queries.

    All means are taken of the same resamples. Measures that are sums over the queries, such as NumRet, have none.
    """
    names = [(retriever, measure) for retriever in result.retrievers for measure in result.measures]
    columns = [[values[measure] for values in result.per_query[retriever].values()] for retriever, measure in names]
    values = np.array(columns, np.float64).T
    low, high = np.quantile(_resampled_means(values, seed), [0.025, 0.975], axis=0)
    found: dict[str, dict[str, Interval | None]] = {retriever: {} for retriever in result.retrievers}
    for place, (retriever, measure) in enumerate(names):
        is_mean = math.isclose(values[:, place].mean(), result.means[retriever][measure], rel_tol=1e-6, abs_tol=1e-9)
        found[retriever][measure] = (float(low[place]), float(high[place])) if is_mean else None
    return found


def _resampled_means(values: _Values, seed: int) -> _Values:
    """Return the means of the columns in each resample of the rows."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = []
    rows = max(1, min(RESAMPLES, _CHUNK // n))
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, n, (min(rows, RESAMPLES - start), n))
        drawn += np.arange(len(drawn))[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=len(drawn) * n).reshape(-1, n)
        means.append(counts.astype(np.float64) @ values / n)
    return np.concatenate(means)


def summary_columns(result: Reported, means: dict[str, dict[str, Interval | None]]) -> dict[str, list[Cell]]:
    """Return the columns of the summary by title, a cell a retriever: the measures, then the times."""
    columns = {}
    for measure in result.measures:
        values = [result.means[retriever][measure] for retriever in result.retrievers]
        spans = [means[retriever][measure] for retriever in result.retrievers]
        columns[measure] = [
            Cell(cell.text, cell.best, "" if span is None else f"{span[0]:.4f} to {span[1]:.4f}")
            for cell, span in zip(_cells(values, "{:.4f}"), spans, strict=True)
        ]
    return columns | _time_columns(result)


def _time_columns(result: Reported) -> dict[str, list[Cell]]:
    taken = [result.latency.get(retriever) for retriever in result.retrievers]
    if not result.latency:
        values = [result.milliseconds.get(retriever) for retriever in result.retrievers]
        return {"ms/query": _cells(values, "{:,.2f}", lowest=True)} if result.milliseconds else {}
    columns = {}
    for name in ("p50", "p95", "p99"):
        times = [None if one is None else float(getattr(one.total, name)) for one in taken]
        columns[f"{name} ms"] = _cells(times, "{:,.1f}", lowest=True)
    for threads in next(iter(result.latency.values())).queries_per_second:
        rates = [None if one is None else one.queries_per_second.get(threads) for one in taken]
        columns[f"q/s x{threads}"] = _cells(rates, "{:,.1f}")
    return columns


def _cells(values: Sequence[float | None], template: str, *, lowest: bool = False) -> list[Cell]:
    """Return the values as text, the best marked; where all print alike, none is."""
    texts = ["–" if value is None else template.format(value) for value in values]
    there = [value for value in values if value is not None]
    best = template.format(min(there) if lowest else max(there)) if there else None
    marked = len(set(texts)) > 1
    return [Cell(text, marked and text == best) for text in texts]


def families(result: Reported) -> list[Family]:
    """Return the comparisons of every pair by each measure, corrected within the measure."""
    return [_family(result.comparisons(measure)) for measure in result.measures if len(result.retrievers) > 1]


def _family(comparisons: Comparisons) -> Family:
    ends = [0.0, *(end for one in comparisons for end in (one.low, one.high, one.difference))]
    room = (max(ends) - min(ends)) * _ROOM or 1.0
    low, wide = min(ends) - room, max(ends) - min(ends) + 2 * room

    def place(value: float) -> float:
        return round((value - low) / wide, 4)

    rows = [
        Row(one, p_in_words(one), place(one.low), place(one.difference), place(one.high), place(0.0))
        for one in comparisons
    ]
    return Family(comparisons[0].measure, rows, comparisons.power)


def p_in_words(comparison: Comparison) -> str:
    """Return the corrected p-value to three digits."""
    p = comparison.p_value if comparison.p_corrected is None else comparison.p_corrected
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def headline(result: Reported, found: Sequence[Family]) -> str:
    """Return what the comparisons by the first measure come to, in a sentence or two."""
    measure = result.measures[0]
    if not found:
        return f"One retriever was evaluated, so there is nothing to compare; it has {measure} " + (
            f"{result.means[result.retrievers[0]][measure]:.4f}."
        )
    comparisons = [row.comparison for row in found[0].rows]
    if result.n_queries < FEWEST_QUERIES:
        return f"Nothing is significant: {found[0].power}."
    if not any(map(_is_shown, comparisons)):
        return f"Nothing is significant: no two retrievers can be told apart by {measure}; {found[0].power}."
    best = max(result.retrievers, key=lambda name: result.means[name][measure])
    beaten = [one.a if one.b == best else one.b for one in comparisons if best in (one.a, one.b) and _is_shown(one)]
    even = [other for other in result.retrievers if other not in (best, *beaten)]
    sentences = [f"{best} has the highest {measure}, {result.means[best][measure]:.4f}."]
    if beaten:
        sentences.append(f"It is significantly better than {_listed(beaten)}.")
    if even:
        sentences.append(f"Whether it is better than {_listed(even)}, these queries cannot show.")
    return " ".join(sentences)


def _is_shown(comparison: Comparison) -> bool:
    return comparison.verdict in ("better", "worse")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
