"""Retrievers measured on a judged data set, with the measures of ir-measures (https://ir-measur.es)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.cache import stored_run
from lance_rerank.evaluation.measures import DEFAULT_MEASURES, depth_of, evaluators, score
from lance_rerank.evaluation.result import EvaluationResult, Sources
from lance_rerank.evaluation.searching import Found, OnError, Progress, Retrieves, search

if TYPE_CHECKING:
    from ir_measures import Evaluator, Measure

logger = logging.getLogger(__name__)


def evaluate(
    retrievers: Mapping[str, Retrieves],
    dataset: Dataset,
    measures: Sequence[str | Measure] = DEFAULT_MEASURES,
    *,
    latency: bool = False,
    on_error: OnError = "raise",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Return how well each retriever answers the judged queries of a data set, and how fast.

    What is judged is the order of the hits, not their scores. A document that comes twice counts at its first rank
    and those below it move up, as where passages stand for their document. A query that gets no hits counts 0.

    Each retriever is asked for as many hits as the largest cutoff, at least 10; for 1000 if a measure has no cutoff;
    for more where documents come several times.

    Parameters
    ----------
    retrievers : mapping of str to Retrieves
        By the names that the result shows.
    dataset : Dataset
        One split.
    measures : sequence of str or ir_measures.Measure
        Written as ir-measures writes them.
    latency : bool, default False
        Take the times of each stage too, at the depth and of the answers that are judged: queries are then asked one
        at a time, after a warm-up, and some of them again by four threads at once. Otherwise they are asked in blocks,
        which encodes them together.
    on_error : {"raise", "count"}, default "raise"
        What to do where a retriever raises. "raise" lets the exception through, with a note that names the retriever
        and its queries. "count" asks that block of queries again one by one; those that raise are told in
        `EvaluationResult.failures`, find nothing, and count in every mean.
    cache : str or path, optional
        A folder to keep runs in, block by block. A run that is there is not searched again, one that was stopped goes
        on. Kept are retrievers that have a ``cache_key()``, under that key, the depth, the texts of the queries and the
        version of this package; a failed query is not kept. Times are those of when it was searched. With `latency`
        every query is searched anew, and nothing is kept.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each block of queries.

    Raises
    ------
    ArgumentError
        There is nothing to evaluate, a measure cannot be computed, or a retriever answers with a wrong number of lists.

    Examples
    --------
    >>> from lance_rerank.types import Hit, Qrel, Query
    >>> data = Dataset.from_memory([Query("q1", "rotate api keys")], [Qrel("q1", "d1", 1)])
    >>> class SecondBest:
    ...     def retrieve_many(self, queries, k):
    ...         return [[Hit("d2", 0.9, rank=1), Hit("d1", 0.8, rank=2)] for _ in queries]
    >>> evaluate({"second best": SecondBest()}, data, ["RR@10", "Success@5"]).means
    {'second best': {'RR@10': 0.5, 'Success@5': 1.0}}
    """
    _check_arguments(retrievers, dataset)
    if on_error not in get_args(OnError):
        raise ArgumentError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
    computed = evaluators(measures, dataset.qrels)
    depth = depth_of(list(computed))
    found = {}
    _warn_of_shallow(retrievers, computed)
    for name, retriever in retrievers.items():
        stored = None if latency else stored_run(cache, name, retriever, dataset.queries, depth)
        found[name] = search(
            name,
            retriever,
            dataset.queries,
            depth,
            latency=latency,
            on_error=on_error,
            stored=stored,
            progress=progress,
        )
    return replace(_judge(found, dataset, computed), sources=Sources(dict(retrievers), dataset))


def evaluate_runs(
    runs: Mapping[str, Mapping[str, Sequence[str] | Mapping[str, float]]],
    dataset: Dataset | Mapping[str, Mapping[str, int]],
    measures: Sequence[str | Measure] = DEFAULT_MEASURES,
) -> EvaluationResult:
    """Return how well runs answer the judged queries, which are there already: read from TREC files, or made elsewhere.

    They are judged as those of `evaluate`. A judged query that a run lacks counts 0; queries that are not judged are
    left out. Rankings are not cut but by the measures.

    Parameters
    ----------
    runs : mapping
        By name; each is the ranked document ids by query id, as in `EvaluationResult.runs`, or scores by document id.
    dataset : Dataset, or mapping of judgements
        Judgements alone, as `read_trec_qrels` returns them, will do.
    measures : sequence of str or ir_measures.Measure
        Written as ir-measures writes them.

    Raises
    ------
    ArgumentError
        There is nothing to evaluate, a measure cannot be computed, or a run has other queries than those judged.

    Examples
    --------
    >>> qrels = {"q1": {"d1": 1}, "q2": {"d3": 1}}
    >>> evaluate_runs({"mine": {"q1": ["d2", "d1"], "q2": ["d3"]}}, qrels, ["RR@10"]).means
    {'mine': {'RR@10': 0.75}}
    """
    if not isinstance(dataset, Dataset):
        judgements = {query_id: dict(grades) for query_id, grades in dataset.items()}
        dataset = Dataset("qrels", "all", None, dict.fromkeys(judgements, ""), judgements)
    _check_runs(runs, dataset)
    found = {
        name: Found(
            {query_id: _ranking(run.get(query_id, ())) for query_id in dataset.queries}, _scores(run, dataset.queries)
        )
        for name, run in runs.items()
    }
    judged = _judge(found, dataset, evaluators(measures, dataset.qrels))
    return replace(judged, sources=Sources({}, dataset))


def _ranking(answer: Sequence[str] | Mapping[str, float]) -> list[str]:
    if isinstance(answer, str):
        raise ArgumentError(f"expected a list of document ids for a query, got the string {answer!r}")
    if isinstance(answer, Mapping):
        return sorted(answer, key=lambda doc_id: -answer[doc_id])
    return list(dict.fromkeys(answer))


def _scores(
    run: Mapping[str, Sequence[str] | Mapping[str, float]], queries: Iterable[str]
) -> dict[str, list[float | None]]:
    """Return the scores of a run in the order of its ranking, none where it is rankings alone."""
    scores: dict[str, list[float | None]] = {}
    for query_id in queries:
        answer = run.get(query_id, {})
        if not isinstance(answer, Mapping):
            return {}
        scores[query_id] = [float(answer[doc_id]) for doc_id in _ranking(answer)]
    return scores


def _judge(found: Mapping[str, Found], dataset: Dataset, computed: Mapping[Measure, Evaluator]) -> EvaluationResult:
    means, per_query = {}, {}
    for name, one in found.items():
        means[name], per_query[name] = score(computed, one.run)
        _warn_of_other_ids(name, one.run, dataset.qrels)
    return EvaluationResult(
        dataset=dataset.name,
        split=dataset.split,
        n_queries=len(dataset.queries),
        measures=tuple(map(str, computed)),
        retrievers=tuple(found),
        means=means,
        per_query=per_query,
        milliseconds={name: one.milliseconds for name, one in found.items() if one.milliseconds is not None},
        runs={name: one.run for name, one in found.items()},
        scores={name: one.scores for name, one in found.items() if one.scores},
        queries=dict(dataset.queries),
        qrels={query_id: dict(grades) for query_id, grades in dataset.qrels.items()},
        failures={name: one.failures for name, one in found.items() if one.failures},
        latency={name: one.latency for name, one in found.items() if one.latency is not None},
    )


def _warn_of_shallow(retrievers: Mapping[str, Retrieves], computed: Mapping[Measure, Evaluator]) -> None:
    """Say so where a measure looks deeper than what a retriever fetches: it then measures that number, too."""
    for name, retriever in retrievers.items():
        candidates = getattr(retriever, "candidates", None)
        if not isinstance(candidates, int):
            continue
        deeper = [str(measure) for measure in computed if int(measure.params.get("cutoff", 0)) > candidates]
        if deeper:
            logger.warning(
                "%r fetches %d candidates a leg, and %s look deeper: compare it by them only with retrievers that "
                "fetch as many",
                name,
                candidates,
                " and ".join(deeper),
            )


def _warn_of_other_ids(name: str, run: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Say so where no judged document was retrieved for any query: ids of another kind look like a bad retriever."""
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    retrieved = {doc_id for ranking in run.values() for doc_id in ranking}
    if retrieved and judged.isdisjoint(retrieved):
        logger.warning(
            "%r retrieved none of the %d judged documents for any query: it found ids such as %r, judged are ids such "
            "as %r. Is it the right table, and the right id column?",
            name,
            len(judged),
            min(retrieved),
            min(judged),
        )


def _check_arguments(retrievers: Mapping[str, Retrieves], dataset: Dataset) -> None:
    if not isinstance(retrievers, Mapping):
        raise ArgumentError(f"expected retrievers by name, got {retrievers!r}; write {{'name': retriever}}")
    if not retrievers:
        raise ArgumentError("no retrievers to evaluate; pass at least one, as {'name': retriever}")
    for name, retriever in retrievers.items():
        if not isinstance(retriever, Retrieves):
            raise ArgumentError(
                f"{name!r} is a {type(retriever).__name__}, which has no retrieve_many(queries, k); pass a Retriever"
            )
    _require_queries(dataset)


def _check_runs(runs: Mapping[str, Mapping[str, object]], dataset: Dataset) -> None:
    if not isinstance(runs, Mapping) or not all(isinstance(run, Mapping) for run in runs.values()):
        raise ArgumentError("expected runs by name; write {'name': {query_id: [doc_id, ...]}}")
    if not runs:
        raise ArgumentError("no runs to evaluate; pass at least one, as {'name': {query_id: [doc_id, ...]}}")
    _require_queries(dataset)
    for name, run in runs.items():
        others = [query_id for query_id in run if query_id not in dataset.queries]
        if others and len(others) == len(run):
            raise ArgumentError(
                f"run {name!r} answers none of the judged queries: it has ids such as {others[0]!r}, judged are ids "
                f"such as {next(iter(dataset.queries))!r}; pass the qrels that belong to it"
            )
        if others:
            logger.warning(
                "%d queries of run %r are not judged and are left out: %r, ...", len(others), name, others[0]
            )
        lacking = sum(query_id not in run for query_id in dataset.queries)
        if lacking:
            logger.warning("run %r has nothing for %d of %d judged queries", name, lacking, len(dataset.queries))


def _require_queries(dataset: Dataset) -> None:
    if not dataset.queries:
        raise ArgumentError(
            f"split {dataset.split!r} of data set {dataset.name!r} has no judged queries; "
            f"fill its qrels or take another split ({', '.join(dataset.splits)})"
        )
