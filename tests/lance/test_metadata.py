"""Metadata of a table and of its schema, and who wins when several write it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import lancedb
import pytest

from lance_rerank import lance as ours
from lance_rerank.errors import ArgumentError, ConflictError


@pytest.fixture
def other(docs, tmp_path):
    """A second handle, as of another process."""
    return lancedb.connect(tmp_path / "db").open_table("docs")


class TestUpdates:
    def test_set_and_remove_keys_and_leave_others_alone(self, docs):
        assert ours.table_metadata(docs) == {}
        version = ours.update_table_metadata(docs, {"a": "1", "b": "2"})
        assert ours.update_table_metadata(docs, {"a": None, "c": "3"}) == version + 1
        assert ours.table_metadata(docs) == {"b": "2", "c": "3"}
        assert ours.schema_metadata(docs) == {}
        ours.update_schema_metadata(docs, {"d": "é"})
        assert ours.schema_metadata(docs) == {"d": "é"}
        assert ours.table_metadata(docs) == {"b": "2", "c": "3"}

    def test_are_seen_through_every_handle_whatever_version_it_is_at(self, docs, other):
        ours.update_table_metadata(docs, {"a": "1"})
        assert ours.table_metadata(other) == {"a": "1"}

    def test_live_through_what_writers_do(self, docs):
        ours.update_table_metadata(docs, {"a": "1"})
        ours.update_schema_metadata(docs, {"b": "2"})
        docs.checkout_latest()
        docs.add(docs.search().limit(2).to_arrow())
        docs.update(where="id = 3", values={"lang": "fr"})
        docs.delete("id = 4")
        docs.add_columns({"twice": "id * 2"})
        docs.drop_columns(["twice"])
        docs.optimize()
        assert (ours.table_metadata(docs), ours.schema_metadata(docs)) == ({"a": "1"}, {"b": "2"})

    def test_of_the_table_come_with_no_result_and_those_of_the_schema_with_each(self, docs):
        ours.update_table_metadata(docs, {"a": "1"})
        ours.update_schema_metadata(docs, {"b": "2"})
        docs.checkout_latest()
        assert docs.search().select(["id"]).limit(1).to_arrow().schema.metadata == {b"b": b"2"}

    def test_go_back_with_the_table(self, docs):
        before = docs.version
        ours.update_table_metadata(docs, {"a": "1"})
        docs.restore(before)
        assert ours.table_metadata(docs) == {}

    def test_are_made_again_where_others_came_first(self, docs, other, before_commit):
        before_commit(lambda: ours.update_table_metadata(other, {"a": "theirs", "b": "theirs"}))
        ours.update_table_metadata(docs, {"a": "ours"})
        assert ours.table_metadata(docs) == {"a": "ours", "b": "theirs"}
        before_commit(lambda: ours.update_schema_metadata(other, {"c": "theirs"}))
        ours.update_schema_metadata(docs, {"d": "ours"})
        assert ours.schema_metadata(docs) == {"c": "theirs", "d": "ours"}

    def test_give_up_in_the_end(self, docs, other, before_commit):
        before_commit(*[lambda: ours.dataset(other).update_metadata({"a": "theirs"})] * 20)
        with pytest.raises(ConflictError, match="each of 20 attempts to change the table's metadata"):
            ours.update_table_metadata(docs, {"a": "ours"})


class TestCompareAndSet:
    def test_tells_whether_the_value_was_the_one_expected(self, docs):
        assert ours.compare_and_set_metadata(docs, "lease", None, "me")
        assert not ours.compare_and_set_metadata(docs, "lease", None, "you")
        assert not ours.compare_and_set_metadata(docs, "lease", "you", None)
        assert ours.compare_and_set_metadata(docs, "lease", "me", "you")
        assert ours.compare_and_set_metadata(docs, "lease", "you", None)
        assert ours.table_metadata(docs) == {}

    def test_is_lost_to_a_commit_that_lands_in_between(self, docs, other, before_commit):
        before_commit(lambda: ours.update_table_metadata(other, {"lease": "theirs"}))
        assert not ours.compare_and_set_metadata(docs, "lease", None, "ours")
        assert ours.table_metadata(docs) == {"lease": "theirs"}

    def test_is_not_lost_to_one_of_another_key_or_to_writes_of_rows_and_columns(self, docs, other, before_commit):
        def meanwhile():
            ours.update_table_metadata(other, {"else": "theirs"})
            other.checkout_latest()
            other.delete("id = 3")
            other.add_columns({"twice": "id * 2"})

        before_commit(meanwhile)
        assert ours.compare_and_set_metadata(docs, "lease", None, "ours")
        assert ours.table_metadata(docs) == {"lease": "ours", "else": "theirs"}

    def test_needs_two_values_that_differ(self, docs):
        with pytest.raises(ArgumentError, match="both 'me'"):
            ours.compare_and_set_metadata(docs, "lease", "me", "me")

    def test_counts_without_losing_one(self, docs, tmp_path):
        """Four threads, each with a handle of its own, add one to a number until ten of their sets held."""

        def count():
            table = lancedb.connect(tmp_path / "db").open_table("docs")
            held = 0
            while held < 10:
                before = ours.table_metadata(table).get("n")
                held += ours.compare_and_set_metadata(table, "n", before, str(int(before or 0) + 1))

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ours.table_metadata(docs) == {"n": "40"}

    def test_gives_a_lease_to_one_of_two_processes(self, docs, tmp_path):
        code = (
            "import lancedb; from lance_rerank import lance\n"
            f"table = lancedb.connect({str(tmp_path / 'db')!r}).open_table('docs')\n"
            "lance.update_table_metadata(table, {'ready': 'yes'})\n"
            "print(*[lance.compare_and_set_metadata(table, f'lease {i}', None, 'other') for i in range(20)])"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        while "ready" not in ours.table_metadata(docs) and process.poll() is None:
            time.sleep(0.005)
        here = [ours.compare_and_set_metadata(docs, f"lease {i}", None, "this") for i in range(20)]
        there = [word == "True" for word in process.communicate(timeout=60)[0].split()]
        assert [one + other for one, other in zip(here, there, strict=True)] == [1] * 20
        holders = ours.table_metadata(docs)
        assert [holders[f"lease {i}"] for i in range(20)] == ["this" if held else "other" for held in here]
