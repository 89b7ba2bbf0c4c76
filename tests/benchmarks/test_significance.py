"""What the numbers of `evaluate` are worth, and what they cost."""

from __future__ import annotations

import random
import statistics
import time

import numpy as np
from measure import table

import lance_rerank as lr
from lance_rerank.evaluation.significance import compare, randomisation_p

SIMULATIONS = 10_000


def null_differences(rng: np.random.Generator, n_queries: int) -> np.ndarray:
    """Return differences of RR@10 between two retrievers that are alike: they agree on half of the queries."""
    values = np.array([0, *(1 / rank for rank in range(1, 11))])
    chances = np.array([0.25, 0.35, 0.12, 0.08, 0.05, 0.04, 0.03, 0.03, 0.02, 0.02, 0.01])
    first, second = rng.choice(values, (2, n_queries), p=chances)
    return np.where(rng.random(n_queries) < 0.5, 0.0, second - first)


def test_alike_retrievers_are_told_apart_in_five_cases_of_a_hundred():
    rates = {}
    for n_queries in (50, 100, 240):
        rng = np.random.default_rng(n_queries)
        p_values = [randomisation_p(null_differences(rng, n_queries), seed=i) for i in range(SIMULATIONS)]
        rates[n_queries] = float(np.mean(np.array(p_values) <= 0.05))
    table(
        f"rejected at 5 % of {SIMULATIONS:,} null simulations with RR@10",
        [("queries", "rejected"), *((str(n), f"{rate:.2%}") for n, rate in rates.items())],
    )
    assert all(0.04 <= rate <= 0.06 for rate in rates.values()), rates


def test_a_family_of_alike_retrievers_shows_a_difference_in_at_most_five_cases_of_a_hundred():
    rng = np.random.default_rng(0)
    n_queries, n_retrievers, tries = 100, 4, 1000
    values = np.array([0, *(1 / rank for rank in range(1, 11))])
    found = 0
    for i in range(tries):
        runs = rng.choice(values, (n_retrievers, n_queries))
        pairs = [(a, b) for a in range(n_retrievers) for b in range(a)]
        p_values = [randomisation_p(runs[a] - runs[b], resamples=2000, seed=i) for a, b in pairs]
        found += min(p_values) * len(pairs) <= 0.05  # where Holm's method rejects any, it rejects the least
    print(f"\nfamilies of {len(pairs)} null comparisons in which any is rejected: {found / tries:.1%}")
    assert found / tries <= 0.06


class Slow:
    """Takes 2 ms a query, and answers with documents drawn beforehand."""

    def __init__(self, answers: dict[str, list[lr.Hit]]) -> None:
        self.answers = answers
        self.seconds = 0.0

    def retrieve_many(self, queries, k):
        start = time.perf_counter()
        for _ in queries:
            time.sleep(0.002)
        found = [self.answers[query][:k] for query in queries]
        self.seconds += time.perf_counter() - start
        return found

    def cache_key(self):
        return "slow"


def test_evaluating_adds_less_than_a_tenth_to_the_searches(tmp_path):
    rng = random.Random(0)
    documents = [f"d{i}" for i in range(5_000)]
    texts = {f"q{i}": f"text {i}" for i in range(1_000)}
    data = lr.Dataset.from_memory(
        [lr.Query(*item) for item in texts.items()],
        [lr.Qrel(query, doc, rng.randint(0, 2)) for query in texts for doc in rng.sample(documents, 10)],
    )
    answers = {
        text: [lr.Hit(doc, 1.0, rank) for rank, doc in enumerate(rng.sample(documents, 100), 1)]
        for text in texts.values()
    }
    one = lr.Dataset.from_memory([lr.Query("q", "text 0")], [lr.Qrel("q", "d0", 1)])
    lr.evaluate({"imports": Slow(answers)}, one)
    rows = []
    for title, folders in (("in memory", [None] * 3), ("kept in a cache", [tmp_path / str(i) for i in range(3)])):
        shares = []
        for folder in folders:
            slow = Slow(answers)
            start = time.perf_counter()
            lr.evaluate({"slow": slow}, data, cache=folder)
            shares.append((time.perf_counter() - start) / slow.seconds - 1)
        rows.append((title, slow.seconds, statistics.median(shares)))
    table(
        "1,000 queries of 2 ms and 100 hits, four measures",
        [("", "searches", "added"), *((title, f"{seconds:.2f} s", f"{share:.1%}") for title, seconds, share in rows)],
    )
    assert all(share < 0.1 for _, _, share in rows), rows


def test_a_comparison_of_ten_thousand_queries_takes_seconds():
    start = time.perf_counter()
    compare("a", "b", "RR@10", null_differences(np.random.default_rng(0), 10_000))
    seconds = time.perf_counter() - start
    print(f"\ncomparing two retrievers on 10,000 queries: {seconds:.1f} s")
    assert seconds < 10
