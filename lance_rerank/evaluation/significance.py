"""Whether a difference between two retrievers is more than the luck of the queries.

One rule decides: the p-value of a paired randomisation test, corrected over the family where there is one, at 5 %.
The interval beside it says how large the difference may be. It does not decide, because the percentile bootstrap is too
narrow for few queries, and has no correction for many comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lance_rerank.errors import ArgumentError

RESAMPLES = 10_000
ALPHA = 0.05
POWER = 0.8
FEWEST_QUERIES = 6  # of 2**5 ways to flip five signs two are the most extreme, so p is 0.0625 at the least
_CHUNK = 2**20  # numbers in memory at a time; all resamples at once would take a gigabyte for ten thousand queries

_Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better one retriever is than another, on the same queries.

    Attributes
    ----------
    a, b, measure : str
        What was compared.
    n_queries : int
        How many queries both were asked.
    difference : float
        Mean of b minus mean of a.
    low, high : float
        The 95 % interval of the difference, by bootstrap over queries.
    wins, losses : int
        Queries on which b is better, and on which it is worse; the others tie.
    p_value : float
        How often a difference at least this large comes out where it is chance which retriever gave which answer.
        Never 0.
    detectable : float or None
        The smallest true difference that this many queries of this spread show in four of five tries. None where they
        are too few to show any, or do not differ in their differences.
    p_corrected : float or None
        `p_value` corrected for all the comparisons it was made with; None for one made alone.

    Examples
    --------
    >>> print(compare("hybrid", "reranked", "RR@10", [0.5, 0.25, 0.5, 0.5, 0.75, 0.5, 0.0]))
    reranked against hybrid: RR@10 +0.4286 (95 % interval ...; better on 6 queries, worse on 0 of 7; p 0.031): better
    >>> print(compare("hybrid", "reranked", "RR@10", [0.5, -0.5] * 120))
    reranked against hybrid: RR@10 +0.0000 (...; p 1.000): no difference that these queries can show; 240 queries can
    show one of 9.1 points
    """

    a: str
    b: str
    measure: str
    n_queries: int
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float
    detectable: float | None
    p_corrected: float | None = None

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the (corrected) p-value is at most 0.05, else that these queries show nothing."""
        p = self.p_value if self.p_corrected is None else self.p_corrected
        if p > ALPHA:
            return "no difference that these queries can show"
        return "better" if self.difference > 0 else "worse"

    @property
    def power(self) -> str:
        """What this many queries can show, in words; points are hundredths."""
        if self.n_queries < FEWEST_QUERIES:
            queries = "1 query is" if self.n_queries == 1 else f"{self.n_queries} queries are"
            return f"{queries} too few to show any difference; {FEWEST_QUERIES} are the fewest"
        if self.detectable is None:
            return f"what {self.n_queries:,} queries can show is unknown: the difference is the same on each"
        return f"{self.n_queries:,} queries can show a difference of {_points(self.detectable)}"

    def __str__(self) -> str:
        counts = f"better on {self.wins} queries, worse on {self.losses} of {self.n_queries}"
        return (
            f"{self.b} against {self.a}: {self.measure} {self.difference:+.4f} (95 % interval {self.low:+.4f} to "
            f"{self.high:+.4f}; {counts}; {self._p_in_words()}): {self.verdict}{self._what_could_be_shown()}"
        )

    def _p_in_words(self) -> str:
        if self.n_queries < FEWEST_QUERIES:
            return f"{_p(self.p_value)}, too few queries to show any"
        return _p(self.p_value) if self.p_corrected is None else f"{_p(self.p_corrected)} corrected"

    def _what_could_be_shown(self) -> str:
        if self.verdict in ("better", "worse") or self.detectable is None:
            return ""
        return f"; {self.n_queries:,} queries can show one of {_points(self.detectable)}"


class Comparisons(tuple[Comparison, ...]):
    """Comparisons by one measure, corrected for being many; a tuple that prints as a table.

    Examples
    --------
    >>> print(Comparisons([compare("plain", "tuned", "RR@10", [0.5, -0.5] * 120)]).corrected())
    RR@10, 240 queries, 1 comparison
    <BLANKLINE>
    tuned against plain  +0.0000  (-0.0625 to +0.0625)  p 1.000    no difference that these queries can show
    <BLANKLINE>
    240 queries can show a difference of 9.1 points
    """

    __slots__ = ()

    def corrected(self) -> Comparisons:
        """Return the same comparisons with `p_corrected` by Holm's method, the family being all of them.

        What can be detected is then what can be at 5 % divided by their number: Holm's first and hardest step.
        """
        corrected = holm([comparison.p_value for comparison in self])
        return Comparisons(
            replace(one, p_corrected=p, detectable=_in_a_family(one, len(self)))
            for one, p in zip(self, corrected, strict=True)
        )

    def __str__(self) -> str:
        if not self:
            return "nothing to compare: there is one retriever"
        count = "1 comparison" if len(self) == 1 else f"{len(self)} comparisons, p-values corrected for them (Holm)"
        names = [f"{one.b} against {one.a}" for one in self]
        width = max(map(len, names))
        rows = [
            f"{name:<{width}}  {one.difference:+.4f}  ({one.low:+.4f} to {one.high:+.4f})  "
            f"{_p(one.p_value if one.p_corrected is None else one.p_corrected):<9}  {one.verdict}"
            for name, one in zip(names, self, strict=True)
        ]
        queries = "1 query" if self[0].n_queries == 1 else f"{self[0].n_queries:,} queries"
        return "\n".join([f"{self[0].measure}, {queries}, {count}", "", *rows, "", self.power])

    @property
    def power(self) -> str:
        """What this many queries can show of every pair, in words."""
        known = [one for one in self if one.detectable is not None]
        if not known:
            return self[0].power
        # of several pairs the hardest to tell apart speaks: what it can show, all can
        hardest = max(known, key=lambda one: one.detectable or 0.0)
        which = f" between {hardest.a} and {hardest.b}, the pair hardest to tell apart" if len(known) > 1 else ""
        return f"{hardest.power}{which}"


def compare(a: str, b: str, measure: str, differences: Sequence[float], *, seed: int = 0) -> Comparison:
    """Return the comparison that the differences query by query (b minus a) amount to.

    The interval is the percentile bootstrap over queries: Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 13.

    Raises
    ------
    ArgumentError
        There are no differences, or one is not a number.
    """
    values = np.asarray(differences, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ArgumentError(f"expected a finite difference a query, at least one; got {differences!r}")
    low, high = _interval(values, seed)
    return Comparison(
        a,
        b,
        measure,
        len(values),
        float(values.mean()),
        low,
        high,
        int((values > 0).sum()),
        int((values < 0).sum()),
        randomisation_p(values, seed=seed),
        minimum_detectable_effect(values),
    )


def randomisation_p(differences: Sequence[float] | _Values, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test on the mean of the differences.

    If the two retrievers are alike, each difference could as well have had the other sign. Where there are at most
    ``resamples`` ways to choose the signs all are tried and the p-value is exact, else that many are drawn and it is
    ``(1 + as extreme) / (1 + drawn)``, which is never 0 and keeps the level: Phipson and Smyth 2010,
    https://doi.org/10.2202/1544-6115.1585. On the test for retrieval: Smucker, Allan and Carterette 2007,
    https://doi.org/10.1145/1321440.1321528.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0]  # a tie stays one whatever its sign
    observed = abs(values.sum())
    # the same numbers summed in another order may differ in the last digits, which must not tell ties apart
    least = observed - 1e-9 * np.abs(values).sum()
    if 2 ** len(values) <= resamples:
        ways = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float((np.abs(_flipped_sums(values, ways)) >= least).mean())
    rng = np.random.default_rng([seed, 1])  # not the numbers that the bootstrap draws
    extreme = 0
    for rows in _chunks(resamples, len(values)):
        bits = rng.integers(0, 256, (rows, -(-len(values) // 8)), np.uint8)
        flips = np.unpackbits(bits, axis=1, count=len(values))
        extreme += int((np.abs(_flipped_sums(values, flips)) >= least).sum())
    return (1 + extreme) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected so that a family with no real difference shows one in at most 5 % of cases.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def minimum_detectable_effect(differences: Sequence[float] | _Values) -> float | None:
    """Return the smallest true mean difference found in 80 % of tries at 5 % two-sided, or None if that is unknown.

    It is the standard error times ``t(0.975) + t(0.8)`` with n - 1 degrees of freedom, which is 2.8 for many queries:
    Bloom, "Minimum Detectable Effects", Evaluation Review 19(5), 1995, https://doi.org/10.1177/0193841X9501900504.
    """
    values = np.asarray(differences, np.float64)
    n = len(values)
    if n < FEWEST_QUERIES or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return None
    return _multiplier(n, ALPHA) * float(values.std(ddof=1)) / math.sqrt(n)


def _in_a_family(one: Comparison, size: int) -> float | None:
    if one.detectable is None:
        return None
    return one.detectable * _multiplier(one.n_queries, ALPHA / size) / _multiplier(one.n_queries, ALPHA)


def _multiplier(n: int, alpha: float) -> float:
    """Return how many standard errors a true difference has to be to be found in 80 % of tries."""
    from scipy.special import stdtrit  # takes longer to import than everything else here

    return float(stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, POWER))


def _interval(values: _Values, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n = len(values)
    means = [values[rng.integers(0, n, (rows, n))].mean(axis=1) for rows in _chunks(RESAMPLES, n)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _flipped_sums(values: _Values, flips: npt.NDArray[np.int64] | npt.NDArray[np.uint8]) -> _Values:
    """Return, for each row of zeros and ones, the sum with the signs under ones turned."""
    return values.sum() - 2 * (flips.astype(np.float64) @ values)


def _chunks(rows: int, width: int) -> list[int]:
    size = max(1, min(rows, _CHUNK // width))
    return [min(size, rows - start) for start in range(0, rows, size)]


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _points(difference: float) -> str:
    points = 100 * difference
    return f"{points:.1f} points" if points >= 0.05 else f"{points:.2g} points"
