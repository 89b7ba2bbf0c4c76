"""What it costs a query that its times are taken."""

from __future__ import annotations

import statistics
import time

from measure import table

from lance_rerank.evaluation.latency import LatencyRecorder
from lance_rerank.search.trace import Trace
from lance_rerank.stages import Stage
from lance_rerank.types import Hit

N_QUERIES = 10_000
STAGES = tuple(Stage(name, 1.0) for name in ("encode", "fts", "vector", "search", "rerank"))


class Instant:
    """A retriever that takes no time, so that all that is measured is the measuring."""

    answer = Trace("a query", tuple(Hit(f"d{i}", 1.0, i) for i in range(1, 101)), (), STAGES)

    def trace(self, query: str, k: int) -> Trace:
        return self.answer


def microseconds(ask) -> list[float]:
    took = []
    for _ in range(N_QUERIES):
        start = time.perf_counter()
        ask()
        took.append((time.perf_counter() - start) * 1e6)
    return took


def test_recording_costs_less_than_a_tenth_of_a_millisecond_a_query():
    recorder = LatencyRecorder(Instant(), 100)
    bare = statistics.mean(microseconds(lambda: list(Instant().trace("a query", 100).hits)))
    recorded = statistics.mean(microseconds(lambda: recorder.answer("a query")))
    start = time.perf_counter()
    latency = recorder.latency()
    summed_up = (time.perf_counter() - start) * 1e6 / N_QUERIES
    table(
        f"taking the times of {N_QUERIES:,} queries with five stages (mean of a query)",
        [("recording", f"{recorded - bare:.1f} µs"), ("summing up", f"{summed_up:.1f} µs")],
    )
    assert latency.n_queries == N_QUERIES
    assert recorded - bare + summed_up < 100
