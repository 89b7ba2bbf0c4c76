"""How well a bridge between two models finds what the new one would find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lance_rerank.types import FloatArray

RESAMPLES = 2000
_AT_ONCE = 100  # resamples in memory
_CHUNK = 256  # queries compared with all rows at a time

_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Share:
    """A mean over queries of values between 0 and 1, with its 95 % interval by bootstrap over the queries.

    Examples
    --------
    >>> print(Share.of([1.0, 0.5, 0.5, 1.0] * 25))
    0.750 (0.700 to 0.800)
    """

    mean: float
    low: float
    high: float
    n_queries: int

    @classmethod
    def of(cls, values: Sequence[float] | npt.NDArray[np.float64]) -> Share:
        """Return the mean of one value a query, at least one."""
        drawn, rng = np.asarray(values, np.float64), np.random.default_rng(0)
        n = len(drawn)
        means = [drawn[rng.integers(0, n, (_AT_ONCE, n))].mean(axis=1) for _ in range(RESAMPLES // _AT_ONCE)]
        low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
        return cls(float(drawn.mean()), float(low), float(high), n)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class BridgeFigures:
    """How well a bridge finds what the new model would find, by exact search among the sampled rows.

    Attributes
    ----------
    k, rows : int
        How many nearest rows count, and among how many.
    recall : Share
        Of the k rows nearest to a held-out one by the new model, those that its bridged vector finds among the old
        vectors. The row itself is left out.
    old_recall : Share
        Those of them that the row's own old vector finds: how far the two models agree.
    self_hit : Share
        Held-out rows that are the nearest to their own bridged vector.
    query_recall : Share or None
        As `recall`, for the queries that were given.
    judged : mapping of str to Share
        By measure, for judged queries, over the whole old column.
    """

    k: int
    rows: int
    recall: Share
    old_recall: Share
    self_hit: Share
    query_recall: Share | None = None
    judged: Mapping[str, Share] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> BridgeFigures:
        """Return what `dataclasses.asdict` made a dict of."""
        shares = {name: Share(**said[name]) for name in ("recall", "old_recall", "self_hit")}
        by_queries = said["query_recall"]
        return cls(
            said["k"],
            said["rows"],
            **shares,
            query_recall=None if by_queries is None else Share(**by_queries),
            judged={measure: Share(**share) for measure, share in said["judged"].items()},
        )

    def __str__(self) -> str:
        nearest = f"of the {self.k} rows nearest to a held-out one are found by its bridged vector"
        lines = [
            f"  new model      {self.recall} {nearest}",
            f"  old model      {self.old_recall} of them are found by its old vector: so far the two models agree",
            f"  own row        {self.self_hit} of held-out rows are the nearest to their bridged vector",
        ]
        if self.query_recall is not None:
            count = f"{self.query_recall.n_queries:,} given queries"
            lines.append(
                f"  queries        {self.query_recall} of the {self.k} rows nearest to each of {count} are found"
            )
        lines.append(
            f"  measured       by exact search among {self.rows:,} rows, {self.recall.n_queries:,} held out; in a"
            " larger table rows lie closer, and less is found"
        )
        if self.judged:
            named = ", ".join(f"{measure} {share}" for measure, share in self.judged.items())
            lines.append(f"  judged         {named}, by exact search of the whole column")
        return "\n".join(lines)


def nearest(queries: FloatArray, rows: FloatArray, k: int, distance: str, without: _Indices | None = None) -> _Indices:
    """Return the k rows nearest to each query ``(n_queries, k)``, in no order.

    Parameters
    ----------
    queries, rows : array
        ``(n_queries, dim)`` and ``(n_rows, dim)``.
    k : int
        Less than the number of rows.
    distance : {"l2", "cosine", "dot"}
        What near means.
    without : array, optional
        For each query the row that does not count: itself.
    """
    if distance == "cosine":
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    lengths = (rows**2).sum(axis=1) / 2 if distance == "l2" else np.float32(0)
    found = np.empty((len(queries), k), np.intp)
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ rows.T - lengths
        if without is not None:
            scores[np.arange(len(scores)), without[start : start + _CHUNK]] = -np.inf
        found[start : start + _CHUNK] = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return found


def shares(wanted: _Indices, found: _Indices) -> npt.NDArray[np.float64]:
    """Return, for each query, how many of the rows wanted are among those found, as a part of one."""
    return (wanted[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)
