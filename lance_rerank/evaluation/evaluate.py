"""Retrievers measured on a judged data set, with the measures of ir-measures (https://ir-measur.es)."""

from __future__ import annotations

import difflib
import logging
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.types import Hit

if TYPE_CHECKING:
    from ir_measures import Evaluator, Measure

logger = logging.getLogger(__name__)

_BLOCK = 64
_LEAST_DEPTH = 10
_DEPTH_WITHOUT_CUTOFF = 1000
_SPELLINGS = "'nDCG@10', 'RR@10', 'Success@5', 'R@100' or 'AP'"


@runtime_checkable
class Retrieves(Protocol):
    """What `evaluate` can measure: anything that answers many queries at once."""

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return, for each query, at most ``k`` hits, the best first."""
        ...


def evaluate(
    retrievers: Mapping[str, Retrieves],
    dataset: Dataset,
    measures: Sequence[str | Measure] = ("nDCG@10", "RR@10", "Success@5", "R@100"),
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvaluationResult:
    """Return how well each retriever answers the judged queries of a data set, and how fast.

    What is judged is the order of the hits, not their scores. A document that comes twice counts at its first rank
    and those below it move up, as where passages stand for their document. A query that gets no hits counts 0.

    Each retriever is asked for as many hits as the largest cutoff, at least 10; for 1000 if a measure has no cutoff.

    Parameters
    ----------
    retrievers : mapping of str to Retrieves
        By the names that the result shows.
    dataset : Dataset
        One split.
    measures : sequence of str or ir_measures.Measure
        Written as ir-measures writes them.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each block of queries.

    Raises
    ------
    ArgumentError
        There is nothing to evaluate, a measure cannot be computed, or a retriever answers with a wrong number of lists.
        An exception of a retriever itself passes through with a note that names the retriever and its queries.

    Examples
    --------
    >>> from lance_rerank.types import Qrel, Query
    >>> data = Dataset.from_memory([Query("q1", "rotate api keys")], [Qrel("q1", "d1", 1)])
    >>> class SecondBest:
    ...     def retrieve_many(self, queries, k):
    ...         return [[Hit("d2", 0.9, rank=1), Hit("d1", 0.8, rank=2)] for _ in queries]
    >>> evaluate({"second best": SecondBest()}, data, ["RR@10", "Success@5"]).means
    {'second best': {'RR@10': 0.5, 'Success@5': 1.0}}
    """
    _check_arguments(retrievers, dataset)
    parsed = _parse(measures)
    evaluators = {measure: _evaluator(measure, dataset.qrels) for measure in parsed}
    depth = _depth(parsed)
    means, per_query, milliseconds, runs = {}, {}, {}, {}
    for name, retriever in retrievers.items():
        runs[name], milliseconds[name] = _run(name, retriever, dataset.queries, depth, progress)
        means[name], per_query[name] = _score(evaluators, runs[name])
        _warn_of_other_ids(name, runs[name], dataset.qrels)
    return EvaluationResult(
        dataset=dataset.name,
        split=dataset.split,
        n_queries=len(dataset.queries),
        measures=tuple(map(str, parsed)),
        retrievers=tuple(retrievers),
        means=means,
        per_query=per_query,
        milliseconds=milliseconds,
        runs=runs,
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
    if not dataset.queries:
        raise ArgumentError(
            f"split {dataset.split!r} of data set {dataset.name!r} has no judged queries; "
            f"fill its qrels or take another split ({', '.join(dataset.splits)})"
        )


def _parse(measures: Sequence[str | Measure]) -> list[Measure]:
    """Return the measures, each once."""
    if isinstance(measures, str):
        raise ArgumentError(f"expected a list of measures, got a string; write [{measures!r}]")
    if not measures:
        raise ArgumentError(f"no measures to evaluate by; pass at least one, such as {_SPELLINGS}")
    return list(dict.fromkeys(map(_parse_one, measures)))


def _parse_one(measure: str | Measure) -> Measure:
    import ir_measures

    try:
        parsed = ir_measures.parse_measure(measure)
    except (NameError, ValueError, TypeError) as error:
        raise ArgumentError(f"unknown measure {measure!r}{_nearest(measure)}; write it as {_SPELLINGS}") from error
    unknown = [key for key in parsed.params if key not in parsed.SUPPORTED_PARAMS]
    if unknown:
        takes = ", ".join(parsed.SUPPORTED_PARAMS)
        raise ArgumentError(f"measure {parsed.NAME} has no parameter {' or '.join(unknown)}; it takes {takes}")
    missing = [key for key, info in parsed.SUPPORTED_PARAMS.items() if info.required and key not in parsed.params]
    if missing:
        raise ArgumentError(f"measure {measure!r} lacks its {' and '.join(missing)}; write it as {_SPELLINGS}")
    cutoff = parsed.params.get("cutoff")
    if isinstance(cutoff, int) and cutoff < 1:
        # Not left to ir-measures: trec_eval, which it calls, ends the process.
        raise ArgumentError(f"measure {measure!r} has the cutoff {cutoff}; expected 1 or more, as in {_SPELLINGS}")
    return parsed


def _nearest(measure: object) -> str:
    import ir_measures

    written = re.match(r"\w+", str(measure))
    by_lower = {name.lower(): known.NAME for name, known in ir_measures.measures.registry.items()}
    close = difflib.get_close_matches(written[0].lower(), by_lower, n=1) if written else []
    return f" (the nearest name is {by_lower[close[0]]!r})" if close else ""


def _evaluator(measure: Measure, qrels: dict[str, dict[str, int]]) -> Evaluator:
    """Return what computes one measure.

    One at a time: asked for nDCG with and without ``gains``, ir-measures 0.4.3 hands out one in place of the other.
    """
    import ir_measures

    try:
        evaluator = ir_measures.evaluator([measure], qrels)
        # A rehearsal: some providers first complain when they calculate, which would be after all the retrieval.
        evaluator.calc({query_id: {"a": 1.0} for query_id in list(qrels)[:1]})
    except Exception as error:
        reason = str(error).rstrip(".")
        raise ArgumentError(f"measure {str(measure)!r} cannot be computed: {reason}. Take {_SPELLINGS}") from error
    return evaluator


def _depth(measures: Sequence[Measure]) -> int:
    cutoffs = [measure.params.get("cutoff", _DEPTH_WITHOUT_CUTOFF) for measure in measures]
    return max(_LEAST_DEPTH, *map(int, cutoffs))


def _run(
    name: str,
    retriever: Retrieves,
    queries: Mapping[str, str],
    depth: int,
    progress: Callable[[str, int, int], None] | None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[str]], float]:
    """Return the ranked document ids of each query, and the milliseconds a query."""
    run: dict[str, list[str]] = {}
    milliseconds = []
    query_ids = list(queries)
    for start in range(0, len(query_ids), _BLOCK):
        block = query_ids[start : start + _BLOCK]
        started = clock()
        answers = _retrieve(name, retriever, {query_id: queries[query_id] for query_id in block}, depth)
        milliseconds.append((clock() - started) * 1000 / len(block))
        for query_id, hits in zip(block, answers, strict=True):
            run[query_id] = list(dict.fromkeys(hit.doc_id for hit in hits))[:depth]
        if progress is not None:
            progress(name, len(run), len(query_ids))
    return run, statistics.median(milliseconds)


def _retrieve(name: str, retriever: Retrieves, block: Mapping[str, str], depth: int) -> list[list[Hit]]:
    try:
        answers = retriever.retrieve_many(list(block.values()), depth)
        if len(answers) != len(block):
            raise ArgumentError(
                f"retrieve_many returned {len(answers)} lists of hits for {len(block)} queries; expected one a query"
            )
    except Exception as error:
        error.add_note(f"Raised while evaluating retriever {name!r} on the queries {', '.join(map(repr, block))}.")
        raise
    return answers


def _score(
    evaluators: Mapping[Measure, Evaluator], run: Mapping[str, list[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the means by measure, and the values by query id and measure."""
    # Scores made of ranks: the order of the hits holds even where their own scores are tied or missing.
    # Queries without hits stay out, and get each measure's default below.
    scored = {
        query_id: {doc_id: float(len(ranking) - rank) for rank, doc_id in enumerate(ranking)}
        for query_id, ranking in run.items()
        if ranking
    }
    means: dict[str, float] = {}
    per_query: dict[str, dict[str, float]] = {query_id: {} for query_id in run}
    for measure, evaluator in evaluators.items():
        values = {metric.query_id: float(metric.value) for metric in (evaluator.iter_calc(scored) if scored else ())}
        aggregator = measure.aggregator()
        for query_id in run:
            value = values.get(query_id, measure.DEFAULT)
            per_query[query_id][str(measure)] = value
            aggregator.add(value)
        means[str(measure)] = float(aggregator.result())
    return means, per_query
