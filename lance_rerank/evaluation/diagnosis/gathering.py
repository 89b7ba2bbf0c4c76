"""Searching again for a diagnosis: without the reranker, deeper, past the index, and by other legs.

This is done apart from the evaluation, so that it costs nothing where nobody asks why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lance_rerank.evaluation.diagnosis.documents import rows_there
from lance_rerank.evaluation.diagnosis.evidence import Evidence, Missed, Seen, Tuning, relevant
from lance_rerank.evaluation.diagnosis.legs import Memory, kinds_of, leg_ranks, of_kind, other_legs
from lance_rerank.evaluation.searching import Progress

if TYPE_CHECKING:  # at run time these would import torch and LanceDB
    from lancedb.rerankers import Reranker

    from lance_rerank.search.retriever import Retriever

DEEPER = 5  # times as many candidates
ENOUGH = 0.8  # of what the approximate index lost, to call a setting good
# How many times as many partitions to search, and the refine factor (None: as now), the cheapest first.
LADDER = ((1, 5), (2, None), (2, 5), (1, 20), (5, 5), (5, 20), (20, 20), (50, 20))
LADDER_QUERIES = 50
_NPROBES = 20  # LanceDB's own number where none is set
_FUSIONS = frozenset({"RRFReranker", "MRRReranker", "LinearCombinationReranker", "WeightedReranker"})  # LanceDB's too


def gather(
    name: str,
    retriever: Retriever,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    depth: int,
    *,
    rivals: Iterable[Retriever] = (),
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> Evidence:
    """Return what tracing a retriever tells; a query that raises is told in `Evidence.failures`.

    Parameters
    ----------
    name : str
        What the retriever is called.
    retriever : Retriever
        Asked each query once, and once more without its reranker; again where relevant documents are lost.
    queries, qrels : Mapping
        Texts, and grades by document id; by query id.
    depth : int
        How many documents are the top.
    rivals : iterable of Retriever
        Whose legs are tried where the retriever lacks one.
    memory : Memory, optional
        Shared by several retrievers, so that each query is encoded once for all that have the same encoder.
    progress : callable, optional
        Called as ``progress(name, done, total)``; the total grows by the queries that are searched again.
    """
    search = _Searches(retriever, rivals, Memory() if memory is None else memory)
    seen, failures = _ask(name, search, queries, progress)
    outside = {
        query_id: [doc_id for doc_id in relevant(qrels[query_id]) if doc_id not in one.first]
        for query_id, one in seen.items()
    }
    low = {query_id: search.low(one, qrels[query_id], depth) for query_id, one in seen.items()}
    there = rows_there(retriever, outside)
    again = [query_id for query_id in seen if low[query_id] or query_id in there]
    missed: dict[tuple[str, str], Missed] = {}
    sunk: set[tuple[str, str]] = set()
    for done, query_id in enumerate(again, len(queries) + 1):
        found, below = search.again(queries[query_id], there.get(query_id, {}), low[query_id], depth)
        missed |= {(query_id, doc_id): one for doc_id, one in found.items()}
        sunk |= {(query_id, doc_id) for doc_id in below}
        if progress is not None:
            progress(name, done, len(queries) + len(again))
    return Evidence(
        name,
        seen,
        failures,
        missed,
        frozenset(sunk),
        reranked=search.reranked,
        blended=hasattr(retriever.reranker, "inner"),  # as rerankers that wrap another have it
        kinds=kinds_of(retriever),
        candidates=retriever.candidates,
        deepest=search.far.candidates,
        by_rank=retriever.query_type != "multivector",
        other_legs=tuple(search.others),
        tuning=search.tuning(missed, sunk, queries, depth),
        notes=search.notes,
    )


def _ask(
    name: str, search: _Searches, queries: Mapping[str, str], progress: Progress | None
) -> tuple[dict[str, Seen], dict[str, str]]:
    """Return what each query found, and the errors in words; each query is in one of them."""
    seen: dict[str, Seen] = {}
    failures: dict[str, str] = {}
    for done, (query_id, text) in enumerate(queries.items(), 1):
        try:
            seen[query_id] = search.seen(text)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is reported)
            failures[query_id] = f"{type(error).__name__}: {error}"
        if progress is not None:
            progress(name, done, len(queries))
    return seen, failures


class _Searches:
    """A retriever taken apart: as it is but for a least score, its first stage, and that with other settings."""

    def __init__(self, retriever: Retriever, rivals: Iterable[Retriever], memory: Memory) -> None:
        reranker, self.min_score = _of_all(retriever.reranker)
        self.whole = memory.given_to(retriever.with_reranker(reranker))
        self.bare = self.whole.with_reranker(None)
        self.reranked = not _fuses(reranker)
        self.first = self.bare if self.reranked else self.whole
        # an exact search of token vectors reads them all, which takes seconds a query
        by_tokens = retriever.vectors in retriever.vector_columns
        indexed = _indexed(retriever)
        untold = "what the index of token vectors loses: a search past it takes too long"
        self.notes = (untold,) if indexed and by_tokens else ()
        exact = True if indexed and not by_tokens else None
        self.exact = self.first.adjusted(exact=True) if exact and not retriever.exact else None
        self.far = self.bare.adjusted(candidates=DEEPER * retriever.candidates, exact=exact)
        self.others = {kind: memory.given_to(leg) for kind, leg in other_legs(self.bare, rivals).items()}

    def seen(self, text: str) -> Seen:
        """Return what one query found."""
        final = self.whole.trace(text, 1)
        first = final if self.first is self.whole else self.first.trace(text, 1)
        scores: dict[str, float | None] = {}
        for candidate in final.candidates:
            scores.setdefault(candidate.doc_id, candidate.score)
        legs = leg_ranks(first)
        dropped = frozenset(doc_id for doc_id, score in scores.items() if self._drops(score))
        return Seen(scores, {doc_id: rank for rank, doc_id in enumerate(legs, 1)}, legs, dropped)

    def _drops(self, score: float | None) -> bool:
        return self.min_score is not None and (score is None or score < self.min_score)

    def low(self, seen: Seen, grades: Mapping[str, int], depth: int) -> list[str]:
        """Return the relevant documents of the pool that the distances of an index may have put below the top."""
        if self.exact is None or self.reranked:
            return []
        return [doc_id for doc_id in relevant(grades) if seen.first.get(doc_id, 0) > depth]

    def again(
        self, text: str, missing: Mapping[str, Missed], low: Iterable[str], depth: int
    ) -> tuple[dict[str, Missed], list[str]]:
        """Return where documents that the pool lacks could be found, and which low ones an exact search has at the top.

        Parameters
        ----------
        text : str
            The query.
        missing : Mapping
            What is known of the documents that the pool lacks.
        low : iterable of str
            Documents of the pool that are not at the top.
        depth : int
            How many documents are the top.
        """
        exact = leg_ranks(self.exact.trace(text, 1)) if self.exact is not None else {}
        below = [doc_id for doc_id in low if doc_id in list(exact)[:depth]]
        if not any(one.passes for one in missing.values()):
            return dict(missing), below
        far = leg_ranks(self.far.trace(text, 1))
        others = {kind: _found_by(leg, kind, text) for kind, leg in self.others.items()}
        found = {
            doc_id: replace(
                one,
                exact=doc_id in exact,
                deeper=min(far[doc_id].values()) if doc_id in far else None,
                others=tuple(kind for kind, those in others.items() if doc_id in those),
            )
            for doc_id, one in missing.items()
        }
        return found, below

    def tuning(
        self,
        missed: Mapping[tuple[str, str], Missed],
        sunk: Iterable[tuple[str, str]],
        queries: Mapping[str, str],
        depth: int,
    ) -> Tuning | None:
        """Return the first settings on the ladder that win back enough of what the index lost, else the best.

        A document that the pool lacks is won back into the pool, one of the pool to the top.
        """
        lost: dict[str, dict[str, int | None]] = {}
        within = {pair: None for pair, one in missed.items() if one.exact} | dict.fromkeys(sunk, depth)
        for (query_id, doc_id), ranks in within.items():
            if query_id in lost or len(lost) < LADDER_QUERIES:
                lost.setdefault(query_id, {})[doc_id] = ranks
        best = Tuning(None, None, 0, sum(map(len, lost.values())))
        for nprobes, refine_factor in self._steps() if lost else ():
            step = self.first.adjusted(nprobes=nprobes, refine_factor=refine_factor)
            won = sum(_won(step, queries[query_id], docs) for query_id, docs in lost.items())
            if won > best.won:
                best = Tuning(nprobes, refine_factor, won, best.of)
            if won >= ENOUGH * best.of:
                break
        return best if best.won else None

    def _steps(self) -> list[tuple[int | None, int | None]]:
        now = (self.bare.nprobes, self.bare.refine_factor)
        steps = [
            (
                now[0] if times == 1 else times * (now[0] or _NPROBES),
                now[1] if factor is None else max(factor, now[1] or 1),
            )
            for times, factor in LADDER
        ]
        return [step for step in dict.fromkeys(steps) if step != now]


def _won(step: Retriever, text: str, docs: Mapping[str, int | None]) -> int:
    """Return how many documents are within so many ranks."""
    order = list(leg_ranks(step.trace(text, 1)))
    return sum(doc_id in order[:ranks] for doc_id, ranks in docs.items())


def _found_by(leg: Retriever, kind: str, text: str) -> set[str]:
    """Return what a leg that is only tried finds; one that fails finds nothing."""
    try:
        return of_kind(leg_ranks(leg.trace(text, 1)), kind)
    except Exception:  # noqa: BLE001 (it is not the retriever that is diagnosed)
        return set()


def _of_all(reranker: Reranker | None) -> tuple[Reranker | None, float | None]:
    """Return the reranker that leaves no row out, and the least score of the one given."""
    from lance_rerank.rerankers.base import BaseReranker

    if not isinstance(reranker, BaseReranker) or reranker.min_score is None:
        return reranker, None
    keeping = copy.copy(reranker)
    keeping.min_score = None
    return keeping, float(np.float32(reranker.min_score))  # as scores are compared with it


def _fuses(reranker: object) -> bool:
    """Tell whether nothing but ranks and scores of the legs decides the order, which is then the first stage's."""
    return reranker is None or type(reranker).__name__ in _FUSIONS


def _indexed(retriever: Retriever) -> bool:
    from lance_rerank import lance

    return any(lance.has_index(retriever.table, column) for column in retriever.vector_columns)
