"""Judged data sets: queries, and which documents answer them; and what is trained on."""

from __future__ import annotations

from lance_rerank.datasets.beir import Dataset
from lance_rerank.datasets.training_set import LabelledDocument, TrainingQuery, TrainingSet

__all__ = ["Dataset", "LabelledDocument", "TrainingQuery", "TrainingSet"]
