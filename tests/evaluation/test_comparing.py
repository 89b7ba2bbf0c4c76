"""Results of several evaluations, compared on the queries that all were asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import Requirement, compare_results, evaluate_runs

QRELS = {f"q{i}": {"d1": 1} for i in range(8)}
FIRST, SECOND = ["d1", "x"], ["x", "d1"]


def evaluated(measures=("RR@10", "Success@1"), queries=range(8), **first):
    """A result in which a retriever has the right answer first on so many queries, and second on the others."""
    ids = [f"q{i}" for i in queries]
    runs = {name: {query: FIRST if i < good else SECOND for i, query in enumerate(ids)} for name, good in first.items()}
    return evaluate_runs(runs, {query: QRELS[query] for query in ids}, list(measures))


def test_retrievers_of_the_same_name_are_compared_later_against_earlier():
    compared = compare_results(evaluated(plain=4, late=0), evaluated(late=8, plain=4))
    assert compared.pairs == (("plain (before)", "plain (after)"), ("late (before)", "late (after)"))
    plain, late = compared.comparisons
    assert (plain.difference, plain.verdict) == (0.0, "no difference that these queries can show")
    assert (late.difference, late.wins, late.verdict) == (0.5, 8, "better")
    assert late.p_corrected == pytest.approx(2 * late.p_value), "two comparisons, one family"
    assert compared.result.means["late (after)"] == {"RR@10": 1.0, "Success@1": 1.0}
    assert compared.notes == ()


def test_the_values_are_those_of_one_evaluation_of_both():
    together = evaluated(plain=3, late=6)
    apart = compare_results(evaluated(plain=3), evaluated(late=6), measure="RR@10")
    assert apart.pairs == (("plain", "late"),), "one retriever each: no label is needed"
    assert apart.comparisons == together.comparisons()
    assert str(apart).startswith(str(together))
    assert apart.result.means == together.means


def test_three_results_are_compared_with_the_first():
    compared = compare_results(evaluated(late=4), evaluated(late=6), evaluated(late=8), labels=["mon", "tue", "wed"])
    assert compared.pairs == (("late (mon)", "late (tue)"), ("late (mon)", "late (wed)"))
    assert [one.difference for one in compared.comparisons] == [0.125, 0.25]


def test_queries_that_one_result_lacks_are_left_out_and_named():
    compared = compare_results(evaluated(late=8), evaluated(queries=[6, 2, 3], late=0))
    assert compared.result.n_queries == 3
    assert list(compared.result.qrels) == ["q2", "q3", "q6"]
    assert compared.comparisons[0].difference == -0.5
    assert compared.notes == ("5 queries are in before but not in every result, and left out, the first 'q0'",)
    assert "note: 5 queries are in before" in str(compared)


def test_sums_stay_sums_over_the_common_queries():
    compared = compare_results(evaluated(["NumRet"], late=8), evaluated(["NumRet"], queries=[1, 2], late=8))
    assert compared.result.means["late (before)"] == {"NumRet": 4.0}


def test_the_measure_is_the_first_in_common_or_the_one_named():
    before, after = evaluated(["P@5", "Success@1", "RR@10"], late=8), evaluated(["RR@10", "Success@1"], late=4)
    assert compare_results(before, after).measure == "Success@1"
    assert compare_results(before, after, measure="MRR@10").measure == "RR@10"
    assert compare_results(before, after).result.measures == ("Success@1", "RR@10")


def test_what_could_not_be_checked_is_said():
    before = replace(evaluated(late=8), qrels={}, dataset="other")
    after = replace(evaluated(late=8, extra=1), split="dev", queries={"q0": "a"} | dict.fromkeys(list(QRELS)[1:], ""))
    assert compare_results(before, after).notes == (
        "before is of data 'other', after of 'qrels'",
        "before is of split 'all', after of 'dev'",
        "1 query is worded otherwise in after than in before, the first 'q0'",
        "before has no judgements in it, so it could not be checked that all were judged alike",
        "extra of after: not compared, for want of another of that name",
    )
    assert compare_results(before, after).result.dataset == "other / qrels"


def test_judgements_are_compared_only_on_the_common_queries():
    before = evaluated(late=8)
    elsewhere = replace(before, qrels={**QRELS, "q99": {"d1": 3}})
    assert compare_results(before, elsewhere).notes == ()


def test_failed_queries_are_still_reported():
    failed = replace(evaluated(late=8), failures={"late": {"q1": "ValueError: no", "q9": "is not compared"}})
    compared = compare_results(evaluated(late=8), failed)
    assert compared.result.failures == {"late (after)": {"q1": "ValueError: no"}}
    assert "1 query failed on 'late (after)'" in str(compared)


def test_it_becomes_json():
    compared = compare_results(evaluated(late=4), evaluated(late=8, other=1), measure="Success@1")
    values = json.loads(compared.to_json())
    assert (values["measure"], values["n_queries"], len(values["notes"])) == ("Success@1", 8, 1)
    [one] = values["comparisons"]
    assert (one["b"], one["difference"], one["wins"]) == ("late (after)", 0.5, 4)
    assert one["verdict"] == compared.comparisons[0].verdict


def test_requirements_hold_for_the_later_results():
    compared = compare_results(evaluated(plain=2, late=6), evaluated(plain=4, late=4))
    [breach] = Requirement("RR@10", -0.05).check_pairs(compared.result, compared.pairs)
    assert (breach.retriever, breach.value) == ("late (after)", -0.125)
    means = Requirement("RR@10", 0.7, relative=False).check_pairs(compared.result, compared.pairs)
    assert means == [], "plain (before) has less, and that is over"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (evaluated(a=1, b=1), evaluated(c=1), r"no retriever of the same name: there are a, b, and c"),
        (evaluated(queries=[1], a=1), evaluated(queries=[2], a=1), r"no query in common \(their first: 'q1', 'q2'\)"),
        (
            evaluated(a=1),
            replace(evaluated(a=1), qrels={**QRELS, "q3": {"d1": 2}, "q5": {}}),
            r"judged differently on 2 of 8 queries, the first 'q3'",
        ),
        (evaluated(["RR@10"], a=1), evaluated(["P@1"], a=1), r"no measure in common: before has RR@10; after has P@1"),
        (
            evaluated(a=1),
            replace(evaluated(a=1), per_query={"a": {"q0": {"RR@10": 1.0}}}),
            r"the result of a \(after\) is not whole: a query has no value of 'Success@1'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, message):
    with pytest.raises(ArgumentError, match=message):
        compare_results(before, after)


def test_bad_arguments_are_refused():
    result = evaluated(a=1)
    with pytest.raises(ArgumentError, match="one result, and nothing to compare it with"):
        compare_results(result)
    with pytest.raises(ArgumentError, match=r"'AP' was not evaluated in all results; there are RR@10, Success@1"):
        compare_results(result, result, measure="AP")
    for labels in (["one"], ["same", "same"]):
        with pytest.raises(ArgumentError, match="expected 2 labels, each another"):
            compare_results(result, result, labels=labels)
