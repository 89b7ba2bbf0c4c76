"""What late interaction needs, usable without any reranker: token encoders and exact MaxSim over ragged vectors."""

from lance_rerank.multivector.encoder import ColBERTEncoder
from lance_rerank.multivector.explanation import Explanation, TokenMatch
from lance_rerank.multivector.maxsim import Ragged, maxsim, maxsim_many
from lance_rerank.multivector.mean import mean_vectors
from lance_rerank.multivector.pooling import pool_tokens, token_clusters

__all__ = [
    "ColBERTEncoder",
    "Explanation",
    "Ragged",
    "TokenMatch",
    "maxsim",
    "maxsim_many",
    "mean_vectors",
    "pool_tokens",
    "token_clusters",
]
