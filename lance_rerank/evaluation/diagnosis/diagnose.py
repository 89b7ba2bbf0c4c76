"""Asking why: the evidence of each retriever gathered, counted and judged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.diagnosis.changes import changes
from lance_rerank.evaluation.diagnosis.counting import count
from lance_rerank.evaluation.diagnosis.diagnosis import Diagnosis
from lance_rerank.evaluation.diagnosis.evidence import of_run
from lance_rerank.evaluation.diagnosis.findings import Finding, findings
from lance_rerank.evaluation.diagnosis.gathering import gather
from lance_rerank.evaluation.diagnosis.legs import Memory
from lance_rerank.evaluation.diagnosis.losses import lost_by
from lance_rerank.evaluation.diagnosis.numbers import Numbers
from lance_rerank.evaluation.diagnosis.reading import Reading, read
from lance_rerank.evaluation.diagnosis.rules import advise, verdict
from lance_rerank.evaluation.searching import Progress, Retrieves


def diagnose(
    names: Sequence[str],
    retrievers: Mapping[str, Retrieves],
    dataset: Dataset,
    measure: str,
    *,
    runs: Mapping[str, Mapping[str, Sequence[str]]],
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    failures: Mapping[str, Mapping[str, str]],
    sample: int | None = 300,
    depth: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Return why retrievers are no better than they are; `EvaluationResult.diagnose` is what users call.

    Parameters
    ----------
    names : sequence of str
        The retrievers to diagnose. One that is not among `retrievers`, or no `Retriever` (nor is a subclass, which may
        search otherwise), is by its run alone.
    retrievers : Mapping
        By name.
    dataset : Dataset
        What they are asked.
    measure : str
        What losses are told in.
    runs, scores, failures : Mapping
        As in `EvaluationResult`.
    sample, depth, seed, progress
        As in `EvaluationResult.diagnose`.
    """
    from lance_rerank.search.retriever import Retriever

    _check_counts(sample, depth)
    queries = _drawn(dataset.queries, sample, seed)
    qrels = {query_id: dataset.qrels[query_id] for query_id in queries}
    traced = {name: one for name, one in retrievers.items() if type(one) is Retriever}
    memory = Memory()
    numbers: dict[str, Numbers] = {}
    notes: dict[str, tuple[str, ...]] = {}
    found: list[Finding] = []
    for name in names:
        reading = Reading()
        if name in traced:
            rivals = [rival for other, rival in traced.items() if other != name]
            evidence = gather(
                name, traced[name], queries, qrels, depth, rivals=rivals, memory=memory, progress=progress
            )
            reading = read(traced[name], evidence, queries, qrels, depth)
        else:
            _require_run(name, runs, queries)
            evidence = of_run(name, runs[name], scores.get(name, {}), failures.get(name, {}), queries)
        lost = lost_by(evidence, qrels, depth)
        numbers[name] = count(evidence, reading, lost, qrels, measure, depth)
        found += findings(evidence, reading, lost, numbers[name], qrels)
        notes[name] = (*changes(evidence, runs.get(name, {}), depth), *evidence.notes, *reading.notes)
    return Diagnosis(
        dataset=dataset.name,
        split=dataset.split,
        n_queries=len(queries),
        of_queries=len(dataset.queries),
        depth=depth,
        seed=seed,
        numbers=numbers,
        findings=tuple(found),
        advice={name: advise(one) for name, one in numbers.items()},
        verdicts={name: said for name, one in numbers.items() if (said := verdict(one)) is not None},
        notes={name: some for name, some in notes.items() if some},
    )


def _check_counts(sample: int | None, depth: int) -> None:
    for name, value in (("sample", sample), ("depth", depth)):
        unset = name == "sample" and value is None
        if not unset and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ArgumentError(f"{name} must be at least 1, got {value!r}")


def _drawn(queries: Mapping[str, str], sample: int | None, seed: int) -> dict[str, str]:
    """Return at most `sample` queries, in their own order."""
    if sample is None or sample >= len(queries):
        return dict(queries)
    drawn = set(random.Random(seed).sample(list(queries), sample))
    return {query_id: text for query_id, text in queries.items() if query_id in drawn}


def _require_run(name: str, runs: Mapping[str, Mapping[str, object]], queries: Mapping[str, str]) -> None:
    if not any(query_id in runs.get(name, {}) for query_id in queries):
        raise ArgumentError(
            f"{name!r} is no lance_rerank.Retriever (a subclass, which may search otherwise, is none either), so it is "
            "diagnosed by its run, which has none of these queries; pass a Retriever, or evaluate it on these queries "
            "first"
        )
