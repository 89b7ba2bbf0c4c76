"""Fixtures that several rooms share: tiny models, built once a session, and tables to search."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a model hub fails at once
os.environ.setdefault("LANCEDB_LOG", "error")
# torch's threads spin while they wait: on a busy machine two are many times slower than one
os.environ["OMP_NUM_THREADS"] = "1"

import lancedb
import numpy as np
import pytest
from lancedb.index import FTS

from lance_rerank import testing


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    """The folder of a sentence-transformers model of 32 dimensions."""
    return testing.save_tiny_encoder(tmp_path_factory.mktemp("tiny-encoder"))


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory) -> str:
    """The folder of a cross-encoder with a random head."""
    return testing.save_tiny_cross_encoder(tmp_path_factory.mktemp("tiny-cross-encoder"))


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path / "db")


TEXTS = [
    "rotate the api keys of a user",
    "bake bread in the morning",
    "read a file and write it back",
    "the cat and the dog",
    "how to bake a cake for the cat",
    "api keys are not to be committed to a file",
    "what is a key",
    "write to the user",
]


@pytest.fixture
def docs(db):
    """240 rows with id, text, lang and an 8-dimensional vector, indexed for full-text search."""
    rng = np.random.default_rng(7)
    rows = [
        {
            "id": i,
            "text": f"{TEXTS[i % len(TEXTS)]} number {i}",
            "lang": "en" if i % 2 else "de",
            "vector": rng.standard_normal(8).astype(np.float32),
        }
        for i in range(240)
    ]
    table = db.create_table("docs", rows)
    table.create_index("text", config=FTS(stem=True, remove_stop_words=True))
    return table
