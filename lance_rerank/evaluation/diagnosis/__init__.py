"""Why a retriever is no better than it is: where relevant documents are lost, what that costs, and what to do first."""

from __future__ import annotations

from lance_rerank.evaluation.diagnosis.diagnose import diagnose
from lance_rerank.evaluation.diagnosis.diagnosis import Diagnosis
from lance_rerank.evaluation.diagnosis.findings import Finding
from lance_rerank.evaluation.diagnosis.numbers import Numbers

__all__ = ["Diagnosis", "Finding", "Numbers", "diagnose"]
