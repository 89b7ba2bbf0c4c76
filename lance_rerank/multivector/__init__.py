"""What late interaction needs, usable without any reranker: token encoders and exact MaxSim over ragged vectors."""

from lance_rerank.multivector.encoder import ColBERTEncoder
from lance_rerank.multivector.maxsim import Ragged, maxsim, maxsim_many
from lance_rerank.multivector.pooling import pool_tokens

__all__ = ["ColBERTEncoder", "Ragged", "maxsim", "maxsim_many", "pool_tokens"]
