"""Documents that do not answer a query but look as if they did: what models are trained to tell apart."""

from __future__ import annotations

from lance_rerank.mining.contamination import Contamination
from lance_rerank.mining.explicit import ExplicitNegative
from lance_rerank.mining.negatives import mine_negatives
from lance_rerank.mining.report import MiningReport, MiningResult

__all__ = ["mine_negatives", "MiningResult", "MiningReport", "Contamination", "ExplicitNegative"]
