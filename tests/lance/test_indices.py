"""Indices by their columns, and names that follow the columns through a swap."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import BTree, HnswSq, IvfFlat, IvfPq, IvfRq

from lance_rerank import lance as ours
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, UnsupportedError


def indexed(table):
    """By index: the columns it is of, and how many rows it has and lacks."""
    stats = {index.name: (index.columns, table.index_stats(index.name)) for index in table.list_indices()}
    return {name: (columns, s.num_indexed_rows, s.num_unindexed_rows) for name, (columns, s) in stats.items()}


FLAT = IvfFlat(num_partitions=1)


class TestIndicesOf:
    def test_are_found_by_the_column_hidden_ones_included(self, swappable):
        table = swappable.table
        swappable.add_shadow()
        table.create_index("vector", config=FLAT)
        table.create_index("vector_next", config=FLAT)
        table.create_index("vector_next", config=FLAT, name="second")
        assert ours.indices_of(table, "vector") == ["vector_idx"]
        assert sorted(ours.indices_of(table, "vector_next")) == ["second", "vector_next_idx"]
        assert ours.indices_of(table, "text") == ["text_idx"]
        assert ours.indices_of(table, "id") == []
        with pytest.raises(ColumnError, match="no column 'nothing'"):
            ours.indices_of(table, "nothing")

    def test_of_token_vectors_are_found(self, db):
        tokens = pa.list_(pa.fixed_shape_tensor(pa.float32(), [8]))
        table = db.create_table("tokens", schema=pa.schema([("id", pa.int64()), ("colbert", tokens)]))
        rng = np.random.default_rng(0)
        table.add([{"id": i, "colbert": rng.standard_normal((3, 8)).tolist()} for i in range(40)])
        table.create_index("colbert", config=IvfFlat(num_partitions=1, distance_type="cosine"))
        assert ours.indices_of(table, "colbert") == ["colbert_idx"]


class TestNamesAfterASwap:
    @pytest.fixture
    def swapped(self, swappable):
        swappable.add_shadow()
        swappable.table.create_index("vector", config=FLAT)
        swappable.table.create_index("vector_next", config=FLAT)
        swappable.swap_to(5)
        return swappable

    def test_stay_with_the_old_columns_in_lancedb(self, swapped):
        """If LanceDB gave them the new names by itself, `rename_indices_after` could go."""
        columns = {name: of for name, (of, _, _) in indexed(swapped.table).items()}
        assert columns == {"vector_idx": ["vector_prev"], "vector_next_idx": ["vector"], "text_idx": ["text"]}
        swapped.table.create_index("vector", config=FLAT)
        assert sorted(ours.indices_of(swapped.table, "vector")) == ["vector_idx_2", "vector_next_idx"]

    def test_follow_the_columns_in_one_commit_that_rebuilds_nothing(self, swapped):
        version = swapped.table.version
        renamed = ours.rename_indices_after(swapped.table, swapped.swap)
        assert renamed == {"vector_next_idx": "vector_idx", "vector_idx": "vector_prev_idx"}
        assert swapped.table.version == version + 1
        assert indexed(swapped.table) == {
            "vector_idx": (["vector"], 16, 0),
            "vector_prev_idx": (["vector_prev"], 16, 0),
            "text_idx": (["text"], 16, 0),
        }
        assert "name=vector_idx" in swapped.table.search(swapped.vector_of("text 3", 5)).explain_plan()
        swapped.table.create_index("vector", config=FLAT)
        assert ours.indices_of(swapped.table, "vector") == ["vector_idx"], "what used to build it anew still does"

    def test_are_renamed_once(self, swapped):
        ours.rename_indices_after(swapped.table, swapped.swap)
        version = swapped.table.version
        assert ours.rename_indices_after(swapped.table, swapped.swap) == {}
        assert ours.dataset(swapped.table).version == version

    def test_go_back_with_the_swap(self, swapped):
        ours.rename_indices_after(swapped.table, swapped.swap)
        swapped.swap_to(0, swap=swapped.swap.reversed())
        ours.rename_indices_after(swapped.table, swapped.swap.reversed())
        columns = {name: of for name, (of, _, _) in indexed(swapped.table).items()}
        assert columns == {"vector_idx": ["vector"], "vector_next_idx": ["vector_next"], "text_idx": ["text"]}

    def test_that_somebody_chose_stay(self, swappable):
        swappable.add_shadow()
        swappable.table.create_index("vector", config=FLAT, name="mine")
        swappable.swap_to(5)
        assert ours.rename_indices_after(swappable.table, swappable.swap) == {}
        assert ours.indices_of(swappable.table, "vector_prev") == ["mine"]


class TestRenaming:
    @pytest.fixture
    def vectors(self, db):
        rng = np.random.default_rng(0)
        rows = [{"id": i, "vector": rng.standard_normal(8).astype(np.float32)} for i in range(600)]
        return db.create_table("v", rows)

    @pytest.mark.parametrize(
        "config",
        [
            IvfFlat(num_partitions=2),
            IvfPq(num_partitions=2, num_sub_vectors=4),
            IvfRq(num_partitions=2),
            HnswSq(num_partitions=1),
        ],
        ids=lambda config: type(config).__name__,
    )
    def test_an_index_of_any_kind_answers_and_grows_as_before(self, vectors, config):
        vectors.create_index("vector", config=config)
        query = vectors.to_arrow()["vector"][7].as_py()
        before = vectors.search(query).nprobes(2).limit(20).to_arrow()
        kind = vectors.index_stats("vector_idx").index_type
        ours.rename_indices(vectors, {"vector_idx": "other"})
        assert vectors.search(query).nprobes(2).limit(20).to_arrow().equals(before)
        vectors.add([{"id": 600 + i, "vector": [float(i)] * 8} for i in range(40)])
        vectors.optimize()
        assert indexed(vectors) == {"other": (["vector"], 640, 0)}
        assert vectors.index_stats("other").index_type == kind
        found = vectors.search([30.0] * 8).nprobes(2).limit(30).to_list()
        assert min(row["id"] for row in found) >= 600, "rows added since are found"

    def test_all_parts_of_an_index_go_along(self, vectors):
        vectors.create_index("vector", config=FLAT)
        vectors.add([{"id": 600 + i, "vector": [float(i)] * 8} for i in range(40)])
        ours.dataset(vectors).optimize.optimize_indices(num_indices_to_merge=0)
        vectors.checkout_latest()
        assert vectors.index_stats("vector_idx").num_indices == 2
        ours.rename_indices(vectors, {"vector_idx": "other"})
        assert indexed(vectors) == {"other": (["vector"], 640, 0)}
        assert vectors.index_stats("other").num_indices == 2

    def test_what_lands_meanwhile_is_kept(self, vectors, db, tmp_path, before_commit):
        vectors.create_index("vector", config=FLAT)
        other = db.open_table("v")

        def meanwhile():
            other.add([{"id": 600, "vector": [1.0] * 8}])
            other.update(where="id < 10", values={"vector": [2.0] * 8})
            other.create_index("id", config=BTree())

        before_commit(meanwhile)
        ours.rename_indices(vectors, {"vector_idx": "other"})
        assert indexed(vectors) == {"other": (["vector"], 590, 11), "id_idx": (["id"], 601, 0)}
        assert {row["id"] for row in vectors.search([2.0] * 8).limit(10).to_list()} == set(range(10))

    def test_an_index_built_anew_meanwhile_is_the_one_renamed(self, vectors, db, before_commit):
        vectors.create_index("vector", config=FLAT)

        def build(config=FLAT):
            db.open_table("v").create_index("vector", config=config)

        before_commit(lambda: build(HnswSq(num_partitions=1)))
        ours.rename_indices(vectors, {"vector_idx": "other"})
        assert [(index.name, index.index_type) for index in vectors.list_indices()] == [("other", "IvfHnswSq")]
        ours.rename_indices(vectors, {"other": "vector_idx"})
        before_commit(*[build] * 20)
        with pytest.raises(ConflictError, match="each of 20 attempts to rename vector_idx"):
            ours.rename_indices(vectors, {"vector_idx": "other"})

    def test_bad_names_are_refused(self, vectors):
        vectors.create_index("vector", config=FLAT)
        vectors.create_index("id", config=BTree())
        with pytest.raises(ArgumentError, match=r"no index 'nothing' \(indices: id_idx, vector_idx\)"):
            ours.rename_indices(vectors, {"nothing": "a"})
        with pytest.raises(ArgumentError, match="would give two indices one name"):
            ours.rename_indices(vectors, {"vector_idx": "id_idx"})
        with pytest.raises(UnsupportedError, match="'id_idx' is a BTree"):
            ours.rename_indices(vectors, {"id_idx": "a"})


class TestDroppingAColumn:
    def test_takes_its_indices_and_its_embedding_function_along(self, swappable):
        swappable.add_shadow()
        swappable.table.create_index("vector", config=FLAT)
        both = [swappable.entry("vector", 5), swappable.entry("vector_prev", 0)]
        ours.swap_columns(swappable.table, swappable.swap, embedding_functions=both)
        version = swappable.table.version
        done = ours.drop_column(swappable.table, "vector_prev")
        assert done.version == version + 1
        assert swappable.table.schema.names == ["id", "text", "vector"]
        assert list(indexed(swappable.table)) == ["text_idx"]
        swappable.table.add([{"id": 99, "text": "text 3"}])
        assert swappable.rows()[99]["vector"] == swappable.vector_of("text 3", 5)
        swappable.table.optimize()
        assert swappable.rows()[7]["vector"] == swappable.vector_of("text 7", 5)

    def test_is_made_again_where_a_column_came_first(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        before_commit(lambda: other.add_columns({"twice": "id * 2"}))
        assert ours.drop_column(swappable.table, "vector_next").attempts == 2
        assert swappable.table.schema.names == ["id", "text", "vector", "twice"]

    def test_needs_the_column(self, swappable):
        with pytest.raises(ColumnError, match="no column 'nothing'"):
            ours.drop_column(swappable.table, "nothing")
