"""Putting one column in another's place: what changes, what stays, and what lands meanwhile."""

from __future__ import annotations

import json

import lance
import lancedb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.index import BTree, IvfFlat

from lance_rerank import lance as ours
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, UnsupportedError


def field_ids(table):
    return {field.name(): field.id() for field in ours.dataset(table).lance_schema.fields()}


def nearest(table, text):
    return table.search(text).limit(1).to_list()[0]["id"]


class TestASwap:
    @pytest.fixture
    def swapped(self, swappable):
        swappable.add_shadow(shift=5)
        self.before = field_ids(swappable.table)
        self.version = swappable.table.version
        self.done = swappable.swap_to(5)
        return swappable

    def test_is_one_commit(self, swapped):
        assert (self.done.version, self.done.read_version) == (self.version + 1, self.version)
        assert (self.done.attempts, self.done.restored) == (1, ())
        assert swapped.table.version == self.done.version

    def test_exchanges_names_and_keeps_field_ids(self, swapped):
        ids = field_ids(swapped.table)
        assert ids["vector"] == self.before["vector_next"]
        assert ids["vector_prev"] == self.before["vector"]
        assert {name: ids[name] for name in ("id", "text")} == {name: self.before[name] for name in ("id", "text")}

    def test_shows_the_new_column_and_hides_the_old_one(self, swapped):
        schema = swapped.table.schema
        assert ours.vector_columns(schema) == {"vector": 16}
        assert schema.field("vector_prev").type == pa.fixed_shape_tensor(pa.float32(), [16])
        assert schema.field("vector").type == pa.list_(pa.float32(), 16)

    def test_moves_values_and_model_together(self, swapped):
        for number, row in swapped.rows().items():
            assert row["vector"] == swapped.vector_of(row["text"], 5)
            assert row["vector_prev"] == swapped.vector_of(row["text"], 0)
            assert nearest(swapped.another_handle(), row["text"]) == number

    def test_keeps_all_other_metadata(self, swapped):
        metadata = ours.schema_metadata(swapped.table)
        assert metadata["app"] == "1"
        assert ours.embedding_entries({key: value.encode() for key, value in metadata.items()}) == [
            swapped.entry(shift=5)
        ]

    def test_computes_new_rows_by_the_new_model(self, swapped):
        swapped.table.add([{"id": 99, "text": "text 3"}])
        assert swapped.rows()[99]["vector"] == swapped.vector_of("text 3", 5)
        assert swapped.rows()[99]["vector_prev"] is None

    def test_is_taken_back_by_its_reverse_keeping_rows_written_since(self, swapped):
        swapped.table.add([{"id": 99, "text": "text 3"}])
        swapped.swap_to(0, swap=swapped.swap.reversed())
        assert field_ids(swapped.table) == self.before
        assert nearest(swapped.another_handle(), "text 7") == 7
        assert swapped.rows()[99]["vector"] is None
        assert swapped.rows()[99]["vector_next"] == swapped.vector_of("text 3", 5)
        swapped.swap_to(5)
        assert nearest(swapped.another_handle(), "text 7") == 7

    def test_cannot_be_made_twice(self, swapped):
        with pytest.raises(ColumnError, match=r"'vector_prev' already and none 'vector_next': this swap was made"):
            swapped.swap_to(5)


class TestWhatIsSaidOfTheColumns:
    def test_goes_with_them(self, swappable):
        swappable.add_shadow()
        for column, said in (("vector", "old"), ("vector_next", "new")):
            swappable.table.update_field_metadata({"path": column, "metadata": {"note": said, "drop": "x"}})
        ours.swap_columns(
            swappable.table,
            swappable.swap,
            embedding_functions=None,
            metadata_updates={"app": None, ours.model_key("vector"): "abc"},
            field_metadata={"vector": {"drop": None, "more": "y"}},
        )
        schema = swappable.table.schema
        assert schema.field("vector").metadata == {b"note": b"new", b"more": b"y"}
        assert {b"note": b"old", b"drop": b"x"}.items() <= schema.field("vector_prev").metadata.items()
        assert ours.schema_metadata(swappable.table).keys() == {"embedding_functions", "lance_rerank.model.vector"}

    def test_functions_of_other_columns_stay_and_none_may_remain(self, swappable):
        swappable.add_shadow()
        ours.add_hidden_column(swappable.table, "other", pa.fixed_shape_tensor(pa.float32(), [16]), {})
        swap, table = swappable.swap, swappable.table
        kept = swappable.entry("other", 9)
        ours.swap_columns(table, swap, embedding_functions=[])
        assert "embedding_functions" not in ours.schema_metadata(table)
        ours.update_schema_metadata(table, {"embedding_functions": json.dumps([kept])})
        both = [swappable.entry("vector", 0), swappable.entry("vector_next", 5)]
        ours.swap_columns(table, swap.reversed(), embedding_functions=both)
        metadata = {key.decode(): value for key, value in table.schema.metadata.items()}
        assert ours.embedding_entries(metadata) == [kept, *both]

    def test_rows_are_computed_for_both_columns_where_both_have_functions(self, swappable):
        swappable.add_shadow()
        both = [swappable.entry("vector", 5), swappable.entry("vector_prev", 0)]
        ours.swap_columns(swappable.table, swappable.swap, embedding_functions=both)
        swappable.table.add([{"id": 99, "text": "text 3"}])
        row = swappable.rows()[99]
        assert (row["vector"], row["vector_prev"]) == (
            swappable.vector_of("text 3", 5),
            swappable.vector_of("text 3", 0),
        )


class TestKindsOfColumns:
    @pytest.mark.parametrize(("of", "dim"), [(pa.float16(), 16), (pa.float32(), 24), (pa.float64(), 40)])
    def test_another_dimension_and_size_of_floats(self, swappable, of, dim):
        swappable.add_shadow(5, dim, of)
        swappable.swap_to(5, dim)
        assert swappable.table.schema.field("vector").type == pa.list_(of, dim)
        assert nearest(swappable.another_handle(), "text 7") == 7
        swappable.swap_to(0, swap=swappable.swap.reversed())
        assert swappable.table.schema.field("vector_next").type == pa.fixed_shape_tensor(of, [dim])
        assert nearest(swappable.another_handle(), "text 7") == 7

    def test_hidden_columns_of_token_vectors_stay_hidden(self, db):
        hidden = pa.list_(pa.fixed_shape_tensor(pa.float16(), [4]))
        schema = pa.schema([("id", pa.int64()), ("colbert", hidden), ("colbert_next", hidden)])
        table = db.create_table("tokens", schema=schema)
        table.add([{"id": 1, "colbert": [[1.0] * 4], "colbert_next": [[2.0] * 4] * 2}])
        ours.swap_columns(table, ours.ColumnSwap("colbert", "colbert_next", "colbert_prev"), embedding_functions=None)
        assert table.schema.field("colbert").type == table.schema.field("colbert_prev").type == hidden
        (row,) = table.to_arrow().to_pylist()
        assert (row["colbert"], row["colbert_prev"]) == ([[2.0] * 4] * 2, [[1.0] * 4])

    def test_a_visible_column_of_token_vectors_is_hidden(self, db):
        visible = pa.list_(pa.list_(pa.float32(), 4))
        schema = pa.schema([("mv", visible), ("next", pa.list_(pa.fixed_shape_tensor(pa.float32(), [4])))])
        table = db.create_table("tokens", schema=schema)
        ours.swap_columns(table, ours.ColumnSwap("mv", "next", "prev"), embedding_functions=None)
        assert ours.vector_columns(table.schema) == {"mv": 4}
        assert ours.is_hidden(table.schema.field("prev").type)

    def test_two_visible_columns_of_another_writer(self, swappable):
        swappable.table.add_columns(pa.field("vector_next", pa.list_(pa.float32(), 16)))
        swappable.swap_to(0)
        assert ours.vector_columns(swappable.table.schema) == {"vector": 16}


class TestIsRefused:
    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                ("nothing", "vector_next", "prev"),
                r"no column 'nothing' \(columns: id, text, vector, nested,",
            ),
            (("vector", "nothing", "prev"), "no column 'nothing'"),
            (("vector", "vector_next", "text"), "has a column 'text' already$"),
            (("text", "vector_next", "prev"), "'text' holds string, expected vectors"),
            (("vector", "id", "prev"), "'id' holds int64, expected vectors"),
            (("vector", "nested", "prev"), "'nested' holds struct, expected vectors"),
            (("vector", "nested.vector", "prev"), "has no dot"),
            (("vector", "vector_next", ""), "not empty"),
            (("vector", "tokens", "prev"), "one holds token vectors"),
        ],
    )
    def test_of_columns_that_cannot_be_swapped(self, swappable, names, message):
        table = swappable.table
        table.add_columns(pa.field("nested", pa.struct([("vector", pa.list_(pa.float32(), 16))])))
        swappable.add_shadow()
        table.add_columns(pa.field("tokens", pa.list_(pa.fixed_shape_tensor(pa.float32(), [16]))))
        version = table.version
        with pytest.raises(ColumnError, match=message):
            ours.swap_columns(table, ours.ColumnSwap(*names), embedding_functions=None)
        assert ours.dataset(table).version == version

    def test_of_a_column_that_may_not_be_null_for_rows_added_later_would_lack_it(self, db):
        vectors = pa.list_(pa.float32(), 2)
        schema = pa.schema(
            [pa.field("vector", vectors, nullable=False), ("next", pa.fixed_shape_tensor(pa.float32(), [2]))]
        )
        table = db.create_table("strict", schema=schema)
        swap = ours.ColumnSwap("vector", "next", "prev")
        with pytest.raises(ColumnError, match="'vector' may not be null"):
            ours.swap_columns(table, swap, embedding_functions=None)
        table.alter_columns({"path": "vector", "nullable": True})
        ours.swap_columns(table, swap, embedding_functions=None)
        table.add([{"vector": [1.0, 2.0]}])
        assert table.to_arrow()["prev"].null_count == 1

    def test_of_names_that_are_the_same(self):
        with pytest.raises(ArgumentError, match="three different names, got 'vector', 'next', 'vector'"):
            ours.ColumnSwap("vector", "next", "vector")

    @pytest.mark.parametrize(
        ("place", "said"),
        [("embedding_functions", [{"vector_column": "text"}]), ("field_metadata", {"text": {"a": "b"}})],
    )
    def test_of_what_is_said_of_other_columns(self, swappable, place, said):
        with pytest.raises(ArgumentError, match=f"{place} of a swap are for 'vector' and 'vector_prev', got 'text'"):
            ours.swap_columns(swappable.table, swappable.swap, **{"embedding_functions": None, place: said})

    async def test_of_async_and_remote_tables(self, swappable):
        from lancedb.remote.table import RemoteTable

        opened = await (await lancedb.connect_async(swappable.place)).open_table("t")
        for table in (opened, object.__new__(RemoteTable)):
            with pytest.raises(UnsupportedError):
                ours.swap_columns(table, swappable.swap, embedding_functions=None)


class TestMeanwhile:
    def test_a_new_column_makes_the_swap_begin_again(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        before_commit(lambda: other.add_columns({"twice": "id * 2"}), lambda: other.drop_columns(["twice"]))
        done = swappable.swap_to(5)
        assert done.attempts == 3
        assert swappable.table.schema.names == ["id", "text", "vector_prev", "vector"]

    def test_so_does_the_name_being_taken_which_ends_it(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        before_commit(lambda: other.add_columns({"vector_prev": "id * 2"}))
        with pytest.raises(ColumnError, match="has a column 'vector_prev' already"):
            swappable.swap_to(5)
        assert nearest(swappable.table, "text 7") == 7

    def test_columns_that_keep_coming_are_a_conflict(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        before_commit(*[lambda i=i: other.add_columns({f"c{i}": "id"}) for i in range(20)])
        with pytest.raises(ConflictError, match="each of 20 attempts to put 'vector_next' in the place of 'vector'"):
            swappable.swap_to(5)
        assert nearest(swappable.another_handle(), "text 7") == 7

    def test_metadata_that_changed_is_put_back(self, swappable, before_commit):
        """Lance sees no conflict there, and the swap's schema has the older metadata."""
        swappable.add_shadow()
        other = swappable.another_handle()

        def meanwhile():
            ours.update_schema_metadata(other, {"app": "2", "more": "x"})
            other.checkout_latest()
            other.update_field_metadata({"path": "text", "metadata": {"note": "y"}})
            other.update_field_metadata({"path": "vector", "metadata": {"of": "old"}})
            ours.update_table_metadata(other, {"state": "kept anyway"})

        before_commit(meanwhile)
        done = swappable.swap_to(5)
        assert done.restored == ("app", "more", "note", "of")
        schema = swappable.table.schema
        assert {b"app": b"2", b"more": b"x"}.items() <= schema.metadata.items()
        assert schema.field("text").metadata == {b"note": b"y"}
        assert schema.field("vector_prev").metadata[b"of"] == b"old"
        assert ours.table_metadata(swappable.table) == {"state": "kept anyway"}
        assert nearest(swappable.another_handle(), "text 7") == 7

    def test_a_removed_key_stays_removed_and_another_columns_function_is_kept(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        ours.add_hidden_column(other, "more", pa.fixed_shape_tensor(pa.float32(), [16]), {})
        functions = json.dumps([swappable.entry(), swappable.entry("more", 3)])
        before_commit(lambda: ours.update_schema_metadata(other, {"app": None, "embedding_functions": functions}))
        assert swappable.swap_to(5).restored == ("app", "embedding_functions")
        metadata = {key.decode(): value for key, value in swappable.table.schema.metadata.items()}
        assert "app" not in metadata
        assert ours.embedding_entries(metadata) == [swappable.entry("more", 3), swappable.entry(shift=5)]

    def test_what_somebody_set_again_before_it_was_put_back_stays(self, swappable, before_commit):
        swappable.add_shadow()
        other = swappable.another_handle()
        before_commit(
            lambda: ours.update_schema_metadata(other, {"app": "2", "more": "x"}),
            lambda: None,  # the commit of the line above, which is counted too
            lambda: ours.update_schema_metadata(other, {"app": "3"}),
        )
        swappable.swap_to(5)
        metadata = ours.schema_metadata(swappable.table)
        assert (metadata["app"], metadata["more"]) == ("3", "x")

    def test_that_it_cannot_be_told_is_logged(self, swappable, before_commit, monkeypatch, caplog):
        """As when a version is cleaned away within the moment."""
        swappable.add_shadow()
        other = swappable.another_handle()

        def gone(data, version):
            raise ValueError(f"Version {version} no longer exists")

        before_commit(lambda: ours.update_table_metadata(other, {"a": "b"}))
        monkeypatch.setattr(lance.LanceDataset, "checkout_version", gone)
        assert swappable.swap_to(5).restored == ()
        assert "cannot be told, that version is gone: Version" in caplog.text


# --- any schedule of other writers -----------------------------------------------------------------------------


class Writers:
    """Another handle at work, and the rows as they should be: by id the text, and those that the vectors are of."""

    def __init__(self, swappable):
        self.swappable = swappable
        self.app = swappable.another_handle()
        self.rows = {i: (f"text {i}", f"text {i}", f"text {i}") for i in range(16)}
        self.ids = iter(range(100, 1000))
        self.columns = 0

    def embedded(self, text, old, new):
        """The vectors after a write of a text: of the column that the handle knows as the live one."""
        return (text, old, text) if "vector_prev" in self.app.schema.names else (text, text, new)

    def add(self):
        number = next(self.ids)
        self.rows[number] = self.embedded(f"text {number % 7}", None, None)
        self.app.add([{"id": number, "text": f"text {number % 7}"}])

    def update(self):
        number = min(self.rows)
        self.rows[number] = ("text 11", *self.rows[number][1:])
        self.app.update(where=f"id = {number}", values={"text": "text 11"})

    def delete(self):
        number = max(self.rows)
        del self.rows[number]
        self.app.delete(f"id = {number}")

    def merge_insert(self):
        there, fresh = sorted(self.rows)[1], next(self.ids)
        self.rows[there] = self.embedded("text 12", *self.rows[there][1:])
        self.rows[fresh] = self.embedded("text 2", None, None)
        rows = [{"id": there, "text": "text 12"}, {"id": fresh, "text": "text 2"}]
        self.app.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def compact(self):
        self.app.optimize()

    def index_ids(self):
        self.app.create_index("id", config=BTree(), replace=True)

    def index_vectors(self):
        self.app.create_index("vector", config=IvfFlat(num_partitions=1), replace=True)

    def add_column(self):
        self.app.checkout_latest()
        self.columns += 1
        self.app.add_columns({f"extra{self.columns}": "id * 2"})

    def set_metadata(self):
        ours.update_schema_metadata(self.app, {"seen": str(next(self.ids))})

    def stored(self, old, new):
        """The rows as they are, each vector as the text that it is of by the column's model."""

        def text(vector, shift):
            return None if vector is None else f"text {(vector.index(1.0) - shift) % 16}"

        rows = self.swappable.rows()
        return {number: (row["text"], text(row[old], 0), text(row[new], 5)) for number, row in rows.items()}


ROWS = ["add", "update", "delete", "merge_insert", "compact"]
WRITES = [*ROWS, "index_ids", "index_vectors", "add_column", "set_metadata"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    meanwhile=st.lists(st.sampled_from(WRITES), min_size=1, max_size=4),
    after=st.lists(st.sampled_from(ROWS), max_size=3),
)
def test_nothing_is_lost_whatever_others_do_meanwhile(make, before_commit, meanwhile, after):
    swappable = make()
    swappable.add_shadow()
    writers = Writers(swappable)
    before_commit(lambda: [getattr(writers, write)() for write in meanwhile])
    before = field_ids(swappable.table)
    done = swappable.swap_to(5)
    assert (done.attempts > 1) == ("add_column" in meanwhile)
    for write in after:  # by a handle that was opened before the swap
        getattr(writers, write)()
    assert writers.stored(old="vector_prev", new="vector") == writers.rows
    ids = field_ids(swappable.table)
    assert (ids["vector"], ids["vector_prev"]) == (before["vector_next"], before["vector"])
    assert sum(name.startswith("extra") for name in ids) == writers.columns
    if "set_metadata" in meanwhile:
        assert "seen" in ours.schema_metadata(swappable.table)
    if "index_vectors" in meanwhile:
        assert ours.indices_of(swappable.table, "vector_prev") == ["vector_idx"]
    assert ours.indices_of(swappable.table, "text") == ["text_idx"]
    following = ours.follow(swappable.another_handle())
    assert all(nearest(following, f"text {i}") in writers.rows for i in range(16))
    swappable.swap_to(0, swap=swappable.swap.reversed())
    assert writers.stored(old="vector", new="vector_next") == writers.rows
