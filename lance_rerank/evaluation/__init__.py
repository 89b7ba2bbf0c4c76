"""How good a retriever is, by judged queries."""

from __future__ import annotations

from lance_rerank.evaluation.cache import Cacheable
from lance_rerank.evaluation.evaluate import Retrieves, evaluate, evaluate_runs
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.significance import Comparison, Comparisons

__all__ = ["evaluate", "evaluate_runs", "Cacheable", "Comparison", "Comparisons", "EvaluationResult", "Retrieves"]
