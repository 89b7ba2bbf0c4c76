"""Where relevant documents were lost: each that is not at the top, under one cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lance_rerank.evaluation.diagnosis.evidence import Evidence, Missed, Seen, relevant
from lance_rerank.evaluation.diagnosis.numbers import Numbers, counted

Qrels = Mapping[str, Mapping[str, int]]
WHY_UNSCORED = "is the text column empty or unselected, are token vectors missing?"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one relevant document ended up.

    Attributes
    ----------
    query_id, doc_id : str
        Which it is.
    rank, first : int or None
        Its rank in the end, before ``min_score`` leaves any out, and in the first stage; None where it is not.
    legs : Mapping
        Its rank in each leg that found it.
    missed : Missed or None
        Where it could be found, if it is not among the candidates of a retriever that was searched again.
    sunk : bool
        Whether it is among them, and would be at the top by exact distances.
    dropped : bool
        Whether ``min_score`` leaves it out.
    unscored : bool
        Whether it has no score where others have one, or a reranker was to score it.
    """

    query_id: str
    doc_id: str
    rank: int | None
    first: int | None
    legs: Mapping[str, int]
    missed: Missed | None
    sunk: bool
    dropped: bool
    unscored: bool


def places(evidence: Evidence, qrels: Qrels) -> list[Place]:
    """Return where each relevant document of the answered queries ended up."""
    found = []
    for query_id, seen in evidence.seen.items():
        ranks = {doc_id: rank for rank, doc_id in enumerate(seen.final, 1)}
        found += [
            Place(
                query_id,
                doc_id,
                ranks.get(doc_id),
                seen.first.get(doc_id),
                seen.legs.get(doc_id, {}),
                evidence.missed.get((query_id, doc_id)),
                (query_id, doc_id) in evidence.sunk,
                doc_id in seen.dropped,
                evidence.scored and doc_id in seen.final and seen.final[doc_id] is None,
            )
            for doc_id in relevant(qrels[query_id])
        ]
    return found


def lost_by(evidence: Evidence, qrels: Qrels, depth: int) -> dict[str, list[Place]]:
    """Return the relevant documents that are not in the top `depth`, each under its one cause."""
    lost: dict[str, list[Place]] = {cause: [] for cause in CAUSES}
    for place in places(evidence, qrels):
        if place.rank is None or place.rank > depth or place.dropped:
            lost[next(name for name, cause in CAUSES.items() if cause.holds(place, depth))].append(place)
    return {name: some for name, some in lost.items() if some}


def which_legs(lost: Iterable[Place]) -> dict[str, int]:
    """Return how many of the documents each set of legs has among its candidates."""
    return dict(Counter(" and ".join(sorted(place.legs)) or "none" for place in lost))


def top(seen: Seen, depth: int) -> list[str]:
    """Return the best documents of a query."""
    return seen.returned[:depth]


# --- causes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a document is not at the top: how to tell, what it means, and what to do."""

    holds: Callable[[Place, int], bool]
    meaning: Callable[[Numbers], str]
    advice: Callable[[Numbers], str]


def tuned(n: Numbers) -> str:
    """Return what wins back documents that the approximate index lost, in words."""
    if n.tuning is None:
        return "no nprobes or refine_factor that was tried wins one back, so build the index anew, with finer codes"
    return f"{n.tuning} that were tried"


def another_leg(n: Numbers) -> str:
    """Return how many documents the best of the legs that a retriever lacks would add, in words; empty for none."""
    kind, won = max(n.other_legs.items(), key=lambda item: item[1], default=("", 0))
    name = {"fts": "full-text"}.get(kind, kind)
    return f"a {name} leg has {won:,} of the {n.n_outside:,} that are not among the candidates" if won else ""


def more_would_show(n: Numbers) -> bool:
    """Tell whether documents that join the pool can come to the top at all."""
    return n.reranked or (n.candidates is not None and n.candidates < n.depth)


def _candidates(number: int | None) -> str:
    return counted(number or 0, "candidate")


def _reach_them(n: Numbers) -> str:
    if leg := another_leg(n):
        return f"add a leg: {leg}"
    return "fine-tune the embedder" if "vector" in n.kinds else "add a vector leg"


# The first that holds is the cause.
CAUSES = {
    "absent": Cause(
        lambda at, _: at.missed is not None and not at.missed.in_table,
        lambda _: "the table has no row with this id",
        lambda _: "add the documents, or name the column that has these ids: id_column=...",
    ),
    "filtered": Cause(
        lambda at, _: at.missed is not None and not at.missed.passes,
        lambda _: "the table has them, and the retriever's filter keeps them out",
        lambda _: "check where=..., or leave these judgements out",
    ),
    "approximate index": Cause(
        lambda at, _: at.missed is not None and at.missed.exact,
        lambda n: f"an exact search has them among {_candidates(n.candidates)} a leg, the index does not",
        lambda n: f"tune the index: {tuned(n)}",
    ),
    "too shallow": Cause(
        lambda at, _: at.missed is not None and at.missed.deeper is not None,
        lambda n: f"not among {_candidates(n.candidates)} a leg, but among {n.deepest:,}",
        lambda n: (
            f"more candidates, up to {n.deepest:,} a leg"
            if more_would_show(n)
            else "more candidates and a reranker to lift them, or an embedder that ranks them higher"
        ),
    ),
    "unreached": Cause(
        lambda at, _: at.missed is not None,
        lambda n: f"not even among {_candidates(n.deepest)} a leg",
        _reach_them,
    ),
    "not retrieved": Cause(
        lambda at, _: at.first is None,
        lambda _: "not in the run",
        lambda _: "retrieve deeper; pass the Retriever that made the run to see why",
    ),
    "approximate distances": Cause(
        lambda at, _: at.sunk,
        lambda n: f"in the top {n.depth} by exact distances, among the candidates by those of the index",
        lambda n: f"tune the index: {tuned(n)}",
    ),
    "lost without a score": Cause(
        lambda at, _: at.unscored,
        lambda _: "among the candidates, and left without a score",
        lambda _: f"find out why they have none: {WHY_UNSCORED}",
    ),
    "below min_score": Cause(
        lambda at, depth: at.rank is not None and at.rank <= depth,
        lambda n: f"the reranker ranks them in the top {n.depth}, and their scores are under its min_score",
        lambda _: "lower min_score: result.thresholds says what each score would return",
    ),
    "lost by the reranker": Cause(
        lambda at, depth: at.first is not None and at.first <= depth,
        lambda n: f"in the first stage's top {n.depth}, not in the reranker's",
        lambda n: f"blend it: lance_rerank.{'fit_blend' if n.blended else 'BlendReranker'}",
    ),
    "lost in fusion": Cause(
        lambda at, depth: min(at.legs.values(), default=depth + 1) <= depth,
        lambda n: (
            f"in the top {n.depth} of one leg, but not after fusion"
            + (", and the reranker did not lift them either" if n.reranked else "")
        ),
        lambda n: (
            "fine-tune the reranker"
            if n.reranked
            else "weigh the legs (lance_rerank.WeightedReranker, a smaller K of RRFReranker), or rerank"
        ),
    ),
    "ordered too low": Cause(
        lambda *_: True,
        lambda n: f"among the candidates, and nothing put them in the top {n.depth}",
        lambda n: "change or fine-tune the reranker" if n.reranked else "rerank",
    ),
}
