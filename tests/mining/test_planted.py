"""Positives that are planted in other words are kept from among the negatives."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lancedb.index import FTS

import lance_rerank as lr

THINGS = ["key", "token", "password", "file", "folder", "table", "index", "query", "report", "invoice", "user", "group"]
DEEDS = ["rotate", "delete", "create", "rename", "copy", "move", "read", "write", "check", "print", "search", "sort"]
PLACES = ["cloud", "laptop", "office", "kitchen", "library", "garage", "archive", "station", "harbour", "airport"]
SYNONYMS = {"rotate": "renew", "delete": "remove", "create": "make", "copy": "duplicate", "check": "verify"}


def sentence(rng: random.Random, deed: str, thing: str) -> str:
    told = [rng.choice(THINGS + DEEDS + PLACES) for _ in range(14)]
    words = ["to", deed, "the", thing, "in", "the", rng.choice(PLACES), "one", "has", "to", *told]
    return " ".join(words)


def reworded(rng: random.Random, text: str) -> str:
    """Return a text with synonyms, less one word in eight, in another order."""
    words = [SYNONYMS.get(word, word) for word in text.split() if rng.random() > 0.125]
    at = rng.randrange(len(words))
    return " ".join([*words[at:], *words[:at]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import lancedb

    rng = random.Random(0)
    pairs = [(deed, thing) for deed in DEEDS for thing in THINGS]
    texts = {f"d{at}": sentence(rng, *pair) for at, pair in enumerate(pairs)}
    planted = {f"planted-{doc_id}": reworded(rng, text) for doc_id, text in texts.items()}
    rows = [{"id": doc_id, "text": text} for doc_id, text in (texts | planted).items()]
    table = lancedb.connect(tmp_path_factory.mktemp("planted")).create_table("docs", rows)
    table.create_index("text", config=FTS())
    queries = [lr.Query(f"q{at}", f"how to {deed} the {thing}") for at, (deed, thing) in enumerate(pairs)]
    return table, lr.Dataset.from_memory(queries, [lr.Qrel(f"q{at}", f"d{at}", 1) for at in range(len(pairs))])


def precision(result) -> float:
    """Return the part of the negatives that are no other wording of the query's positive."""
    right = [
        one.doc_id != f"planted-{query.positives[0].doc_id}" for query in result.examples for one in query.negatives
    ]
    assert len(right) > 900
    return float(np.mean(right))


@pytest.mark.parametrize("judge", ["tfidf", "bm25"])
def test_they_are_kept_out(world, judge):
    table, data = world
    assert precision(lr.mine_negatives(table, data, judge=judge)) >= 0.98


def test_without_guards_they_are_not(world):
    table, data = world
    assert precision(lr.mine_negatives(table, data, judge=None, near_duplicates=None)) < 0.98
