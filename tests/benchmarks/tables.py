"""A table of 20,000 synthetic documents with 384-dimensional vectors and 128-dimensional token vectors."""

from __future__ import annotations

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS

import lance_rerank as lr

N_DOCUMENTS, DIM, TOKEN_DIM, QUERY_TOKENS = 20_000, 384, 128, 32


class RandomTokens:
    """Stands in for a ColBERT model: unit vectors drawn from the text's length, about 90 a document."""

    dim = TOKEN_DIM
    fingerprint = None

    def __init__(self) -> None:
        self.documents_encoded = 0
        self._rng = np.random.default_rng(0)

    def _unit(self, n: int) -> np.ndarray:
        vectors = self._rng.standard_normal((n, TOKEN_DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_queries(self, texts):
        return [self._unit(QUERY_TOKENS) for _ in texts]

    def encode_documents(self, texts):
        self.documents_encoded += len(texts)
        return [self._unit(len(text.split())) for text in texts]


def synthetic_table(folder) -> lancedb.table.Table:
    """Return the table, full-text index and token column included; the vector column is searched flat."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{i}" for i in range(5_000)])
    weights = 1 / np.arange(1, len(words) + 1)
    vectors = rng.standard_normal((N_DOCUMENTS, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = rng.integers(50, 130, N_DOCUMENTS)
    texts = [" ".join(rng.choice(words, n, p=weights / weights.sum())) for n in lengths]
    table = lancedb.connect(folder).create_table(
        "docs",
        pa.table(
            {
                "id": np.arange(N_DOCUMENTS),
                "text": texts,
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
            }
        ),
    )
    table.create_index("text", config=FTS())
    lr.add_multivector_column(table, encoder=RandomTokens())
    return table
