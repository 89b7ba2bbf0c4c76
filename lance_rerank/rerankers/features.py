"""What the legs of a search and a reranker say of each candidate, in numbers that mean the same for every query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import rankdata

from lance_rerank import arrow

Floats = npt.NDArray[np.float64]

NEAR, FAR = 10, 60  # of reciprocal ranks: one that tells the first few apart, and that of rank fusion
_TOP = 10
_WIDEST_MARGIN = 4.0  # standard deviations; a single outlier is to say no more than "far ahead"


@dataclass(frozen=True, slots=True)
class Features:
    """What a blend is learned from: the candidates of one query, described by numbers.

    Attributes
    ----------
    candidates : Mapping
        Arrays ``(n_candidates,)`` by name. ``fused``: what reciprocal rank fusion of the legs gives. For each leg,
        ``leg0`` and so on, and for the ``reranker``: ``_score``, standardised within the query, where what was not
        found or not scored is as bad as the worst that was; and ``_rank``, 11 / (10 + rank), 0 if not found.
    query : Mapping
        Numbers by name. ``overlap``: the share of the first ten that the legs have in common; ``kept``: that of the
        fused first ten which the reranker's first ten keep; ``_margin``: how far the first of a leg or the reranker is
        ahead of the second, in standard deviations; ``_top``: its best score as it came; ``_agreement``: Spearman's
        correlation of a leg's order with the reranker's, over what the leg found.
    """

    candidates: Mapping[str, Floats]
    query: Mapping[str, float]

    @property
    def n_legs(self) -> int:
        """How many legs searched."""
        return sum(name.startswith("leg") for name in self.candidates) // 2

    @staticmethod
    def is_term(name: str, n_legs: int) -> bool:
        """Return whether there are values of this name in a search of so many legs."""
        candidate, star, factor = name.partition("*")
        sources = [*(f"leg{number}" for number in range(n_legs)), "reranker"]
        known = {"fused", *(f"{source}_{what}" for source in sources for what in ("score", "rank"))}
        return candidate in known and (not star or Features.is_factor(factor, n_legs))

    @staticmethod
    def is_factor(name: str, n_legs: int) -> bool:
        """Return whether there is such a number of a query in a search of so many legs."""
        legs = [f"leg{number}" for number in range(n_legs)]
        known = {"kept", *(f"{source}_{what}" for source in [*legs, "reranker"] for what in ("margin", "top"))}
        known |= {f"{leg}_agreement" for leg in legs} | ({"overlap"} if n_legs > 1 else set())
        return name in known

    def term(self, name: str) -> Floats:
        """Return the values of a name as above, or of two of them multiplied: ``"reranker_score*leg0_agreement"``."""
        candidate, _, factor = name.partition("*")
        return self.candidates[candidate] * (self.query[factor] if factor else 1.0)


def describe(candidates: arrow.Candidates, scores: pa.Array) -> Features:
    """Return the features of candidates that a reranker gave scores to.

    Parameters
    ----------
    candidates : Candidates
        One at least.
    scores : pyarrow.Array
        ``(n_candidates,)``, null where the reranker could not tell.
    """
    said = np.asarray(scores.to_numpy(zero_copy_only=False), np.float64)
    order, given = _ranks(said), _bounded(said)
    values: dict[str, Floats] = {"fused": sum(_reciprocal(ranks, FAR) for ranks in candidates.ranks) + np.zeros(1)}
    query: dict[str, float] = {}
    for number, (kind, ranks) in enumerate(zip(candidates.kinds, candidates.ranks, strict=True)):
        found = ranks > 0
        said = np.where(found, leg_scores(candidates.rows, kind), np.nan)
        _add(values, query, f"leg{number}", said, ranks)
        query[f"leg{number}_agreement"] = _correlation(said[found], given[found])
    _add(values, query, "reranker", given, order)
    if len(candidates.kinds) > 1:
        first = [(ranks > 0) & (ranks <= _TOP) for ranks in candidates.ranks[:2]]
        query["overlap"] = float((first[0] & first[1]).sum()) / _TOP
    kept = (_ranks(values["fused"]) <= _TOP) & (order > 0) & (order <= _TOP)
    query["kept"] = float(kept.sum()) / _TOP
    return Features(values, query)


def leg_scores(rows: pa.Table, kind: str) -> Floats:
    """Return a leg's own scores, the higher the better; NaN where it has none."""
    if kind == "fts":
        return arrow.score_column(rows, arrow.SCORE).astype(np.float64)
    return -arrow.score_column(rows, arrow.DISTANCE).astype(np.float64)


def _add(values: dict[str, Floats], query: dict[str, float], name: str, scores: Floats, ranks: Any) -> None:
    values[f"{name}_score"] = _standardised(scores)
    values[f"{name}_rank"] = _reciprocal(ranks, NEAR)
    best = np.sort(scores[~np.isnan(scores)])[::-1]
    spread = float(best.std()) if len(best) else 0.0
    query[f"{name}_top"] = float(best[0]) if len(best) else 0.0
    query[f"{name}_margin"] = min(float(best[0] - best[1]) / spread, _WIDEST_MARGIN) if spread > 0 else 0.0


def _bounded(scores: Floats) -> Floats:
    """Return the scores with infinite ones at the greatest and the least of the others."""
    finite = scores[np.isfinite(scores)]
    return np.clip(scores, finite.min(), finite.max()) if len(finite) else np.where(np.isnan(scores), np.nan, 0.0)


def _standardised(scores: Floats) -> Floats:
    known = ~np.isnan(scores)
    if not known.any():
        return np.zeros(len(scores))
    spread = scores[known].std()
    standard = (scores - scores[known].mean()) / (spread if spread > 0 else 1.0)
    return np.where(known, standard, np.nanmin(standard))


def _ranks(scores: Floats) -> Floats:
    """Return ranks from 1, ties at their mean, 0 for NaN."""
    ranks, known = np.zeros(len(scores)), ~np.isnan(scores)
    ranks[known] = rankdata(-scores[known])
    return ranks


def _reciprocal(ranks: Any, k: int) -> Floats:
    """Return 1 for the best, falling; 0 for what was not found."""
    return np.where(ranks > 0, (k + 1) / (k + np.maximum(ranks, 1)), 0.0)


def _correlation(leg: Floats, reranker: Floats) -> float:
    both = ~np.isnan(leg) & ~np.isnan(reranker)
    if both.sum() < 3:  # two points always agree or disagree wholly
        return 0.0
    ranks = np.stack([rankdata(leg[both]), rankdata(reranker[both])])
    if (ranks.std(axis=1) == 0).any():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])
