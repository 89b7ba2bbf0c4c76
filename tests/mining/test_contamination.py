"""The estimate of how many negatives are relevant: on scores drawn so that the truth is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from lance_rerank.mining.contamination import Evidence
from lance_rerank.mining.guards import Candidate, Guards


def documents(name: str, scores, texts=None) -> list[Candidate]:
    return [Candidate(f"{name}{at}", texts or f"text of {name} {at}", float(score)) for at, score in enumerate(scores)]


@cache
def world(seed: int, *, unjudged: int, positives: int, queries: int = 200, margin: float | None = 0.05):
    """Mine queries whose relevant documents score about 1 and others about 0.5; return the bound, and the truth."""
    rng = np.random.default_rng(seed)
    guards = Guards(margin, None)
    evidence = Evidence(guards, 5, seed)
    kept_in_all, relevant = 0, 0
    for _ in range(queries):
        known = documents("p", rng.normal(1.0, 0.2, positives))
        hidden = documents("h", rng.normal(1.0, 0.2, unjudged))
        others = documents("n", rng.normal(0.5, 0.1, 50))
        limit = guards.limit([one.score for one in known])
        passing = sorted((one for one in [*hidden, *others] if one.score <= limit), key=lambda one: -one.score)
        evidence.add(known, {one.doc_id for one in known}, guards.fates([*hidden, *others], known))
        kept = passing[:5]
        kept_in_all += len(kept)
        relevant += sum(one.doc_id.startswith("h") for one in kept)
    return evidence.estimate(), relevant / kept_in_all


@pytest.mark.parametrize("unjudged", [0, 1, 3])
@pytest.mark.parametrize("positives", [1, 2, 3])
def test_the_truth_is_below_the_bound(unjudged, positives):
    found, truth = world(0, unjudged=unjudged, positives=positives)
    assert found.held_out == (positives > 1)
    assert truth <= found.high
    assert found.low <= found.at_most <= found.high


def test_it_is_small_where_there_is_nothing_to_find_and_grows_with_what_there_is():
    bounds = [world(0, unjudged=unjudged, positives=2)[0].at_most for unjudged in (0, 1, 3)]
    assert bounds[0] < 0.05
    assert bounds == sorted(bounds)
    assert bounds[2] > 0.1


def test_it_tells_how_many_positives_would_have_passed():
    found, _ = world(0, unjudged=1, positives=2, margin=0.05)
    without, _ = world(0, unjudged=1, positives=2, margin=None)
    assert found.positives == 400
    assert 0.3 < found.passing < 0.5  # which of two is the lower is even, less what is within the margin
    assert without.passing == 1.0
    assert "told by 400 positives, held out one at a time, of which" in str(found)


def test_wordings_that_give_a_positive_away_do_not_count_as_kept():
    def estimate(near_duplicates):
        evidence = Evidence(Guards(0.05, near_duplicates), 5, 0)
        for at in range(60):
            alike = documents("p", [1.0, 0.6], texts=f"the same words {at}")
            others = documents("n", np.linspace(0.1, 1.2, 12))
            evidence.add(
                alike, {"p0", "p1"}, [(one, None if at < 5 else "above_margin") for at, one in enumerate(others)]
            )
        return evidence.estimate()

    assert estimate(0.5).at_most == 0.0
    assert estimate(0.5).passing == 0.0
    assert estimate(None).at_most > 0.0


def test_it_says_nothing_where_there_is_too_little_to_tell_it_from():
    found, _ = world(0, unjudged=1, positives=1, queries=29)
    assert found is None
    found, _ = world(0, unjudged=1, positives=1, queries=31)
    assert not found.held_out
    assert "each compared with those of other queries" in str(found)
    evidence = Evidence(Guards(), 7, 0)
    for _ in range(100):  # a judge that sees nothing in the positives
        evidence.add(documents("p", [0.0]), {"p0"}, [(one, None) for one in documents("n", [0.1])])
    assert evidence.estimate() is None
