"""Better search results from LanceDB.

Names are imported when they are first used, so that ``import lance_rerank`` loads neither torch nor lancedb.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_rerank.columns import (
        add_mean_vector_column,
        add_multivector_column,
        multivector_status,
        sync_multivector_column,
    )
    from lance_rerank.datasets import Dataset, LabelledDocument, TrainingQuery, TrainingSet
    from lance_rerank.datasets.trec import read_trec_qrels, read_trec_run, write_trec_qrels, write_trec_run
    from lance_rerank.encoder import SentenceEncoder
    from lance_rerank.evaluation.blend import fit_blend
    from lance_rerank.evaluation.comparing import compare_results
    from lance_rerank.evaluation.compression import choose_compression
    from lance_rerank.evaluation.diagnosis import Diagnosis
    from lance_rerank.evaluation.evaluate import evaluate, evaluate_runs
    from lance_rerank.evaluation.latency import Latency, measure_latency
    from lance_rerank.evaluation.result import EvaluationResult
    from lance_rerank.evaluation.significance import Comparison, Comparisons
    from lance_rerank.evaluation.thresholds import Thresholds
    from lance_rerank.jobs import IndexResult, index_documents
    from lance_rerank.jobs.tuning import Tuned, TuningSettings, tune_embedder
    from lance_rerank.lance import connect, patch, unpatch
    from lance_rerank.lexical import IndexStatus, SyncResult, TantivyIndex, synonyms
    from lance_rerank.mining import ExplicitNegative, MiningResult, mine_negatives
    from lance_rerank.multivector import ColBERTEncoder
    from lance_rerank.reindex import (
        BackfillReport,
        Bridge,
        Gate,
        Plan,
        ReindexJob,
        Status,
        SwapReport,
        Verification,
        fit_bridge,
        plan_reindex,
    )
    from lance_rerank.rerankers import (
        BaseReranker,
        BlendReranker,
        CrossEncoderReranker,
        FittedBlendReranker,
        LateInteractionReranker,
        LinearCombinationReranker,
        MRRReranker,
        RRFReranker,
        WeightedReranker,
    )
    from lance_rerank.search.hybrid import hybrid, hybrid_async
    from lance_rerank.search.retriever import Retriever
    from lance_rerank.search.trace import Trace
    from lance_rerank.training import TrainedModel, TrainingConfig, train_colbert, train_cross_encoder, train_embedder
    from lance_rerank.training.distill import distill, shrink
    from lance_rerank.training.gate import judge_training
    from lance_rerank.training.interpolation import interpolate
    from lance_rerank.training.refusal import nothing_to_learn
    from lance_rerank.training.serving import Serving
    from lance_rerank.training.teacher import score_examples
    from lance_rerank.training.verdict import Verdict
    from lance_rerank.types import Document, Encoder, Hit, Qrel, Query, TokenEncoder

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "lance_rerank.rerankers": (
        "BaseReranker",
        "CrossEncoderReranker",
        "LateInteractionReranker",
        "BlendReranker",
        "FittedBlendReranker",
        "RRFReranker",
        "LinearCombinationReranker",
        "MRRReranker",
        "WeightedReranker",
    ),
    "lance_rerank.search": ("hybrid", "hybrid_async", "Retriever", "Trace"),
    "lance_rerank.multivector": ("ColBERTEncoder",),
    "lance_rerank.lance": ("connect", "patch", "unpatch"),
    "lance_rerank.lexical": ("TantivyIndex", "SyncResult", "IndexStatus", "synonyms"),
    "lance_rerank.encoder": ("SentenceEncoder",),
    "lance_rerank.columns": (
        "add_multivector_column",
        "sync_multivector_column",
        "multivector_status",
        "add_mean_vector_column",
    ),
    "lance_rerank.datasets": ("Dataset", "LabelledDocument", "TrainingQuery", "TrainingSet"),
    "lance_rerank.datasets.trec": ("read_trec_qrels", "read_trec_run", "write_trec_qrels", "write_trec_run"),
    "lance_rerank.evaluation": (
        "evaluate",
        "evaluate_runs",
        "measure_latency",
        "compare_results",
        "Comparison",
        "Comparisons",
        "Diagnosis",
        "EvaluationResult",
        "Latency",
        "Thresholds",
    ),
    # not through their package, which stays light: these need torch
    "lance_rerank.evaluation.blend": ("fit_blend",),
    "lance_rerank.evaluation.compression": ("choose_compression",),
    "lance_rerank.mining": ("mine_negatives", "MiningResult", "ExplicitNegative"),
    "lance_rerank.jobs": ("index_documents", "IndexResult"),
    "lance_rerank.jobs.tuning": ("tune_embedder", "Tuned", "TuningSettings"),
    "lance_rerank.reindex": (
        "plan_reindex",
        "Plan",
        "ReindexJob",
        "BackfillReport",
        "Status",
        "Verification",
        "Gate",
        "SwapReport",
        "fit_bridge",
        "Bridge",
    ),
    "lance_rerank.training": (
        "train_embedder",
        "train_cross_encoder",
        "train_colbert",
        "distill",
        "score_examples",
        "shrink",
        "TrainedModel",
        "TrainingConfig",
    ),
    "lance_rerank.training.gate": ("judge_training",),
    "lance_rerank.training.interpolation": ("interpolate",),
    "lance_rerank.training.refusal": ("nothing_to_learn",),
    "lance_rerank.training.serving": ("Serving",),
    "lance_rerank.training.verdict": ("Verdict",),
    "lance_rerank.types": ("Document", "Encoder", "Hit", "Qrel", "Query", "TokenEncoder"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    # rerankers
    "BaseReranker",
    "CrossEncoderReranker",
    "LateInteractionReranker",
    "BlendReranker",
    "FittedBlendReranker",
    "RRFReranker",
    "LinearCombinationReranker",
    "MRRReranker",
    "WeightedReranker",
    # searching
    "hybrid",
    "hybrid_async",
    "Retriever",
    "Trace",
    # handles that follow a swap of models
    "connect",
    "patch",
    "unpatch",
    # the Tantivy leg
    "TantivyIndex",
    "SyncResult",
    "IndexStatus",
    "synonyms",
    # encoders and the columns they fill
    "ColBERTEncoder",
    "SentenceEncoder",
    "add_multivector_column",
    "sync_multivector_column",
    "multivector_status",
    "add_mean_vector_column",
    "choose_compression",
    # from files to a table
    "index_documents",
    "IndexResult",
    # training
    "TrainingSet",
    "TrainingQuery",
    "LabelledDocument",
    "train_embedder",
    "train_cross_encoder",
    "train_colbert",
    "distill",
    "score_examples",
    "shrink",
    "TrainedModel",
    "TrainingConfig",
    "tune_embedder",
    "Tuned",
    "TuningSettings",
    "mine_negatives",
    "MiningResult",
    "ExplicitNegative",
    "nothing_to_learn",
    "judge_training",
    "Serving",
    "Verdict",
    "interpolate",
    # measuring
    "Dataset",
    "evaluate",
    "evaluate_runs",
    "EvaluationResult",
    "fit_blend",
    "compare_results",
    "Comparison",
    "Comparisons",
    "Diagnosis",
    "Thresholds",
    "measure_latency",
    "Latency",
    "read_trec_qrels",
    "read_trec_run",
    "write_trec_qrels",
    "write_trec_run",
    # another embedding model for a column
    "plan_reindex",
    "Plan",
    "ReindexJob",
    "BackfillReport",
    "Status",
    "Verification",
    "Gate",
    "SwapReport",
    "fit_bridge",
    "Bridge",
    # values and protocols
    "Document",
    "Encoder",
    "Hit",
    "Qrel",
    "Query",
    "TokenEncoder",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
