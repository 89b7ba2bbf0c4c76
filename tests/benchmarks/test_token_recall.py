"""How much of the exact first ten by MaxSim each first stage finds, on real data, and how long it takes."""

from __future__ import annotations

import time

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS, IvfRq
from measure import table

import lance_rerank as lr
from lance_rerank.multivector import Ragged, maxsim_many

N_QUERIES = 300
K = 10


@pytest.fixture(scope="module")
def docs(squad, tmp_path_factory):
    documents = list(squad.corpus())
    texts = [f"{d.title} {d.text}".strip() for d in documents]
    vectors = lr.SentenceEncoder().encode_documents(texts)
    made = lancedb.connect(tmp_path_factory.mktemp("squad")).create_table(
        "docs",
        pa.table(
            {
                "id": [d.doc_id for d in documents],
                "text": texts,
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            }
        ),
    )
    made.create_index("text", config=FTS(stem=True, remove_stop_words=True))
    lr.add_multivector_column(made, encoder=lr.ColBERTEncoder())
    lr.add_mean_vector_column(made)
    made.create_index("colbert", config=IvfRq(distance_type="cosine"))
    return made


def test_a_hundred_candidates_hold_the_exact_first_ten(docs, squad):
    encoder = lr.ColBERTEncoder()
    texts = list(squad.queries.values())[:N_QUERIES]
    tokens = encoder.encode_queries(texts)
    stored = docs.to_arrow()
    start = time.perf_counter()
    scores = maxsim_many(tokens, Ragged.from_arrow(stored.column("colbert")))
    brute = (time.perf_counter() - start) / len(texts)
    ids = np.array(stored.column("id").to_pylist())
    exact = [set(ids[np.argsort(-row, kind="stable")[:K]]) for row in scores]

    late = lr.LateInteractionReranker(encoder, table=docs)
    known = dict(zip(texts, tokens, strict=True))
    assert encoder.fingerprint  # made once, by encoding other texts
    encoder.encode_queries = lambda asked: [known[text] for text in asked]  # encoding is not what is compared

    def tokens_by(column, candidates):
        settings = {"encoder": encoder, "candidates": candidates, "vector_columns": column}
        return lr.Retriever(docs, query_type="multivector", **settings).retrieve

    def index_alone(query, k, refine=None):
        search = docs.search(known[query], vector_column_name="colbert").distance_type("cosine").limit(k)
        search = search if refine is None else search.refine_factor(refine)
        return [lr.Hit(row["id"], None, 1) for row in search.select(["id", "_distance"]).to_list()]

    def hybrid(candidates):
        sentence = lr.SentenceEncoder()
        made = lr.Retriever(docs, candidates=candidates, reranker=late, encoder=sentence)
        vectors = dict(zip(texts, sentence.encode_queries(texts), strict=True))
        sentence.encode_queries = lambda asked: np.array([vectors[text] for text in asked])
        return made.retrieve

    ways = {
        "LanceDB's index alone, limit 10": index_alone,
        "LanceDB's index alone, limit 10, refine 10": lambda query, k: index_alone(query, k, 10),
        "its index, 100 candidates, exact MaxSim": tokens_by("colbert", 100),
        "means, 100 candidates, exact MaxSim": tokens_by("colbert_mean", 100),
        "hybrid, 100 candidates a leg, exact MaxSim": hybrid(100),
        "hybrid, 50 candidates a leg, exact MaxSim": hybrid(50),
    }
    rows, recalls = [("", "recall of the exact top 10", "ms")], {}
    for name, retrieve in ways.items():
        retrieve(texts[0], K)
        times, shares = [], []
        for query, best in zip(texts, exact, strict=True):
            start = time.perf_counter()
            hits = retrieve(query, K)
            times.append(time.perf_counter() - start)
            shares.append(len(best & {hit.doc_id for hit in hits}) / K)
        recalls[name] = float(np.mean(shares))
        rows.append((name, f"{recalls[name]:.3f}", f"{np.median(times) * 1000:.1f}"))
    rows.append(("every stored vector in memory, many queries at once", "1.000", f"{brute * 1000:.1f}"))
    table(f"squad, {docs.count_rows():,} passages, {len(texts)} queries, query encoding not counted", rows)
    assert recalls["hybrid, 100 candidates a leg, exact MaxSim"] >= 0.97
    assert recalls["its index, 100 candidates, exact MaxSim"] >= 0.97
