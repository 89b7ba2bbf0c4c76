"""Rerankers: one small file a family, all on `BaseReranker`."""

from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.blend import BlendReranker
from lance_rerank.rerankers.cross_encoder import CrossEncoderReranker
from lance_rerank.rerankers.fitted import FittedBlendReranker
from lance_rerank.rerankers.fusion import LinearCombinationReranker, MRRReranker, RRFReranker, WeightedReranker
from lance_rerank.rerankers.late_interaction import LateInteractionReranker

__all__ = [
    "BaseReranker",
    "BlendReranker",
    "CrossEncoderReranker",
    "FittedBlendReranker",
    "LateInteractionReranker",
    "LinearCombinationReranker",
    "MRRReranker",
    "RRFReranker",
    "WeightedReranker",
]
