"""The engine that fills columns of a live table, and the columns made with it."""

from lance_rerank.columns.multivector import add_multivector_column

__all__ = ["add_multivector_column"]
