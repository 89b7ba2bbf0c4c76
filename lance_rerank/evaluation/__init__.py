"""How good a retriever is, by judged queries."""

from __future__ import annotations

from lance_rerank.evaluation.cache import Cacheable
from lance_rerank.evaluation.comparing import ResultComparison, compare_results
from lance_rerank.evaluation.diagnosis import Diagnosis, Finding
from lance_rerank.evaluation.evaluate import evaluate, evaluate_runs
from lance_rerank.evaluation.gate import Breach, Requirement
from lance_rerank.evaluation.latency import Latency, LatencyRecorder, StageLatency, measure_latency, traced_latency
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.searching import Retrieves
from lance_rerank.evaluation.significance import Comparison, Comparisons
from lance_rerank.evaluation.thresholds import Calibration, CalibrationBin, ThresholdPoint, Thresholds

__all__ = [
    "compare_results",
    "evaluate",
    "evaluate_runs",
    "measure_latency",
    "traced_latency",
    "Breach",
    "Cacheable",
    "Calibration",
    "CalibrationBin",
    "Comparison",
    "Comparisons",
    "Diagnosis",
    "EvaluationResult",
    "Finding",
    "Latency",
    "LatencyRecorder",
    "Requirement",
    "ResultComparison",
    "Retrieves",
    "StageLatency",
    "ThresholdPoint",
    "Thresholds",
]
