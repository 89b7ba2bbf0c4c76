"""How many of the negatives may be relevant all the same, told by how the judge scores documents that are."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from lance_rerank.mining.guards import Candidate, Fate, Guards, Wordings

FEWEST = 30  # positives to tell from
_BIN, _BINS = 0.02, 150  # of scores as parts of the positive's: up to 3, where the last bin holds all above
_LEAST_TAIL = 0.1  # of the positives: fewer say too little of how many candidates are like them
_RESAMPLES = 1_000
_PAIRINGS = 5  # positives of other queries that each query is tried with
_REMEMBERED = 1_000

_Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contamination:
    """The most of the negatives that may be relevant, as far as documents known to be relevant tell.

    Each positive is put beside the other positives of its query as if nobody had judged it. Its score as a part of
    theirs tells where documents that are relevant and not judged are to be expected. Wherever that is, there cannot be
    more of them than candidates: this bounds their number (Blanchard, Lee and Scott 2010, "Semi-Supervised Novelty
    Detection", https://jmlr.org/papers/v11/blanchard10a.html), and with it how many have scores such as those of the
    negatives that were kept. It is a bound, not a guess: the true part may be far lower. It supposes that documents
    nobody judged are scored as those somebody did, and looks at the queries it has such positives of. A checker is not
    asked, and can but lower it.

    Attributes
    ----------
    at_most : float
        The part of the kept negatives that are relevant at most, from 0 to 1.
    low, high : float
        The 95 % interval of that bound, by bootstrap over the positives.
    passing : float
        The part of the positives that would have passed the guards, had nobody judged them.
    positives : int
        How many positives this is told from.
    held_out : bool
        Whether they were held out from queries with several. Else, where those are too few, scores are compared with
        those of positives of other queries.
    """

    at_most: float
    low: float
    high: float
    passing: float
    positives: int
    held_out: bool

    def __str__(self) -> str:
        how = "held out one at a time" if self.held_out else "each compared with those of other queries"
        return (
            f"At most {_percent(self.at_most)} of the kept are likely to be relevant (95 % interval of this bound "
            f"{_percent(self.low)} to {_percent(self.high)}); told by {self.positives:,} positives, {how}, of which "
            f"{_percent(self.passing)} would have passed the guards."
        )


class Evidence:
    """Collects, query by query, what `Contamination` is told from; its size does not grow with the queries.

    Parameters
    ----------
    guards : Guards
        What candidates have to pass.
    per_query : int
        How many of them are kept.
    seed : int
        Of what is drawn by lot.
    """

    def __init__(self, guards: Guards, per_query: int, seed: int) -> None:
        self._guards = guards
        self._per_query = per_query
        self._rng = np.random.default_rng(seed)
        self._held_out = _Tried()
        self._of_others = _Tried()
        self._remembered: deque[float] = deque(maxlen=_REMEMBERED)  # scores of the last queries' positives

    def add(
        self,
        positives: Sequence[Candidate],
        found: Collection[str],
        fates: Sequence[Fate],
    ) -> None:
        """Note a query: its positives, the ids found, and the candidates with the guards that they did not pass."""
        beside = _Beside.of(fates)
        retrieved = [one for one in positives if one.doc_id in found and one.score is not None]
        drawn = self._rng.choice(self._remembered, _PAIRINGS).tolist() if self._remembered else []
        # those have other words, and stand for documents that are no other wording of a positive
        unlike = replace(beside, alike=np.empty(0))
        self._try_all(self._of_others, [(Candidate("", "", score), positives) for score in drawn], unlike)
        rests = [[other for other in positives if other is not one] for one in retrieved]
        self._try_all(self._held_out, list(zip(retrieved, rests, strict=True)), beside)
        self._remembered.extend(_scores(retrieved))

    def estimate(self) -> Contamination | None:
        """Return what was collected says of the negatives that were kept; None where it says too little."""
        held_out = self._held_out.positives >= FEWEST
        tried = self._held_out if held_out else self._of_others
        n = tried.positives if held_out else tried.positives // _PAIRINGS
        if not tried.kept or n < FEWEST:
            return None
        parts = tried.counts.ravel() / tried.positives
        drawn = self._rng.multinomial(n, parts, _RESAMPLES) / n
        low, high = np.quantile(tried.bounds(drawn), [0.025, 0.975])
        [at_most] = tried.bounds(parts[None])
        return Contamination(float(at_most), float(low), float(high), tried.passed / tried.positives, n, held_out)

    def _try_all(self, tried: _Tried, cases: Sequence[tuple[Candidate, Sequence[Candidate]]], beside: _Beside) -> None:
        """Note what would become of documents known to be relevant, each beside positives and these candidates."""
        # where the judge sees nothing in a positive it can compare nothing with it
        told = [(one, others) for one, others in cases if min(_scores(others), default=0) > 0]
        for one, others in told:
            least = min(_scores(others))
            passed, kept = self._fate(one, others, beside)
            tried.counts[int(kept), _bins(_scores([one]), least)] += 1
            tried.passed += passed
            tried.candidates += np.bincount(_bins(beside.all, least), minlength=_BINS) / len(told)
        tried.kept += min(self._per_query, len(beside.passing)) if told else 0

    def _fate(self, one: Candidate, positives: Sequence[Candidate], beside: _Beside) -> tuple[bool, bool]:
        """Return whether a document would have passed the guards, and whether it would have been kept."""
        assert one.score is not None  # none is tried that was not scored
        likeness = self._guards.near_duplicates
        wordings = Wordings([other.text for other in positives])
        alike = likeness is not None and wordings.similarity(one.text) >= likeness
        above, preferred = (int((scores > one.score).sum()) for scores in (beside.all, beside.passing))
        first, last = self._guards.ranks
        in_ranks = first <= above + 1 and (last is None or above + 1 <= last)
        passed = in_ranks and not alike and one.score <= self._guards.limit(_scores(positives))
        return passed, passed and preferred < self._per_query


@dataclass(frozen=True, slots=True)
class _Beside:
    """Scores of a query's candidates: those that passed, other wordings of positives, and the rest."""

    passing: _Counts
    alike: _Counts
    rest: _Counts

    @classmethod
    def of(cls, fates: Sequence[Fate]) -> Self:
        by_guard: dict[str | None, list[float]] = {None: [], "near_duplicate": [], "": []}
        for candidate, guard in fates:
            if candidate.score is not None:
                by_guard[guard if guard in by_guard else ""].append(candidate.score)
        return cls(*map(np.array, by_guard.values()))

    @property
    def all(self) -> _Counts:
        return np.concatenate([self.passing, self.alike, self.rest])


class _Tried:
    """Documents known to be relevant, counted by whether they would be kept and by parts of a positive's score."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, _BINS))
        self.passed = 0
        self.candidates = np.zeros(_BINS)  # of the queries they were tried with, by the same parts
        self.kept = 0  # negatives of these queries

    @property
    def positives(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    def bounds(self, parts: _Counts) -> _Counts:
        """Return, for each row of parts of them by bin, not kept and kept, which part of the negatives is at most."""
        left_out, kept = parts[:, :_BINS], parts[:, _BINS:]
        relevant, all_like_them = _tails(left_out + kept), _tails(self.candidates[None])
        most = np.where(relevant >= _LEAST_TAIL, all_like_them / np.maximum(relevant, 1e-12), np.inf).min(axis=1)
        return np.minimum(1.0, most * kept.sum(axis=1) / self.kept)


def _scores(candidates: Sequence[Candidate]) -> list[float]:
    return [one.score for one in candidates if one.score is not None]


def _bins(scores: Sequence[float] | _Counts, least: float) -> npt.NDArray[np.int64]:
    parts = np.asarray(scores, np.float64) / least
    return np.clip(parts / _BIN, 0, _BINS - 1).astype(np.int64)


def _tails(counts: _Counts) -> _Counts:
    """Return the sums from each bin to the last."""
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1]


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
