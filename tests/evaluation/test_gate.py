"""What a requirement asks of which retriever, and what is said of one that falls short."""

from __future__ import annotations

import pytest

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import Requirement, evaluate_runs

QRELS = {f"q{i}": {"d1": 1} for i in range(10)}
AT_RANK = {1: ["d1"], 2: ["x", "d1"], 4: ["x", "y", "z", "d1"]}


def run(*ranks: int) -> dict[str, list[str]]:
    """A run that has the right answer at these ranks; the last stands for the remaining queries."""
    return {query_id: AT_RANK[ranks[min(i, len(ranks) - 1)]] for i, query_id in enumerate(QRELS)}


@pytest.fixture(scope="module")
def result():
    runs = {"plain": run(2), "worse": run(4, 2), "best": run(1), "late": run(4, 4, 2)}
    return evaluate_runs(runs, QRELS, ["RR@10", "Success@5"])


@pytest.mark.parametrize(
    ("text", "requirement", "printed"),
    [
        ("nDCG@10 -0.005", Requirement("nDCG@10", -0.005), "nDCG@10 -0.005"),
        ("  nDCG@10   - .005 ", Requirement("nDCG@10", -0.005), "nDCG@10 -0.005"),
        ("RR +1e-3", Requirement("RR", 0.001), "RR +0.001"),
        ("RR +0", Requirement("RR", 0.0), "RR +0.0"),
        ("R@100>=0.9", Requirement("R@100", 0.9, relative=False), "R@100 >= 0.9"),
        ("nDCG(gains={0:0,1:2})@10 >= .5", Requirement("nDCG(gains={0:0,1:2})@10", 0.5, False), None),
        ("P(rel=2)@5 -0.123456789", Requirement("P(rel=2)@5", -0.123456789), "P(rel=2)@5 -0.123456789"),
    ],
)
def test_a_requirement_is_read_and_printed(text, requirement, printed):
    assert Requirement.parse(text) == requirement
    assert printed is None or str(requirement) == printed
    assert Requirement.parse(str(requirement)) == requirement


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nDCG@10",
        "nDCG@10 0.5",
        "-0.005",
        ">= 0.5",
        "nDCG@10 > 0.5",
        "nDCG@10-0.005",
        "nDCG@10 -x",
        "nDCG@10 >= nan",
    ],
)
def test_other_text_is_refused_with_both_spellings(text):
    with pytest.raises(ArgumentError, match=r"is no requirement; write 'nDCG@10 -0.005' .* or 'nDCG@10 >= 0.5'"):
        Requirement.parse(text)


def test_the_last_retriever_is_held_against_the_first(result):
    [breach] = Requirement("RR@10", -0.04).check(result)
    assert (breach.retriever, breach.baseline, breach.measure) == ("late", "plain", "RR@10")
    assert breach.value == pytest.approx(-0.05)
    assert breach.shortfall == pytest.approx(0.01)
    assert breach.low <= breach.value <= breach.high
    assert str(breach).startswith("late against plain: RR@10 -0.0500 (95 % interval -0.1")
    assert str(breach).endswith("), 0.0100 below the required -0.04")
    assert Requirement("RR@10", -0.06).check(result) == []


@pytest.mark.parametrize(("least", "relative"), [(-0.05, True), (0.45, False)])
def test_what_only_rounding_lacks_is_accepted(result, least, relative):
    pairs = [("plain", "late")]
    assert Requirement("RR@10", least + 1e-12, relative).check_pairs(result, pairs) == []
    assert len(Requirement("RR@10", least + 1e-6, relative).check_pairs(result, pairs)) == 1


def test_with_a_baseline_each_other_is_held_against_it(result):
    breaches = Requirement("RR@10", 0.0).check(result, baseline="plain")
    assert [(one.baseline, one.retriever) for one in breaches] == [("plain", "worse"), ("plain", "late")]
    breaches = Requirement("RR@10", 0.0).check(result, baseline="best")
    assert [one.retriever for one in breaches] == ["plain", "worse", "late"]


def test_a_gain_may_be_required(result):
    assert Requirement("RR@10", 0.4).check_pairs(result, [("plain", "best")]) == []
    [breach] = Requirement("RR@10", 0.6).check_pairs(result, [("plain", "best")])
    assert str(breach).endswith("0.1000 below the required +0.6")


def test_a_mean_is_required_of_every_retriever(result):
    breaches = Requirement("RR@10", 0.48, relative=False).check(result)
    assert [(one.retriever, one.baseline) for one in breaches] == [("worse", None), ("late", None)]
    assert str(breaches[0]).startswith("worse: RR@10 0.4750 (95 % interval 0.4")
    assert breaches[0].low < breaches[0].value <= breaches[0].high
    assert breaches[0].to_dict()["shortfall"] == pytest.approx(0.005)
    assert Requirement("RR@10", 0.475, relative=False).check(result) != []
    assert [one.retriever for one in Requirement("RR@10", 0.475, relative=False).check(result)] == ["late"]


def test_of_pairs_a_mean_is_required_of_the_candidates_alone(result):
    pairs = [("worse", "best"), ("worse", "late"), ("plain", "late")]
    assert [one.retriever for one in Requirement("RR@10", 0.9, relative=False).check_pairs(result, pairs)] == ["late"]


def test_the_interval_of_a_sum_is_of_the_sum():
    result = evaluate_runs({"plain": run(2)}, QRELS, ["NumRet"])
    [breach] = Requirement("NumRet", 30, relative=False).check(result)
    assert (breach.value, breach.low, breach.high) == (20, 20, 20)


def test_measures_are_the_same_however_they_are_spelt(result):
    [breach] = Requirement("MRR@10", 0.48, relative=False).check_pairs(result, [("plain", "worse")])
    assert (breach.requirement, breach.measure) == ("MRR@10 >= 0.48", "RR@10")


@pytest.mark.parametrize(
    ("requirement", "baseline", "message"),
    [
        (
            Requirement("nDCG@10", -0.01),
            None,
            r"needs the measure nDCG@10, which is not evaluated; there are RR@10, Succ",
        ),
        (Requirement("magic", -0.01), None, r"needs the measure magic"),
        (Requirement("RR@10", -0.01), "none", r"no retriever 'none' to be the baseline; there are plain, worse"),
        (Requirement("RR@10", 0.5, relative=False), "none", r"no retriever 'none'"),
    ],
)
def test_what_cannot_be_checked_is_refused(result, requirement, baseline, message):
    with pytest.raises(ArgumentError, match=message):
        requirement.check(result, baseline)
    with pytest.raises(ArgumentError, match=message):
        requirement.require_checkable(result.measures, result.retrievers, baseline)


def test_one_retriever_has_nothing_to_be_compared_with():
    with pytest.raises(ArgumentError, match=r"plain is the only retriever; .* require a mean: 'RR@10 >= 0.5'"):
        Requirement("RR@10", -0.01).require_checkable(["RR@10"], ["plain"])
    Requirement("RR@10", 0.5, relative=False).require_checkable(["RR@10"], ["plain"])
