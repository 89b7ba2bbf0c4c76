"""Measures as ir-measures (https://ir-measur.es) has them: read, checked, and computed from rankings."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from ir_measures import Evaluator, Measure

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "Success@5", "R@100")
_LEAST_DEPTH = 10
_DEPTH_WITHOUT_CUTOFF = 1000
_TOP_HEAVY = frozenset({"nDCG", "RR", "Success", "P", "R", "AP", "Judged"})
_SPELLINGS = "'nDCG@10', 'RR@10', 'Success@5', 'R@100' or 'AP'"


def evaluators(measures: Sequence[str | Measure], qrels: dict[str, dict[str, int]]) -> dict[Measure, Evaluator]:
    """Return what computes each measure, in the order given, each once.

    Raises
    ------
    ArgumentError
        There are none, or one cannot be computed.
    """
    return {measure: _evaluator(measure, qrels) for measure in _parse(measures)}


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


def depth_of(measures: Sequence[Measure]) -> int:
    """Return how many documents of a ranking the measures look at."""
    cutoffs = [measure.params.get("cutoff", _DEPTH_WITHOUT_CUTOFF) for measure in measures]
    return max(_LEAST_DEPTH, *map(int, cutoffs))


def score(
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
