from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

import lance_rerank as lr
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError
from lance_rerank.evaluation import EvaluationResult, evaluate
from lance_rerank.evaluation.latency import (
    Latency,
    LatencyRecorder,
    StageLatency,
    measure_latency,
    traced_latency,
)
from lance_rerank.search.trace import Trace
from lance_rerank.stages import Stage
from lance_rerank.types import Hit, Qrel, Query

LEGS = (Stage("fts", 4.0, inside="search"), Stage("vector", 6.0, inside="search"))
HYBRID = (Stage("encode", 1.0), *LEGS, Stage("search", 7.0), Stage("rerank", 20.0))


def trace(*stages: Stage) -> Trace:
    return Trace("a query", (Hit("d1", 1.0, 1),), (), stages)


def times(latency: Latency) -> dict[str, float]:
    return {stage.name: stage.p50 for stage in (*latency.stages, latency.total)}


class Clock:
    """Stands still until it is told how many seconds have passed."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Whole:
    """A retriever without stages; the query is the milliseconds it takes, a negative one fails."""

    clock: Clock
    asked: list[tuple[str, int]] = field(default_factory=list)

    def retrieve_many(self, queries: list[str], k: int) -> list[list[Hit]]:
        for query in queries:
            self.asked.append((query, k))
            self.clock.now += abs(float(query)) / 1000
            if float(query) < 0:
                raise ModelError(f"no answer to {query}")
        return [[Hit(f"d{query}", 1.0, 1)] for query in queries]


class Staged(Whole):
    """One with stages, and 2 ms that are in none."""

    candidates = 50

    def trace(self, query: str, k: int) -> Trace:
        hits = self.retrieve_many([query], k)[0]
        self.clock.now += 0.002
        return Trace(query, tuple(hits), (), (Stage("encode", 1.0), Stage("search", float(query) - 1)))


class TestPercentiles:
    def test_of_a_hundred_queries_they_are_the_50th_95th_and_99th(self) -> None:
        shuffled = np.random.default_rng(0).permutation(100) + 1.0
        latency = traced_latency([trace(Stage("search", ms)) for ms in shuffled], k=10)
        assert latency.total == StageLatency("total", 50, 95, 99, n=100)
        assert latency.stages == (StageLatency("search", 50, 95, 99, n=100),)

    @pytest.mark.parametrize(
        ("n", "expected"),
        [
            (1, (1, 1, 1)),
            (2, (1, 2, 2)),
            (19, (10, 19, 19)),
            (20, (10, 19, 20)),
            (99, (50, 95, 99)),
            (101, (51, 96, 100)),
        ],
    )
    def test_each_is_a_time_that_a_query_took(self, n: int, expected: tuple[int, ...]) -> None:
        total = traced_latency([trace(Stage("search", float(ms))) for ms in range(1, n + 1)], k=10).total
        assert (total.p50, total.p95, total.p99) == expected

    @pytest.mark.parametrize(
        ("n", "note"), [(19, "p95 and p99 are those of the slowest"), (20, "p99 is that of the slowest"), (100, None)]
    )
    def test_it_says_where_a_percentile_is_the_maximum(self, n: int, note: str | None) -> None:
        text = str(traced_latency([trace(Stage("search", 1.0))] * n, k=10))
        assert note in text if note else "slowest" not in text


class TestTraces:
    def test_the_legs_are_part_of_the_search_and_count_once(self) -> None:
        latency = traced_latency([trace(*HYBRID)], k=10)
        assert latency.total.p50 == 1 + 7 + 20
        assert [(stage.name, stage.p50, stage.inside) for stage in latency.stages] == [
            ("encode", 1, None),
            ("search", 7, None),
            ("fts", 4, "search"),
            ("vector", 6, "search"),
            ("rerank", 20, None),
        ]

    def test_wall_clock_times_are_the_totals_where_they_are_given(self) -> None:
        latency = traced_latency([trace(*HYBRID)] * 2, k=10, milliseconds=[30, 40])
        assert (latency.total.p50, latency.total.p99) == (30, 40)

    def test_legs_are_in_one_order_whichever_ends_first(self) -> None:
        encode, fts, vector, search, rerank = HYBRID
        both = traced_latency([trace(encode, vector, fts, search, rerank), trace(*HYBRID)], k=10)
        assert both.stages == traced_latency([trace(*HYBRID)] * 2, k=10).stages

    def test_a_leg_named_as_a_stage_stays_a_leg(self) -> None:
        stages = [
            Stage("encode", 1.0),
            *(Stage(name, 1.0, inside="search") for name in ("encode", "search", "rerank")),
            Stage("search", 1.0),
            Stage("rerank", 1.0),
        ]
        latency = traced_latency([trace(*stages)], k=10)
        assert latency.total.p50 == 3
        assert [stage.name for stage in latency.stages if stage.inside] == ["encode", "rerank", "search"]

    def test_a_stage_that_runs_twice_is_summed_and_one_that_is_missing_has_a_smaller_n(self) -> None:
        twice = trace(Stage("search", 1.0), Stage("rerank", 2.0), Stage("rerank", 3.0))
        latency = traced_latency([twice, trace(Stage("search", 1.0))], k=10)
        assert {stage.name: stage.n for stage in latency.stages} == {"search": 2, "rerank": 1}
        assert latency.stages[1].p50 == 5
        assert (latency.total.p50, latency.total.p99) == (1, 6)

    def test_nothing_and_too_little_are_refused(self) -> None:
        with pytest.raises(ArgumentError, match="no traces"):
            traced_latency([], k=10)
        with pytest.raises(ArgumentError, match="one total a trace, got 1 for 2"):
            traced_latency([trace(*HYBRID)] * 2, k=10, milliseconds=[1.0])


class TestMeasuring:
    def test_by_hand(self) -> None:
        clock = Clock()
        latency = measure_latency(Staged(clock), ["10", "30", "20"], 7, clock=clock, concurrency=(1,))
        assert latency.stages == (StageLatency("encode", 1, 1, 1, 3), StageLatency("search", 19, 29, 29, 3))
        total = latency.total
        assert (total.p50, total.p95, total.p99, total.n) == pytest.approx((22, 32, 32, 3))
        assert latency.queries_per_second == {1: pytest.approx(3 / 0.066)}
        assert (latency.k, latency.candidates, latency.n_queries, latency.failures) == (7, 50, 3, 0)

    def test_without_traces_there_is_the_total_alone(self) -> None:
        retriever = Whole(Clock())
        latency = measure_latency(retriever, ["10", "20"], 7, clock=retriever.clock, warm_up=0, concurrency=())
        assert times(latency) == {"total": pytest.approx(10)}
        assert latency.candidates is None
        assert retriever.asked == [("10", 7), ("20", 7)]

    def test_warm_up_asks_first_and_counts_for_nothing(self) -> None:
        class Cold(Whole):
            def retrieve_many(self, queries: list[str], k: int) -> list[list[Hit]]:
                self.clock.now += 0 if self.asked else 60  # loads a model
                return super().retrieve_many(queries, k)

        retriever = Cold(Clock())
        latency = measure_latency(retriever, ["10", "20", "30"], 7, warm_up=2, concurrency=(), clock=retriever.clock)
        assert [query for query, _ in retriever.asked] == ["10", "20", "10", "20", "30"]
        assert latency.total.p99 == pytest.approx(30)
        assert latency.warm_up == 2
        assert measure_latency(retriever, ["10"], 7, clock=retriever.clock).warm_up == 1

    def test_failures_are_counted_said_and_in_no_percentile(self, caplog: pytest.LogCaptureFixture) -> None:
        retriever = Whole(Clock())
        with caplog.at_level(logging.WARNING):
            latency = measure_latency(retriever, ["-500", "10", "-900"], 7, clock=retriever.clock, concurrency=(1,))
        assert (latency.n_queries, latency.failures) == (1, 2)
        assert latency.total.p99 == pytest.approx(10)
        assert latency.queries_per_second[1] == pytest.approx(1 / 1.41)
        assert "2 queries failed and left out" in str(latency)
        assert [record.getMessage() for record in caplog.records] == [
            "2 of 3 queries failed; the first raised ModelError('no answer to -500')",
            "2 of 3 queries failed at concurrency 1",
        ]

    def test_no_answer_at_all_is_an_error_that_names_the_first(self) -> None:
        retriever = Whole(Clock())
        with pytest.raises(
            ArgumentError, match=r"all 2 failed, the first with ModelError\('no answer to -1'\)"
        ) as caught:
            measure_latency(retriever, ["-1", "-2"], 7, clock=retriever.clock)
        assert isinstance(caught.value.__cause__, ModelError)
        assert len(retriever.asked) == 4  # the threads were not sent after them

    def test_progress_ends_at_its_total(self) -> None:
        retriever, calls = Whole(Clock()), []
        measure_latency(
            retriever, ["1", "2", "3"], 7, warm_up=2, clock=retriever.clock, progress=lambda *call: calls.append(call)
        )
        assert calls == [(1, 11), (2, 11), (3, 11), (4, 11), (5, 11), (8, 11), (11, 11)]
        assert len(retriever.asked) == 11

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"queries": []}, "no queries"),
            ({"queries": "rotate api keys"}, r"write \['rotate api keys'\]"),
            ({"k": 0}, "k must be at least 1, got 0"),
            ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
            ({"concurrency": (1, 0)}, "concurrency must be at least 1, got 0"),
            ({"retriever": object()}, "object has neither trace"),
        ],
    )
    def test_arguments_out_of_range(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            measure_latency(**({"retriever": Whole(Clock()), "queries": ["1"], "k": 7} | arguments))  # type: ignore[arg-type]

    def test_a_wrong_number_of_answers_is_a_failure(self) -> None:
        class Mute(Whole):
            def retrieve_many(self, queries: list[str], k: int) -> list[list[Hit]]:
                return []

        with pytest.raises(ArgumentError, match="0 lists of hits for 1 query"):
            LatencyRecorder(Mute(Clock()), 7).answer("1")


class TestRecorder:
    def test_hits_and_times_come_from_the_same_answers(self) -> None:
        clock = Clock()
        retriever = Staged(clock)
        recorder = LatencyRecorder(retriever, 7, clock=clock)
        assert [recorder.answer(query)[0].doc_id for query in ("10", "20")] == ["d10", "d20"]
        assert retriever.asked == [("10", 7), ("20", 7)]
        assert times(recorder.latency()) == {"encode": 1, "search": 9, "total": pytest.approx(12)}
        assert recorder.latency().queries_per_second == {}

    def test_errors_pass_through(self) -> None:
        retriever = Whole(Clock())
        recorder = LatencyRecorder(retriever, 7, clock=retriever.clock)
        for ask in (recorder.answer, lambda query: recorder.warm_up([query])):
            with pytest.raises(ModelError):
                ask("-1")
        assert isinstance(recorder.first_error, ModelError)
        recorder.answer("1")
        assert recorder.latency().failures == 1

    def test_before_the_first_answer(self) -> None:
        with pytest.raises(LanceRerankError, match="none was asked"):
            LatencyRecorder(Whole(Clock()), 7).latency()


class TestKeeping:
    FULL = Latency(
        (StageLatency("search", 1.5, 2.5, 1 / 3, 1234), StageLatency("fts", 1.0, 2.0, 3.0, 1234, inside="search")),
        StageLatency("total", 10.0, 1999.5, 2000.0, 1234),
        {1: 10.1, 4: 1 / 3},
        k=10,
        candidates=100,
        n_queries=1234,
        warm_up=8,
        failures=1,
    )

    @pytest.mark.parametrize("latency", [FULL, traced_latency([trace(*HYBRID)], k=10)])
    def test_json_there_and_back(self, latency: Latency) -> None:
        written = latency.to_dict()
        assert json.loads(json.dumps(written)) == written
        assert Latency.from_dict(json.loads(json.dumps(written))) == latency
        assert Latency.from_dict(written | {"later": 1}) == latency

    def test_what_is_missing_is_named(self) -> None:
        values = self.FULL.to_dict()
        del values["total"]["p99"]
        with pytest.raises(ArgumentError, match="no StageLatency: it lacks p99"):
            Latency.from_dict(values)
        with pytest.raises(ArgumentError, match="no Latency: got None"):
            Latency.from_dict(None)  # type: ignore[arg-type]

    def test_it_prints_as_a_table(self) -> None:
        assert str(self.FULL).splitlines() == [
            "1,234 queries for k=10 (candidates=100), one at a time, after 8 of warm-up",
            "",
            "stage   p50 ms    p95 ms    p99 ms      n",
            "search    1.50      2.50      0.33  1,234",
            "  fts     1.00      2.00      3.00  1,234",
            "total    10.00  1,999.50  2,000.00  1,234",
            "",
            "10.1 queries a second at concurrency 1, 0.3 at concurrency 4",
            "1 query failed and left out",
        ]


class Slow(lr.BaseReranker):
    def score_texts(self, query, texts):
        time.sleep(0.05)
        return np.zeros(len(texts))


class Ones:
    dim = 8
    fingerprint = None

    def encode_queries(self, texts):
        return np.ones((len(texts), 8), np.float32)

    encode_documents = encode_queries


class TestRetriever:
    @pytest.mark.parametrize(
        ("query_type", "legs"), [("hybrid", ["fts", "vector"]), ("vector", ["vector"]), ("fts", ["fts"])]
    )
    @pytest.mark.parametrize("reranker", [None, Slow()])
    def test_stages(self, docs, query_type, legs, reranker) -> None:
        encoder = None if query_type == "fts" else Ones()
        retriever = lr.Retriever(docs, query_type=query_type, candidates=30, encoder=encoder, reranker=reranker)
        latency = measure_latency(retriever, ["api keys", "bake bread", "the cat"], 5, concurrency=(), warm_up=1)
        assert [stage.name for stage in latency.stages] == ["encode", "search", *legs, "rerank"]
        assert [stage.name for stage in latency.stages if stage.inside] == legs
        median = times(latency)
        assert all(median[leg] <= latency.stages[1].p99 for leg in legs)
        assert median["total"] >= max(median["search"], median["rerank"])
        assert (median["rerank"] >= 50) is (reranker is not None)
        assert (latency.k, latency.candidates, latency.n_queries) == (5, 30, 3)

    def test_a_total_is_the_stages_and_what_lies_between(self, docs) -> None:
        retriever = lr.Retriever(docs, candidates=30, encoder=Ones(), reranker=Slow())
        latency = measure_latency(retriever, ["api keys"], 5, concurrency=())
        stages = sum(stage.p50 for stage in latency.stages if not stage.inside)
        assert 50 < stages <= latency.total.p50

    def test_the_hits_are_those_of_retrieve(self, docs) -> None:
        retriever = lr.Retriever(docs, candidates=30, encoder=Ones())
        recorder = LatencyRecorder(retriever, 5)
        assert recorder.answer("api keys") == retriever.retrieve("api keys", 5)

    def test_four_waiting_rerankers_answer_four_times_as_many(self, docs) -> None:
        retriever = lr.Retriever(docs, query_type="fts", candidates=20, reranker=Slow())
        rates = measure_latency(retriever, ["api keys", "bake bread"] * 8, 5).queries_per_second
        assert list(rates) == [1, 4]
        assert rates[1] < 1 / 0.05
        assert rates[4] < 4 / 0.05
        assert rates[4] / rates[1] > 2.5


def test_importing_it_loads_neither_torch_nor_lancedb() -> None:
    check = "import sys, lance_rerank.evaluation.latency; sys.exit(any(m in sys.modules for m in ('torch', 'lancedb')))"
    subprocess.run([sys.executable, "-c", check], check=True)


class TestInAnEvaluation:
    """Quality and latency of the same answers, at the same depth."""

    @pytest.fixture
    def judged(self):
        queries = [Query(f"q{i}", f"words {i}") for i in range(20)]
        return Dataset.from_memory(queries, [Qrel(query.query_id, "d1", 1) for query in queries])

    class Asked:
        def __init__(self):
            self.calls = []

        def retrieve_many(self, queries, k):
            self.calls.append((tuple(queries), k))
            if "words 7" in queries:
                raise RuntimeError("out of memory")
            return [[Hit("d1", 1.0, 1)] for _ in queries]

    def test_queries_are_asked_one_at_a_time_at_the_depth_of_the_measures(self, judged):
        asked = self.Asked()
        result = evaluate({"a": asked}, judged, ["RR@30"], latency=True, on_error="count")
        assert {(len(queries), k) for queries, k in asked.calls} == {(1, 30)}
        # 8 of warm-up, 20 that are judged, and the 19 that were answered again at each concurrency
        assert len(asked.calls) == 8 + 20 + 2 * 19
        taken = result.latency["a"]
        assert (taken.k, taken.n_queries, taken.warm_up, taken.failures) == (30, 19, 8, 1)
        assert set(taken.queries_per_second) == {1, 4}
        assert result.failures["a"] == {"q7": "RuntimeError: out of memory"}
        assert result.means["a"]["RR@30"] == pytest.approx(19 / 20)
        assert result.milliseconds["a"] > 0

    def test_the_result_prints_percentiles_and_survives_json(self, judged):
        result = evaluate({"a": self.Asked(), "b": self.Asked()}, judged, ["RR@10"], latency=True, on_error="count")
        head = str(result).splitlines()[2].split()
        assert head == ["retriever", "RR@10", *["p50", "ms", "p95", "ms", "p99", "ms", "q/s", "x1", "q/s", "x4"]]
        assert EvaluationResult.from_json(result.to_json()) == result

    def test_without_it_queries_go_in_blocks(self, judged):
        asked = self.Asked()
        assert evaluate({"a": asked}, judged, ["RR@10"], on_error="count").latency == {}
        assert len(asked.calls[0][0]) == 20

    def test_a_wrong_number_of_lists_is_no_failure_of_a_query(self, judged):
        class Twice:
            def retrieve_many(self, queries, k):
                return [[]] * (len(queries) + 1)

        with pytest.raises(ArgumentError, match="returned 2 lists of hits for 1 query"):
            evaluate({"a": Twice()}, judged, ["RR@10"], latency=True, on_error="count")

    def test_what_failed_is_not_the_fastest(self, judged):
        class Broken:
            def retrieve_many(self, queries, k):
                raise RuntimeError("out of memory")

        for latency in (True, False):
            retrievers = {"broken": Broken(), "asked": self.Asked()}
            result = evaluate(retrievers, judged, ["RR@10"], latency=latency, on_error="count")
            broken = next(line.split() for line in str(result).splitlines() if line.startswith("broken"))
            assert set(broken[2:]) == {"-"}

    def test_a_retriever_that_always_fails_has_no_times(self, judged):
        class Broken:
            def retrieve_many(self, queries, k):
                raise RuntimeError("out of memory")

        result = evaluate({"a": Broken()}, judged, ["RR@10"], latency=True, on_error="count")
        assert result.latency == {}
        assert len(result.failures["a"]) == 20
