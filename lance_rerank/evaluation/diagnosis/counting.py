"""The numbers of a diagnosis, from its evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np

from lance_rerank.evaluation.diagnosis.evidence import FEWEST_SCORES, Evidence, Seen, relevant
from lance_rerank.evaluation.diagnosis.losses import Place, Qrels, places, top, which_legs
from lance_rerank.evaluation.diagnosis.numbers import Numbers
from lance_rerank.evaluation.diagnosis.reading import Reading
from lance_rerank.evaluation.measures import evaluators, score
from lance_rerank.evaluation.significance import compare


def count(
    evidence: Evidence,
    reading: Reading,
    lost: Mapping[str, Sequence[Place]],
    qrels: Qrels,
    measure: str,
    depth: int,
) -> Numbers:
    """Return what there is to count of one retriever.

    Parameters
    ----------
    evidence, reading : Evidence, Reading
        What is known of it and of its models.
    lost : Mapping
        Its lost documents by cause.
    qrels : Mapping
        Grades by query id and document id.
    measure : str
        What losses are told in.
    depth : int
        How many documents are the top.
    """
    seen = evidence.seen
    judged = {query_id: qrels[query_id] for query_id in seen}
    values = _measured(seen, judged, measure)
    means = {name: fmean(by_query.values()) if by_query else 0.0 for name, by_query in values.items()}
    differences = {query_id: values["reached"][query_id] - values["first"][query_id] for query_id in seen}
    worse = sorted((query_id for query_id in seen if differences[query_id] < 0), key=differences.__getitem__)
    compared = evidence.reranked and bool(seen)
    tops = [(query_id, doc_id) for query_id, one in seen.items() for doc_id in top(one, depth)]
    all_lost = [place for some in lost.values() for place in some]
    cut = frozenset(pair for one in reading.truncation for pair in one.relevant)
    return Numbers(
        n_queries=len(seen),
        n_relevant=sum(len(relevant(grades)) for grades in judged.values()),
        measure=measure,
        best=means["best"],
        ceiling=means["ceiling"],
        reached=means["reached"],
        returned=means["returned"] if any(one.dropped for one in seen.values()) else None,
        first_stage=means["first"] if compared else None,
        gain=compare("first stage", evidence.retriever, measure, [*differences.values()]) if compared else None,
        n_failed=len(evidence.failures),
        harmed=tuple(worse),
        lost={cause: len(some) for cause, some in lost.items()},
        legs=which_legs(all_lost) if evidence.traced else {},
        recall=_recall(evidence, qrels),
        candidates=evidence.candidates,
        deepest=evidence.deepest,
        other_legs=_elsewhere(evidence),
        tuning=evidence.tuning,
        agreement=_agreement(seen.values()) if evidence.reranked else {},
        unscored=_unscored(evidence),
        alike=sum(one.alike for one in seen.values()) / max(1, len(seen)),
        unjudged=sum(doc_id not in qrels[query_id] for query_id, doc_id in tops) / max(1, len(tops)),
        irrelevant_judged=any(grade <= 0 for grades in judged.values() for grade in grades.values()),
        cut=len(cut),
        cut_lost=sum((place.query_id, place.doc_id) in cut for place in all_lost),
        foreign=tuple(reader for words in reading.words if not words.suits for reader in words.readers),
        kinds=evidence.kinds,
        reranked=evidence.reranked,
        blended=evidence.blended,
        depth=depth,
    )


def _measured(seen: Mapping[str, Seen], qrels: Qrels, measure: str) -> dict[str, dict[str, float]]:
    """Return the measure by query of five orders.

    They are of all that is judged and of the pool, the best grades at the top; of all that is ranked, of what is
    returned of that, and of the first stage.
    """
    orders = {
        "best": {query_id: _best_first(qrels[query_id], qrels[query_id]) for query_id in seen},
        "ceiling": {query_id: _best_first(one.first, qrels[query_id]) for query_id, one in seen.items()},
        "reached": {query_id: list(one.final) for query_id, one in seen.items()},
        "returned": {query_id: one.returned for query_id, one in seen.items()},
        "first": {query_id: list(one.first) for query_id, one in seen.items()},
    }
    if not seen:
        return {name: {} for name in orders}
    computed = evaluators([measure], {query_id: dict(grades) for query_id, grades in qrels.items()})
    name_of = str(next(iter(computed)))
    return {
        name: {query_id: values[name_of] for query_id, values in score(computed, run)[1].items()}
        for name, run in orders.items()
    }


def _best_first(documents: Iterable[str], grades: Mapping[str, int]) -> list[str]:
    """Return documents by falling grade, those that nobody judged as not relevant."""
    return sorted(documents, key=lambda doc_id: -grades.get(doc_id, 0))


def _recall(evidence: Evidence, qrels: Qrels) -> dict[int, float]:
    """Return the share of the relevant documents that are among so many candidates of a leg."""
    there, now, deepest = places(evidence, qrels), evidence.candidates, evidence.deepest
    if not there or now is None or deepest is None:
        return {}

    def within(place: Place, candidates: int) -> bool:
        if place.missed is not None:  # what the pool lacks is not among fewer either
            return candidates > now and place.missed.deeper is not None and place.missed.deeper <= candidates
        return candidates >= now or min(place.legs.values(), default=now) <= candidates

    fewer = (max(1, now // 4), max(1, now // 2), 2 * now) if evidence.by_rank else ()
    return {depth: fmean(within(place, depth) for place in there) for depth in sorted({*fewer, now, deepest})}


def _elsewhere(evidence: Evidence) -> dict[str, int]:
    """Return how many of the documents that the pools lack are found by each leg that the retriever lacks."""
    found = Counter(kind for one in evidence.missed.values() for kind in one.others)
    return {kind: found[kind] for kind in evidence.other_legs}


def _unscored(evidence: Evidence) -> float:
    """Return the share of the candidates without a score; 0 where nothing was to be scored."""
    candidates = sum(len(one.final) for one in evidence.seen.values())
    without = sum(len(one.unscored) for one in evidence.seen.values())
    return without / max(1, candidates) if evidence.scored else 0.0


def _agreement(seen: Iterable[Seen]) -> dict[str, float]:
    """Return the mean over queries of the correlation of the final order with each leg's, ties at their mean rank."""
    from scipy.stats import rankdata

    correlations: dict[str, list[float]] = {}
    for one in seen:
        for leg in sorted({leg for ranks in one.legs.values() for leg in ranks}):
            pairs = [
                (-value, one.legs[doc_id][leg])
                for doc_id, value in one.final.items()
                if value is not None and leg in one.legs.get(doc_id, {})
            ]
            if len(pairs) < FEWEST_SCORES:
                continue
            scores, ranks = (rankdata(column) for column in zip(*pairs, strict=True))
            alike = np.ptp(scores) == 0  # one score for all is no order, which agrees with none
            correlations.setdefault(leg, []).append(0.0 if alike else float(np.corrcoef(scores, ranks)[0, 1]))
    return {leg: fmean(values) for leg, values in correlations.items()}
