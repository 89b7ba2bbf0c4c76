"""The index against the table: whatever was done to the table, a sync makes them equal, at the cost of the change."""

from __future__ import annotations

import lancedb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lance_rerank.errors import ConflictError, LexicalIndexError
from lance_rerank.lexical import TantivyIndex
from lance_rerank.lexical import sync as sync_module
from lance_rerank.lexical.storage import sole_writer

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox"]


def contents(index):
    """Key and word pairs that the index finds, among the words used here."""
    return {(key, word) for word in WORDS for key in index.matches(word, 10_000).keys}


def expected(table):
    rows = table.search().select(["id", "text"]).limit(100_000).to_list()
    return {
        (row["id"], word)
        for row in rows
        for word in WORDS
        if row["id"] is not None and row["text"] and word in row["text"].split()
    }


def assert_equal(index, table):
    table.checkout_latest()
    assert contents(index) == expected(table)
    status = index.status()
    assert status.behind == 0
    assert status.rows + status.null_keys == table.count_rows()


def rows(start, stop, word="ant"):
    return [{"id": i, "text": f"{word} number {i}", "n": i} for i in range(start, stop)]


@pytest.fixture
def table(db):
    made = db.create_table("docs", rows(0, 20))
    made.add(rows(20, 40, "bee"))
    return made


@pytest.fixture
def index(table, tmp_path):
    made = TantivyIndex.open(tmp_path / "index", table=table)
    made.sync()
    return made


@pytest.fixture
def indexed(monkeypatch):
    """How many documents are handed to Tantivy."""
    counted = []
    add = sync_module._add_documents

    def counting(writer, digests, values, new, settings):
        counted.append(int(new.sum()))
        add(writer, digests, values, new, settings)

    monkeypatch.setattr(sync_module, "_add_documents", counting)
    return counted


def counts(result):
    return (result.added, result.updated, result.deleted)


class TestWhatASyncDoes:
    def test_the_first_one_indexes_everything(self, table, tmp_path):
        index = TantivyIndex.open(tmp_path / "index", table=table)
        done = []
        result = index.sync(progress=lambda *progress: done.append(progress))
        assert counts(result) == (40, 0, 0)
        assert str(result) == f"version {table.version}: 40 added, 0 updated, 0 deleted"
        assert done[-1] == (40, 40)
        assert_equal(index, table)

    def test_a_second_one_has_nothing_to_do(self, index, table, indexed):
        assert counts(index.sync()) == (0, 0, 0)
        assert indexed == []
        assert "nothing to do" in str(index.sync())

    def test_appended_rows_alone_are_indexed(self, index, table, indexed):
        table.add(rows(40, 45, "cat"))
        assert index.status().added == 5
        assert counts(index.sync()) == (5, 0, 0)
        assert sum(indexed) == 5
        assert_equal(index, table)

    def test_deleted_rows_go_without_reading_a_text(self, index, table, indexed):
        table.delete("id < 5")
        assert index.status().deleted == 5
        assert counts(index.sync()) == (0, 0, 5)
        assert indexed == []
        assert_equal(index, table)

    def test_an_update_is_one(self, index, table, indexed):
        table.update(where="id IN (3, 30)", values={"text": "dog"})
        assert counts(index.sync()) == (0, 2, 0)
        assert sum(indexed) == 2
        assert_equal(index, table)

    def test_an_update_of_another_column_indexes_nothing(self, index, table, indexed):
        table.update(where="id = 3", values={"n": 1000})
        assert counts(index.sync()) == (0, 0, 0)
        assert sum(indexed) == 0
        assert_equal(index, table)

    def test_merge_insert(self, index, table, indexed):
        new = [{"id": 1, "text": "fox", "n": 1}, {"id": 100, "text": "fox", "n": 1}]
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(new)
        assert counts(index.sync()) == (1, 1, 0)
        assert sum(indexed) == 2
        assert_equal(index, table)

    def test_a_merge_insert_of_some_columns(self, index, table):
        new = pa.table({"id": [1, 2], "text": ["fox", "elk"]})
        table.merge_insert("id").when_matched_update_all().execute(new)
        assert counts(index.sync()) == (0, 2, 0)
        assert_equal(index, table)

    def test_compaction_indexes_nothing(self, index, table, indexed):
        table.delete("id = 7")
        table.optimize()
        assert counts(index.sync()) == (0, 0, 1)
        assert sum(indexed) == 0
        assert_equal(index, table)

    def test_overwriting_the_table(self, index, table, db):
        db.create_table("docs", rows(10, 15) + rows(15, 30, "elk"), mode="overwrite")
        result = index.sync()
        assert counts(result) == (0, 15, 20)  # rows 10 to 14 are as they were
        assert_equal(index, table)

    def test_a_table_that_was_dropped_and_made_again(self, table, db, tmp_path):
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        db.drop_table("docs")
        again = db.create_table("docs", rows(0, 3, "fox"))
        index = TantivyIndex.open(tmp_path / "index", table=again)
        assert counts(index.sync()) == (0, 3, 37)
        assert_equal(index, again)

    def test_an_older_version_that_is_restored(self, index, table):
        version = table.version
        table.delete("id < 5")
        index.sync()
        table.restore(version)
        assert counts(index.sync()) == (5, 0, 0)
        assert_equal(index, table)

    def test_versions_in_which_no_row_changed(self, index, table, indexed):
        table.add_columns({"twice": "n * 2"})
        table.create_scalar_index("id")
        index.matches("ant", 3, freshness="error")
        assert counts(index.sync()) == (0, 0, 0)
        assert indexed == []

    @pytest.mark.parametrize("stable", ["true", "false"])
    def test_stable_row_ids_on_and_off(self, tmp_path, stable):
        db = lancedb.connect(tmp_path / "db", storage_options={"new_table_enable_stable_row_ids": stable})
        table = db.create_table("docs", rows(0, 20))
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        table.update(where="id < 3", values={"text": "cat"})
        table.delete("id = 9")
        table.optimize()
        assert counts(index.sync()) == (0, 3, 1)
        assert_equal(index, table)


class TestKeys:
    def test_strings(self, db, tmp_path):
        keys = ["a", "it's", "", "ä/ö", 'q"', "x" * 300]
        table = db.create_table("docs", [{"id": key, "text": "ant"} for key in keys])
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        assert sorted(index.matches("ant", 10).keys) == sorted(keys)
        table.delete("id = 'it''s'")
        assert counts(index.sync()) == (0, 0, 1)
        assert_equal(index, table)

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.int64()])
    def test_integers(self, db, tmp_path, kind):
        table = db.create_table("docs", pa.table({"id": pa.array([1, 100], kind), "text": ["ant", "bee"]}))
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        assert index.matches("bee", 10).keys == [100]

    def test_rows_without_a_key_are_counted_and_left_out(self, db, tmp_path):
        data = pa.table({"id": pa.array([1, None, None], pa.int64()), "text": ["ant", "ant", "bee"]})
        table = db.create_table("docs", data)
        index = TantivyIndex.open(tmp_path / "index", table=table)
        result = index.sync()
        assert (result.added, result.null_keys) == (1, 2)
        assert "2 rows without a key are not indexed" in str(result)
        table.delete("text = 'bee'")
        assert index.sync().null_keys == 1
        assert_equal(index, table)

    def test_keys_that_two_rows_share_are_counted_and_both_found(self, db, tmp_path):
        table = db.create_table("docs", [{"id": 1, "text": "ant"}, {"id": 1, "text": "bee"}, {"id": 2, "text": "cat"}])
        index = TantivyIndex.open(tmp_path / "index", table=table)
        result = index.sync()
        assert (result.added, result.duplicate_keys) == (3, 1)
        assert "1 rows have the key of another row" in str(result)
        assert index.matches("ant bee", 10).keys == [1]
        table.delete("text = 'ant'")
        assert index.sync().duplicate_keys == 0
        assert contents(index) == {(1, "bee"), (2, "cat")}

    def test_a_duplicate_that_comes_later(self, index, table):
        table.add(rows(3, 4, "cat"))
        assert index.sync().duplicate_keys == 1
        assert {(3, "ant"), (3, "cat")} <= contents(index)

    def test_an_equal_row_that_comes_and_goes_is_found_once(self, db, tmp_path):
        table = db.create_table("docs", rows(0, 2))
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        table.add(rows(0, 1))
        assert index.sync().duplicate_keys == 1
        address = table.to_lance().get_fragments()[1].fragment_id << 32
        table.to_lance().delete(f"_rowid = {address}")
        index.sync()
        assert sorted(index.matches("ant", 10).keys) == [0, 1]

    def test_equal_rows_that_come_in_place_of_one(self, db, tmp_path):
        table = db.create_table("docs", rows(0, 1))
        index = TantivyIndex.open(tmp_path / "index", table=table)
        index.sync()
        table.add(rows(0, 1) + rows(0, 1), mode="overwrite")
        assert index.sync().duplicate_keys == 1
        table.to_lance().delete(f"_rowid = {table.to_lance().get_fragments()[0].fragment_id << 32}")
        index.sync()
        assert_equal(index, table)

    def test_keys_that_tantivy_cannot_find_are_counted(self, db, tmp_path):
        table = db.create_table("docs", [{"id": "a", "text": "ant"}, {"id": "b" * 70_000, "text": "ant"}])
        index = TantivyIndex.open(tmp_path / "index", table=table)
        assert index.sync().null_keys == 1
        assert index.matches("ant", 10).keys == ["a"]

    def test_one_of_two_equal_rows_is_deleted(self, db, tmp_path):
        table = db.create_table("docs", rows(0, 2))
        table.add(rows(0, 1))
        index = TantivyIndex.open(tmp_path / "index", table=table)
        assert index.sync().duplicate_keys == 1
        fragments = table.to_lance().get_fragments()
        address = fragments[1].fragment_id << 32
        table.to_lance().delete(f"_rowid = {address}")
        index.sync()
        assert_equal(index, table)


class TestWriters:
    def test_a_busy_index_is_an_error_that_offers_to_wait(self, index, table):
        table.add(rows(40, 41))
        other = index._generation().index.writer(15_000_000, 1)
        with pytest.raises(ConflictError, match="another program is writing"):
            index.sync()
        del other
        with sole_writer(index.path), pytest.raises(ConflictError, match="another process is writing"):
            index.sync()
        assert index.sync(wait_s=5).added == 1

    def test_a_failure_halfway_leaves_the_old_state(self, index, table, monkeypatch):
        table.update(where="id < 30", values={"text": "elk"})
        before = contents(index)

        def fail(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sync_module, "_add_documents", fail)
        with pytest.raises(LexicalIndexError, match=r"is as it was: .*No space"):
            index.sync()
        assert contents(index) == before
        monkeypatch.undo()
        assert index.sync().updated == 30
        assert_equal(index, table)

    def test_a_failed_first_build_leaves_nothing(self, table, tmp_path, monkeypatch):
        index = TantivyIndex.open(tmp_path / "index", table=table)
        monkeypatch.setattr(sync_module, "_add_documents", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.sync()
        assert [path.name for path in (tmp_path / "index").iterdir()] == [".write.lock"]


class Kill(BaseException):
    """Stands in for a signal: nothing after it runs but what a process does when it is unwound."""


class TableAndIndex(RuleBasedStateMachine):
    """Random histories of a table; whenever the index is synced it equals the table."""

    @initialize(stable=st.booleans())
    def create(self, stable):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        options = {"new_table_enable_stable_row_ids": str(stable).lower()}
        db = lancedb.connect(self.folder.name + "/db", storage_options=options)
        self.table = db.create_table("docs", rows(0, 4))
        self.index = TantivyIndex.open(self.folder.name + "/index", table=self.table)
        self.next = 4
        self.synced = False
        self.dirty = True

    @rule(n=st.integers(1, 3), word=st.sampled_from(WORDS))
    def add(self, n, word):
        self.table.add(rows(self.next, self.next + n, word))
        self.next += n
        self.dirty = True

    @rule(divisor=st.integers(2, 5), word=st.sampled_from(WORDS))
    def update(self, divisor, word):
        self.table.update(where=f"id % {divisor} = 0", values={"text": word})
        self.dirty = True

    @rule(divisor=st.integers(3, 6))
    def delete(self, divisor):
        self.table.delete(f"id % {divisor} = 1")
        self.dirty = True

    @rule(key=st.integers(0, 12), word=st.sampled_from(WORDS))
    def merge(self, key, word):
        new = [{"id": key, "text": word, "n": 0}]
        self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(new)
        self.next = max(self.next, key + 1)
        self.dirty = True

    @rule()
    def compact(self):
        self.table.optimize()

    @rule()
    def sync(self):
        self.index.sync()
        self.synced, self.dirty = True, False
        assert_equal(self.index, self.table)

    @precondition(lambda self: self.synced)
    @rule()
    def search_what_was_not_synced(self):
        found = {(key, word) for word in WORDS for key in self.index.matches(word, 1000, freshness="scan").keys}
        assert found == expected(self.table)

    @precondition(lambda self: self.synced)
    @rule()
    def kill_a_sync(self):
        before = contents(self.index)

        def kill(*arguments):
            raise Kill

        commit = sync_module._Sync.commit
        sync_module._Sync.commit = kill
        try:
            self.index.sync()
        except Kill:
            pass
        finally:
            sync_module._Sync.commit = commit
        assert contents(self.index) == before

    @invariant()
    def what_was_synced_stays(self):
        if getattr(self, "synced", False) and not self.dirty:
            assert contents(self.index) == expected(self.table)


TestRandomHistories = TableAndIndex.TestCase
TestRandomHistories.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
