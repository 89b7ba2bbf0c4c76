from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import EvaluationResult, Thresholds, evaluate_runs
from lance_rerank.evaluation.thresholds import POINTS, thresholds

Scored = dict[str, list[float | None]]


def ranked(scores: Scored) -> dict[str, list[str]]:
    return {query_id: [f"d{place}" for place in range(len(values))] for query_id, values in scores.items()}


def of(scores: Scored, qrels: dict[str, dict[str, int]], k: int | None = None) -> Thresholds:
    return thresholds("a", ranked(scores), scores, qrels, k=k)


def brute(scores: Scored, qrels: dict[str, dict[str, int]], least: float) -> tuple[float | None, float, float, int]:
    """Precision, recall, hits a query and queries without hits, by counting one document after the other."""
    returned = relevant = empty = 0
    for query_id, values in scores.items():
        kept = [place for place, score in enumerate(values) if score is not None and score >= least]
        returned += len(kept)
        relevant += sum(qrels[query_id].get(f"d{place}", 0) > 0 for place in kept)
        empty += not kept
    total = sum(grade > 0 for grades in qrels.values() for grade in grades.values())
    return relevant / returned if returned else None, relevant / total, returned / len(scores), empty


def midway(known: list[float], score: float) -> float:
    lower = max((one for one in known if one < score), default=score)
    return (lower + score) / 2


SCORE = st.none() | st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.25, 0.5, 3.0, 1e6])
CASES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(SCORE, max_size=8), min_size=n, max_size=n),
        st.lists(
            st.dictionaries(st.sampled_from([f"d{i}" for i in range(9)]), st.integers(-1, 2)), min_size=n, max_size=n
        ),
    )
)


@given(CASES)
def test_every_point_is_what_counting_gives(case) -> None:
    scores = {f"q{number}": values for number, values in enumerate(case[0])}
    qrels = {f"q{number}": grades for number, grades in enumerate(case[1])}
    known = sorted({score for values in scores.values() for score in values if score is not None})
    if not known or not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        with pytest.raises(ArgumentError):
            of(scores, qrels)
        return
    found = of(scores, qrels)
    assert [point.min_score for point in found.points] == known
    for least in [*known, -math.inf, 0.1, math.inf]:
        point = found.at(least)
        expected = brute(scores, qrels, least)
        assert (point.precision, point.recall, point.hits_per_query, point.empty_queries) == pytest.approx(expected)
    for wanted in (0.0, 0.3, 0.5, 0.9, 1.0):
        reaching = [least for least in known if (brute(scores, qrels, least)[0] or 0.0) >= wanted]
        chosen, least = found.for_precision(wanted), min(reaching, default=None)
        assert chosen == (None if least is None else midway(known, least))
        if least is not None:
            assert replace(found.at(chosen), min_score=least) == found.at(least)


class TestForPrecision:
    def test_it_keeps_a_document_whose_score_comes_out_a_little_lower(self) -> None:
        least = of({"q": [0.8, 0.6, 0.2]}, {"q": {"d0": 1, "d1": 1}}).for_precision(1.0)
        assert least == pytest.approx(0.4)
        assert least < 0.6 - 1e-6

    def test_no_score_is_lower(self) -> None:
        assert of({"q": [0.8, 0.6]}, {"q": {"d0": 1, "d1": 1}}).for_precision(1.0) == 0.6

    @pytest.mark.parametrize("score", [0.6, 3.0, -2.5, 1e-45, 1e300])
    def test_scores_as_near_as_float32_has_them(self, score: float) -> None:
        """Between them a search would round to one of the two, and might return the lower one too."""
        lower = float(np.nextafter(np.float32(score), np.float32(-np.inf))) if score < 1e38 else 0.9 * score
        found = of({"q": [score, lower]}, {"q": {"d0": 1}})
        assert found.for_precision(1.0) == score

    def test_the_largest_scores(self) -> None:
        found = of({"q": [3e38, 2e38]}, {"q": {"d0": 1}})
        assert found.for_precision(1.0) == pytest.approx(2.5e38)


class TestThinning:
    def test_many_levels_become_at_most_a_hundred_of_them_with_both_ends(self) -> None:
        rng = np.random.default_rng(0)
        scores: Scored = {f"q{i}": sorted(rng.normal(size=100), reverse=True) for i in range(50)}
        qrels = {query_id: {f"d{int(place)}": 1 for place in rng.geometric(0.3, 3)} for query_id in scores}
        found = of(scores, qrels)
        levels = sorted(score for values in scores.values() for score in values if score is not None)
        least = [point.min_score for point in found.points]
        assert POINTS // 2 < len(least) <= POINTS
        assert least == sorted(set(least))
        assert set(least) <= set(levels)
        assert (least[0], least[-1]) == (levels[0], levels[-1])
        recalls = [point.recall for point in found.points]
        assert max(before - after for before, after in itertools.pairwise(recalls)) < 0.05
        # between the points it is exact too
        between = levels[len(levels) // 2 + 1]
        assert found.at(between).precision == pytest.approx(brute(scores, qrels, between)[0])


class TestCounts:
    def test_unscored_and_unjudged_documents_are_counted_and_said(self) -> None:
        found = of({"q1": [2.0, 1.0, None], "q2": [3.0]}, {"q1": {"d0": 1, "d2": 1}, "q2": {"d0": 0}})
        assert (found.n_scored, found.n_unscored, found.n_unjudged) == (3, 1, 1)
        assert found.at(0.0).recall == 0.5
        assert found.notes == [
            "Not judged, and so counted as not relevant: 1 of 3 scored documents",
            "Left out for want of a score: 1 document",
        ]
        assert found.notes[0] in str(found)

    def test_a_score_that_is_no_number_counts_as_none(self) -> None:
        found = of({"q": [2.0, math.nan, -math.inf]}, {"q": {"d0": 1}})
        assert (found.n_scored, found.n_unscored) == (1, 2)

    def test_recall_is_of_all_relevant_documents_also_those_not_found(self) -> None:
        assert of({"q": [1.0]}, {"q": {"d0": 2, "x": 1, "y": 1, "z": -1}}).at(0.0).recall == pytest.approx(1 / 3)

    def test_queries_of_other_runs_do_not_count(self) -> None:
        found = of({"q": [1.0]}, {"q": {"d0": 1}, "elsewhere": {"d0": 1}})
        assert (found.n_queries, found.n_relevant) == (1, 1)

    def test_the_first_k_alone(self) -> None:
        scores: Scored = {"q1": [3.0, 2.0, 1.0], "q2": [0.5]}
        qrels = {"q1": {"d0": 1, "d2": 1}, "q2": {"d0": 1}}
        whole, first = of(scores, qrels), of(scores, qrels, k=1)
        assert (whole.n_scored, first.n_scored) == (4, 2)
        assert (whole.at(0).precision, first.at(0).precision) == (0.75, 1.0)
        assert first.at(0).recall == pytest.approx(2 / 3)

    def test_above_every_score_nothing_is_returned(self) -> None:
        point = of({"q": [1.0]}, {"q": {"d0": 1}}).at(1.5)
        assert (point.precision, point.recall, point.hits_per_query, point.empty_queries) == (None, 0.0, 0.0, 1)


class TestCalibration:
    def test_of_scores_outside_of_0_to_1_there_is_none(self) -> None:
        assert of({"q": [1.5, 0.5]}, {"q": {"d0": 1}}).calibration is None
        assert of({"q": [0.5, -0.1]}, {"q": {"d0": 1}}).calibration is None

    def test_bins_and_error_by_hand(self) -> None:
        found = of({"q1": [1.0, 0.92, 0.25], "q2": [0.21, None]}, {"q1": {"d0": 1}, "q2": {"d0": 1}}).calibration
        assert found is not None
        assert [(one.low, one.high, one.n) for one in found.bins] == [(0.2, 0.3, 2), (0.9, 1.0, 2)]
        assert [one.mean_score for one in found.bins] == pytest.approx([0.23, 0.96])
        assert [one.relevant_share for one in found.bins] == [0.5, 0.5]
        assert found.expected_error == pytest.approx((2 * 0.27 + 2 * 0.46) / 4)

    def test_scores_that_are_probabilities_have_next_to_no_error(self) -> None:
        rng = np.random.default_rng(1)
        scores: Scored = {f"q{i}": list(rng.random(100)) for i in range(200)}
        qrels = {
            query_id: {
                f"d{place}": int(rng.random() < score) for place, score in enumerate(values) if score is not None
            }
            for query_id, values in scores.items()
        }
        honest = of(scores, qrels).calibration
        proud = of({q: [score**0.2 for score in values if score is not None] for q, values in scores.items()}, qrels)
        assert honest is not None
        assert honest.expected_error < 0.02
        assert proud.calibration is not None
        assert proud.calibration.expected_error > 0.2


class TestBadInput:
    def test_no_judgements(self) -> None:
        with pytest.raises(ArgumentError, match=r"no document is judged relevant .* evaluate again"):
            of({"q": [1.0]}, {})

    @pytest.mark.parametrize("scores", [{"q": []}, {"q": [None]}])
    def test_no_scores(self, scores: Scored) -> None:
        with pytest.raises(ArgumentError, match="'a' has no scores to set a threshold on"):
            of(scores, {"q": {"d0": 1}})

    @pytest.mark.parametrize(
        ("run", "scores", "why"),
        [
            ({"q": []}, {"q": []}, "it found nothing for these queries"),
            ({"q": []}, {}, "it found nothing for these queries"),
            ({"q": ["d0", "d1"]}, {}, "it was judged from rankings alone"),
            ({"q": ["d0", "d1"]}, {"q": [None, None]}, "it found 2 documents, and could score none; is the text"),
            ({"q": ["d0"]}, {"q": [-math.inf]}, "it found 1 document, and no score is finite"),
            ({"q": ["d0", "d1"]}, {"q": [math.inf, None]}, "it found 2 documents, and no score is finite"),
        ],
    )
    def test_why_there_are_no_scores(self, run: dict[str, list[str]], scores: Scored, why: str) -> None:
        with pytest.raises(ArgumentError, match=f"'a' has no scores to set a threshold on: {why}"):
            thresholds("a", run, scores, {"q": {"d0": 1}})

    def test_fewer_scores_than_documents(self) -> None:
        with pytest.raises(ArgumentError, match="query 'q' has 2 documents and 1 scores; expected one a document"):
            thresholds("a", {"q": ["d0", "d1"]}, {"q": [1.0]}, {"q": {"d0": 1}})

    def test_arguments_out_of_range(self) -> None:
        found = of({"q": [1.0]}, {"q": {"d0": 1}})
        with pytest.raises(ArgumentError, match="precision must lie between 0 and 1, got 90"):
            found.for_precision(90)
        with pytest.raises(ArgumentError, match="min_score is not a number"):
            found.at(math.nan)
        with pytest.raises(ArgumentError, match="k must be at least 1"):
            of({"q": [1.0]}, {"q": {"d0": 1}}, k=0)


class TestOfAResult:
    RESULT = evaluate_runs(
        {"scored": {"q1": {"d1": 0.9, "d2": 0.4}, "q2": {"d3": 0.6}}, "ranked": {"q1": ["d1"], "q2": []}},
        {"q1": {"d1": 1}, "q2": {"d4": 1}},
        ["RR@10"],
    )

    def test_of_a_retriever_with_scores(self) -> None:
        found = self.RESULT.thresholds("scored")
        assert found.for_precision(0.9) == pytest.approx(0.75), "midway between 0.6 and 0.9"
        assert found.at(0.5).hits_per_query == 1.0
        assert self.RESULT.thresholds("scored", k=1).n_scored == 2
        assert EvaluationResult.from_json(self.RESULT.to_json()).thresholds("scored") == found

    def test_of_rankings_alone_and_of_an_unknown_one(self) -> None:
        with pytest.raises(ArgumentError, match=r"'ranked' has no scores .* rankings alone"):
            self.RESULT.thresholds("ranked")
        with pytest.raises(ArgumentError, match="'other' was not evaluated; there are scored, ranked"):
            self.RESULT.thresholds("other")

    def test_to_dict_is_json_with_all_figures(self) -> None:
        values = json.loads(json.dumps(self.RESULT.thresholds("scored").to_dict()))
        assert values["retriever"] == "scored"
        assert (values["n_queries"], values["n_relevant"], values["n_unjudged"]) == (2, 2, 2)
        assert [point["min_score"] for point in values["points"]] == [0.4, 0.6, 0.9]
        assert values["points"][0]["precision"] == pytest.approx(1 / 3)
        assert values["calibration"]["expected_error"] == pytest.approx(1.1 / 3)
        assert sum(one["n"] for one in values["calibration"]["bins"]) == 3
