"""The Tantivy leg beside LanceDB's own full-text leg: time, upkeep, quality."""

from __future__ import annotations

import time

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS
from measure import medians, table
from tables import DIM, synthetic_table

import lance_rerank as lr

K = 100


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return synthetic_table(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="module")
def index(docs, tmp_path_factory):
    made = lr.TantivyIndex.open(tmp_path_factory.mktemp("tantivy"), table=docs)
    made.sync()
    return made


def queries(n=50):
    rng = np.random.default_rng(5)
    return [" ".join(f"w{i}" for i in rng.integers(20, 2000, 3)) for _ in range(n)]


def test_the_legs(docs, index):
    asked = queries()
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(DIM).astype(np.float32)
    turn = dict.fromkeys(range(20), 0)

    def next_query(which):
        turn[which] += 1
        return asked[turn[which] % len(asked)]

    def native(which, query_type="fts", where=None):
        search = docs.search(next_query(which), query_type=query_type).limit(K).select(["id", "_score"])
        return (search if where is None else search.where(where, prefilter=True)).to_arrow()

    def hybrid(which, **arguments):
        search = lr.hybrid(docs, next_query(which), vector=vector, **arguments)
        return search.candidates(K).limit(10).select(["id"]).to_arrow()

    rare = "id % 100 = 7"
    plain = lr.Retriever(docs, query_type="fts", lexical=index, candidates=10)
    filtered = lr.Retriever(docs, query_type="fts", lexical=index, candidates=10, where=rare)
    times = medians(
        51,
        native_ids=lambda: native(0),
        tantivy_ids=lambda: index.matches(next_query(1), K),
        native_hybrid=lambda: hybrid(2),
        tantivy_hybrid=lambda: hybrid(3, lexical=index),
        tantivy_10=lambda: plain.retrieve(next_query(4), 10),
        tantivy_10_of_1_percent=lambda: filtered.retrieve(next_query(5), 10),
    )
    table("20,000 documents of 50 to 130 words (medians of 51)", [(n, f"{ms:.2f} ms") for n, ms in times.items()])
    print(f"  ids of {K} rows: {times['native_ids'] / times['tantivy_ids']:.1f}x as fast as the native leg")
    print(f"  hybrid: {times['tantivy_hybrid'] / times['native_hybrid']:.2f}x the time of the native leg")
    print(
        f"  a filter that keeps 1 %: {times['tantivy_10_of_1_percent'] / times['tantivy_10']:.1f}x the unfiltered time"
    )

    keys = set(docs.search().where(rare).select(["id"]).limit(1000).to_arrow()["id"].to_pylist())
    for query in asked[:10]:
        every = index.matches(query, 20_000)
        best = [str(key) for key in every.keys if key in keys][:10]
        assert [hit.doc_id for hit in filtered.retrieve(query, 10)] == best
    assert times["native_ids"] / times["tantivy_ids"] >= 5
    assert times["tantivy_hybrid"] <= times["native_hybrid"]
    assert times["tantivy_10_of_1_percent"] / times["tantivy_10"] <= 3


def test_upkeep_costs_what_changed(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(5_000)])
    n = 100_000
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (n, 25))]]
    made = lancedb.connect(tmp_path / "db").create_table("docs", pa.table({"id": np.arange(n), "text": texts}))
    index = lr.TantivyIndex.open(tmp_path / "index", table=made)

    def timed(work):
        start = time.perf_counter()
        result = work()
        return result, time.perf_counter() - start

    _, build = timed(index.sync)
    made.update(where="id % 1000 = 3", values={"text": "w1 w2 w3"})
    updated, update = timed(index.sync)
    made.add(pa.table({"id": np.arange(n, n + 100), "text": ["w1 w2"] * 100}))
    added, add = timed(index.sync)
    made.optimize()
    compacted, compact = timed(index.sync)
    table(
        f"{n:,} passages of 25 words",
        [
            ("first build", f"{build:.2f} s", f"{n / build:,.0f} passages a second"),
            ("100 rows updated", f"{update * 1000:.0f} ms", f"{update / build:.1%} of the build"),
            ("100 rows added", f"{add * 1000:.0f} ms", f"{add / build:.1%}"),
            ("compaction", f"{compact * 1000:.0f} ms", f"{compact / build:.1%}"),
        ],
    )
    assert (updated.updated, added.added, compacted.updated + compacted.added) == (100, 100, 0)
    assert n / build >= 15_000
    assert update / build < 0.05
    assert add / build < 0.05


@pytest.mark.parametrize("name", ["nl2bash", "squad"])
def test_quality_is_that_of_the_native_leg(data_folder, tmp_path, name):
    """English stems, stop words left out, accents folded on both sides; titles are part of the text."""
    data = lr.Dataset.from_beir(data_folder / name, split="test")
    documents = list(data.corpus())
    encoder = lr.SentenceEncoder()
    texts = [f"{d.title} {d.text}".strip() for d in documents]
    vectors = encoder.encode_documents(texts)
    made = lancedb.connect(tmp_path / "db").create_table(
        "docs",
        pa.table(
            {
                "id": [d.doc_id for d in documents],
                "text": texts,
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            }
        ),
    )
    made.create_index("text", config=FTS(stem=True, remove_stop_words=True, ascii_folding=True))
    index = lr.TantivyIndex.open(tmp_path / "index", table=made)
    index.sync()
    ways = {
        "native fts": lr.Retriever(made, query_type="fts"),
        "tantivy fts": lr.Retriever(made, query_type="fts", lexical=index),
        "native hybrid": lr.Retriever(made, encoder=encoder),
        "tantivy hybrid": lr.Retriever(made, encoder=encoder, lexical=index),
    }
    result = lr.evaluate(ways, data, ["nDCG@10", "R@100"])
    print(f"\n{result}")
    print(result.compare("native fts", "tantivy fts"))
    print(result.compare("native hybrid", "tantivy hybrid"))
    assert result.means["tantivy fts"]["nDCG@10"] >= result.means["native fts"]["nDCG@10"] - 0.01
    assert result.means["tantivy hybrid"]["nDCG@10"] >= result.means["native hybrid"]["nDCG@10"] - 0.01
