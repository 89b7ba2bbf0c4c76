"""Requirements that retrievers have to meet before they ship: a rule for pipelines, and not a test of significance.

A requirement says how far a mean may fall, and the mean decides. Whether the fall is more than the luck of the queries
is for `lance_rerank.evaluation.significance`; the interval stands beside each breach so that it can be judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.significance import compare

_NUMBER = r"\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_WRITTEN = re.compile(rf"(?P<measure>\S.*?)(?:\s*>=\s*(?P<mean>[+-]?(?:{_NUMBER}))|\s+(?P<gain>[+-]\s*(?:{_NUMBER})))")
_SPELLINGS = "'nDCG@10 -0.005' (at most so much below the baseline) or 'nDCG@10 >= 0.5' (the mean itself)"
_ROUNDING = 1e-9  # 0.495 - 0.5 is a little less than -0.005


@dataclass(frozen=True, slots=True)
class Requirement:
    """The least that a retriever has to reach by one measure, by itself or against a baseline.

    Attributes
    ----------
    measure : str
        As ir-measures writes it; another spelling of the same measure will do.
    least : float
        The smallest mean that is accepted, or the smallest mean difference from the baseline. What falls short of it by
        no more than the rounding of floating-point numbers is accepted.
    relative : bool, default True
        Whether `least` is a difference.

    Examples
    --------
    >>> Requirement.parse("nDCG@10 -0.005")
    Requirement(measure='nDCG@10', least=-0.005, relative=True)
    >>> print(Requirement.parse("R@100>=0.9"))
    R@100 >= 0.9
    >>> from lance_rerank.evaluation import evaluate_runs
    >>> runs = {"plain": {"q1": ["d1", "d2"]}, "tuned": {"q1": ["d2", "d1"]}}
    >>> result = evaluate_runs(runs, {"q1": {"d1": 1}}, ["RR@10"])
    >>> [breach] = Requirement.parse("RR@10 -0.005").check(result)
    >>> print(breach)
    tuned against plain: RR@10 -0.5000 (95 % interval -0.5000 to -0.5000), 0.4950 below the required -0.005
    """

    measure: str
    least: float
    relative: bool = True

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Return the requirement written as ``MEASURE -NUMBER``, ``MEASURE +NUMBER`` or ``MEASURE >= NUMBER``.

        Raises
        ------
        ArgumentError
            The text is none.
        """
        written = _WRITTEN.fullmatch(text.strip())
        if written is None:
            raise ArgumentError(f"{text!r} is no requirement; write {_SPELLINGS}")
        if written["mean"] is not None:
            return cls(written["measure"], float(written["mean"]), relative=False)
        return cls(written["measure"], float("".join(written["gain"].split())))

    def __str__(self) -> str:
        return f"{self.measure} {f'{self.least:+}' if self.relative else f'>= {self.least}'}"

    def check(self, result: EvaluationResult, baseline: str | None = None) -> list[Breach]:
        """Return the retrievers that fall short, none where all do what is required.

        A difference is that of the last retriever, the candidate, from the first, the baseline; with `baseline` that of
        each other retriever from it. A mean is required of every retriever.

        Raises
        ------
        ArgumentError
            The measure or the baseline was not evaluated, or there is nothing to compare with.
        """
        self.require_checkable(result.measures, result.retrievers, baseline)
        if self.relative:
            return self.check_pairs(result, _pairs(result.retrievers, baseline))
        return self._check_means(result, result.retrievers)

    def check_pairs(self, result: EvaluationResult, pairs: Iterable[tuple[str, str]]) -> list[Breach]:
        """Return the breaches among pairs of a baseline and a candidate; a mean is required of the candidates alone.

        Raises
        ------
        ArgumentError
            The measure or a retriever was not evaluated.
        """
        pairs = list(pairs)
        if not self.relative:
            return self._check_means(result, list(dict.fromkeys(candidate for _, candidate in pairs)))
        measure = self._measure_among(result.measures)
        compared = [result.compare(baseline, candidate, measure) for baseline, candidate in pairs]
        return [
            Breach(str(self), self.least, one.b, one.a, measure, one.difference, one.low, one.high)
            for one in compared
            if one.difference < self.least - _ROUNDING
        ]

    def require_checkable(
        self, measures: Sequence[str], retrievers: Sequence[str], baseline: str | None = None
    ) -> None:
        """Raise where `check` would, for a result of these measures and retrievers that is not there yet."""
        self._measure_among(measures)
        if baseline is not None and baseline not in retrievers:
            raise ArgumentError(
                f"there is no retriever {baseline!r} to be the baseline; there are {_listed(retrievers)}"
            )
        if self.relative and len(retrievers) < 2:
            raise ArgumentError(
                f"{str(self)!r} compares with a baseline, and {_listed(retrievers)} is the only retriever; name "
                f"another before it, or require a mean: '{self.measure} >= 0.5'"
            )

    def _measure_among(self, measures: Sequence[str]) -> str:
        measure = measure_among(self.measure, measures)
        if measure is None:
            raise ArgumentError(
                f"{str(self)!r} needs the measure {self.measure}, which is not evaluated; there are {_listed(measures)}"
            )
        return measure

    def _check_means(self, result: EvaluationResult, retrievers: Sequence[str]) -> list[Breach]:
        measure = self._measure_among(result.measures)
        breaches = []
        for name in retrievers:
            mean = result.means[name][measure]
            if mean < self.least - _ROUNDING:
                low, high = _interval(result, name, measure)
                breaches.append(Breach(str(self), self.least, name, None, measure, mean, low, high))
        return breaches


@dataclass(frozen=True, slots=True)
class Breach:
    """A requirement that a retriever does not meet.

    Attributes
    ----------
    requirement : str
        As it was written.
    least : float
        What was required.
    retriever : str
        Which falls short.
    baseline : str or None
        What it was compared with; None where a mean was required.
    measure : str
        As it was evaluated.
    value : float
        The mean, or the mean difference from the baseline.
    low, high : float
        Its 95 % interval, by bootstrap over queries.

    Examples
    --------
    >>> print(Breach("RR@10 >= 0.5", 0.5, "plain", None, "RR@10", 0.46, 0.41, 0.52))
    plain: RR@10 0.4600 (95 % interval 0.4100 to 0.5200), 0.0400 below the required 0.5
    """

    requirement: str
    least: float
    retriever: str
    baseline: str | None
    measure: str
    value: float
    low: float
    high: float

    @property
    def shortfall(self) -> float:
        """How much is lacking."""
        return self.least - self.value

    def __str__(self) -> str:
        sign = "" if self.baseline is None else "+"
        against = "" if self.baseline is None else f" against {self.baseline}"
        return (
            f"{self.retriever}{against}: {self.measure} {self.value:{sign}.4f} (95 % interval {self.low:{sign}.4f} to "
            f"{self.high:{sign}.4f}), {self.shortfall:.4f} below the required {self.least:{sign}}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, and how much is lacking."""
        return asdict(self) | {"shortfall": self.shortfall}


def _pairs(retrievers: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    if baseline is None:
        return [(retrievers[0], retrievers[-1])]
    return [(baseline, name) for name in retrievers if name != baseline]


def _interval(result: EvaluationResult, retriever: str, measure: str) -> tuple[float, float]:
    """Return the interval of a mean: that of its difference from nothing."""
    values = [by_measure[measure] for by_measure in result.per_query[retriever].values()]
    found = compare("nothing", retriever, measure, values)
    count = len(values) if result.means[retriever][measure] > found.difference + _ROUNDING else 1  # NumRet is a sum
    return found.low * count, found.high * count


def measure_among(wanted: str, measures: Iterable[str]) -> str | None:
    """Return a measure as it stands among others, MRR@10 as RR@10; None if it is not there."""
    return next((measure for measure in measures if _canonical(measure) == _canonical(wanted)), None)


def _canonical(measure: str) -> str:
    """Return a measure as ir-measures prints it; what is none stays as it is."""
    import ir_measures

    try:
        return str(ir_measures.parse_measure(measure))
    except (NameError, ValueError, TypeError):
        return measure


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
