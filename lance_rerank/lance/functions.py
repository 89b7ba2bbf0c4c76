"""LanceDB's embedding functions as this package's encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lancedb.embeddings import EmbeddingFunction

from lance_rerank.errors import ModelError
from lance_rerank.types import FloatArray


class FunctionEncoder:
    """A LanceDB embedding function as an `Encoder`."""

    fingerprint: str | None = None

    def __init__(self, function: EmbeddingFunction) -> None:
        self._function = function
        self._works = False

    def __repr__(self) -> str:
        return f"{type(self._function).__name__}({getattr(self._function, 'name', '')!r})"

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._function.ndims())

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Return query vectors as float32 ``(n_texts, dim)``."""
        ask = self._function.compute_query_embeddings_with_retry
        return self._stacked([self._asked(ask, self._function.compute_query_embeddings, text)[0] for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> FloatArray:
        """Return document vectors as float32 ``(n_texts, dim)``."""
        ask = self._function.compute_source_embeddings_with_retry
        return self._stacked(self._asked(ask, self._function.compute_source_embeddings, list(texts)))

    def _asked(self, with_retry: Callable[[Any], Any], once: Callable[[Any], Any], texts: Any) -> Any:
        """Return vectors; what has never worked is not tried for minutes, as LanceDB does for a server's sake."""
        vectors = with_retry(texts) if self._works else once(texts)
        self._works = True
        return vectors

    def _stacked(self, vectors: Sequence[Any]) -> FloatArray:
        if not len(vectors):
            return np.empty((0, self.dim), np.float32)
        if any(vector is None for vector in vectors):
            raise ModelError(f"{self!r} answered with None in place of a vector")
        return np.asarray(vectors, np.float32)
