"""What a least score costs and gains: precision and recall at every score, and how well scores are calibrated.

Precision is the share of the returned documents that are relevant (grade 1 or more), recall the share of all relevant
documents of the queries that are returned. Both count documents over all queries together ("micro"), not query by
query: below a high threshold most queries return nothing and have no precision of their own. A document that could not
be scored is returned at no threshold, as with a reranker's ``min_score``.

A document that nobody judged counts as not relevant, as in the measures. So with few judgements precision is the least
it can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lance_rerank.errors import ArgumentError

POINTS = 100
BINS = 10
_ROWS_PRINTED = 10
_TITLES = ("min_score", "precision", "recall", "hits/query", "no hits")

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """What a search returns from one score on.

    Attributes
    ----------
    min_score : float
        In the unit of the retriever's scores.
    precision : float or None
        The share of the returned documents that are relevant, over all queries; None where nothing is returned.
    recall : float
        The share of the relevant documents that are returned, over all queries.
    hits_per_query : float
        How many documents a query returns, on average.
    empty_queries : int
        How many queries return nothing.

    Examples
    --------
    >>> ThresholdPoint(0.7, precision=0.9, recall=0.55, hits_per_query=0.61, empty_queries=80).recall
    0.55
    """

    min_score: float
    precision: float | None
    recall: float
    hits_per_query: float
    empty_queries: int


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The documents whose scores lie from `low` to below `high` (in the last bin, to 1).

    Attributes
    ----------
    low, high : float
        Between 0 and 1.
    n : int
        How many documents.
    mean_score, relevant_share : float
        What was forecast, and what came true; equal where scores are probabilities of relevance.

    Examples
    --------
    >>> CalibrationBin(0.8, 0.9, n=40, mean_score=0.85, relevant_share=0.5).n
    40
    """

    low: float
    high: float
    n: int
    mean_score: float
    relevant_share: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far scores are from being probabilities of relevance.

    Attributes
    ----------
    bins : tuple of CalibrationBin
        Those of ten equally wide ones that have documents.
    expected_error : float
        The mean distance of score and share over the bins, weighted by documents ("expected calibration error": Guo et
        al. 2017, https://arxiv.org/abs/1706.04599). Most documents of a deep ranking are not relevant and score low, so
        that it is small by itself: look at the bins too.

    Examples
    --------
    >>> Calibration((CalibrationBin(0.8, 0.9, 40, 0.85, 0.5),), expected_error=0.35).expected_error
    0.35
    """

    bins: tuple[CalibrationBin, ...]
    expected_error: float


class _Levels(NamedTuple):
    """Every distinct score, ascending, with how many documents score so or more; and each query's best score."""

    scores: _Floats
    returned: _Counts
    relevant: _Counts
    best: _Floats
    n_queries: int
    n_relevant: int

    def at(self, min_score: float) -> ThresholdPoint:
        index = int(np.searchsorted(self.scores, min_score))
        beyond = index == len(self.scores)
        returned = 0 if beyond else int(self.returned[index])
        relevant = 0 if beyond else int(self.relevant[index])
        answered = len(self.best) - int(np.searchsorted(self.best, min_score))
        return ThresholdPoint(
            min_score,
            relevant / returned if returned else None,
            relevant / self.n_relevant,
            returned / self.n_queries,
            self.n_queries - answered,
        )

    def midway(self, index: int) -> float:
        """Return what lies between a score and the next lower one; the score itself where nothing does."""
        score = float(self.scores[index])
        if index == 0:
            return score
        lower = float(self.scores[index - 1])
        middle = lower / 2 + score / 2
        with np.errstate(over="ignore"):
            compared = np.array([lower, middle, score]).astype(np.float32)
        return middle if compared[0] < compared[1] < compared[2] else score

    def thinned(self) -> list[float]:
        """Return at most 100 scores: half in even steps of recall, half in even ratios of what is returned."""
        if len(self.scores) <= POINTS:
            return self.scores.tolist()
        recall, returned = _in_even_steps(self.relevant.astype(np.float64)), _in_even_steps(np.log(self.returned))
        chosen: list[float] = self.scores[np.union1d(recall, returned)].tolist()
        return chosen


@dataclass(frozen=True)
class Thresholds:
    """What each ``min_score`` of a retriever would return; prints as a table.

    Attributes
    ----------
    retriever : str
        Whose scores these are.
    n_queries, n_relevant : int
        The queries, and all documents judged relevant to one of them, found or not.
    n_scored, n_unscored, n_unjudged : int
        The retrieved documents with a score and those without, and how many of the scored were never judged.
    points : tuple of ThresholdPoint
        At most 100 of the distinct scores, the lowest first, closest where the curve moves; `at` knows them all.
    calibration : Calibration or None
        Where all scores lie between 0 and 1.

    Examples
    --------
    >>> run, scores = {"q1": ["d1", "d2"], "q2": ["d3"]}, {"q1": [0.9, 0.4], "q2": [0.6]}
    >>> found = thresholds("late", run, scores, {"q1": {"d1": 1}, "q2": {"d4": 1}})
    >>> print(found)
    late: what each min_score returns, 2 queries with 2 relevant documents
    <BLANKLINE>
    min_score  precision  recall  hits/query  no hits
          0.4      0.333   0.500        1.50        0
          0.6      0.500   0.500        1.00        0
          0.9      1.000   0.500        0.50        1
    <BLANKLINE>
    Not judged, and so counted as not relevant: 2 of 3 scored documents
    Expected calibration error: 0.367
    >>> found.for_precision(0.9)
    0.75
    """

    retriever: str
    n_queries: int
    n_relevant: int
    n_scored: int
    n_unscored: int
    n_unjudged: int
    points: tuple[ThresholdPoint, ...]
    calibration: Calibration | None
    _levels: _Levels = field(repr=False, compare=False)

    def at(self, min_score: float) -> ThresholdPoint:
        """Return what a search would return that leaves out documents scoring less than `min_score`.

        Raises
        ------
        ArgumentError
            It is not a number.
        """
        if math.isnan(min_score):
            raise ArgumentError("min_score is not a number; pass one in the unit of the scores")
        return self._levels.at(min_score)

    def for_precision(self, precision: float) -> float | None:
        """Return a least score from which on at least this share of the documents is relevant; None without one.

        Of all such it returns most. It lies midway between the score of the last document that it returns and the next
        lower one, so that scores that come out a little different do not lose that document; where no score is lower,
        or too near for one between as a search compares them (float32), it is that score itself.

        It was chosen on these queries, so on others expect a little less, the more so the fewer it returns here.

        Raises
        ------
        ArgumentError
            The precision does not lie between 0 and 1.
        """
        if not 0 <= precision <= 1:
            raise ArgumentError(f"precision must lie between 0 and 1, got {precision!r}")
        reached = np.flatnonzero(self._levels.relevant / self._levels.returned >= precision)
        return self._levels.midway(int(reached[0])) if len(reached) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, the points and the calibration by name, as JSON has them."""
        counts = ("retriever", "n_queries", "n_relevant", "n_scored", "n_unscored", "n_unjudged")
        calibration = None
        if self.calibration is not None:
            bins = [asdict(one) for one in self.calibration.bins]
            calibration = {"bins": bins, "expected_error": self.calibration.expected_error}
        return {name: getattr(self, name) for name in counts} | {
            "points": [asdict(point) for point in self.points],
            "calibration": calibration,
        }

    @property
    def notes(self) -> list[str]:
        """What to keep in mind when reading the figures, a sentence each."""
        notes = []
        if self.n_unjudged:
            scored = _counted(self.n_scored, "scored document")
            notes.append(f"Not judged, and so counted as not relevant: {self.n_unjudged:,} of {scored}")
        if self.n_unscored:
            notes.append(f"Left out for want of a score: {_counted(self.n_unscored, 'document')}")
        return notes

    def __str__(self) -> str:
        queries, relevant = _counted(self.n_queries, "query", "queries"), _counted(self.n_relevant, "relevant document")
        last = len(self.points) - 1
        chosen = sorted({round(last * step / (_ROWS_PRINTED - 1)) for step in range(_ROWS_PRINTED)})
        rows = [_TITLES, *(_cells(self.points[index]) for index in chosen)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        notes = self.notes
        if self.calibration is not None:
            notes.append(f"Expected calibration error: {self.calibration.expected_error:.3f}")
        head = f"{self.retriever}: what each min_score returns, {queries} with {relevant}"
        return "\n".join([head, "", *table, *([""] if notes else []), *notes])


def thresholds(
    retriever: str,
    run: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float | None]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    k: int | None = None,
) -> Thresholds:
    """Return what each least score of a retriever would return of its run.

    Parameters
    ----------
    retriever : str
        What it is called.
    run, scores, qrels : mapping
        Of this retriever: documents by query, their scores in the same order, and grades by query and document.
    k : int, optional
        Take only the first k documents of each query, as a search for k does.

    Raises
    ------
    ArgumentError
        There are no judgements, no relevant documents, or no scores; or a query has fewer scores than documents.
    """
    if k is not None and k < 1:
        raise ArgumentError(f"k must be at least 1, or None for all that was retrieved, got {k!r}")
    n_relevant = sum(grade > 0 for query_id in run for grade in qrels.get(query_id, {}).values())
    if not n_relevant:
        raise ArgumentError(
            "no document is judged relevant to these queries (grade 1 or more), so that there is nothing to find; a "
            "result that was saved without its judgements has none: evaluate again"
        )
    rows = [
        (np.nan if score is None else score, grade is not None and grade > 0, grade is None, number)
        for number, query_id in enumerate(run)
        for score, grade in _scored(query_id, run[query_id], scores.get(query_id, ()), qrels.get(query_id, {}))[:k]
    ]
    values = np.array(rows, np.float64).reshape(-1, 4)
    known = values[np.isfinite(values[:, 0])]
    if not len(known):
        raise ArgumentError(
            f"{retriever!r} has no scores to set a threshold on: {_why_none(run, scores, values[:, 0])}"
        )
    score, relevant = known[:, 0], known[:, 1] > 0
    levels = _levels(score, relevant, known[:, 3], len(run), n_relevant)
    return Thresholds(
        retriever,
        len(run),
        n_relevant,
        n_scored=len(known),
        n_unscored=len(values) - len(known),
        n_unjudged=int(known[:, 2].sum()),
        points=tuple(map(levels.at, levels.thinned())),
        calibration=calibration(score, relevant),
        _levels=levels,
    )


def _scored(
    query_id: str, ranking: Sequence[str], scores: Sequence[float | None], grades: Mapping[str, int]
) -> list[tuple[float | None, int | None]]:
    """Return score and grade of each document, None for those that have none."""
    if scores and len(scores) != len(ranking):
        raise ArgumentError(
            f"query {query_id!r} has {len(ranking)} documents and {len(scores)} scores; expected one a document"
        )
    return [(score, grades.get(doc_id)) for doc_id, score in zip(ranking, scores, strict=False)]


def _why_none(run: Mapping[str, Sequence[str]], scores: Mapping[str, Sequence[float | None]], values: _Floats) -> str:
    """Return why no document has a score that is a number, in words."""
    if not any(map(len, run.values())):
        return "it found nothing for these queries"
    if not any(len(scores.get(query_id, ())) for query_id in run):
        return "it was judged from rankings alone"
    documents = _counted(len(values), "document")
    if np.isinf(values).any():
        return f"it found {documents}, and no score is finite; look at what its model answers"
    return (
        f"it found {documents}, and could score none; is the text column empty or unselected, or are token vectors "
        "missing?"
    )


def _levels(
    score: _Floats, relevant: npt.NDArray[np.bool_], query: _Floats, n_queries: int, n_relevant: int
) -> _Levels:
    order = np.argsort(score, kind="stable")
    score, relevant, query = score[order], relevant[order], query[order]
    scores, first = np.unique(score, return_index=True)
    found = np.cumsum(relevant[::-1])[::-1][first]
    _, last = np.unique(query[::-1], return_index=True)  # the scores ascend, so a query's last is its best
    best = np.sort(score[::-1][last])
    return _Levels(scores, len(score) - first, found.astype(np.int64), best, n_queries, n_relevant)


def _in_even_steps(falling: _Floats) -> _Counts:
    """Return where falling values come down to each of evenly spaced ones, the first and the last among them."""
    wanted = np.linspace(falling[0], falling[-1], POINTS // 2)
    found = np.searchsorted(-falling, -wanted).clip(0, len(falling) - 1)
    found[-1] = len(falling) - 1
    return found.astype(np.int64)


def calibration(score: _Floats, relevant: npt.NDArray[np.bool_]) -> Calibration | None:
    """Return how far scores ``(n,)`` are from the share of relevant documents ``(n,)``; None unless all lie in 0..1."""
    if score.min() < 0 or score.max() > 1:
        return None
    places = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        mean, share = float(score[inside].mean()), float(relevant[inside].mean())
        bins.append(CalibrationBin(int(place) / BINS, (int(place) + 1) / BINS, int(inside.sum()), mean, share))
    error = sum(one.n * abs(one.mean_score - one.relevant_share) for one in bins) / len(score)
    return Calibration(tuple(bins), error)


def _cells(point: ThresholdPoint) -> tuple[str, ...]:
    precision = "-" if point.precision is None else f"{point.precision:.3f}"
    return (
        f"{point.min_score:.4g}",
        precision,
        f"{point.recall:.3f}",
        f"{point.hits_per_query:.2f}",
        f"{point.empty_queries:,}",
    )


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {many or one + 's'}"
