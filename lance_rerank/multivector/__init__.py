"""What late interaction needs, usable without any reranker: token encoders and exact MaxSim over ragged vectors."""

from lance_rerank.multivector.encoder import ColBERTEncoder
from lance_rerank.multivector.maxsim import Ragged, maxsim

__all__ = ["ColBERTEncoder", "Ragged", "maxsim"]
