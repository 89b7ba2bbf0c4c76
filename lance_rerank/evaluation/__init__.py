"""How good a retriever is, by judged queries."""

from __future__ import annotations

from lance_rerank.evaluation.evaluate import EvaluationResult, Retrieves, evaluate

__all__ = ["evaluate", "EvaluationResult", "Retrieves"]
