"""How good a retriever is, by judged queries."""

from __future__ import annotations

from lance_rerank.evaluation.evaluate import Retrieves, evaluate
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.significance import Comparison

__all__ = ["evaluate", "Comparison", "EvaluationResult", "Retrieves"]
