"""A reranker that combines first stage and reranker as judged queries taught it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lance_rerank import arrow
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.blend_fitting import BlendLab, JudgedQuery
from lance_rerank.evaluation.measures import evaluators
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.blend import BlendReranker, WrappingReranker, fused
from lance_rerank.rerankers.features import describe
from lance_rerank.rerankers.fitted import FittedBlendReranker, fitted_for
from lance_rerank.search.retriever import Retriever

if TYPE_CHECKING:
    from ir_measures import Measure

FEWEST_QUERIES = 20  # with a relevant document among their candidates
FEWEST_FOLDS = 3  # without the one that is judged on, two are left to choose by


def fit_blend(
    retriever: Retriever,
    dataset: Dataset,
    *,
    measure: str | Measure = "nDCG@10",
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> FittedBlendReranker:
    """Return a reranker that weighs a retriever's legs and its reranker as suits judged queries, or leaves one out.

    From each query's candidates it learns, pair by pair, what tells a relevant document from others that stand high:
    scores standardised within the query, ranks, and how far the reranker's weight should depend on the query (how
    clear its first choice is, how well it agrees with the legs). Of several such forms the one that is best by
    cross-validation is taken, and a costlier one only where it is ahead by a standard error: the order of the
    first stage; the legs weighed anew; the reranker, too. Where the reranker does
    not earn its place, the result does without it.

    Scores are then calibrated to a probability of relevance, on queries that each fit did not see (Platt 1999). They
    hold for queries like those judged: if users will ask what the table has no answer to, judge such queries too, a
    document or two of grade 0 each.

    Parameters
    ----------
    retriever : Retriever
        With the reranker to be blended. Use the result with ``retriever.with_reranker(result)``.
    dataset : Dataset
        The queries to learn from: a development split, never the one that is reported on.
    measure : str or ir_measures.Measure, default "nDCG@10"
        What to choose by, as ir-measures writes it.
    folds : int, default 5
        Of the cross-validations. Queries that share a relevant document stay together.
    seed : int, default 0
        Of the folds and the pairs.
    progress : callable, optional
        Called as ``progress("fit_blend", done, total)`` as queries are searched.

    Returns
    -------
    FittedBlendReranker
        Its `estimate` says how good it is on queries that it was not fitted on.

    Raises
    ------
    ArgumentError
        The retriever has no reranker of this package, or fewer than 20 queries have a relevant document among their
        candidates, or almost all of them the same.

    References
    ----------
    Burges et al., "Learning to Rank using Gradient Descent", ICML 2005 (the pairs). Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999.
    """
    inner = _inner_reranker(retriever)
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < FEWEST_FOLDS:
        raise ArgumentError(f"folds must be at least {FEWEST_FOLDS}, got {folds!r}")
    [(parsed, evaluator)] = evaluators([measure], dataset.qrels).items()
    recorder = _Recorder(inner)
    queries = _collect(retriever.with_reranker(recorder), recorder, dataset, progress)
    lab = BlendLab(queries, {parsed: evaluator}, folds=folds, seed=seed)
    if lab.n_folds < FEWEST_FOLDS:
        raise ArgumentError(
            "too many queries have relevant documents in common: they fall into fewer than three groups that share "
            "none, so that nothing can be judged on queries unlike those it was learned from. Judge other queries"
        )
    return FittedBlendReranker(
        inner,
        model=lab.fit(),
        fitted_for=fitted_for(inner, retriever, recorder.legs, recorder.most),
        estimate=lab.estimate(),
    )


def _inner_reranker(retriever: object) -> BaseReranker:
    if not isinstance(retriever, Retriever):
        raise ArgumentError(f"fit_blend takes a lance_rerank.Retriever, got {type(retriever).__name__}")
    inner = retriever.reranker
    if not isinstance(inner, BaseReranker):
        raise ArgumentError(
            f"{retriever} has {'no reranker' if inner is None else f'the reranker {inner}'}; fit_blend blends one of "
            "this package with the first stage: retriever.with_reranker(...)"
        )
    while isinstance(inner, FittedBlendReranker | BlendReranker):
        inner = inner.inner
    return inner


class _Recorder(WrappingReranker):
    """Notes the candidates that come by, and what the inner reranker says of them."""

    def __init__(self, inner: BaseReranker) -> None:
        super().__init__(inner, top_n=None, min_score=None, return_score="relevance")
        self.noted: list[tuple[arrow.Candidates, pa.Array]] = []
        self.legs: tuple[str, ...] = ()
        self.most = 0

    def __str__(self) -> str:
        return str(self.inner)

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> pa.Array:
        scores = self.inner.relevance(query, candidates)
        self.noted.append((candidates, scores))
        self.legs = candidates.kinds
        self.most = max(self.most, int(candidates.ranks.max()))
        return scores


def _collect(
    retriever: Retriever,
    recorder: _Recorder,
    dataset: Dataset,
    progress: Callable[[str, int, int], None] | None,
) -> list[JudgedQuery]:
    """Return the queries that found anything, with what was found."""
    found = []
    for done, (query_id, text) in enumerate(dataset.queries.items(), 1):
        retriever.retrieve(text, 1)
        for candidates, scores in recorder.noted:  # once, or not at all where there were no candidates
            found.append(_judged(query_id, candidates, scores, retriever.id_column, dataset.qrels[query_id]))
        recorder.noted.clear()
        if progress is not None:
            progress("fit_blend", done, len(dataset.queries))
    useful = sum(bool((one.grades > 0).any()) for one in found)
    if useful < FEWEST_QUERIES:
        raise ArgumentError(
            f"{useful} of {len(dataset.queries)} queries have a relevant document among the candidates of {retriever}; "
            f"at least {FEWEST_QUERIES} are needed to learn from, better some hundred. Judge more queries, or use "
            "BlendReranker, which learns nothing"
        )
    return found


def _judged(
    query_id: str, candidates: arrow.Candidates, scores: pa.Array, key: str, qrels: dict[str, int]
) -> JudgedQuery:
    doc_ids = [str(value) for value in candidates.rows.column(key).to_pylist()]
    grades = np.array([max(qrels.get(doc_id, 0), 0) for doc_id in doc_ids], np.float64)
    said = np.asarray(scores.to_numpy(zero_copy_only=False), np.float64)
    return JudgedQuery(
        query_id=query_id,
        doc_ids=doc_ids,
        grades=grades,
        features=describe(candidates, scores),
        reranker=np.where(np.isnan(said), -np.inf, said),
        blend=fused(candidates, scores),
    )
