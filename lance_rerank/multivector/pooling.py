"""Fewer vectors a document: tokens that say nearly the same are averaged into one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import linkage

from lance_rerank.errors import ArgumentError
from lance_rerank.types import FloatArray


def pool_tokens(vectors: FloatArray, factor: int) -> FloatArray:
    """Return about ``n_tokens / factor`` unit vectors, ``(n_pooled, dim)``: the means of clusters of tokens.

    Clusters are those of Ward's method: Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval
    with Minimal Performance Impact via Token Pooling", 2024, arXiv:2409.14683.

    Parameters
    ----------
    vectors : ndarray
        ``(n_tokens, dim)`` unit vectors.
    factor : int
        How many tokens share a vector on average; 1 returns the vectors as they are.

    Raises
    ------
    ArgumentError
        The factor is less than 1.
    """
    count = _pooled_count(len(vectors), factor)
    if count == len(vectors):
        return vectors
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(sums, token_clusters(vectors, factor), vectors)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(lengths, 1e-12)).astype(np.float32)


def token_clusters(vectors: FloatArray, factor: int) -> npt.NDArray[np.int64]:
    """Return for each token which of the vectors of `pool_tokens` it is averaged into, ``(n_tokens,)``.

    Raises
    ------
    ArgumentError
        The factor is less than 1.
    """
    count = _pooled_count(len(vectors), factor)
    if count == len(vectors):
        return np.arange(count)
    return _clusters(linkage(vectors, method="ward"), len(vectors), count)


def _pooled_count(n: int, factor: int) -> int:
    if factor < 1:
        raise ArgumentError(f"pool_factor must be at least 1, got {factor!r}")
    return min(n, max(1, n // factor))


def _clusters(merges: npt.NDArray[np.float64], n: int, count: int) -> npt.NDArray[np.int64]:
    """Return which of `count` clusters each of `n` items is in, after the first merges of a linkage.

    Unlike ``fcluster`` it makes exactly that many where several merges are equally good.
    """
    merged = merges[: n - count, :2].astype(np.int64)
    root = np.arange(n + len(merged))
    for step in range(len(merged) - 1, -1, -1):  # from the last: by then a cluster knows what it became part of
        root[merged[step]] = root[n + step]
    return np.unique(root[:n], return_inverse=True)[1].reshape(-1)
