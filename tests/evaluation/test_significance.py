from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import EvaluationResult, evaluate_runs
from lance_rerank.evaluation.significance import Comparisons, compare, holm, minimum_detectable_effect, randomisation_p


def test_a_gain_on_every_query_is_better():
    comparison = compare("a", "b", "RR@10", [0.5] * 20)
    assert (comparison.difference, comparison.low, comparison.high) == (0.5, 0.5, 0.5)
    assert (comparison.wins, comparison.losses, comparison.verdict) == (20, 0, "better")


def test_a_loss_on_every_query_is_worse():
    assert compare("a", "b", "RR@10", [-0.1, -0.2, -0.3] * 2).verdict == "worse"


def test_three_queries_cannot_show_it():
    comparison = compare("a", "b", "RR@10", [-0.1, -0.2, -0.3])
    assert comparison.high < 0, "the bootstrap interval is too narrow for few queries, and does not decide"
    assert comparison.p_value == 2 / 8
    assert comparison.verdict == "no difference that these queries can show"
    assert comparison.power == "3 queries are too few to show any difference; 6 are the fewest"
    assert "p 0.250, too few queries to show any): no difference" in str(comparison)


class TestRandomisation:
    @pytest.mark.parametrize(
        ("differences", "p"),
        [
            ([0.5], 1.0),
            ([0.0, 0.0], 1.0),
            ([1.0, 1.0], 2 / 4),
            ([1.0, -1.0], 1.0),
            ([1.0, 2.0, 3.0], 2 / 8),
            ([1.0, 2.0, -3.0], 1.0),
            ([-1.0, 2.0, 3.0], 4 / 8),  # sums of +-1 +-2 +-3 that reach 4: 6, 4, -4, -6
            ([0.1, 0.2, 0.3, 0.0, 0.0], 2 / 8),  # ties among queries change nothing
        ],
    )
    def test_few_queries_are_counted_out(self, differences, p):
        assert randomisation_p(differences) == p

    def test_sums_that_differ_in_the_last_digit_are_ties(self):
        assert randomisation_p([0.1, 0.2, -0.3]) == 1.0

    @given(st.lists(st.sampled_from([-1, -0.5, -1 / 3, 0, 1 / 3, 0.5, 1]), min_size=1, max_size=9))
    def test_it_is_that_of_all_signs_written_out(self, differences):
        sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in all_signs(differences)]
        expected = np.mean([total >= abs(sum(differences)) - 1e-9 for total in sums])
        assert randomisation_p(differences) == pytest.approx(expected)
        assert randomisation_p(differences) == randomisation_p([-d for d in differences])

    def test_drawn_signs_come_near_the_exact_value(self):
        differences = np.random.default_rng(0).normal(0.3, 1, 13)
        exact = randomisation_p(differences)
        assert randomisation_p(differences, resamples=8000) == pytest.approx(exact, abs=0.02)

    def test_it_is_never_zero(self):
        assert randomisation_p([0.5] * 100) == 1 / 10_001

    def test_it_is_that_of_the_t_test_for_many_queries(self):
        differences = np.random.default_rng(0).normal(0.01, 0.3, 2_000)
        assert randomisation_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)

    def test_seeds(self):
        differences = np.random.default_rng(0).normal(0.05, 0.3, 60)
        first, other = randomisation_p(differences), randomisation_p(differences, seed=1)
        assert first == randomisation_p(differences)
        assert first != other
        assert first == pytest.approx(other, abs=0.03)


def all_signs(differences):
    return itertools.product([1, -1], repeat=len(differences))


class TestHolm:
    def test_by_hand(self):
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
        assert holm([0.6, 0.7]) == [1.0, 1.0]
        assert holm([0.2]) == [0.2]
        assert holm([]) == []

    @given(st.lists(st.floats(0.0001, 1), max_size=8))
    def test_it_keeps_the_order_and_lies_between_none_and_bonferroni(self, p_values):
        corrected = holm(p_values)
        for p, q in zip(p_values, corrected, strict=True):
            assert p <= q <= min(1, len(p_values) * p)
        for (p, q), (other_p, other_q) in itertools.combinations(zip(p_values, corrected, strict=True), 2):
            assert (p - other_p) * (q - other_q) >= 0


class TestDetectable:
    def test_by_hand(self):
        # 100 differences of standard deviation 0.1005 (n - 1): a standard error of 0.01005, times 1.984 + 0.845
        assert minimum_detectable_effect([0.1, -0.1] * 50) == pytest.approx(0.01005 * 2.830, rel=1e-3)

    @pytest.mark.parametrize("differences", [[0.1], [0.1, 0.2], [0.0] * 50, [0.3] * 50, [0.1 + 0.2, 0.3] * 10])
    def test_what_cannot_be_told(self, differences):
        assert minimum_detectable_effect(differences) is None

    def test_it_is_found_in_four_of_five_tries(self):
        rng = np.random.default_rng(0)
        effect = minimum_detectable_effect([0.3, -0.3] * 25)
        found = [
            randomisation_p(rng.normal(effect, 0.303, 50), resamples=2000, seed=seed) <= 0.05 for seed in range(400)
        ]
        assert 0.74 < np.mean(found) < 0.86

    def test_it_is_said_in_words(self):
        comparison = compare("a", "b", "nDCG@10", [0.115, -0.115] * 120)
        assert str(comparison).endswith(
            "no difference that these queries can show; 240 queries can show one of 2.1 points"
        )
        assert comparison.power == "240 queries can show a difference of 2.1 points"

    def test_a_small_one_is_not_called_zero(self):
        assert compare("a", "b", "AP", [0.001, -0.001] * 1000).power.endswith("a difference of 0.0063 points")


@pytest.mark.parametrize("differences", [[0.0], [0.5], [0.0] * 20, [0.5] * 20, [-1e-300] * 7])
def test_one_query_or_no_spread_gives_numbers_and_no_warning(differences):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare("a", "b", "RR@10", differences)
    assert all(math.isfinite(value) for value in (comparison.low, comparison.high, comparison.p_value))
    assert comparison.detectable is None
    assert "nan" not in str(comparison) + comparison.power
    assert (
        comparison.verdict
        == {0: "no difference that these queries can show", 1: "better", -1: "worse"}[
            0 if len(differences) < 6 else np.sign(differences[0])
        ]
    )


@pytest.mark.parametrize("differences", [[], [float("nan")], [0.1, float("inf")]])
def test_what_is_no_difference_is_refused(differences):
    with pytest.raises(ArgumentError, match="expected a finite difference a query, at least one"):
        compare("a", "b", "RR@10", differences)


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


def three_runs():
    """Ten queries: "good" finds each at once, "same" too, "bad" on the second rank."""
    qrels = {f"q{i}": {"d": 1} for i in range(10)}
    rankings = {"good": ["d", "x"], "same": ["d"], "bad": ["x", "d"]}
    runs = {name: {query: ranking for query in qrels} for name, ranking in rankings.items()}  # noqa: C420
    return evaluate_runs(runs, qrels, ["RR@10", "Success@5"])


class TestFamilies:
    def test_every_pair_is_corrected_for_all(self):
        family = three_runs().comparisons()
        assert [(one.a, one.b) for one in family] == [("good", "same"), ("good", "bad"), ("same", "bad")]
        p = 2 / 2**10
        assert [one.p_value for one in family] == [1.0, p, p]
        assert [one.p_corrected for one in family] == [1.0, 3 * p, 3 * p]
        assert [one.verdict for one in family] == ["no difference that these queries can show", "worse", "worse"]
        assert three_runs().compare("good", "bad").p_corrected is None

    def test_against_a_baseline_there_are_fewer(self):
        family = three_runs().comparisons("RR@10", baseline="bad")
        assert [(one.a, one.b, one.p_corrected) for one in family] == [
            ("bad", "good", 4 / 2**10),
            ("bad", "same", 4 / 2**10),
        ]

    def test_what_alone_would_be_a_difference_may_not_be_one_of_many(self):
        worse, better = {f"q{i}": ["x", "d"] for i in range(6)}, {f"q{i}": ["d"] for i in range(6)}
        runs = {"a": worse, "b": better, "c": better}
        result = evaluate_runs(runs, {query: {"d": 1} for query in better}, ["RR@10"])
        assert result.compare("a", "b").verdict == "better"
        assert {one.verdict for one in result.comparisons()} == {"no difference that these queries can show"}

    def test_it_prints_as_a_table(self):
        assert str(three_runs().comparisons()).splitlines() == [
            "RR@10, 10 queries, 3 comparisons, p-values corrected for them (Holm)",
            "",
            "same against good  +0.0000  (+0.0000 to +0.0000)  p 1.000    no difference that these queries can show",
            "bad against good   -0.5000  (-0.5000 to -0.5000)  p 0.006    worse",
            "bad against same   -0.5000  (-0.5000 to -0.5000)  p 0.006    worse",
            "",
            "what 10 queries can show is unknown: the difference is the same on each",
        ]

    def test_the_pair_that_is_hardest_to_tell_apart_says_what_can_be_shown(self):
        text = str(Comparisons([compare("a", "b", "AP", [0.1, -0.1] * 20), compare("a", "c", "AP", [0.3, -0.3] * 20)]))
        power = compare("a", "c", "AP", [0.3, -0.3] * 20).power
        assert text.splitlines()[-1] == f"{power} between a and c, the pair hardest to tell apart"

    def test_a_single_retriever_has_none(self):
        family = evaluate_runs({"a": {"q": ["d"]}}, {"q": {"d": 1}}).comparisons()
        assert family == ()
        assert str(family) == "nothing to compare: there is one retriever"

    def test_all_zero_measures(self):
        result = evaluate_runs({"a": {"q": ["x"]}, "b": {"q": []}}, {"q": {"d": 1}})
        assert result.comparisons()[0].p_corrected == 1.0
        assert "0.0000*" in str(result)

    @pytest.mark.parametrize("arguments", [{"baseline": "gone"}, {"measure": "gone"}])
    def test_unknown_names(self, arguments):
        with pytest.raises(ArgumentError, match="'gone' was not evaluated"):
            three_runs().comparisons(**arguments)


def test_what_a_family_can_show_is_less_than_one_comparison_can() -> None:
    alone = compare("a", "b", "RR@10", np.random.default_rng(0).standard_normal(50).tolist())
    [one] = Comparisons([alone]).corrected()
    many = Comparisons([alone] * 15).corrected()
    assert one.detectable == pytest.approx(alone.detectable)
    assert 1.2 < many[0].detectable / alone.detectable < 1.5
