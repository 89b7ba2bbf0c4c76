"""Whether mining keeps other wordings of positives out, on real data: each positive is planted in the table reworded.

The planted rows have no judgement, so that nothing but the guards keeps them from among the negatives.
"""

from __future__ import annotations

import random
import re
import time

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS
from measure import table as print_table

import lance_rerank as lr

QUERIES = 1000
SETS = ("squad", "nl2bash")
JUDGES = ("tfidf", "bm25")
SYNONYMS = dict(
    pair
    for group in (
        "large big, small little, begin start, end finish, show display, print output, make create, delete remove",
        "find locate, file document, folder directory, often frequently, many numerous, people persons, city town",
        "country nation, war conflict, king monarch, first initial, main principal, important significant, use employ",
        "used employed, called named, known recognised, became turned, made created, built constructed, said stated",
        "also too, but however, because since, about around, during throughout, over above, under below, year annum",
        "old ancient, new recent, fast quick, help aid, need require, get obtain, keep retain, allow permit",
    )
    for couple in group.split(", ")
    for pair in (couple.split(), couple.split()[::-1])
)


def reworded(text: str, rng: random.Random) -> str:
    """Return a text less one word in eight, with synonyms, its sentences or parts of a pipe in another order."""
    parts = re.split(r"(?<=[.;|])\s+", text)
    rng.shuffle(parts)
    words = [SYNONYMS.get(word.lower(), word) for part in parts for word in part.split()]
    kept = [word for word in words if len(words) < 4 or rng.random() > 0.125]
    if len(kept) > 3:
        at = rng.randrange(len(kept) - 1)
        kept[at], kept[at + 1] = kept[at + 1], kept[at]
    return " ".join(kept)


class Planted:
    """A data set's table with a reworded copy of every positive of its sampled training queries."""

    def __init__(self, data: lr.Dataset, folder) -> None:
        rng = random.Random(0)
        self.queries = lr.TrainingSet.from_dataset(data.train).sample(QUERIES)
        positives = {one.doc_id: one.text for query in self.queries for one in query.positives}
        self.planted = {f"planted-{doc_id}": reworded(text, rng) for doc_id, text in positives.items()}
        self.sources = {query.query_id: {one.doc_id for one in query.positives} for query in self.queries}
        texts = {one.doc_id: f"{one.title} {one.text}".strip() for one in data.corpus()} | self.planted
        encoder = lr.SentenceEncoder()
        vectors = encoder.encode_documents(list(texts.values()))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = pa.table({"id": list(texts), "text": list(texts.values()), "vector": column})
        self.table = lancedb.connect(folder).create_table("docs", rows)
        self.table.create_index("text", config=FTS())
        self.retriever = lr.Retriever(self.table, query_type="vector", encoder=encoder)

    def count(self, examples: lr.TrainingSet) -> tuple[int, int]:
        """Return how many negatives were mined, and how many of them are a positive of their query reworded."""
        mined = [(query.query_id, one.doc_id) for query in examples for one in query.negatives]
        own = [doc_id.removeprefix("planted-") in self.sources[query_id] for query_id, doc_id in mined]
        planted = [doc_id.startswith("planted-") for _, doc_id in mined]
        return len(mined), int(np.sum(np.array(own) & np.array(planted)))


@pytest.fixture(scope="module")
def planted(data_folder, tmp_path_factory):
    made: dict[str, Planted] = {}

    def get(name: str) -> Planted:
        if name not in made:
            made[name] = Planted(lr.Dataset.from_beir(data_folder / name, split="train"), tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", SETS)
def test_reworded_positives_are_kept_out(planted, name):
    data = planted(name)
    settings = {judge: {"judge": judge} for judge in JUDGES}
    settings["no guards"] = {"judge": None, "near_duplicates": None}
    settings["tfidf, margin alone"] = {"judge": "tfidf", "near_duplicates": None}
    settings["tfidf, wordings alone"] = {"judge": "tfidf", "margin": None}
    rows = [("judge", "negatives", "a query", "planted", "precision", "queries/s")]
    precision = {}
    for label, setting in settings.items():
        started = time.perf_counter()
        result = lr.mine_negatives(data.retriever, data.queries, per_query=7, **setting)
        seconds = time.perf_counter() - started
        kept, wrong = data.count(result.examples)
        precision[label] = 1 - wrong / kept
        n = result.report.queries
        rows.append(
            (label, f"{kept:,}", f"{kept / n:.2f}", f"{wrong}", f"{precision[label]:.4f}", f"{n / seconds:.0f}")
        )
        print(f"\n{name}, {label}\n{result.report}")
    print_table(f"{name}: {QUERIES} training queries, each positive planted in other words", rows)
    assert min(precision[judge] for judge in JUDGES) >= 0.98
    assert precision["no guards"] < min(precision[judge] for judge in JUDGES)
