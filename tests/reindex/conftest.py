"""Models a person can compute by hand, and tables that are searched by one of them.

Subprocesses of the tests import this file as a module.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS

DIM = 8


def vector_of(text: str, seed: int, dim: int = DIM) -> np.ndarray:
    """The one vector that a model has for a text."""
    drawn = np.random.default_rng([seed, *hashlib.blake2b(text.encode(), digest_size=8).digest()])
    return drawn.standard_normal(dim).astype(np.float32)


class HashEncoder:
    """A model of `seed`. It counts the texts it is given, and runs what a test put in `before` at each batch."""

    fingerprint = None

    def __init__(self, seed: int = 2, dim: int = DIM):
        self.seed, self.dim = seed, dim
        self.texts: list[str] = []
        self.batches = 0
        self.before = lambda batch: None
        self.answer = lambda vectors: vectors

    def encode_queries(self, texts):
        return np.array([vector_of(text, self.seed, self.dim) for text in texts]).reshape(-1, self.dim)

    def encode_documents(self, texts):
        if not set(texts) <= PROBES:
            self.batches += 1
            self.before(self.batches)
            self.texts += texts
        return self.answer(self.encode_queries(texts))

    def once(self, action):
        """Run `action` from within the next batch."""

        def act(_):
            self.before = lambda batch: None
            action()

        self.before = act


PROBES = {"What is the capital of France?", "Rotate the API key, then revoke it.", "def add(a, b): return a + b"}


@register("reindex-hash")
class HashFunction(TextEmbeddingFunction):
    """The same as a LanceDB function, which apps search by."""

    seed: int = 1
    dim: int = DIM
    scale: float = 1.0
    max_retries: int = 0

    def ndims(self):
        return self.dim

    def generate_embeddings(self, texts):
        return [self.scale * vector_of(text or "", self.seed, self.dim) for text in texts]


def function(**arguments):
    return get_registry().get("reindex-hash").create(**arguments)


def rows(start: int, stop: int) -> list[dict]:
    return [{"id": i, "text": f"text number {i} {'more ' * (i % 5)}".strip()} for i in range(start, stop)]


def make_table(db, name: str = "docs", parts: tuple[int, ...] = (20, 40, 60), **function_arguments):
    """A table of as many rows as the last part says, in a fragment each part, with vectors of seed 1."""
    config = EmbeddingFunctionConfig(
        source_column="text", vector_column="vector", function=function(seed=1, **function_arguments)
    )
    dim = function_arguments.get("dim", DIM)
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim)),
        ]
    )
    table = db.create_table(name, schema=schema, embedding_functions=[config])
    start = 0
    for stop in parts:
        table.add(rows(start, stop))
        start = stop
    return table


def assert_filled(table, plan, seed: int = 2) -> None:
    """Every row has the new model's vector of the very text it holds, and null where it has none."""
    table.checkout_latest()
    stored = table.to_lance().to_table(columns=["id", "text", plan.shadow])
    vectors = stored[plan.shadow].combine_chunks().storage.to_pylist()
    for row_id, text, vector in zip(stored["id"].to_pylist(), stored["text"].to_pylist(), vectors, strict=True):
        if text is None:
            assert vector is None, row_id
        else:
            assert vector is not None, (row_id, text)
            np.testing.assert_allclose(vector, vector_of(text, seed, plan.dim), rtol=1e-3, atol=1e-3, err_msg=text)


def files_under(folder) -> dict[str, int]:
    """Every file with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def open_docs(uri: str):
    return lancedb.connect(uri).open_table("docs")


@pytest.fixture(scope="session")
def fakes():
    """This file, for tests: they cannot import it by name."""
    import types

    return types.SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("__")})


@pytest.fixture
def encoder():
    return HashEncoder()


@pytest.fixture
def table(db):
    """60 rows in three fragments, searched by the function of seed 1, with a full-text index."""
    made = make_table(db)
    made.create_index("text", config=FTS())
    return made


@pytest.fixture
def other(table, tmp_path):
    """The same table as another process has it open."""
    return open_docs(str(tmp_path / "db"))
