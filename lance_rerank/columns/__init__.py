"""The engine that fills columns of a live table, and the columns made with it."""

from lance_rerank.columns.backfill import BackfillResult
from lance_rerank.columns.mean import add_mean_vector_column
from lance_rerank.columns.multivector import add_multivector_column, multivector_status, sync_multivector_column
from lance_rerank.columns.survey import Survey

__all__ = [
    "BackfillResult",
    "Survey",
    "add_mean_vector_column",
    "add_multivector_column",
    "multivector_status",
    "sync_multivector_column",
]
