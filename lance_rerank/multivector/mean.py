"""One vector for a text: the mean of its token vectors, to find candidates by."""

from __future__ import annotations

import numpy as np

from lance_rerank.multivector.maxsim import Ragged
from lance_rerank.types import FloatArray


def mean_vectors(documents: Ragged) -> FloatArray:
    """Return each document's mean token vector, ``(n_docs, dim)`` float32 of unit length; NaN where it has no tokens.

    The highest MaxSim is mostly among the highest cosines of these, which any vector index finds: exact scoring of a
    hundred candidates then costs milliseconds.
    """
    means = np.full((len(documents.lengths), documents.dim), np.nan, np.float32)
    for i in np.flatnonzero(documents.lengths):
        start = int(documents.starts[i])
        mean = documents.values[start : start + int(documents.lengths[i])].float().mean(dim=0).numpy()
        length = np.linalg.norm(mean)
        if length > 0:
            means[i] = mean / length
    return means
