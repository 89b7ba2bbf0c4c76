"""How good a retriever is, by judged queries."""

from __future__ import annotations

from lance_rerank.evaluation.cache import Cacheable
from lance_rerank.evaluation.evaluate import evaluate, evaluate_runs
from lance_rerank.evaluation.latency import Latency, LatencyRecorder, StageLatency, measure_latency, traced_latency
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.searching import Retrieves
from lance_rerank.evaluation.significance import Comparison, Comparisons

__all__ = [
    "evaluate",
    "evaluate_runs",
    "measure_latency",
    "traced_latency",
    "Cacheable",
    "Comparison",
    "Comparisons",
    "EvaluationResult",
    "Latency",
    "LatencyRecorder",
    "Retrieves",
    "StageLatency",
]
