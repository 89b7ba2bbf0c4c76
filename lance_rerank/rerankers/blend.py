"""Rerankers that add what another one says to the first stage, instead of putting it in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import rankdata

from lance_rerank import arrow
from lance_rerank.errors import ArgumentError
from lance_rerank.rerankers.base import BaseReranker, Scores
from lance_rerank.rerankers.fusion import ReturnScore, reciprocal_ranks

if TYPE_CHECKING:
    from lancedb.table import Table


DEFAULT_K = 10


class WrappingReranker(BaseReranker):
    """A reranker that asks another one for scores, and reads what that one reads.

    Parameters
    ----------
    inner : BaseReranker
        Its own ``top_n`` and ``min_score`` are not heeded: it scores every candidate.
    top_n, min_score, return_score
        As in `BaseReranker`.
    """

    def __init__(
        self, inner: BaseReranker, *, top_n: int | None, min_score: float | None, return_score: ReturnScore
    ) -> None:
        if not isinstance(inner, BaseReranker):
            raise ArgumentError(
                f"{type(self).__name__} wraps a reranker of this package, got {inner!r}. For LanceDB's own take the "
                "class of the same name here; around another, write a BaseReranker with score_texts(query, texts)"
            )
        self.needs_row_id = inner.needs_row_id
        super().__init__(column=inner.column, top_n=top_n, min_score=min_score, return_score=return_score)
        self.inner = inner

    def check(self, retriever: Any) -> None:
        """Ask the inner reranker."""
        self.inner.check(retriever)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the inner reranker reads."""
        return self.inner.reads

    @property
    def table(self) -> Table | None:
        """The table that the inner reranker reads from, if it does."""
        return getattr(self.inner, "table", None)


class BlendReranker(WrappingReranker):
    """Reciprocal rank fusion of every leg of the search and another reranker.

    A row scores the sum of 1 / (k + rank) over the legs that found it and the inner reranker's order; a leg that did
    not find it, or an inner reranker that cannot score it, adds 0. What the words and the vectors said is kept that
    way, so that a reranker which suits the data badly costs little. It needs no judged queries; where there are some,
    `lance_rerank.fit_blend` does better.

    Rows that the inner reranker scores alike share their mean rank, so one that tells nothing apart changes nothing.

    Parameters
    ----------
    inner : BaseReranker
        Scores every candidate; its own ``top_n`` and ``min_score`` are not heeded.
    k : float, default 10
        Larger values flatten the difference between first and later ranks. `RRFReranker` has 60, which suits legs;
        with a reranker among them 10 was better on real data.
    top_n, min_score, return_score
        As in `BaseReranker`.

    References
    ----------
    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
    Methods", SIGIR 2009.

    Examples
    --------
    >>> import pyarrow as pa
    >>> class Shortest(BaseReranker):
    ...     def score_texts(self, query, texts):
    ...         return [-len(text) for text in texts]
    >>> rows = pa.table({"text": ["a long one", "one", "two words"]})
    >>> BlendReranker(Shortest()).rerank_vector("any", rows)["text"].to_pylist()
    ['one', 'a long one', 'two words']
    """

    def __init__(
        self,
        inner: BaseReranker,
        k: float = DEFAULT_K,
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        return_score: ReturnScore = "relevance",
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, int | float) or not k > 0:
            raise ArgumentError(f"k must be greater than 0, got {k!r}")
        super().__init__(inner, top_n=top_n, min_score=min_score, return_score=return_score)
        self.k = k

    def __str__(self) -> str:
        return f"BlendReranker({self.inner}, k={self.k})"

    def cache_key(self) -> str | None:
        """Return a text that is the same as long as the scores are; None where the inner reranker cannot tell."""
        inner = self.inner.cache_key()
        return None if inner is None else f"{type(self).__module__}.BlendReranker(k={self.k}) of {inner}"

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:
        """Return the fused reciprocal ranks."""
        return fused(candidates, self.inner.relevance(query, candidates), self.k)


def fused(candidates: arrow.Candidates, scores: pa.Array, k: float = DEFAULT_K) -> npt.NDArray[np.float64]:
    """Return ``(n_rows,)``: the reciprocal ranks of the legs and of the scores, added; ties at their mean rank."""
    known = scores.is_valid().to_numpy(False)
    reciprocal: npt.NDArray[np.float64] = reciprocal_ranks(candidates, k).sum(axis=0)
    if known.any():
        reciprocal[known] += 1 / (k + rankdata(-scores.drop_null().to_numpy(zero_copy_only=False)))
    return reciprocal
