"""Models trained on one's own data: embedders, cross-encoders and ColBERTs, resumable and the same each time."""

from __future__ import annotations

from lance_rerank.training.colbert import train_colbert
from lance_rerank.training.config import TrainingConfig
from lance_rerank.training.cross_encoder import train_cross_encoder
from lance_rerank.training.distill import distill, shrink
from lance_rerank.training.embedder import train_embedder
from lance_rerank.training.result import Measurement, TrainedModel
from lance_rerank.training.teacher import score_examples

__all__ = [
    "Measurement",
    "TrainedModel",
    "TrainingConfig",
    "distill",
    "score_examples",
    "shrink",
    "train_colbert",
    "train_cross_encoder",
    "train_embedder",
]
