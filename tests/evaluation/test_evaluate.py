from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.evaluation import EvaluationResult, evaluate, evaluate_runs
from lance_rerank.evaluation.searching import search
from lance_rerank.types import Hit, Qrel, Query


class Fixed:
    """Answers each query with the document ids it was made with, all at one score."""

    def __init__(self, rankings: Mapping[str, Sequence[str]], score: float | None = 1.0) -> None:
        self.rankings = rankings
        self.score = score
        self.calls: list[tuple[int, int]] = []

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((len(queries), k))
        return [
            [Hit(doc_id, self.score, rank) for rank, doc_id in enumerate(self.rankings.get(query, ()), 1)]
            for query in queries
        ]


def judged(qrels: Mapping[str, Mapping[str, int]]) -> Dataset:
    """A data set whose query texts are ``text of <query_id>``."""
    queries = [Query(query_id, f"text of {query_id}") for query_id in qrels]
    return Dataset.from_memory(queries, [Qrel(q, d, g) for q, grades in qrels.items() for d, g in grades.items()])


def fixed(rankings: Mapping[str, Sequence[str]], score: float | None = 1.0) -> Fixed:
    return Fixed({f"text of {query_id}": ranking for query_id, ranking in rankings.items()}, score)


ONE = judged({"q1": {"d1": 1}})


class TestMeasures:
    def test_the_relevant_document_at_rank_two(self) -> None:
        result = evaluate({"a": fixed({"q1": ["d2", "d1"]})}, ONE, ["RR@10", "nDCG@10", "Success@1", "R@100", "P@5"])
        expected = {"RR@10": 0.5, "nDCG@10": 1 / math.log2(3), "Success@1": 0.0, "R@100": 1.0, "P@5": 0.2}
        assert result.means["a"] == pytest.approx(expected)
        assert result.per_query["a"]["q1"] == result.means["a"]

    def test_the_default_measures(self) -> None:
        assert evaluate({"a": fixed({})}, ONE).measures == ("nDCG@10", "RR@10", "Success@5", "R@100")

    def test_ndcg_gains_are_the_grades(self) -> None:
        data = judged({"q1": {"d1": 1, "d2": 3}})
        ideal = 3 + 1 / math.log2(3)
        result = evaluate({"a": fixed({"q1": ["d1", "d2"]})}, data, ["nDCG@10"])
        assert result.means["a"]["nDCG@10"] == pytest.approx((1 + 3 / math.log2(3)) / ideal)

    def test_a_cutoff_cuts(self) -> None:
        ranking = [f"x{i}" for i in range(10)] + ["d1"]
        result = evaluate({"a": fixed({"q1": ranking})}, ONE, ["RR@10", "RR@11", "Success@10", "R@11"])
        assert result.means["a"] == pytest.approx({"RR@10": 0, "RR@11": 1 / 11, "Success@10": 0, "R@11": 1})

    def test_queries_without_hits_and_without_relevant_documents_count_zero(self) -> None:
        data = judged({"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d1": 0}, "q4": {"d1": -1}})
        result = evaluate({"a": fixed({"q1": ["d1"], "q3": ["d1"], "q4": ["d1"]})}, data, ["RR@10", "nDCG@10", "R@10"])
        assert result.means["a"] == pytest.approx({"RR@10": 0.25, "nDCG@10": 0.25, "R@10": 0.25})
        assert result.per_query["a"]["q2"] == {"RR@10": 0, "nDCG@10": 0, "R@10": 0}
        assert list(result.per_query["a"]) == list(result.runs["a"]) == ["q1", "q2", "q3", "q4"]
        assert result.n_queries == 4

    def test_a_retriever_that_finds_nothing(self) -> None:
        result = evaluate({"a": fixed({})}, ONE, ["RR@10", "AP", "Judged@10"])
        assert result.means == {"a": {"RR@10": 0, "AP": 0, "Judged@10": 0}}
        assert result.runs == {"a": {"q1": []}}

    def test_counts_are_sums(self) -> None:
        data = judged({"q1": {"d1": 1}, "q2": {"d1": 1}})
        result = evaluate({"a": fixed({"q1": ["d1", "d2"], "q2": ["d3"]})}, data, ["NumRet", "P@1"])
        assert result.means["a"] == {"NumRet": 3, "P@1": 0.5}

    def test_measures_are_named_as_ir_measures_prints_them_and_come_once(self) -> None:
        result = evaluate({"a": fixed({})}, ONE, ["MRR@10", ir_measures.RR @ 10, "R(rel=2)@5", "NDCG@3"])
        assert result.measures == ("RR@10", "R(rel=2)@5", "nDCG@3")

    def test_two_kinds_of_ndcg_keep_apart(self) -> None:
        data = judged({"q1": {"d1": 1, "d2": 2}})
        run = fixed({"q1": ["d1", "d2"]})
        both = evaluate({"a": run}, data, ["nDCG@10", "nDCG(gains={1:9,2:1})@10"]).means["a"]
        ideal = 2 + 1 / math.log2(3)
        assert both["nDCG@10"] == pytest.approx((1 + 2 / math.log2(3)) / ideal)
        assert both["nDCG(gains={1:9,2:1})@10"] == pytest.approx(1)

    @pytest.mark.parametrize("seed", range(5))
    def test_agreement_with_ir_measures(self, seed: int) -> None:
        rng = random.Random(seed)
        documents = [f"d{i}" for i in range(60)]
        qrels = {f"q{i}": {d: rng.randint(-1, 3) for d in rng.sample(documents, 8)} for i in range(150)}
        rankings = {q: rng.sample(documents, rng.randint(0, 40)) for q in qrels}
        names = ["nDCG@10", "nDCG", "RR@10", "RR", "Success@5", "R@20", "R(rel=2)@20", "AP", "AP@7", "P@3", "Judged@10"]
        names += ["RR(rel=2)@3", "nDCG(judged_only=True)@5", "P(judged_only=True)@2", "Bpref", "Rprec", "infAP"]
        names += ["SetP", "SetR", "IPrec@0.1", "NumRet"]
        result = evaluate({"a": fixed(rankings)}, judged(qrels), names)

        run = {q: {d: -float(rank) for rank, d in enumerate(ranking)} for q, ranking in rankings.items() if ranking}
        # one at a time, as asked for many ir-measures 0.4.3 confuses some
        for measure in map(ir_measures.parse_measure, names):
            mean = ir_measures.calc_aggregate([measure], qrels, run)[measure]
            assert result.means["a"][str(measure)] == pytest.approx(mean, abs=1e-6)
            for metric in ir_measures.iter_calc([measure], qrels, run):
                value = result.per_query["a"][metric.query_id][str(measure)]
                assert value == pytest.approx(metric.value, abs=1e-6)

    @given(
        ranking=st.lists(st.sampled_from([f"d{i}" for i in range(12)]), unique=True),
        grades=st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), st.integers(-1, 3), min_size=1),
        cutoff=st.integers(1, 14),
    )
    def test_what_is_below_the_cutoff_never_mattered(
        self, ranking: list[str], grades: dict[str, int], cutoff: int
    ) -> None:
        names = [f"{name}@{cutoff}" for name in ("nDCG", "RR", "Success", "P", "R", "AP", "Judged", "R(rel=2)")]
        result = evaluate_runs({"a": {"q": ranking}}, {"q": grades}, names)
        run = {"q": {d: 1 / rank for rank, d in enumerate(ranking, 1)}} if ranking else {}
        for measure in map(ir_measures.parse_measure, names):
            expected = measure.calc_aggregate({"q": grades}, run) if run else 0
            assert result.means["a"][str(measure)] == pytest.approx(expected, abs=1e-6)

    def test_agreement_with_trec_eval(self) -> None:
        pytrec_eval = pytest.importorskip("pytrec_eval")
        rng = random.Random(7)
        documents = [f"d{i}" for i in range(60)]
        qrels = {f"q{i}": {d: rng.randint(0, 3) for d in rng.sample(documents, 8)} for i in range(50)}
        rankings = {q: rng.sample(documents, 30) for q in qrels}
        result = evaluate({"a": fixed(rankings)}, judged(qrels), ["nDCG@10", "R@20", "Success@5", "AP", "P@5"])
        ours = ("nDCG@10", "R@20", "Success@5", "AP", "P@5")
        theirs = ("ndcg_cut_10", "recall_20", "success_5", "map", "P_5")
        run = {q: {d: 100.0 - rank for rank, d in enumerate(ranking)} for q, ranking in rankings.items()}
        for query, values in pytrec_eval.RelevanceEvaluator(qrels, set(theirs)).evaluate(run).items():
            for name, other in zip(ours, theirs, strict=True):
                assert result.per_query["a"][query][name] == pytest.approx(values[other], abs=1e-6)


class TestOrder:
    @pytest.mark.parametrize("score", [None, 0.5, math.nan, -math.inf])
    def test_the_order_counts_whatever_the_scores(self, score: float | None) -> None:
        # Providers of ir-measures break ties by document id, some upwards and some downwards.
        for other in ("d0", "d2"):
            run = fixed({"q1": ["d1", other]}, score)
            assert evaluate({"a": run}, ONE, ["RR@10", "AP"]).means["a"] == {"RR@10": 1, "AP": 1}
            run = fixed({"q1": [other, "d1"]}, score)
            assert evaluate({"a": run}, ONE, ["RR@10", "AP"]).means["a"] == {"RR@10": 0.5, "AP": 0.5}

    def test_rising_scores_do_not_turn_the_order(self) -> None:
        class Rising:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                return [[Hit("d1", 0.1, 2), Hit("d2", 0.9, 1)] for _ in queries]

        assert evaluate({"a": Rising()}, ONE, ["RR@10", "nDCG@10"]).means["a"] == {"RR@10": 1, "nDCG@10": 1}

    def test_a_long_ranking_keeps_its_order(self) -> None:
        ranking = [f"x{i:04}" for i in range(998)] + ["d1", "d0"]
        assert evaluate({"a": fixed({"q1": ranking})}, ONE, ["RR"]).means["a"]["RR"] == pytest.approx(1 / 999)

    def test_a_document_retrieved_twice_counts_once_at_its_first_rank(self) -> None:
        data = judged({"q1": {"d1": 1, "d3": 1}})
        result = evaluate({"a": fixed({"q1": ["d2", "d1", "d1", "d2", "d3"]})}, data, ["RR@10", "P@3", "AP"])
        assert result.runs["a"]["q1"] == ["d2", "d1", "d3"]
        assert result.means["a"] == pytest.approx({"RR@10": 1 / 2, "P@3": 2 / 3, "AP": (1 / 2 + 2 / 3) / 2})

    def test_hits_past_the_depth_that_was_asked_for_are_cut(self) -> None:
        run = fixed({"q1": [f"x{i}" for i in range(30)]})
        assert evaluate({"a": run}, ONE, ["RR@20"]).runs["a"]["q1"] == [f"x{i}" for i in range(20)]


class TestRetrieval:
    @pytest.mark.parametrize(
        ("measures", "depth"),
        [
            (["nDCG@10", "R@100"], 100),
            (["Success@5"], 10),
            (["AP"], 1000),
            (["RR@10", "AP", "R@50"], 1000),
            (["AP", "R@2000"], 2000),
        ],
    )
    def test_the_depth_is_the_largest_cutoff(self, measures: list[str], depth: int) -> None:
        run = fixed({})
        evaluate({"a": run}, ONE, measures)
        assert run.calls == [(1, depth)]

    def test_queries_go_in_blocks_and_progress_is_told(self) -> None:
        data = judged({f"q{i}": {"d1": 1} for i in range(130)})
        run, told = fixed({}), []
        evaluate({"a": run, "b": fixed({})}, data, ["RR@10"], progress=lambda *step: told.append(step))
        assert run.calls == [(64, 10), (64, 10), (2, 10)]
        assert told == [(name, done, 130) for name in ("a", "b") for done in (64, 128, 130)]

    def test_milliseconds_are_the_median_of_the_blocks(self) -> None:
        data = judged({f"q{i}": {"d1": 1} for i in range(130)})
        times = iter([0.0, 6.4, 10.0, 10.64, 20.0, 20.06])  # 100, 10 and 30 ms a query

        class Answering:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                return [[] for _ in queries]

        found = search("a", Answering(), data.queries, 10, clock=lambda: next(times))
        assert found.milliseconds == pytest.approx(30)

    def test_a_run_is_timed(self) -> None:
        assert evaluate({"a": fixed({})}, ONE).milliseconds["a"] > 0

    @pytest.mark.parametrize("error", [ModelError("no weights"), KeyError("lang")])
    def test_a_retriever_that_raises(self, error: Exception) -> None:
        class Raising:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                if "text of q64" in queries:
                    raise error
                return [[] for _ in queries]

        with pytest.raises(type(error)) as caught:
            evaluate({"broken": Raising()}, judged({f"q{i}": {"d1": 1} for i in range(66)}), ["RR@10"])
        assert caught.value is error
        assert error.__notes__ == ["Raised while evaluating retriever 'broken' on the queries 'q64', 'q65'."]

    def test_a_retriever_that_answers_too_few_queries(self) -> None:
        class Short:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                return [[]]

        with pytest.raises(ArgumentError, match="1 lists of hits for 2 queries; expected one a query") as caught:
            evaluate({"short": Short()}, judged({"q1": {"d1": 1}, "q2": {"d1": 1}}))
        assert "retriever 'short'" in caught.value.__notes__[0]


class Picky:
    """Raises where a query has a bad word, in a batch or alone."""

    def __init__(self, *bad: str) -> None:
        self.bad = {f"text of {query_id}" for query_id in bad}
        self.calls: list[int] = []

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append(len(queries))
        if not self.bad.isdisjoint(queries):
            raise ModelError("no words in it")
        return [[Hit("d1", 1.0, 1)] for _ in queries]


class TestFailures:
    DATA = judged({f"q{i}": {"d1": 1} for i in range(130)})

    def test_a_failing_query_is_told_and_counts_zero(self) -> None:
        picky = Picky("q7", "q70")
        result = evaluate({"picky": picky, "fine": Picky()}, self.DATA, ["RR@10"], on_error="count")
        assert result.failures == {"picky": dict.fromkeys(["q7", "q70"], "ModelError: no words in it")}
        assert result.means == {"picky": {"RR@10": 128 / 130}, "fine": {"RR@10": 1}}
        assert result.runs["picky"]["q7"] == []
        assert list(result.runs["picky"]) == list(self.DATA.queries)
        assert picky.calls == [64, *[1] * 64, 64, *[1] * 64, 2]
        comparison = result.compare("picky", "fine")
        assert (comparison.n_queries, comparison.wins) == (130, 2)

    def test_it_is_printed(self) -> None:
        result = evaluate({"picky": Picky("q1", "q2", "q3", "q4", "q5")}, self.DATA, ["RR@10"], on_error="count")
        assert str(result).splitlines()[-2:] == [
            "",
            "5 queries failed on 'picky', counted as finding nothing: 'q1' (ModelError: no words in it), "
            "'q2' (ModelError: no words in it), 'q3' (ModelError: no words in it), and 2 more",
        ]
        assert EvaluationResult.from_json(result.to_json()) == result

    def test_a_batch_that_fails_where_its_queries_do_not_is_no_failure(self) -> None:
        class Small:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                if len(queries) > 1:
                    raise MemoryError
                return [[Hit("d1", 1.0, 1)]]

        result = evaluate({"small": Small()}, self.DATA, ["RR@10"], on_error="count")
        assert (result.means["small"]["RR@10"], result.failures) == (1, {})

    def test_all_may_fail(self) -> None:
        result = evaluate({"picky": Picky("q1")}, judged({"q1": {"d1": 1}}), on_error="count")
        assert set(result.means["picky"].values()) == {0}
        assert "1 query failed on 'picky'" in str(result)

    def test_an_interruption_is_no_failure(self) -> None:
        class Interrupted:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate({"a": Interrupted()}, ONE, on_error="count")

    def test_a_wrong_number_of_answers_is_not_counted_but_raised(self) -> None:
        class Short:
            def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
                return [[]]

        with pytest.raises(ArgumentError, match="1 lists of hits for 64 queries"):
            evaluate({"short": Short()}, self.DATA, on_error="count")

    def test_another_word_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match="on_error must be one of raise, count, got 'ignore'"):
            evaluate({"a": Picky()}, ONE, on_error="ignore")  # type: ignore[arg-type]


class TestRuns:
    def test_runs_are_judged_as_they_would_be_by_evaluate(self) -> None:
        data = judged({"q1": {"d1": 1}, "q2": {"d1": 2, "d2": 1}, "q3": {"d9": 1}})
        result = evaluate({"a": fixed({"q1": ["d2", "d1", "d2"], "q2": ["d2", "d1"]})}, data)
        again = evaluate_runs(result.runs, data)
        assert (again.means, again.per_query, again.runs) == (result.means, result.per_query, result.runs)
        assert again.milliseconds == {}
        assert str(again).splitlines()[2].split() == ["retriever", "nDCG@10", "RR@10", "Success@5", "R@100"]

    def test_judgements_alone_will_do_and_queries_a_run_lacks_count_zero(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = evaluate_runs({"a": {"q1": ["d1"], "other": ["d1"]}}, {"q1": {"d1": 1}, "q2": {"d1": 1}}, ["RR@10"])
        assert result.means == {"a": {"RR@10": 0.5}}
        assert "1 queries of run 'a' are not judged and are left out: 'other'" in caplog.text
        assert "run 'a' has nothing for 1 of 2 judged queries" in caplog.text

    def test_an_empty_run_counts_zero(self) -> None:
        assert evaluate_runs({"a": {}}, ONE, ["RR@10"]).means == {"a": {"RR@10": 0}}

    def test_the_best_of_runs_is_marked_without_times(self) -> None:
        result = evaluate_runs({"a": {"q1": ["d1"]}, "b": {"q1": []}}, ONE, ["RR@10"])
        assert str(result).splitlines()[-1] == "* best of its column (the highest)"

    def test_rankings_are_not_cut(self) -> None:
        ranking = [f"x{i}" for i in range(1500)] + ["d1"]
        assert evaluate_runs({"a": {"q1": ranking}}, ONE, ["RR"]).means["a"]["RR"] == pytest.approx(1 / 1501)

    @pytest.mark.parametrize(
        ("runs", "message"),
        [
            ({}, "no runs to evaluate"),
            ({"q1": ["d1"]}, "expected runs by name"),
            ({"a": {"1": ["d1"]}}, "run 'a' answers none of the judged queries: it has ids such as '1', judged .*'q1'"),
        ],
    )
    def test_what_is_no_run_is_refused(self, runs: dict, message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            evaluate_runs(runs, ONE)


class TestArguments:
    def test_no_retrievers(self) -> None:
        with pytest.raises(
            ArgumentError, match=r"no retrievers to evaluate; pass at least one, as \{'name': retriever\}"
        ):
            evaluate({}, ONE)

    def test_a_retriever_without_a_name(self) -> None:
        with pytest.raises(ArgumentError, match=r"expected retrievers by name, .*; write \{'name': retriever\}"):
            evaluate(fixed({}), ONE)  # type: ignore[arg-type]

    def test_no_retriever(self) -> None:
        with pytest.raises(ArgumentError, match=r"'a' is a dict, which has no retrieve_many\(queries, k\)"):
            evaluate({"a": {}}, ONE)  # type: ignore[dict-item]

    def test_no_queries(self) -> None:
        with pytest.raises(ArgumentError, match=r"split 'test' of data set 'memory' has no judged queries; fill its"):
            evaluate({"a": fixed({})}, judged({}))

    def test_no_measures(self) -> None:
        with pytest.raises(ArgumentError, match="no measures to evaluate by; pass at least one, such as 'nDCG@10'"):
            evaluate({"a": fixed({})}, ONE, [])

    def test_one_measure_as_a_string(self) -> None:
        with pytest.raises(ArgumentError, match=r"expected a list of measures, got a string; write \['nDCG@10'\]"):
            evaluate({"a": fixed({})}, ONE, "nDCG@10")

    @pytest.mark.parametrize(
        ("measure", "message"),
        [
            ("ndcg@10", r"unknown measure 'ndcg@10' \(the nearest name is 'nDCG'\); write it as 'nDCG@10', 'RR@10'"),
            ("qqq@10", "unknown measure 'qqq@10'; write it as 'nDCG@10'"),
            ("", "unknown measure ''; write it as"),
            ("nDCG@", r"unknown measure 'nDCG@' \(the nearest name is 'nDCG'\); write it as"),
            (10, "unknown measure 10; write it as"),
            ("P", "measure 'P' lacks its cutoff; write it as"),
            ("P(depth=3)@5", "measure P has no parameter depth; it takes cutoff, rel"),
            ("nDCG@0", "measure 'nDCG@0' has the cutoff 0; expected 1 or more, as in 'nDCG@10'"),
            ("nDCG@-1", "unknown measure 'nDCG@-1'"),
            ("AP@5.5", "measure 'AP@5.5' cannot be computed: invalid param cutoff=5.5. Take 'nDCG@10'"),
            ("P(rel=0)@5", r"measure 'P\(rel=0\)@5' cannot be computed: .* should be positive. Take 'nDCG@10'"),
        ],
    )
    def test_a_measure_is_refused_before_any_retrieval(self, measure: str, message: str) -> None:
        run = fixed({})
        with pytest.raises(ArgumentError, match=message):
            evaluate({"a": run}, ONE, ["RR@10", measure])
        assert run.calls == []

    def test_its_errors_are_the_library_s(self) -> None:
        with pytest.raises(LanceRerankError):
            evaluate({}, ONE)


RESULT = EvaluationResult(
    dataset="manual",
    split="test",
    n_queries=1200,
    measures=("nDCG@10", "RR@10"),
    retrievers=("hybrid", "staged"),
    means={"hybrid": {"nDCG@10": 0.41234, "RR@10": 0.5}, "staged": {"nDCG@10": 0.5, "RR@10": 0.500001}},
    per_query={"hybrid": {"q1": {"nDCG@10": 1.0, "RR@10": 1.0}}, "staged": {"q1": {"nDCG@10": 0.1, "RR@10": 1 / 3}}},
    milliseconds={"hybrid": 8.25, "staged": 1234.5},
    runs={"hybrid": {"q1": ["d1", "d\u00e9"]}, "staged": {"q1": []}},
)


class TestResult:
    def test_it_prints_as_a_table(self) -> None:
        assert str(RESULT).splitlines() == [
            "manual, split test, 1,200 queries",
            "",
            "retriever  nDCG@10    RR@10   ms/query",
            "hybrid      0.4123   0.5000*      8.25*",
            "staged      0.5000*  0.5000*   1234.50",
            "",
            "* best of its column (of the measures the highest, of ms/query the lowest)",
        ]

    def test_a_single_retriever_is_not_called_the_best(self) -> None:
        text = str(evaluate({"only": fixed({"q1": ["d1"]})}, ONE, ["RR@10"]))
        assert "*" not in text
        assert text.splitlines()[:3] == ["memory, split test, 1 query", "", "retriever   RR@10   ms/query"]

    def test_its_repr_is_short(self) -> None:
        assert "per_query" not in repr(RESULT)
        assert "runs" not in repr(RESULT)

    def test_it_keeps_the_order_given(self) -> None:
        result = evaluate({"z": fixed({}), "a": fixed({})}, ONE)
        assert result.retrievers == ("z", "a")
        assert (result.dataset, result.split, result.n_queries) == ("memory", "test", 1)

    @pytest.mark.parametrize("latency", [False, True])
    def test_where_documents_come_several_times_as_many_are_judged_as_the_measures_look_at(self, latency) -> None:
        """Passages: each document has five rows in a row, the relevant one is the eighth document."""
        data = Dataset.from_memory([Query("q1", "one")], [Qrel("q1", "d7", 1)])

        class Passages:
            def retrieve_many(self, queries, k):
                return [[Hit(f"d{row // 5}", -float(row), row + 1) for row in range(min(k, 60))] for _ in queries]

        alone = evaluate({"a": Passages()}, data, ["RR@10"], latency=latency)
        assert alone.runs["a"]["q1"] == [f"d{number}" for number in range(10)]
        deeper = evaluate({"a": Passages()}, data, ["RR@10", "R@30"], latency=latency)
        assert alone.means["a"]["RR@10"] == deeper.means["a"]["RR@10"] == 1 / 8

    def test_a_document_of_endless_rows_is_not_looked_past_for_ever(self) -> None:
        asked = []

        class Endless:
            def retrieve_many(self, queries, k):
                asked.append(k)
                return [[Hit("d1", 1.0, rank) for rank in range(1, k + 1)] for _ in queries]

        data = Dataset.from_memory([Query("q1", "one")], [Qrel("q1", "d1", 1)])
        assert evaluate({"a": Endless()}, data, ["RR@10"]).runs == {"a": {"q1": ["d1"]}}
        assert asked == [10, 40, 160, 640]

    def test_scores_queries_and_judgements_are_kept_but_not_the_retrievers(self) -> None:
        data = Dataset.from_memory([Query("q1", "one")], [Qrel("q1", "d2", 1)])

        class Answers:
            def retrieve_many(self, queries, k):
                return [[Hit("d2", 0.5, 1), Hit("d1", None, 2), Hit("d2", 0.25, 3)]] * len(queries)

        retriever = Answers()
        result = evaluate({"a": retriever}, data, ["RR@10"])
        assert result.runs == {"a": {"q1": ["d2", "d1"]}}
        assert result.scores == {"a": {"q1": [0.5, None]}}
        assert (result.queries, result.qrels) == ({"q1": "one"}, {"q1": {"d2": 1}})
        assert result.sources is not None
        assert result.sources.retrievers == {"a": retriever}
        read = EvaluationResult.from_json(result.to_json())
        assert read == result
        assert read.sources is None

    def test_scores_of_runs_are_kept_where_all_have_them(self) -> None:
        qrels = {"q1": {"d1": 1}}
        assert evaluate_runs({"a": {"q1": {"d2": 1.0, "d1": 3}}}, qrels, ["RR@10"]).scores == {"a": {"q1": [3.0, 1.0]}}
        assert evaluate_runs({"a": {"q1": ["d2", "d1"]}}, qrels, ["RR@10"]).scores == {}

    def test_to_dict_is_what_json_has(self) -> None:
        assert json.loads(RESULT.to_json()) == RESULT.to_dict()
        assert RESULT.to_dict()["measures"] == ["nDCG@10", "RR@10"]

    def test_json_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "result.json"
        text = RESULT.to_json(path)
        assert EvaluationResult.from_json(text) == RESULT
        assert EvaluationResult.from_json(path) == RESULT
        assert EvaluationResult.from_json(str(path)) == RESULT

    def test_json_of_an_evaluation(self) -> None:
        result = evaluate({"a": fixed({"q1": ["d2", "d1"]})}, ONE)
        assert EvaluationResult.from_json(result.to_json()) == result

    def test_fields_of_a_newer_version_are_ignored(self) -> None:
        assert EvaluationResult.from_json(json.dumps(RESULT.to_dict() | {"machine": "x"})) == RESULT

    def test_json_that_lacks_a_field(self) -> None:
        values = RESULT.to_dict()
        del values["means"], values["runs"]
        with pytest.raises(
            ArgumentError, match="no evaluation result: it lacks means, runs; expected what to_json wrote"
        ):
            EvaluationResult.from_json(json.dumps(values))

    @pytest.mark.parametrize(("text", "message"), [("{", "not the JSON of an evaluation"), ("3", "it lacks dataset, ")])
    def test_a_file_of_something_else(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            EvaluationResult.from_json(path)


def test_importing_does_not_import_ir_measures() -> None:
    code = "import sys, lance_rerank.evaluation; assert not {'ir_measures', 'torch', 'lancedb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ids_that_are_integers_are_those_of_the_hits():
    data = Dataset.from_memory([Query(1, "rotate")], [Qrel(1, 7, 1)])

    class Found:
        def retrieve_many(self, queries, k):
            return [[Hit("7", 1.0, 1)] for _ in queries]

    assert evaluate({"found": Found()}, data, ["RR@10"]).means == {"found": {"RR@10": 1.0}}


def test_ids_of_another_kind_are_pointed_out(caplog):
    data = Dataset.from_memory([Query("q", "rotate")], [Qrel("q", "doc-7", 1)])

    class Elsewhere:
        def retrieve_many(self, queries, k):
            return [[Hit("7", 1.0, 1)] for _ in queries]

    evaluate({"elsewhere": Elsewhere()}, data, ["RR@10"])
    assert "it found ids such as '7', judged are ids such as 'doc-7'" in caplog.text


@pytest.mark.parametrize("value", [None, 1.5, True, ["q"]])
def test_what_is_no_id_is_refused(value):
    with pytest.raises(ArgumentError, match="ids are strings or integers"):
        Query(value, "rotate")


class TestRunsThatAreThere:
    def test_scores_decide_where_there_are_scores(self) -> None:
        result = evaluate_runs({"a": {"q": {"x": 0.1, "d": 5.0}}}, {"q": {"d": 1}}, ["RR@10"])
        assert result.means["a"]["RR@10"] == 1.0

    def test_a_string_is_no_ranking(self) -> None:
        with pytest.raises(ArgumentError, match="got the string 'd1'"):
            evaluate_runs({"a": {"q": "d1"}}, {"q": {"d": 1}}, ["RR@10"])


def test_a_measure_that_looks_deeper_than_the_candidates_is_said(caplog: pytest.LogCaptureFixture) -> None:
    run = fixed({})
    run.candidates = 5
    evaluate({"shallow": run}, ONE, ["RR@5"])
    assert not caplog.records
    run.candidates = 10
    evaluate({"shallow": run}, ONE, ["nDCG@10", "R@100"])
    assert "'shallow' fetches 10 candidates a leg, and R@100 look deeper" in caplog.text
