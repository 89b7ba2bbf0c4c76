"""Opening an index, searching it, and what it does when the table has moved on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import lancedb
import pyarrow as pa
import pytest
import tantivy

import lance_rerank as lr
from lance_rerank.errors import (
    ArgumentError,
    ColumnError,
    LexicalIndexError,
    MissingIndexError,
    StaleIndexError,
    UnsupportedError,
)
from lance_rerank.lexical import TantivyIndex

ROWS = [
    {"id": 1, "title": "Keys", "text": "Rotate the API keys of a user", "lang": "en", "year": 2020, "free": True},
    {"id": 2, "title": "Bread", "text": "Bake the bread, then rotate it", "lang": "en", "year": 2021, "free": False},
    {"id": 3, "title": "Café", "text": "Où est le café?", "lang": "fr", "year": 2022, "free": True},
    {"id": 4, "title": None, "text": None, "lang": "en", "year": None, "free": None},
]


READER = """
import os, tempfile
import lancedb
from lance_rerank.lexical import TantivyIndex
TantivyIndex.load({folder!r}, table=lancedb.connect({db!r}).open_table("docs")).search("bread")  # imports what is lazy
os.setgid(65534); os.setuid(65534)
table = lancedb.connect({db!r}).open_table("docs")
index = TantivyIndex.load({folder!r}, table=table)
print([hit.doc_id for hit in index.search("bread", freshness="scan")])
try:
    index.sync()
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def table(db):
    return db.create_table("docs", ROWS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "docs.tantivy"


@pytest.fixture
def index(table, folder):
    made = TantivyIndex.open(folder, table=table, columns=["title", "text"])
    made.sync()
    return made


def ids(hits):
    return [hit.doc_id for hit in hits]


class TestSearch:
    def test_bm25_over_all_columns_with_stems(self, index):
        hits = index.search("rotating keys")
        assert ids(hits) == ["1", "2"]
        assert hits[0].score > hits[1].score > 0
        assert [hit.rank for hit in hits] == [1, 2]
        assert hits[0].row == {"id": 1}

    def test_accents_are_folded(self, index):
        assert ids(index.search("cafe")) == ids(index.search("CAFÉ")) == ["3"]

    def test_boosts_change_the_order_and_nothing_stored(self, table, folder, index):
        by_title = TantivyIndex.open(folder, table=table, columns=["title", "text"], boosts={"title": 10})
        assert ids(by_title.search("bread keys rotate"))[0] in ("1", "2")
        assert by_title.search("bread")[0].score > 2 * index.search("bread")[0].score

    def test_the_document_that_holds_the_state_is_never_found(self, index):
        assert sorted(ids(index.search("*", syntax=True, k=10))) == ["1", "2", "3", "4"]
        assert len(index.matches(tantivy.Query.all_query(), 10).keys) == 4
        assert sorted(ids(index.search("-bread", syntax=True, k=10))) == ["1", "3", "4"]

    def test_query_syntax_reaches_other_columns(self, table, tmp_path):
        columns = ["title", "text", "year", "free"]
        index = TantivyIndex.open(tmp_path / "more", table=table, columns=columns)
        index.sync()
        assert sorted(ids(index.search("year:[2021 TO 2022]", syntax=True))) == ["2", "3"]
        assert ids(index.search("rotate AND free:true", syntax=True)) == ["1"]
        assert sorted(ids(index.search("id: IN [2 3]", syntax=True))) == ["2", "3"]
        assert ids(index.search("title:bread", syntax=True)) == ["2"]
        assert ids(index.search('text:"rotate keys"~2', syntax=True)) == ["1"]

    def test_what_is_not_understood_is_said(self, index, caplog):
        with caplog.at_level(logging.WARNING, "lance_rerank"):
            assert ids(index.search('author:me "bread', syntax=True)) == ["2"]
        assert "was left out" in caplog.text

    def test_fuzzy(self, index):
        assert ids(index.search("breaf")) == []
        assert ids(index.search("breaf", fuzzy=1)) == ["2"]

    def test_keys_to_choose_from(self, index):
        assert index.matches("rotate", 10, among=[2, 3]).keys == [2]
        assert index.matches("rotate", 10, among=[]).keys == []

    def test_tokenizers_of_columns(self, table, tmp_path):
        index = TantivyIndex.open(
            tmp_path / "ngrams", table=table, columns=["title", "text"], tokenizer={"title": "ngram", "text": "raw"}
        )
        index.sync()
        assert ids(index.search("rea")) == ["2"]
        assert ids(index.search("Où est le café?")) == ["3"]

    def test_the_rest_of_the_ranking_is_there_for_the_asking(self, index):
        assert index.matches("rotate", 1).exhausted is False
        assert index.matches("rotate", 3).exhausted is True

    def test_explain_and_snippet(self, index):
        explained = index.explain("keys", 1)
        assert explained.score == pytest.approx(index.search("keys")[0].score, abs=1e-4)
        with pytest.raises(ArgumentError, match="does not match a row whose id is 2"):
            index.explain("keys", 2)
        shown = index.snippet("rotating", ROWS[0]["text"], "text")
        assert [shown.text[start:end] for start, end in shown.highlights] == ["Rotate"]
        with pytest.raises(ArgumentError, match="'lang' is no text column"):
            index.snippet("rotating", "", "lang")

    def test_threads(self, index):
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(ids(index.search("rotate")))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [answers[0]] * 8


class TestFreshness:
    @pytest.fixture
    def newer(self, index, table):
        table.add([{"id": 5, "title": "Locks", "text": "rotate a lock", "lang": "en", "year": 2023, "free": True}])
        table.delete("id = 1")
        table.update(where="id = 2", values={"text": "eat it"})
        return table

    def test_warn_says_it_once_a_version(self, index, newer, caplog):
        with caplog.at_level(logging.WARNING, "lance_rerank"):
            assert sorted(ids(index.search("rotate"))) == ["1", "2"]
            index.search("rotate")
        assert len(caplog.records) == 1
        assert "mirrors version 1 of the table, and the table's handle is at 4" in caplog.text

    def test_error(self, index, newer):
        with pytest.raises(StaleIndexError, match=r"index\.sync\(\)"):
            index.search("rotate", freshness="error")
        index.sync()
        assert ids(index.search("rotate", freshness="error")) == ["5"]

    def test_sync(self, index, newer):
        assert ids(index.search("rotate", freshness="sync")) == ["5"]
        assert index.status().behind == 0

    def test_sync_builds_what_was_never_built(self, table, folder):
        assert ids(TantivyIndex.open(folder, table=table).search("bread", freshness="sync")) == ["2"]

    def test_scan_answers_as_a_sync_would_and_leaves_the_index_alone(self, index, newer):
        scanned = index.search("rotate lock bread", freshness="scan")
        assert index.status().behind == 3
        index.sync()
        assert scanned == index.search("rotate lock bread")

    def test_scan_after_each_add(self, index, table):
        for i in range(10, 15):
            table.add([{"id": i, "title": "New", "text": f"number{i}", "lang": "en", "year": 1, "free": True}])
            assert ids(index.search(f"number{i}", freshness="scan")) == [str(i)]

    def test_scan_leaves_no_files_behind(self, index, newer, folder):
        index.search("rotate", freshness="scan")
        assert list(folder.glob("scan-*"))
        index._overlay = index._overlay_folder = None
        assert not list(folder.glob("scan-*"))

    def test_a_version_without_new_rows_is_not_behind(self, index, table, caplog):
        table.create_scalar_index("id")
        with caplog.at_level(logging.WARNING, "lance_rerank"):
            index.search("rotate", freshness="error")
        assert not caplog.records

    def test_a_handle_that_is_older_than_the_index(self, index, table, db, folder, caplog):
        other = TantivyIndex.open(folder, table=db.open_table("docs"), columns=["title", "text"])
        table.update(where="id = 2", values={"text": "eat it"})
        index.sync()
        with pytest.raises(StaleIndexError, match="checkout_latest"):
            other.search("rotate", freshness="error")
        assert ids(other.search("rotate", freshness="warn")) == ["1"]
        assert "checkout_latest" in caplog.text
        assert sorted(ids(other.search("rotate", freshness="scan"))) == ["1", "2"], "as the handle sees the table"
        assert ids(other.search("rotate", freshness="sync")) == ["1"], "which moves the handle"

    @pytest.mark.parametrize("freshness", ["error", "scan", "sync"])
    @pytest.mark.parametrize("versions", [0, 3])
    def test_a_table_that_was_dropped_and_made_again(self, index, db, folder, freshness, versions):
        db.drop_table("docs")
        again = db.create_table("docs", [{"id": 9, "title": "Zoo", "text": "a zebra"}])
        for i in range(versions):
            again.add([{"id": 10 + i, "title": "", "text": "a gnu"}])
        opened = TantivyIndex.load(folder, table=again)
        if freshness == "error":
            with pytest.raises(StaleIndexError):
                opened.search("zebra", freshness=freshness)
        else:
            assert ids(opened.search("zebra", freshness=freshness)) == ["9"]
            assert ids(opened.search("bread", freshness=freshness)) == []

    def test_a_copy_that_was_cleared_away_is_made_again(self, index, newer, folder):
        before = index.search("rotate", freshness="scan")
        for path in folder.glob("scan-*"):
            shutil.rmtree(path)
        assert index.search("rotate", freshness="scan") == before

    def test_another_value(self, index):
        with pytest.raises(ArgumentError, match="error, warn, sync, scan"):
            index.search("x", freshness="never")


class TestWhatIsAskedFor:
    def test_a_huge_k_is_as_many_as_there_are(self, index):
        assert len(index.matches("rotate", 2**63).keys) == 2

    @pytest.mark.parametrize("key", ["1", None, True, 1.0])
    def test_keys_of_another_type(self, index, key):
        for ask in (lambda: index.explain("keys", key), lambda: index.matches("keys", 1, among=[key])):
            with pytest.raises(ArgumentError, match="keys of this index are of type int"):
                ask()


class TestRowIds:
    """Matches say where rows are in the table, so that they need not be looked for."""

    def read_by_ids(self, index, query="rotate bread café"):
        found = index.matches(query, 10)
        rows = index.table.take_row_ids(found.row_ids.tolist()).select(["id"]).with_row_id().to_arrow()
        keys = dict(zip(rows["_rowid"].to_pylist(), rows["id"].to_pylist(), strict=True))
        assert [keys[row_id] for row_id in found.row_ids.tolist()] == found.keys
        return len(found.keys)

    def test_after_adds_deletes_updates_and_compaction(self, index, table):
        assert self.read_by_ids(index) == 3
        table.add([{"id": 5, "title": "", "text": "rotate", "lang": "", "year": 1, "free": True}])
        table.delete("id = 1")
        table.update(where="id = 2", values={"lang": "de"})
        index.sync()
        assert self.read_by_ids(index) == 3
        table.optimize()
        index.sync()
        assert self.read_by_ids(index) == 3

    def test_they_are_not_told_where_one_key_has_several_rows(self, index, table):
        table.add(ROWS[:1])
        index.sync()
        assert index.matches("rotate", 10).row_ids is None

    def test_they_are_not_told_where_ids_are_no_places(self, tmp_path):
        db = lancedb.connect(tmp_path / "stable", storage_options={"new_table_enable_stable_row_ids": "true"})
        index = TantivyIndex.open(tmp_path / "index", table=db.create_table("docs", ROWS))
        index.sync()
        assert index.matches("rotate", 10).row_ids is None

    def test_they_are_not_told_in_a_table_of_many_fragments(self, index, table):
        for i in range(40):
            table.add([{"id": 10 + i, "title": "", "text": "rotate", "lang": "", "year": 1, "free": True}])
        index.sync()
        found = index.matches("rotate", 100)
        assert found.row_ids is None
        assert len(found.keys) == 42


class TestStatus:
    def test_before_the_first_sync(self, table, folder):
        index = TantivyIndex.open(folder, table=table)
        assert str(index.status()) == "not built yet; the table has 4 rows"
        assert not folder.exists()
        with pytest.raises(MissingIndexError, match=r"index\.sync\(\)"):
            index.search("bread")

    def test_counts_what_a_sync_would_touch(self, index, table):
        table.add([{"id": 5, "title": "", "text": "x", "lang": "", "year": 1, "free": True}])
        table.delete("id = 1")
        table.update(where="id = 2", values={"text": "eat it"})
        status = index.status()
        assert (status.added, status.updated, status.deleted, status.behind) == (1, 1, 1, 3)
        assert str(status) == "4 rows of version 1; 1 added, 1 updated, 1 deleted since"
        index.sync()
        assert str(index.status()) == "4 rows of version 4; up to date"


class TestRebuild:
    def test_other_settings_are_an_error_that_says_how(self, table, folder, index):
        for settings in ({"columns": ["text"]}, {"language": None}, {"tokenizer": "ngram"}, {"key": "year"}):
            arguments = {"columns": ["title", "text"], **settings}
            with pytest.raises(LexicalIndexError, match=r"was made with .* and not .*rebuild"):
                TantivyIndex.open(folder, table=table, **arguments)

    def test_rebuild_makes_it_anew(self, table, folder, index):
        again = TantivyIndex.open(folder, table=table, columns=["text"], language="French", rebuild=True)
        assert ids(again.search("bread")) == ["2"]
        assert len(list(folder.glob("generation-*"))) == 1

    def test_an_index_that_is_open_follows_a_rebuild(self, table, folder, index):
        again = TantivyIndex.open(folder, table=table, columns=["title", "text"])
        table.delete("id = 2")
        again.rebuild()
        assert ids(index.search("rotate")) == ["1"]


class TestBadFolders:
    def test_of_another_table(self, db, folder, index):
        other = db.create_table("other", ROWS)
        with pytest.raises(LexicalIndexError, match=r"is of the table .*docs.* and not of .*other"):
            TantivyIndex.open(folder, table=other, columns=["title", "text"])

    def test_a_database_that_was_moved(self, db, folder, index, tmp_path):
        shutil.move(tmp_path / "db", tmp_path / "moved")
        table = lancedb.connect(tmp_path / "moved").open_table("docs")
        assert TantivyIndex.open(folder, table=table, columns=["title", "text"]).status().behind == 0

    @pytest.mark.parametrize("damage", ["meta.json", "all", "state", "index.json", "format"])
    def test_damage_is_said_and_a_rebuild_mends_it(self, table, folder, index, damage):
        [generation] = folder.glob("generation-*")
        if damage == "meta.json":
            (generation / "meta.json").write_text("{")
        elif damage == "all":
            shutil.rmtree(generation)
        elif damage == "state":
            for path in generation.glob("*.store"):
                path.write_bytes(path.read_bytes()[:10])
        elif damage == "index.json":
            (folder / "index.json").write_text("{")
        else:
            content = json.loads((folder / "index.json").read_text())
            (folder / "index.json").write_text(json.dumps(content | {"format": 99}))
        with pytest.raises(LexicalIndexError, match="rebuild"):
            TantivyIndex.open(folder, table=table, columns=["title", "text"]).search("bread")
        mended = TantivyIndex.open(folder, table=table, columns=["title", "text"], rebuild=True)
        assert ids(mended.search("bread")) == ["2"]

    def test_lost_notes_of_rows(self, table, folder, index):
        [generation] = folder.glob("generation-*")
        shutil.rmtree(generation / "rows")
        assert ids(index.search("bread")) == ["2"]
        table.delete("id = 1")
        with pytest.raises(LexicalIndexError, match="rebuild"):
            index.sync()

    @pytest.mark.parametrize("field", ["table", "generation", "settings"])
    def test_an_index_file_that_lacks_something(self, table, folder, index, field):
        content = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(content | {field: 5}))
        with pytest.raises(LexicalIndexError, match=f"does not say its {field}"):
            TantivyIndex.load(folder, table=table)

    def test_a_dropped_column(self, table, folder, index):
        table.drop_columns(["title"])
        for ask in (index.sync, index.status, lambda: index.search("x", freshness="error")):
            with pytest.raises(ColumnError, match="no column 'title'"):
                ask()

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a user who can become another")
    def test_a_folder_that_cannot_be_written_to(self, index, folder, tmp_path):
        code = READER.format(folder=str(folder), db=str(tmp_path / "db"))
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(0o755)
        if not all(path.stat().st_mode & 0o001 for path in tmp_path.parents):
            pytest.skip("other users cannot reach this folder")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == ["['2']", "LexicalIndexError"], done.stderr

    def test_a_file_in_the_way(self, table, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(LexicalIndexError):
            TantivyIndex.open(tmp_path / "file", table=table).sync()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "nope"}, ColumnError, r"no column 'nope' to tell rows apart by \(columns: id, "),
        ({"key": "free"}, ColumnError, r"'free' holds bool; rows are told apart by"),
        ({"columns": ["nope"]}, ColumnError, r"no column 'nope' to index"),
        ({"columns": []}, ArgumentError, r"names no column"),
        ({"columns": ["year"]}, ColumnError, r"none of the columns year holds texts"),
        ({"columns": ["lang"], "key": "lang"}, ArgumentError, r"'lang' is the key"),
        ({"columns": ["vector", "text"]}, ColumnError, r"'vector' holds .*, which cannot be indexed"),
        ({"language": "klingon"}, ArgumentError, r"language must be one of arabic"),
        ({"tokenizer": "icu"}, ArgumentError, r"a tokenizer is one of words, whitespace, ngram, raw, got 'icu'"),
        ({"boosts": {"title": 2}}, ArgumentError, r"boosts names 'title'"),
        ({"boosts": {"text": 0}}, ArgumentError, r"above 0, got 0"),
    ],
)
def test_bad_arguments(db, tmp_path, arguments, error, message):
    table = db.create_table("docs", [{**row, "vector": [0.0, 1.0]} for row in ROWS])
    with pytest.raises(error, match=message):
        TantivyIndex.open(tmp_path / "index", table=table, **arguments)


async def test_an_async_table_is_refused(tmp_path):
    connection = await lancedb.connect_async(tmp_path / "db")
    table = await connection.create_table("docs", ROWS)
    with pytest.raises(UnsupportedError, match="TantivyIndex"):
        TantivyIndex.open(tmp_path / "index", table=table)


def test_an_empty_table(db, tmp_path):
    table = db.create_table("docs", schema=pa.schema({"id": pa.int64(), "text": pa.string()}))
    index = TantivyIndex.open(tmp_path / "index", table=table)
    assert index.sync().added == 0
    assert index.search("anything") == []


def test_columns_whose_names_tantivy_cannot_take(db, tmp_path):
    table = db.create_table("docs", [{"id": 1, "-text": "a", "_row": "b"}])
    for column in ("-text", "_row"):
        with pytest.raises(ColumnError, match="rename it"):
            TantivyIndex.open(tmp_path / "index", table=table, columns=[column])


# --- two processes ---------------------------------------------------------------------------------------------

WRITER = """
import sys, lancedb
from lance_rerank.lexical import TantivyIndex
db, folder = sys.argv[1:]
table = lancedb.connect(db).open_table("docs")
index = TantivyIndex.open(folder, table=table)
for i in range(100, 10_000):
    table.add([{"id": i, "text": f"word{i} common"}])
    index.sync()
    print(i, flush=True)
"""


def start_writer(tmp_path):
    arguments = [sys.executable, "-c", WRITER, str(tmp_path / "db"), str(tmp_path / "index")]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def shared(db, tmp_path):
    table = db.create_table("docs", [{"id": i, "text": f"word{i} common"} for i in range(20)])
    index = TantivyIndex.open(tmp_path / "index", table=table)
    index.sync()
    return index


def test_one_process_writes_and_another_reads(shared, tmp_path):
    writer = start_writer(tmp_path)
    try:
        seen = 20
        for line in [writer.stdout.readline() for _ in range(5)]:
            assert line, "the writer stopped"
            assert shared.search(f"word{line.strip()}")[0].doc_id == line.strip()
            count = len(shared.matches("common", 1000).keys)
            assert count >= seen, "a reader never goes back"
            seen = count
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03])
def test_a_killed_writer_leaves_a_state_that_was(shared, tmp_path, delay_s):
    writer = start_writer(tmp_path)
    assert [writer.stdout.readline() for _ in range(2)] == ["100\n", "101\n"]
    time.sleep(delay_s)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    found = sorted(shared.matches("common", 1000).keys)
    assert found == sorted([*range(20), *range(100, 100 + len(found) - 20)])
    shared.sync(wait_s=5)
    assert shared.status().behind == 0
    assert sorted(shared.matches("common", 1000).keys) == sorted(
        row["id"] for row in shared.table.search().limit(1000).to_list()
    )


COLD_START = """
import sys, lancedb
from lance_rerank.lexical import TantivyIndex
db, folder = sys.argv[1:]
index = TantivyIndex.open(folder, table=lancedb.connect(db).open_table("docs"))
print(index.search("word7", freshness="sync")[0].doc_id)
"""


def test_several_processes_that_build_at_once(db, tmp_path):
    db.create_table("docs", [{"id": i, "text": f"word{i} common"} for i in range(2000)])
    arguments = [sys.executable, "-c", COLD_START, str(tmp_path / "db"), str(tmp_path / "index")]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate() for process in started]
    assert [out.strip() for out, _ in answers] == ["7"] * 3, answers


def test_the_public_name():
    assert lr.TantivyIndex is TantivyIndex
