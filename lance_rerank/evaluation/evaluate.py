"""Retrievers measured on a judged data set, with the measures of ir-measures (https://ir-measur.es)."""

from __future__ import annotations

import difflib
import itertools
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.cache import Block, StoredRun, found_before, stored_run
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.types import Hit

if TYPE_CHECKING:
    from ir_measures import Evaluator, Measure

logger = logging.getLogger(__name__)

_BLOCK = 64
_LEAST_DEPTH = 10
_DEPTH_WITHOUT_CUTOFF = 1000
_TOP_HEAVY = frozenset({"nDCG", "RR", "Success", "P", "R", "AP", "Judged"})
_DEFAULT_MEASURES = ("nDCG@10", "RR@10", "Success@5", "R@100")
_SPELLINGS = "'nDCG@10', 'RR@10', 'Success@5', 'R@100' or 'AP'"

OnError = Literal["raise", "count"]
Progress = Callable[[str, int, int], None]


@runtime_checkable
class Retrieves(Protocol):
    """What `evaluate` can measure: anything that answers many queries at once."""

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return, for each query, at most ``k`` hits, the best first."""
        ...


def evaluate(
    retrievers: Mapping[str, Retrieves],
    dataset: Dataset,
    measures: Sequence[str | Measure] = _DEFAULT_MEASURES,
    *,
    on_error: OnError = "raise",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
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
    on_error : {"raise", "count"}, default "raise"
        What to do where a retriever raises. "raise" lets the exception through, with a note that names the retriever
        and its queries. "count" asks that block of queries again one by one; those that raise are told in
        `EvaluationResult.failures`, find nothing, and count in every mean.
    cache : str or path, optional
        A folder to keep runs in, block by block. A run that is there is not searched again, one that was stopped goes
        on. Kept are retrievers that have a ``cache_key()``, under that key, the depth, the texts of the queries and the
        version of this package; a failed query is not kept. Times are those of when it was searched.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each block of queries.

    Raises
    ------
    ArgumentError
        There is nothing to evaluate, a measure cannot be computed, or a retriever answers with a wrong number of lists.

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
    if on_error not in get_args(OnError):
        raise ArgumentError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
    evaluators = _evaluators(measures, dataset)
    depth = _depth(list(evaluators))
    found = {}
    for name, retriever in retrievers.items():
        stored = stored_run(cache, name, retriever, dataset.queries, depth)
        found[name] = _search(
            name, retriever, dataset.queries, depth, on_error=on_error, stored=stored, progress=progress
        )
    return _judge(found, dataset, evaluators)


def evaluate_runs(
    runs: Mapping[str, Mapping[str, Sequence[str]]],
    dataset: Dataset | Mapping[str, Mapping[str, int]],
    measures: Sequence[str | Measure] = _DEFAULT_MEASURES,
) -> EvaluationResult:
    """Return how well runs answer the judged queries, which are there already: read from TREC files, or made elsewhere.

    They are judged as those of `evaluate`. A judged query that a run lacks counts 0; queries that are not judged are
    left out. Rankings are not cut but by the measures.

    Parameters
    ----------
    runs : mapping
        By name; each is the ranked document ids by query id, as in `EvaluationResult.runs`.
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
        name: _Found({query_id: list(dict.fromkeys(run.get(query_id, ()))) for query_id in dataset.queries})
        for name, run in runs.items()
    }
    return _judge(found, dataset, _evaluators(measures, dataset))


@dataclass(frozen=True)
class _Found:
    """What a retriever found: ranked document ids by query, errors by query, milliseconds a query."""

    run: dict[str, list[str]]
    failures: dict[str, str] = field(default_factory=dict)
    milliseconds: float | None = None


def _judge(found: Mapping[str, _Found], dataset: Dataset, evaluators: Mapping[Measure, Evaluator]) -> EvaluationResult:
    means, per_query = {}, {}
    for name, one in found.items():
        means[name], per_query[name] = _score(evaluators, one.run)
        _warn_of_other_ids(name, one.run, dataset.qrels)
    return EvaluationResult(
        dataset=dataset.name,
        split=dataset.split,
        n_queries=len(dataset.queries),
        measures=tuple(map(str, evaluators)),
        retrievers=tuple(found),
        means=means,
        per_query=per_query,
        milliseconds={name: one.milliseconds for name, one in found.items() if one.milliseconds is not None},
        runs={name: one.run for name, one in found.items()},
        failures={name: one.failures for name, one in found.items() if one.failures},
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


def _check_runs(runs: Mapping[str, Mapping[str, Sequence[str]]], dataset: Dataset) -> None:
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


def _evaluators(measures: Sequence[str | Measure], dataset: Dataset) -> dict[Measure, Evaluator]:
    return {measure: _evaluator(measure, dataset.qrels) for measure in _parse(measures)}


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
        # A rehearsal: some providers first complain when they calculate, which would be after all the retrieval.
        some = dict(itertools.islice(qrels.items(), 1))
        ir_measures.evaluator([measure], some).calc({query_id: {"a": 1.0} for query_id in some})
        evaluator = ir_measures.evaluator([measure], qrels)
    except Exception as error:
        reason = str(error).rstrip(".")
        raise ArgumentError(f"measure {str(measure)!r} cannot be computed: {reason}. Take {_SPELLINGS}") from error
    return evaluator


def _depth(measures: Sequence[Measure]) -> int:
    cutoffs = [measure.params.get("cutoff", _DEPTH_WITHOUT_CUTOFF) for measure in measures]
    return max(_LEAST_DEPTH, *map(int, cutoffs))


def _search(
    name: str,
    retriever: Retrieves,
    queries: Mapping[str, str],
    depth: int,
    *,
    on_error: OnError = "raise",
    stored: StoredRun | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> _Found:
    """Return what is stored of a run, and the rest as it is searched and stored."""
    blocks = list(found_before(stored, queries))
    run = {query_id: ranking for block in blocks for query_id, ranking in block.found.items()}
    failures: dict[str, str] = {}
    if run and progress is not None:
        progress(name, len(run), len(queries))
    missing = iter([query_id for query_id in queries if query_id not in run])
    while query_ids := list(itertools.islice(missing, _BLOCK)):
        texts = {query_id: queries[query_id] for query_id in query_ids}
        block, failed = _search_block(name, retriever, texts, depth, on_error, clock)
        blocks.append(block)
        failures |= failed
        run |= block.found | {query_id: [] for query_id in failed}
        if stored is not None and block.found:
            stored.add(block)
        if progress is not None:
            progress(name, len(run), len(queries))
    if failures:
        logger.warning("%r failed on %d of %d queries, which count as finding nothing", name, len(failures), len(run))
    milliseconds = statistics.median(block.milliseconds for block in blocks)
    return _Found({query_id: run[query_id] for query_id in queries}, failures, milliseconds)


def _search_block(
    name: str,
    retriever: Retrieves,
    texts: Mapping[str, str],
    depth: int,
    on_error: OnError,
    clock: Callable[[], float],
) -> tuple[Block, dict[str, str]]:
    """Return what was found, and the errors in words; each query is in one of them."""
    failures: dict[str, str] = {}
    started = clock()
    try:
        found = _retrieve(name, retriever, texts, depth)
    except _CountError:
        raise  # no luck of a query but a retriever that does not keep to the protocol
    except Exception:
        if on_error == "raise":
            raise
        started = clock()
        found, failures = _retrieve_one_by_one(name, retriever, texts, depth)
    return Block(found, (clock() - started) * 1000 / len(texts)), failures


def _retrieve_one_by_one(
    name: str, retriever: Retrieves, texts: Mapping[str, str], depth: int
) -> tuple[dict[str, list[str]], dict[str, str]]:
    found: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    for query_id, text in texts.items():
        try:
            found |= _retrieve(name, retriever, {query_id: text}, depth)
        except _CountError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it is reported)
            failures[query_id] = f"{type(error).__name__}: {error}"
    return found, failures


class _CountError(ArgumentError):
    """A retriever answered with more or fewer lists than there were queries."""


def _retrieve(name: str, retriever: Retrieves, texts: Mapping[str, str], depth: int) -> dict[str, list[str]]:
    """Return the ranked document ids of each query, a document at its first rank."""
    try:
        answers: list[list[Hit]] = retriever.retrieve_many(list(texts.values()), depth)
        if len(answers) != len(texts):
            raise _CountError(
                f"retrieve_many returned {len(answers)} lists of hits for {len(texts)} queries; expected one a query"
            )
    except Exception as error:
        error.add_note(f"Raised while evaluating retriever {name!r} on the queries {', '.join(map(repr, texts))}.")
        raise
    return {
        query_id: list(dict.fromkeys(hit.doc_id for hit in hits))[:depth]
        for query_id, hits in zip(texts, answers, strict=True)
    }


def _score(
    evaluators: Mapping[Measure, Evaluator], run: Mapping[str, list[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the means by measure, and the values by query id and measure."""
    means: dict[str, float] = {}
    per_query: dict[str, dict[str, float]] = {query_id: {} for query_id in run}
    scored: dict[int | None, dict[str, dict[str, float]]] = {}
    for measure, evaluator in evaluators.items():
        top = _decisive(measure)
        if top not in scored:
            scored[top] = _scored(run, top)
        metrics = evaluator.iter_calc(scored[top]) if scored[top] else ()
        values = {metric.query_id: float(metric.value) for metric in metrics}
        name, aggregator = str(measure), measure.aggregator()
        for query_id in run:
            value = values.get(query_id, measure.DEFAULT)
            per_query[query_id][name] = value
            aggregator.add(value)
        means[name] = float(aggregator.result())
    return means, per_query


def _decisive(measure: Measure) -> int | None:
    """Return how many documents from the top decide the measure; None if all do.

    The others are not handed to ir-measures, which would sort them all again for each measure.
    """
    if measure.NAME not in _TOP_HEAVY or "judged_only" in measure.params:
        return None
    cutoff = measure.params.get("cutoff")
    return None if cutoff is None else int(cutoff)


def _scored(run: Mapping[str, list[str]], top: int | None) -> dict[str, dict[str, float]]:
    """Return the best documents of each query that has any, with scores.

    The scores are made of the ranks: the order of the hits holds even where their own scores are tied or missing.
    Queries without hits stay out, and get each measure's default.
    """
    return {
        query_id: {doc_id: float(len(ranking) - rank) for rank, doc_id in enumerate(ranking[:top])}
        for query_id, ranking in run.items()
        if ranking
    }
