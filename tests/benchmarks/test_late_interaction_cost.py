"""What reranking by stored token vectors costs beside reading the same rows, and beside encoding them."""

from __future__ import annotations

import lancedb
import numpy as np
import pytest
import torch
from lancedb.index import FTS
from measure import medians, table
from tables import DIM, RandomTokens, synthetic_table

import lance_rerank as lr
from lance_rerank import lance

N = 100


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return synthetic_table(tmp_path_factory.mktemp("synthetic"))


def candidates(docs, seed):
    rng = np.random.default_rng(seed)
    search = docs.search(rng.standard_normal(DIM).astype(np.float32), vector_column_name="vector")
    return search.limit(N).select(["id", "_distance"]).with_row_id(True).to_arrow()


def test_the_step_costs_little_more_than_reading_the_vectors(docs):
    encoder = RandomTokens()
    tokens = encoder.encode_queries(["query"])
    encoder.encode_queries = lambda texts: tokens
    late = lr.LateInteractionReranker(encoder, table=docs)
    found = [candidates(docs, seed) for seed in range(40)]
    turn = {"take": 0, "late": 0}

    def rows(name):
        turn[name] += 1
        return found[turn[name] % len(found)]

    times = medians(
        80,
        take=lambda: lance.take_rows(docs, rows("take")["_rowid"].to_numpy(), ["colbert"]),
        late=lambda: late.rerank_vector("query", rows("late")),
    )
    table(
        "100 candidates of 20,000 documents of about 90 x 128, float16 (medians of 80)",
        [
            ("take_row_ids of their vectors", f"{times['take']:.2f} ms"),
            ("late interaction: read, score, sort", f"{times['late']:.2f} ms"),
            ("ratio", f"{times['late'] / times['take']:.2f}x"),
        ],
    )
    assert encoder.documents_encoded == 0
    assert times["late"] / times["take"] <= 1.4


def test_the_step_is_a_hundred_times_faster_than_encoding_at_query_time(squad, tmp_path):
    """On real passages with MiniLM on both sides, as LanceDB's ColbertReranker works: it encodes every candidate."""
    documents = list(squad.corpus())[:600]
    made = lancedb.connect(tmp_path).create_table("docs", [{"id": d.doc_id, "text": d.text} for d in documents])
    made.create_index("text", config=FTS())
    encoder = lr.ColBERTEncoder()
    lr.add_multivector_column(made, encoder=encoder)
    query = next(iter(squad.queries.values()))
    rows = made.search().limit(N).with_row_id(True).select(["id", "text"]).to_arrow()
    stored = lr.LateInteractionReranker(encoder, table=made)
    encoded = lr.LateInteractionReranker(encoder, vectors=None)
    whole = medians(
        5, stored=lambda: stored.rerank_vector(query, rows), encoded=lambda: encoded.rerank_vector(query, rows)
    )
    assert stored.documents_encoded == 0
    tokens = encoder.encode_queries([query])
    encode_query = medians(15, query=lambda: encoder.encode_queries([query]))["query"]
    encoder.encode_queries = lambda texts: tokens
    step = medians(
        5, stored=lambda: stored.rerank_vector(query, rows), encoded=lambda: encoded.rerank_vector(query, rows)
    )
    table(
        "100 passages of squad, all-MiniLM-L6-v2, 384 dimensions (medians of 5)",
        [
            ("", "stored", "encoded at query time", "ratio"),
            *(
                (name, f"{ms['stored']:.1f} ms", f"{ms['encoded']:.0f} ms", f"{ms['encoded'] / ms['stored']:.0f}x")
                for name, ms in (("the step alone", step), ("with the query encoded", whole))
            ),
            ("encoding the query", f"{encode_query:.1f} ms", "", ""),
        ],
    )
    assert step["encoded"] / step["stored"] >= 100
