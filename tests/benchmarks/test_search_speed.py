"""What over-fetching and late interaction cost on top of LanceDB's hybrid search, and what imports cost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import lancedb
import numpy as np
import pytest
import torch
from measure import medians, table
from tables import DIM, RandomTokens, synthetic_table

import lance_rerank as lr


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return synthetic_table(tmp_path_factory.mktemp("synthetic"))


def test_candidates_and_late_interaction_cost_little(docs):
    torch.set_num_threads(2)
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(DIM).astype(np.float32)
    query = "w40 w77 w310"
    late = lr.LateInteractionReranker(RandomTokens(), table=docs)
    columns = ["id", "text"]

    def stock():
        return docs.search(query_type="hybrid").vector(vector).text(query).select(columns).limit(100).to_arrow()

    def candidates():
        return lr.hybrid(docs, query, vector=vector).select(columns).candidates(100).limit(10).to_arrow()

    def with_late_interaction():
        return lr.hybrid(docs, query, vector=vector).select(columns).candidates(50).rerank(late).limit(10).to_arrow()

    def plain_50():
        return lr.hybrid(docs, query, vector=vector).select(columns).candidates(50).limit(10).to_arrow()

    times = medians(
        31, stock_100=stock, candidates_100=candidates, hybrid_2x50=plain_50, late_2x50=with_late_interaction
    )
    table(
        "hybrid search, 20,000 documents, 384 dimensions flat (medians of 31)",
        [(n, f"{ms:.2f} ms") for n, ms in times.items()],
    )
    print(
        f"  candidates(100).limit(10) against LanceDB's limit(100): {times['candidates_100'] / times['stock_100']:.2f}x"
    )
    print(f"  late interaction over 100 candidates adds {times['late_2x50'] / times['hybrid_2x50'] - 1:.0%}")
    assert times["candidates_100"] / times["stock_100"] <= 1.15
    assert times["late_2x50"] / times["hybrid_2x50"] <= 1.3
    assert late.encoder.documents_encoded == 0


class Slow(lr.BaseReranker):
    def score_texts(self, query, texts):
        time.sleep(0.5)
        return [0.0] * len(texts)


async def test_concurrent_async_queries_never_stall_the_loop(docs):
    vector = np.ones(DIM, np.float32)
    opened = await (await lancedb.connect_async(docs._conn.uri)).open_table("docs")
    stalls = []

    async def ticker():
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            stalls.append(time.perf_counter() - start - 0.01)

    async def one():
        search = await lr.hybrid_async(opened, "w40 w77", vector=vector)
        return await search.select(["id"]).candidates(50).rerank(Slow()).limit(10).to_arrow()

    await one()
    beat = asyncio.create_task(ticker())
    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(4)))
    wall = time.perf_counter() - start
    beat.cancel()
    print(
        f"\n  4 concurrent queries with a 0.5 s reranker: {wall:.3f} s, "
        f"longest stall of the loop {max(stalls) * 1000:.0f} ms"
    )
    assert wall < 0.8
    assert max(stalls) < 0.05


def test_imports_are_light():
    def seconds(*command):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    bare = min(seconds(sys.executable, "-c", "pass") for _ in range(3))
    imported = min(seconds(sys.executable, "-c", "import lance_rerank") for _ in range(3))
    command = "from lance_rerank.cli.app import main; main()"
    helped = min(seconds(sys.executable, "-c", command, "--help") for _ in range(3))
    print(
        f"\n  import lance_rerank: {imported - bare:.3f} s; lance-rerank --help: {helped:.3f} s, "
        f"the interpreter's {bare:.3f} s included"
    )
    assert imported - bare < 0.3
    assert helped < 0.5
