from __future__ import annotations

import numpy as np
import pytest

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import EvaluationResult
from lance_rerank.evaluation.significance import compare


def test_a_gain_on_every_query_is_better():
    comparison = compare("a", "b", "RR@10", [0.5] * 20)
    assert (comparison.difference, comparison.low, comparison.high) == (0.5, 0.5, 0.5)
    assert (comparison.wins, comparison.losses, comparison.verdict) == (20, 0, "better")


def test_a_loss_on_every_query_is_worse():
    assert compare("a", "b", "RR@10", [-0.1, -0.2, -0.3]).verdict == "worse"


def test_one_lucky_query_among_many_shows_nothing():
    comparison = compare("a", "b", "RR@10", [1.0] + [0.0] * 99)
    assert comparison.difference == pytest.approx(0.01)
    assert comparison.low == 0
    assert comparison.verdict == "no difference that these queries can show"


def test_the_interval_is_that_of_the_normal_approximation_for_many_queries():
    differences = np.random.default_rng(0).normal(0.02, 0.3, 2_000)
    comparison = compare("a", "b", "nDCG@10", differences)
    error = differences.std() / np.sqrt(len(differences))
    assert comparison.low == pytest.approx(differences.mean() - 1.96 * error, abs=0.001)
    assert comparison.high == pytest.approx(differences.mean() + 1.96 * error, abs=0.001)


def test_the_same_differences_give_the_same_interval():
    differences = np.random.default_rng(1).normal(size=50)
    assert compare("a", "b", "AP", differences) == compare("a", "b", "AP", differences)


RESULT = EvaluationResult(
    "manual",
    "test",
    2,
    ("RR@10",),
    ("plain", "reranked"),
    means={"plain": {"RR@10": 0.5}, "reranked": {"RR@10": 1.0}},
    per_query={
        "plain": {"q1": {"RR@10": 0.5}, "q2": {"RR@10": 0.5}},
        "reranked": {"q1": {"RR@10": 1.0}, "q2": {"RR@10": 1.0}},
    },
    milliseconds={"plain": 2.0, "reranked": 31.5},
    runs={"plain": {}, "reranked": {}},
)


def test_results_compare_two_of_their_retrievers_by_the_first_measure():
    comparison = RESULT.compare("plain", "reranked")
    assert (comparison.measure, comparison.difference, comparison.n_queries) == ("RR@10", 0.5, 2)
    assert str(comparison).startswith("reranked against plain: RR@10 +0.5000")


@pytest.mark.parametrize(("arguments", "named"), [(("plain", "gone"), "gone"), (("plain", "reranked", "AP"), "AP")])
def test_comparing_what_was_not_evaluated_names_it(arguments, named):
    with pytest.raises(ArgumentError, match=f"'{named}' was not evaluated"):
        RESULT.compare(*arguments)
