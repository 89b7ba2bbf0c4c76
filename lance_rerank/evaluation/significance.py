"""Whether a difference between two retrievers is more than the luck of the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much better one retriever is than another, on the same queries.

    Attributes
    ----------
    a, b, measure : str
        What was compared.
    n_queries : int
        How many queries both answered.
    difference : float
        Mean of b minus mean of a.
    low, high : float
        The 95 % interval of the difference, by bootstrap over queries.
    wins, losses : int
        Queries on which b is better, and on which it is worse; the others tie.

    Examples
    --------
    >>> print(compare("hybrid", "reranked", "RR@10", [0.5, 0.25, 0.5, 0.0]))
    reranked against hybrid: RR@10 +0.3125 (95 % interval +0.1250 to +0.5000; better on 3 queries, worse on 0 of 4): ...
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

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the interval leaves zero out, else "no difference that these queries can show"."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference that these queries can show"

    def __str__(self) -> str:
        return (
            f"{self.b} against {self.a}: {self.measure} {self.difference:+.4f} (95 % interval {self.low:+.4f} to "
            f"{self.high:+.4f}; better on {self.wins} queries, worse on {self.losses} of {self.n_queries}): "
            f"{self.verdict}"
        )


def compare(a: str, b: str, measure: str, differences: Sequence[float], *, seed: int = 0) -> Comparison:
    """Return the comparison that the differences query by query (b minus a) amount to.

    The interval is the percentile bootstrap over queries: Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 13.
    """
    values = np.asarray(differences, np.float64)
    rng = np.random.default_rng(seed)
    # a few hundred resamples at a time: all at once would take a gigabyte for ten thousand queries
    means = np.concatenate(
        [values[rng.integers(0, len(values), (250, len(values)))].mean(axis=1) for _ in range(RESAMPLES // 250)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(
        a,
        b,
        measure,
        len(values),
        float(values.mean()),
        float(low),
        float(high),
        int((values > 0).sum()),
        int((values < 0).sum()),
    )
