"""Searching: the hybrid builder that over-fetches, and named recipes of retrieval."""

from lance_rerank.search.hybrid import hybrid, hybrid_async
from lance_rerank.search.retriever import Retriever
from lance_rerank.search.trace import Candidate, Trace
from lance_rerank.stages import Stage

__all__ = ["Candidate", "Retriever", "Stage", "Trace", "hybrid", "hybrid_async"]
