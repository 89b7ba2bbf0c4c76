"""Results of several evaluations compared with each other: of yesterday and today, of one index and another."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.gate import measure_among
from lance_rerank.evaluation.result import EvaluationResult
from lance_rerank.evaluation.significance import Comparisons


@dataclass(frozen=True)
class ResultComparison:
    """Retrievers of several results side by side, on the queries that all of them were asked; prints as a table.

    Attributes
    ----------
    result : EvaluationResult
        What was compared, as one result of the common queries. It has no times: those were not taken side by side.
    pairs : tuple of tuple of str
        The retrievers that were compared, by their names in `result`: of the first result, and of a later one.
    measure : str
        What decides.
    notes : tuple of str
        What to know before the comparison is believed: which queries were left out, what could not be checked.

    Examples
    --------
    >>> from lance_rerank.evaluation import evaluate_runs
    >>> qrels = {"q1": {"d1": 1}, "q2": {"d3": 1}}
    >>> before = evaluate_runs({"late": {"q1": ["d2", "d1"], "q2": ["d3"]}}, qrels, ["RR@10"])
    >>> after = evaluate_runs({"late": {"q1": ["d1", "d2"], "q2": ["d3"]}}, qrels, ["RR@10"])
    >>> print(compare_results(before, after))
    qrels, split all, 2 queries
    <BLANKLINE>
    retriever        RR@10
    late (before)  0.7500
    late (after)   1.0000*
    ...
    late (after) against late (before)  +0.2500  (+0.0000 to +0.5000)  p 1.000    no difference ...
    <BLANKLINE>
    2 queries are too few to show any difference; 6 are the fewest
    """

    result: EvaluationResult
    pairs: tuple[tuple[str, str], ...]
    measure: str
    notes: tuple[str, ...] = ()

    @cached_property
    def comparisons(self) -> Comparisons:
        """Each pair compared on the same queries, p-values corrected for all of them (Holm)."""
        return Comparisons(self.result.compare(*pair, self.measure) for pair in self.pairs).corrected()

    def __str__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"{self.result}\n\n{self.comparisons}", *([""] * bool(notes)), *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the means, the comparisons with their verdicts, and the notes."""
        return {
            "dataset": self.result.dataset,
            "split": self.result.split,
            "n_queries": self.result.n_queries,
            "means": self.result.means,
            "measure": self.measure,
            "comparisons": [asdict(one) | {"verdict": one.verdict} for one in self.comparisons],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict())


def compare_results(
    before: EvaluationResult,
    *after: EvaluationResult,
    measure: str | None = None,
    labels: Sequence[str] | None = None,
) -> ResultComparison:
    """Return how much better the retrievers of later results are than those of an earlier one, on the same queries.

    Compared are retrievers of the same name; if every result has exactly one, those, whatever their names.

    Parameters
    ----------
    before : EvaluationResult
        What the others are compared with.
    *after : EvaluationResult
        One or more. Queries that one of them lacks are left out of all, with a note.
    measure : str, optional
        By default the first that all results have.
    labels : sequence of str, optional
        What the results are called, one each, where their retrievers have the same names and in notes.

    Raises
    ------
    ArgumentError
        The results have no retriever, query or measure in common, or a query was judged differently.
    """
    if not after:
        raise ArgumentError("there is one result, and nothing to compare it with; pass two or more")
    sources = _labelled((before, *after), labels)
    compared = _same_retrievers(sources)
    queries = _common_queries(sources, compared)
    _require_same_judgements(sources, queries)
    measures = _common_measures(sources)
    names = _names(compared)
    return ResultComparison(
        _joined(sources, names, queries, measures),
        tuple((names[one], names[other]) for one, other in compared),
        _chosen(measure, measures),
        tuple(_notes(sources, names, queries)),
    )


_Value = TypeVar("_Value")
_Sources = dict[str, EvaluationResult]  # by label
_Place = tuple[str, str]  # the label of a result, and a retriever of it


def _labelled(results: Sequence[EvaluationResult], labels: Sequence[str] | None) -> _Sources:
    if labels is None:
        labels = ["before", "after"] if len(results) == 2 else [f"result {i}" for i, _ in enumerate(results, 1)]
    if len(labels) != len(results) or len(set(labels)) < len(labels):
        raise ArgumentError(f"expected {len(results)} labels, each another, got {list(labels)!r}")
    return dict(zip(labels, results, strict=True))


def _same_retrievers(sources: _Sources) -> list[tuple[_Place, _Place]]:
    (first, before), *later = sources.items()
    if all(len(result.retrievers) == 1 for result in sources.values()):
        return [((first, before.retrievers[0]), (label, result.retrievers[0])) for label, result in later]
    pairs = []
    for label, result in later:
        same = [name for name in before.retrievers if name in result.retrievers]
        if not same:
            raise ArgumentError(
                f"{first} and {label} have no retriever of the same name: there are {', '.join(before.retrievers)}, "
                f"and {', '.join(result.retrievers)}"
            )
        pairs += [((first, name), (label, name)) for name in same]
    return pairs


def _names(compared: Iterable[tuple[_Place, _Place]]) -> dict[_Place, str]:
    """Return what each retriever is called beside the others: by its own name if no other has it."""
    places = list(dict.fromkeys(place for pair in compared for place in pair))
    alone = len({name for _, name in places}) == len(places)
    return {(label, name): name if alone else f"{name} ({label})" for label, name in places}


def _common_queries(sources: _Sources, compared: Iterable[tuple[_Place, _Place]]) -> list[str]:
    """Return the queries that each compared retriever was asked, in the order of the first."""
    asked = [sources[label].per_query.get(name, {}) for label, name in _names(compared)]
    common = [query_id for query_id in asked[0] if all(query_id in others for others in asked)]
    if not common:
        some = ", ".join(repr(next(iter(queries), "none")) for queries in asked)
        raise ArgumentError(
            f"{_and(sources)} have no query in common (their first: {some}); compare results of one data set and split"
        )
    return common


def _require_same_judgements(sources: _Sources, queries: Sequence[str]) -> None:
    judged = [(label, result.qrels) for label, result in sources.items() if result.qrels]
    for label, qrels in judged[1:]:
        first, before = judged[0]
        differing = [query_id for query_id in queries if before.get(query_id) != qrels.get(query_id)]
        if differing:
            raise ArgumentError(
                f"{first} and {label} were judged differently on {len(differing)} of {len(queries)} queries, the first "
                f"{differing[0]!r}, so their values cannot be compared; evaluate both with the same qrels"
            )


def _common_measures(sources: _Sources) -> tuple[str, ...]:
    first, *others = [result.measures for result in sources.values()]
    common = tuple(measure for measure in first if all(measure in measures for measures in others))
    if not common:
        by_result = "; ".join(f"{label} has {', '.join(result.measures)}" for label, result in sources.items())
        raise ArgumentError(f"there is no measure in common: {by_result}")
    return common


def _chosen(measure: str | None, measures: Sequence[str]) -> str:
    if measure is None:
        return measures[0]
    found = measure_among(measure, measures)
    if found is None:
        raise ArgumentError(f"{measure!r} was not evaluated in all results; there are {', '.join(measures)}")
    return found


def _joined(
    sources: _Sources, names: dict[_Place, str], queries: Sequence[str], measures: tuple[str, ...]
) -> EvaluationResult:
    """Return the compared retrievers as one result of the common queries."""
    results = list(sources.values())
    found = {name: (sources[label], retriever) for (label, retriever), name in names.items()}
    per_query = {name: _values(*place, name, queries, measures) for name, place in found.items()}
    failures = {name: _of(queries, result.failures.get(own, {})) for name, (result, own) in found.items()}
    return EvaluationResult(
        dataset=" / ".join(dict.fromkeys(result.dataset for result in results)),
        split=" / ".join(dict.fromkeys(result.split for result in results)),
        n_queries=len(queries),
        measures=measures,
        retrievers=tuple(found),
        means={name: _means(values, measures) for name, values in per_query.items()},
        per_query=per_query,
        milliseconds={},
        runs={name: _of(queries, result.runs.get(own, {})) for name, (result, own) in found.items()},
        failures={name: failed for name, failed in failures.items() if failed},
        queries=_of(queries, next((result.queries for result in results if result.queries), {})),
        qrels=_of(queries, next((result.qrels for result in results if result.qrels), {})),
    )


def _of(queries: Iterable[str], values: Mapping[str, _Value]) -> dict[str, _Value]:
    return {query_id: values[query_id] for query_id in queries if query_id in values}


def _values(
    result: EvaluationResult, retriever: str, name: str, queries: Sequence[str], measures: Sequence[str]
) -> dict[str, dict[str, float]]:
    by_query = result.per_query[retriever]
    try:
        return {query_id: {measure: by_query[query_id][measure] for measure in measures} for query_id in queries}
    except KeyError as error:
        raise ArgumentError(
            f"the result of {name} is not whole: a query has no value of {error}; evaluate again"
        ) from error


def _means(by_query: dict[str, dict[str, float]], measures: Sequence[str]) -> dict[str, float]:
    return {measure: _mean(measure, [values[measure] for values in by_query.values()]) for measure in measures}


def _mean(measure: str, values: Sequence[float]) -> float:
    import ir_measures

    try:
        aggregator = ir_measures.parse_measure(measure).aggregator()  # of NumRet and its like the sum
    except (NameError, ValueError, TypeError):
        return statistics.fmean(values)  # a measure of the user's own
    for value in values:
        aggregator.add(value)
    return float(aggregator.result())


def _notes(sources: _Sources, names: dict[_Place, str], queries: Sequence[str]) -> Iterator[str]:
    (first, before), *later = sources.items()
    for label, result in later:
        for what, one, other in (("data", before.dataset, result.dataset), ("split", before.split, result.split)):
            if one != other:
                yield f"{first} is of {what} {one!r}, {label} of {other!r}"
        worded = [query_id for query_id in queries if before.queries.get(query_id) != result.queries.get(query_id)]
        if worded and before.queries and result.queries:
            yield f"{_count(worded)} worded otherwise in {label} than in {first}, the first {worded[0]!r}"
    for label, result in sources.items():
        asked = {query_id for by_query in result.per_query.values() for query_id in by_query}
        left_out = sorted(asked.difference(queries))
        if left_out:
            yield f"{_count(left_out)} in {label} but not in every result, and left out, the first {left_out[0]!r}"
        if not result.qrels:
            yield f"{label} has no judgements in it, so it could not be checked that all were judged alike"
        others = [name for name in result.retrievers if (label, name) not in names]
        if others:
            yield f"{', '.join(others)} of {label}: not compared, for want of another of that name"


def _count(queries: Sequence[str]) -> str:
    return "1 query is" if len(queries) == 1 else f"{len(queries):,} queries are"


def _and(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}"
