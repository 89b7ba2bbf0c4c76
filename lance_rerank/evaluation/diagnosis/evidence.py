"""What a diagnosis goes by: every candidate's ranks, query by query, and where the missing documents could be found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FEWEST_SCORES = 5  # that fewer are equal, or in an order, is mostly chance


@dataclass(frozen=True, slots=True)
class Seen:
    """What one query found.

    Attributes
    ----------
    final : dict of str to (float or None)
        Final scores by document id, the best first; a document at its first rank. Those that ``min_score`` leaves out
        are among them.
    first : dict of str to int
        The rank in the first stage of each document of the pool. A run alone says nothing of it; its documents are
        then the pool, with the ranks of the run.
    legs : dict of str to dict
        By document id: the rank in each leg that found it. Empty for a run alone.
    dropped : frozenset of str
        The documents that the reranker's ``min_score`` leaves out.
    """

    final: dict[str, float | None]
    first: dict[str, int]
    legs: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    @property
    def returned(self) -> list[str]:
        """The documents that a search returns, the best first."""
        return [doc_id for doc_id in self.final if doc_id not in self.dropped]

    @property
    def unscored(self) -> list[str]:
        """The documents without a score."""
        return [doc_id for doc_id, score in self.final.items() if score is None]

    @property
    def alike(self) -> bool:
        """Whether all documents that have a score have the same, and they are not few."""
        scores = [score for score in self.final.values() if score is not None]
        return len(scores) >= FEWEST_SCORES and len(set(scores)) == 1


@dataclass(frozen=True, slots=True)
class Missed:
    """Where a relevant document that is not in the pool could be found.

    Attributes
    ----------
    in_table, passes : bool
        Whether a row has its id, and whether one that has passes the retriever's filter.
    exact : bool
        An exact search has it among as many candidates, so the approximate index lost it.
    deeper : int or None
        Its best rank in a leg of the deeper search.
    others : tuple of str
        The kinds of legs, of those that the retriever lacks, that have it among as many candidates.
    """

    in_table: bool
    passes: bool
    exact: bool = False
    deeper: int | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of a search by an approximate index, and how many of the documents that it lost they win back."""

    nprobes: int | None
    refine_factor: int | None
    won: int
    of: int

    def __str__(self) -> str:
        settings = {"nprobes": self.nprobes, "refine_factor": self.refine_factor}
        said = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
        return f"{said} wins back {self.won} of {self.of}"


@dataclass(frozen=True)
class Evidence:
    """What is known of one retriever.

    Attributes
    ----------
    seen, failures : dict
        By query id: what was found, or the error in words; a query is in one of them.
    missed : dict of (str, str) to Missed
        By query id and document id: the relevant documents that are not in the pool. Empty for a run alone.
    sunk : frozenset of (str, str)
        The relevant documents of the pool that are not at the top, and would be by exact distances.
    traced : bool
        False for a run alone.
    scored : bool
        Whether there are final scores.
    reranked, blended : bool
        Whether a reranker follows the first stage, rank fusion being the first stage itself; and whether that one adds
        the first stage's evidence to another reranker's.
    kinds : frozenset of str
        Which kinds of legs there are, "vector" and "fts".
    candidates, deepest : int or None
        Rows a leg, and rows a leg of the deeper search.
    by_rank : bool
        Whether a leg's first rows are what it would find if it fetched fewer. Not so where it scores them anew.
    other_legs : tuple of str
        The kinds of legs that were tried besides.
    tuning : Tuning or None
        What wins back most of what the approximate index lost.
    notes : tuple of str
        What could not be told.
    """

    retriever: str
    seen: dict[str, Seen]
    failures: dict[str, str]
    missed: dict[tuple[str, str], Missed] = field(default_factory=dict)
    sunk: frozenset[tuple[str, str]] = frozenset()
    traced: bool = True
    scored: bool = True
    reranked: bool = False
    blended: bool = False
    kinds: frozenset[str] = frozenset()
    candidates: int | None = None
    deepest: int | None = None
    by_rank: bool = True
    other_legs: tuple[str, ...] = ()
    tuning: Tuning | None = None
    notes: tuple[str, ...] = ()


def relevant(grades: Mapping[str, int]) -> list[str]:
    """Return the documents judged relevant: graded above 0."""
    return [doc_id for doc_id, grade in grades.items() if grade > 0]


def of_run(
    name: str,
    run: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float | None]],
    failures: Mapping[str, str],
    queries: Iterable[str],
) -> Evidence:
    """Return what a run alone tells, of the queries it has."""
    seen = {}
    for query_id in (query_id for query_id in queries if query_id in run and query_id not in failures):
        ranking = run[query_id]
        final = dict(zip(ranking, scores.get(query_id) or [None] * len(ranking), strict=True))
        seen[query_id] = Seen(final, {doc_id: rank for rank, doc_id in enumerate(final, 1)})
    failed = {query_id: failures[query_id] for query_id in queries if query_id in failures}
    note = "by its run alone: where documents are that the run lacks, and what came before its order"
    scored = any(len(one.unscored) < len(one.final) for one in seen.values())
    unscored = () if scored else ("score ties: the run has no scores",)
    return Evidence(name, seen, failed, traced=False, scored=scored, notes=(note, *unscored))
