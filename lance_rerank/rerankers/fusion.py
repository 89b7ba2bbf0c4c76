"""Rerankers that need no model: they fuse the ranks or scores of the legs of a search."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lance_rerank import arrow
from lance_rerank.errors import ArgumentError
from lance_rerank.rerankers.base import BaseReranker, Scores

ReturnScore = Literal["relevance", "all"]
AnyFloats: TypeAlias = "npt.NDArray[np.floating[Any]]"


class _FusionReranker(BaseReranker):
    """A reranker that reads no text: only what the legs said."""

    def __init__(self, *, top_n: int | None, min_score: float | None, return_score: ReturnScore) -> None:
        super().__init__(top_n=top_n, min_score=min_score, return_score=return_score)

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    def cache_key(self) -> str | None:
        return f"{type(self).__module__}.{self}"


class RRFReranker(_FusionReranker):
    """Reciprocal rank fusion: a row scores the sum of 1 / (K + rank) over the legs that found it.

    Takes the arguments of ``lancedb.rerankers.RRFReranker`` and gives its scores; it also works on single-leg
    searches, and ``return_score="all"`` keeps both legs' scores.

    Parameters
    ----------
    K : int, default 60
        Larger values flatten the difference between first and later ranks.
    return_score, top_n, min_score
        As in `BaseReranker`.

    References
    ----------
    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods", SIGIR 2009.

    Examples
    --------
    >>> import pyarrow as pa
    >>> vector = pa.table({"_rowid": pa.array([1, 2], pa.uint64()), "_distance": pa.array([0.1, 0.2], pa.float32())})
    >>> fts = pa.table({"_rowid": pa.array([2, 3], pa.uint64()), "_score": pa.array([9.0, 4.0], pa.float32())})
    >>> RRFReranker().rerank_hybrid("a query", vector, fts).column("_rowid").to_pylist()
    [2, 1, 3]
    """

    def __init__(
        self,
        K: int = 60,  # noqa: N803 (LanceDB's name)
        return_score: ReturnScore = "relevance",
        *,
        top_n: int | None = None,
        min_score: float | None = None,
    ) -> None:
        if K <= 0:
            raise ArgumentError(f"K must be greater than 0, got {K!r}")
        super().__init__(top_n=top_n, min_score=min_score, return_score=return_score)
        self.K = K

    def __str__(self) -> str:
        return f"RRFReranker(K={self.K})"

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:  # noqa: ARG002
        """Return the fused reciprocal ranks."""
        return reciprocal_ranks(candidates, self.K).sum(axis=0)


class MRRReranker(_FusionReranker):
    """Weighted mean of the legs' reciprocal ranks, with LanceDB's arguments and scores.

    On a hybrid search the legs weigh `weight_vector` and `weight_fts`, shared where there are several vector legs; over
    vector searches alone each weighs the same. A leg that did not find a row adds 0.

    Parameters
    ----------
    weight_vector, weight_fts : float, default 0.5
        Between 0 and 1, together 1.
    return_score, top_n, min_score
        As in `BaseReranker`.
    """

    def __init__(
        self,
        weight_vector: float = 0.5,
        weight_fts: float = 0.5,
        return_score: ReturnScore = "relevance",
        *,
        top_n: int | None = None,
        min_score: float | None = None,
    ) -> None:
        if not (0 <= weight_vector <= 1 and 0 <= weight_fts <= 1) or abs(weight_vector + weight_fts - 1) > 1e-6:
            raise ArgumentError(
                f"weight_vector and weight_fts must lie between 0 and 1 and add up to 1, got {weight_vector!r} "
                f"and {weight_fts!r}"
            )
        super().__init__(top_n=top_n, min_score=min_score, return_score=return_score)
        self.weight_vector = weight_vector
        self.weight_fts = weight_fts

    def __str__(self) -> str:
        return f"MRRReranker(weight_vector={self.weight_vector}, weight_fts={self.weight_fts})"

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:  # noqa: ARG002
        """Return the weighted mean of reciprocal ranks."""
        ranks = reciprocal_ranks(candidates, 0)
        if len(set(candidates.kinds)) == 1:
            return ranks.mean(axis=0)
        weights = {"vector": self.weight_vector, "fts": self.weight_fts}
        shares = [weights[kind] / candidates.kinds.count(kind) for kind in candidates.kinds]
        return ranks.T @ np.array(shares)


class LinearCombinationReranker(_FusionReranker):
    """Weighted sum of normalised vector similarity and full-text score, with LanceDB's arguments and scores.

    Each leg is scaled to 0..1 by its own minimum and maximum, so a row's score depends on which other rows were
    fetched; `WeightedReranker` does without that.

    Parameters
    ----------
    weight : float, default 0.7
        Of the vector similarity; the full-text score weighs the rest.
    fill : float, default 1.0
        Penalty where a leg did not find the row: it counts as a similarity of ``1 - fill``.
    return_score, top_n, min_score
        As in `BaseReranker`.
    """

    def __init__(
        self,
        weight: float = 0.7,
        fill: float = 1.0,
        return_score: ReturnScore = "relevance",
        *,
        top_n: int | None = None,
        min_score: float | None = None,
    ) -> None:
        super().__init__(top_n=top_n, min_score=min_score, return_score=return_score)
        self.weight = _checked_weight(weight)
        self.fill = fill

    def __str__(self) -> str:
        return f"LinearCombinationReranker(weight={self.weight}, fill={self.fill})"

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:  # noqa: ARG002
        """Return the weighted sum; with one leg, that leg's normalised score."""
        # in float64 as LanceDB does, since rounding decides what ties
        similarity = 1 - arrow.normalised(arrow.score_column(candidates.rows, arrow.DISTANCE)).astype(np.float64)
        lexical = arrow.normalised(arrow.score_column(candidates.rows, arrow.SCORE)).astype(np.float64)
        if np.isnan(similarity).all():
            return lexical
        if np.isnan(lexical).all():
            return similarity
        missing = 1 - self.fill
        return _weighted(self.weight, np.nan_to_num(similarity, nan=missing), np.nan_to_num(lexical, nan=missing))


class WeightedReranker(_FusionReranker):
    """Weighted sum of raw leg scores, each brought to 0..1 by a fixed transform.

    The vector leg counts as cosine similarity, the full-text leg as ``s / (s + k)``. Neither looks at the other rows,
    so through `lance_rerank.hybrid` a row's score does not depend on ``limit``. On LanceDB's own hybrid builder it
    does all the same: that builder scales each leg by its minimum and maximum before any reranker sees it.

    Parameters
    ----------
    weight : float, default 0.5
        Of the vector similarity; the full-text score weighs the rest. A leg that did not find the row adds 0.
    k : float, default 10.0
        The BM25 score that counts one half.
    metric : {"l2", "cosine", "dot"}, default "l2"
        What the search's ``_distance`` is. "l2" is LanceDB's default, the squared distance, and is read as that of
        unit vectors.
    return_score, top_n, min_score
        As in `BaseReranker`.
    """

    def __init__(
        self,
        weight: float = 0.5,
        k: float = 10.0,
        metric: Literal["l2", "cosine", "dot"] = "l2",
        return_score: ReturnScore = "relevance",
        *,
        top_n: int | None = None,
        min_score: float | None = None,
    ) -> None:
        if k <= 0:
            raise ArgumentError(f"k must be greater than 0, got {k!r}")
        if metric not in ("l2", "cosine", "dot"):
            raise ArgumentError(f"metric must be 'l2', 'cosine' or 'dot', got {metric!r}")
        super().__init__(top_n=top_n, min_score=min_score, return_score=return_score)
        self.weight = _checked_weight(weight)
        self.k = k
        self.metric = metric

    def __str__(self) -> str:
        return f"WeightedReranker(weight={self.weight}, k={self.k}, metric={self.metric!r})"

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:  # noqa: ARG002
        """Return the weighted sum of the transformed scores."""
        distance = arrow.score_column(candidates.rows, arrow.DISTANCE)
        similarity = 1 - (distance / 2 if self.metric == "l2" else distance)
        bm25 = arrow.score_column(candidates.rows, arrow.SCORE)
        return _weighted(self.weight, np.nan_to_num(similarity), np.nan_to_num(bm25 / (bm25 + self.k)))


def reciprocal_ranks(candidates: arrow.Candidates, k: float) -> npt.NDArray[np.float64]:
    """Return ``(n_legs, n_rows)``: 1 / (k + rank), 0 where a leg did not find the row."""
    ranks = candidates.ranks
    return np.where(ranks > 0, 1.0 / (k + np.maximum(ranks, 1)), 0.0)


def _checked_weight(weight: float) -> float:
    if not 0 <= weight <= 1:
        raise ArgumentError(f"weight must be between 0 and 1, got {weight!r}")
    return weight


def _weighted(weight: float, vector: AnyFloats, lexical: AnyFloats) -> AnyFloats:
    return weight * vector + (1 - weight) * lexical
