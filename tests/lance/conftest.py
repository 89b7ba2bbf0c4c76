"""A table whose column can be swapped, and models by which each text is nearest to another row than by the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig, TextEmbeddingFunction, get_registry, register
from lancedb.index import FTS

from lance_rerank import lance as ours

N_DOCS = 16


@register("test-shifting")
class ShiftingModel(TextEmbeddingFunction):
    """Text number i points along axis i + shift: by a model of another shift it is the neighbour of another text."""

    shift: int = 0
    dim: int = N_DOCS

    before_embedding: ClassVar[Callable[[], None] | None] = None
    """Called once, before the next text is embedded."""

    def ndims(self) -> int:
        return self.dim

    def generate_embeddings(self, texts: Any) -> list[Any]:
        if hook := ShiftingModel.before_embedding:
            ShiftingModel.before_embedding = None
            hook()
        return [vector_of(text, self.shift, self.dim) for text in texts]


def vector_of(text: str, shift: int, dim: int = N_DOCS) -> list[float]:
    vector = np.zeros(dim, np.float32)
    vector[(int(text.split()[-1]) + shift) % N_DOCS] = 1
    return vector.tolist()


class SwapTable:
    """16 rows "text 0", "text 1", ... with vectors by the model of shift 0, and by others in hidden columns."""

    swap = ours.ColumnSwap(live="vector", shadow="vector_next", retired="vector_prev")
    vector_of = staticmethod(vector_of)

    def __init__(self, place: Path) -> None:
        self.place = place
        function = get_registry().get("test-shifting").create(shift=0, dim=N_DOCS)
        vectors = pa.list_(pa.float32(), N_DOCS)
        schema = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", vectors)], metadata={"app": "1"})
        config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=function)
        self.table = lancedb.connect(place).create_table("t", schema=schema, embedding_functions=[config])
        self.table.add([{"id": i, "text": f"text {i}"} for i in range(N_DOCS)])
        self.table.create_index("text", config=FTS())

    @staticmethod
    def entry(column: str = "vector", shift: int = 0, dim: int = N_DOCS) -> dict[str, Any]:
        """What LanceDB's metadata say of the model of a column."""
        model = {"shift": shift, "dim": dim}
        return {"name": "test-shifting", "model": model, "source_column": "text", "vector_column": column}

    def add_shadow(self, shift: int = 5, dim: int = N_DOCS, of: Any = None) -> None:
        """Fill the shadow column with another model's vectors."""
        of = of or pa.float32()
        ours.add_hidden_column(self.table, self.swap.shadow, pa.fixed_shape_tensor(of, [dim]), {})
        self.fill(self.swap.shadow, lambda text: vector_of(text, shift, dim), pa.list_(of, dim))

    def fill(self, column: str, value: Callable[[str], Any], storage: pa.DataType) -> None:
        """Give each row its value in a column, as a backfill does."""
        data = ours.dataset(self.table)
        for fragment in data.get_fragments():
            values: list[Any] = [None] * fragment.physical_rows
            texts = fragment.scanner(columns=["text"]).to_table()["text"].to_pylist()
            for place, text in zip(ours.live_places(fragment), texts, strict=True):
                values[place] = value(text)
            path = ours.write_column_file(data, column, iter([pa.array(values, storage)]), storage)
            ours.replace_column(data, fragment.fragment_id, path)
            data = ours.dataset(self.table)
        self.table.checkout_latest()

    def swap_to(self, shift: int, dim: int = N_DOCS, swap: ours.ColumnSwap | None = None) -> ours.SchemaCommit:
        """Swap the columns, the live one then being by the model of this shift."""
        functions = [self.entry(shift=shift, dim=dim)]
        return ours.swap_columns(self.table, swap or self.swap, embedding_functions=functions)

    def another_handle(self) -> Any:
        """What another process has open, at the version of now."""
        handle = lancedb.connect(self.place).open_table("t")
        assert handle.version
        return handle

    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of the latest version by their id."""
        return {row["id"]: row for row in ours.dataset(self.table).to_table().to_pylist()}


@pytest.fixture
def make(tmp_path) -> Callable[[], SwapTable]:
    """Makes tables, each in a database of its own."""
    numbers = itertools.count()
    return lambda: SwapTable(tmp_path / f"db{next(numbers)}")


@pytest.fixture
def swappable(make) -> SwapTable:
    return make()


@pytest.fixture
def before_embedding() -> Any:
    """Sets what happens once, right before the next text is embedded."""
    yield lambda hook: setattr(ShiftingModel, "before_embedding", staticmethod(hook))
    ShiftingModel.before_embedding = None


@pytest.fixture
def before_commit(monkeypatch) -> Callable[..., None]:
    """Sets what happens right before the next commits, one thing a commit, after the version was read."""
    from lance_rerank.lance import commits

    original = commits.commit

    def set_hooks(*hooks: Callable[[], Any]) -> None:
        waiting = list(hooks)

        def commit(data: Any, operation: Any) -> Any:
            if waiting:
                waiting.pop(0)()
            return original(data, operation)

        monkeypatch.setattr(commits, "commit", commit)

    return set_hooks
