"""Judged data sets: queries, and which documents answer them."""

from __future__ import annotations

from lance_rerank.datasets.beir import Dataset

__all__ = ["Dataset"]
