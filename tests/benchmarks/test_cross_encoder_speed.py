"""How fast and how faithful `CrossEncoderReranker` is beside LanceDB's class of the same name, same weights."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import torch
from lancedb.rerankers import CrossEncoderReranker as LanceDBCrossEncoderReranker
from measure import medians, table
from scipy.stats import spearmanr

import lance_rerank as lr


def ragged_rows(texts: list[str], n: int, seed: int) -> pa.Table:
    """`n` passages of 5 to 115 words, 60 on average."""
    rng = random.Random(seed)
    cut = [" ".join(text.split()[: rng.randint(5, 115)]) for text in rng.sample(texts, n)]
    return pa.table({"text": cut, "_distance": pa.array(np.zeros(n, np.float32))})


def test_cross_encoder_is_four_times_as_fast_as_lancedbs(squad, squad_cross_encoder):
    torch.set_num_threads(2)
    texts = [d.text for d in squad.corpus()]
    query = next(iter(squad.queries.values()))
    theirs, theirs_bfloat16 = (
        LanceDBCrossEncoderReranker(squad_cross_encoder, device="cpu", trust_remote_code=False, model_kwargs=kwargs)
        for kwargs in ({}, {"dtype": "bfloat16"})
    )
    ours, exact = (
        lr.CrossEncoderReranker(squad_cross_encoder, device="cpu", precision=precision)
        for precision in ("auto", "float32")
    )
    rows = ragged_rows(texts, 100, seed=2)
    times = medians(
        7,
        lancedb=lambda: theirs.rerank_vector(query, rows),
        lancedb_bfloat16=lambda: theirs_bfloat16.rerank_vector(query, rows),
        ours=lambda: ours.rerank_vector(query, rows),
        ours_float32=lambda: exact.rerank_vector(query, rows),
    )
    table(
        "cross-encoder, 100 ragged pairs, CPU, 2 threads (medians of 7)",
        [
            ("", "ms", "against LanceDB"),
            *((n, f"{ms:.0f}", f"{times['lancedb'] / ms:.2f}x") for n, ms in times.items()),
        ],
    )
    assert times["lancedb"] / times["ours"] >= 4


def test_cross_encoder_in_bfloat16_ranks_as_in_float32(squad, squad_cross_encoder):
    texts = [d.text for d in squad.corpus()]
    queries = random.Random(1).sample(list(squad.queries.values()), 60)
    ours = lr.CrossEncoderReranker(squad_cross_encoder, device="cpu", precision="bfloat16")
    exact = lr.CrossEncoderReranker(squad_cross_encoder, device="cpu", precision="float32")
    correlations, same_top = [], 0
    for seed, query in enumerate(queries):
        sample = ragged_rows(texts, 100, seed)["text"].to_pylist()
        a, b = (np.asarray(reranker.score_texts(query, sample)) for reranker in (ours, exact))
        correlations.append(spearmanr(a, b).statistic)
        same_top += set(np.argsort(-a)[:10]) == set(np.argsort(-b)[:10])
    print(
        f"\n  bfloat16 against float32, {len(queries)} queries x 100 passages: "
        f"Spearman mean {np.mean(correlations):.5f}, least {min(correlations):.5f}; "
        f"same top 10 on {same_top / len(queries):.0%}"
    )
    assert np.mean(correlations) >= 0.999
    assert same_top / len(queries) >= 0.95
