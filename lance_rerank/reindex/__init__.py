"""Replacing the model behind a vector column of a live table: plan it, fill the new column, take it back."""

from lance_rerank.reindex.evaluating import Gate
from lance_rerank.reindex.filling import BackfillReport
from lance_rerank.reindex.job import ReindexJob
from lance_rerank.reindex.plan import Plan, Step
from lance_rerank.reindex.planning import plan_reindex
from lance_rerank.reindex.status import Status
from lance_rerank.reindex.swapping import SwapReport
from lance_rerank.reindex.verifying import Verification

__all__ = [
    "BackfillReport",
    "Gate",
    "Plan",
    "ReindexJob",
    "Status",
    "Step",
    "SwapReport",
    "Verification",
    "plan_reindex",
]
