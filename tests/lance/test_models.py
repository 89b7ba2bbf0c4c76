"""A model that was trained on under its old name is refused by the column that the older one filled."""

from __future__ import annotations

from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS

import lance_rerank as lr
from lance_rerank import lance as ours
from lance_rerank.errors import ColumnError
from lance_rerank.fingerprint import fills, sketch

DIM = 24


def vectors_of(texts: Any, seed: int) -> list[Any]:
    return [np.random.default_rng([seed, *text.encode()]).standard_normal(DIM).astype(np.float32) for text in texts]


@register("test-trainable")
class Trainable(TextEmbeddingFunction):
    """A model whose weights lie in a place that has one name, whatever is in them."""

    name: str = "models/embedder"
    query_prompt: bool = False

    weights: ClassVar[int] = 0
    asked: ClassVar[int] = 0

    def ndims(self) -> int:
        return DIM

    def generate_embeddings(self, texts: Any) -> list[Any]:
        Trainable.asked += 1
        return vectors_of(texts, Trainable.weights)

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        return vectors_of([f"query: {query}" if self.query_prompt else query], Trainable.weights)


class Encoder:
    """The same model as an encoder."""

    dim = DIM

    def __init__(self, weights: int, fingerprint: str | None = None) -> None:
        self.weights = weights
        self.fingerprint = fingerprint

    def encode_queries(self, texts: Any) -> Any:
        return np.stack(vectors_of(texts, self.weights))

    encode_documents = encode_queries


@pytest.fixture(autouse=True)
def untrained():
    Trainable.weights = Trainable.asked = 0
    yield
    Trainable.weights = 0


@pytest.fixture
def noted(tmp_path):
    """A table whose column says which model filled it."""
    function = get_registry().get("test-trainable").create()
    schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), DIM))])
    config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=function)
    table = lancedb.connect(tmp_path).create_table("t", schema=schema, embedding_functions=[config])
    table.add([{"id": i, "text": f"text {i}"} for i in range(8)])
    table.create_index("text", config=FTS())
    ours.update_schema_metadata(table, {ours.model_key("vector"): sketch(Encoder(0), "models/embedder")})
    table.checkout_latest()
    return table


def opened(table):
    return ours.connect(table._conn.uri).open_table("t")


def anew(table):
    return lancedb.connect(table._conn.uri).open_table("t")


@pytest.mark.parametrize(
    "search",
    [
        lambda table: opened(table).search("text 3").limit(1).to_list(),
        lambda table: opened(table).search("text 3", query_type="hybrid").limit(1).to_list(),
        lambda table: lr.hybrid(anew(table), "text 3").limit(1).to_list(),
        lambda table: lr.Retriever(anew(table), query_type="vector").retrieve("text 3", 1),
        lambda table: lr.Retriever(table, encoder=Encoder(Trainable.weights)).retrieve("text 3", 1),
    ],
    ids=["followed", "followed hybrid", "our hybrid", "retriever", "retriever with an encoder"],
)
def test_a_model_that_was_trained_on_is_refused(noted, search):
    assert search(noted)
    Trainable.weights = 1
    with pytest.raises(ColumnError, match="column 'vector' was filled by models/embedder"):
        search(noted)


async def test_an_async_search_refuses_it_too(noted):
    db = await lancedb.connect_async(noted._conn.uri)
    search = await lr.hybrid_async(await db.open_table("t"), "text 3")
    assert (await search.limit(1).to_arrow()).num_rows == 1
    Trainable.weights = 1
    with pytest.raises(ColumnError, match="as it was then, not as it is now"):
        await lr.hybrid_async(await db.open_table("t"), "text 3")


def test_a_handle_asks_once(noted):
    table = opened(noted)
    asked = Trainable.asked
    for _ in range(3):
        table.search("text 3").to_list()
    assert Trainable.asked == asked + 1


def test_a_prompt_for_queries_is_another_matter(noted):
    function = get_registry().get("test-trainable").create(query_prompt=True)
    config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=function)
    metadata = get_registry().get_table_metadata([config])
    entries = metadata[ours.EMBEDDING_FUNCTIONS].decode()
    ours.update_schema_metadata(noted, {ours.EMBEDDING_FUNCTIONS: entries})
    assert opened(noted).search("text 3").limit(1).to_list()


def test_what_is_not_known_is_not_refused(noted):
    ours.update_schema_metadata(noted, {ours.model_key("vector"): None})
    Trainable.weights = 1
    assert opened(noted).search("text 3").to_list()


def test_encoders_that_say_who_they_are_are_believed():
    made = sketch(Encoder(0), "m")
    assert fills(Encoder(1, made), made)
    assert fills(Encoder(0, "mine"), made)  # says it in words of its own: asked
    assert not fills(Encoder(1, "mine"), made)
    assert fills(Encoder(1, "mine"), "mine")
    assert not fills(Encoder(1, "mine"), "yours")
    assert fills(Encoder(1), "yours")  # nothing to compare


def test_vectors_that_a_caller_passes_are_not_questioned(noted):
    Trainable.weights = 1
    assert opened(noted).search(vectors_of(["text 3"], 0)[0]).limit(1).to_list()[0]["text"] == "text 3"
