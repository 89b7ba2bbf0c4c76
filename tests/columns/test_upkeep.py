"""Keeping token vectors in step with their texts: what changed is found and encoded, and nothing else."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank import testing
from lance_rerank.columns.backfill import WINDOW
from lance_rerank.errors import ColumnError, ModelError


class Words:
    """A word's vector points along one of eight axes; texts that were encoded are counted."""

    dim = 8

    def __init__(self, fingerprint="words", fail_after=None):
        self.fingerprint = fingerprint
        self.texts = []
        self.fail_after = fail_after

    def encode_queries(self, texts):
        return [np.eye(8, dtype=np.float32)[[sum(word.encode()) % 8 for word in text.split()]] for text in texts]

    def encode_documents(self, texts):
        if self.fail_after is not None and len(self.texts) >= self.fail_after:
            raise RuntimeError("out of memory")
        self.texts += texts
        return self.encode_queries(texts)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(start, stop):
    return [{"id": i, "text": f"text number {i}"} for i in range(start, stop)]


@pytest.fixture
def table(db):
    """Thirty rows in two fragments, encoded."""
    made = db.create_table("docs", rows(0, 20))
    made.add(rows(20, 30))
    lr.add_multivector_column(made, encoder=Words())
    return made


def sync(table, encoder=None):
    """Return what was encoded by bringing the column up to date, checked against every row's text."""
    encoder = encoder or Words()
    lr.sync_multivector_column(table, encoder=encoder)
    status = lr.multivector_status(table)
    assert (status.missing, status.stale) == (0, 0)
    for row in table.search().limit(100_000).to_list():
        expected = None if row["text"] is None else Words().encode_queries([row["text"]])[0].tolist()
        assert (None if row["colbert"] is None else [list(v) for v in row["colbert"]]) == expected, row["id"]
    return sorted(encoder.texts)


class TestStatus:
    def test_counts_rows_that_have_their_vectors(self, table):
        status = lr.multivector_status(table)
        assert (status.rows, status.encoded, status.outdated) == (30, 30, 0)
        assert str(status) == "30 rows: 30 encoded, 0 missing, 0 stale, 0 without text"

    def test_tells_missing_from_stale(self, table):
        table.add([{"id": 30, "text": "new"}, {"id": 31, "text": None}])
        table.update(where="id = 3", values={"text": "changed"})
        table.delete("id = 5")
        status = lr.multivector_status(table)
        assert (status.rows, status.encoded, status.missing, status.stale, status.without_text) == (31, 28, 1, 1, 1)

    def test_writes_nothing(self, table):
        table.update(where="id = 3", values={"text": "changed"})
        version = table.version
        lr.multivector_status(table)
        assert table.version == version

    @pytest.mark.parametrize("name", ["gone", "text"])
    def test_a_column_that_is_not_ours_is_an_error(self, table, name):
        with pytest.raises(ColumnError, match=f"'{name}'"):
            lr.multivector_status(table, into=name)


class TestSync:
    def test_nothing_changed_encodes_nothing(self, table):
        version = table.version
        assert sync(table) == []
        assert table.version == version

    def test_added_rows_alone_are_encoded(self, table):
        table.add(rows(30, 33))
        assert sync(table) == ["text number 30", "text number 31", "text number 32"]

    def test_an_updated_text_is_encoded_again(self, table):
        table.update(where="id = 3", values={"text": "changed"})
        assert sync(table) == ["changed"]

    def test_an_update_of_another_column_encodes_nothing(self, table):
        table.update(where="id = 3", values={"id": 300})
        assert sync(table) == []

    def test_merge_insert_encodes_what_it_changed(self, table):
        new = pa.table({"id": [3, 99], "text": ["merged", "inserted"]})
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(
            new.append_column("colbert", pa.nulls(2, table.schema.field("colbert").type))
        )
        assert sync(table) == ["inserted", "merged"]

    def test_compaction_costs_no_encoding(self, table):
        table.optimize()
        assert sync(table) == []

    def test_compaction_with_a_changed_row_costs_that_row(self, table):
        table.update(where="id = 3", values={"text": "changed"})
        table.optimize()
        assert sync(table) == ["changed"]

    def test_a_text_that_was_taken_away_takes_its_vectors_along(self, table):
        table.update(where="id = 3", values_sql={"text": "NULL"})
        assert lr.multivector_status(table).stale == 1
        assert sync(table) == []

    def test_two_rows_that_swapped_their_texts_are_encoded_again(self, table):
        table.update(where="id in (3, 4)", values_sql={"text": "concat('text number ', cast(7 - id as string))"})
        assert sync(table) == ["text number 3", "text number 4"]

    def test_a_lost_ledger_costs_encoding_and_no_wrong_answer(self, table):
        shutil.rmtree(Path(table.uri) / "_lance_rerank")
        assert len(sync(table)) == 30
        assert sync(table) == []

    def test_random_changes_end_right(self, table):
        rng = np.random.default_rng(0)
        for step in range(25):
            row, action = int(rng.integers(0, 60)), int(rng.integers(0, 5))
            if action == 0:
                table.add([{"id": 100 + step, "text": f"added {step}"}])
            elif action == 1:
                table.update(where=f"id = {row}", values={"text": f"changed {step}"})
            elif action == 2:
                table.delete(f"id = {row}")
            elif action == 3:
                table.optimize()
            else:
                sync(table)
        sync(table)
        assert sync(table) == []


class TestFingerprint:
    def test_another_encoder_is_refused_everywhere(self, table):
        other = Words("other words")
        for attempt in (
            lambda: lr.sync_multivector_column(table, encoder=other),
            lambda: lr.add_multivector_column(table, encoder=other),
        ):
            with pytest.raises(ColumnError, match=r"filled by words.*in hand is other words"):
                attempt()
        ids = table.search().with_row_id(True).limit(3).to_arrow()
        with pytest.raises(ColumnError, match="filled by words"):
            lr.LateInteractionReranker(other, table=table).rerank_vector("text", ids)
        assert lr.LateInteractionReranker(Words(), table=table).rerank_vector("text", ids).num_rows == 3

    def test_an_encoder_that_does_not_know_itself_is_trusted(self, table):
        lr.sync_multivector_column(table, encoder=Words(None))

    def test_one_model_in_two_precisions_is_the_same_and_another_model_is_not(self, tiny_encoder, tmp_path):
        from lance_rerank.fingerprint import same_encoder

        exact, coarse = (
            lr.ColBERTEncoder(tiny_encoder, device="cpu", precision=p).fingerprint for p in ("float32", "bfloat16")
        )
        other = lr.ColBERTEncoder(testing.save_tiny_encoder(tmp_path, seed=1), device="cpu").fingerprint
        assert same_encoder(exact, coarse)
        assert not same_encoder(exact, other)


class TestForms:
    def test_int8_is_the_vectors_times_127(self, db):
        made = db.create_table("docs", rows(0, 3))
        lr.add_multivector_column(made, encoder=Words(), dtype="int8")
        stored = made.to_arrow()["colbert"].combine_chunks()
        assert stored.type == pa.list_(pa.fixed_shape_tensor(pa.int8(), [8]))
        assert sorted(set(stored.values.storage.flatten().to_pylist())) == [0, 127]
        ids = made.search().with_row_id(True).limit(3).to_arrow()
        best = lr.LateInteractionReranker(Words(), table=made).rerank_vector("text number 2", ids)
        assert best["_relevance_score"].to_pylist()[0] == pytest.approx(3.0)

    def test_pooling_halves_the_vectors_and_sync_keeps_to_it(self, db):
        made = db.create_table("docs", [{"id": 0, "text": "a b c d e f g h"}])
        lr.add_multivector_column(made, encoder=Words(), pool_factor=2)
        made.add([{"id": 1, "text": "h g f e d c b a"}])
        lr.sync_multivector_column(made, encoder=Words())
        assert [len(value) for value in made.to_arrow()["colbert"].to_pylist()] == [4, 4]

    @pytest.mark.parametrize(("setting", "value"), [("dtype", "int8"), ("pool_factor", 2)])
    def test_a_column_keeps_the_form_it_was_made_in(self, table, setting, value):
        with pytest.raises(ColumnError, match=f"made with {setting}="):
            lr.add_multivector_column(table, encoder=Words(), **{setting: value})

    @pytest.mark.parametrize("factor", [0, -1, 1.5, True])
    def test_a_pool_factor_below_one_is_refused(self, db, factor):
        with pytest.raises(ValueError, match="pool_factor"):
            lr.add_multivector_column(db.create_table("docs", rows(0, 1)), encoder=Words(), pool_factor=factor)


SCRIPT = """
import sys, time, lancedb, lance_rerank as lr
sys.path.insert(0, {tests!r})
from test_upkeep import Words

class Slow(Words):
    def encode_documents(self, texts):
        if len(self.texts) >= {enough}:
            print("enough", flush=True)
            time.sleep(60)
        return super().encode_documents(texts)

lr.add_multivector_column(lancedb.connect({db!r}).open_table("docs"), encoder=Slow())
"""


class TestResume:
    def test_after_an_error_encoded_windows_are_not_encoded_again(self, db):
        made = db.create_table("docs", rows(0, 3 * WINDOW))
        with pytest.raises(ModelError):
            lr.add_multivector_column(made, encoder=Words(fail_after=2 * WINDOW))
        again = Words()
        lr.add_multivector_column(made, encoder=again)
        assert len(again.texts) == WINDOW
        assert sync(made) == []

    def test_without_resume_everything_is_encoded_again(self, db):
        made = db.create_table("docs", rows(0, 2 * WINDOW))
        for encoder in (Words(fail_after=WINDOW), again := Words()):
            try:
                lr.add_multivector_column(made, encoder=encoder, resume=False)
            except ModelError:
                continue
        assert len(again.texts) == 2 * WINDOW

    def test_a_killed_process_loses_one_window_at_most(self, db, tmp_path):
        made = db.create_table("docs", rows(0, 3 * WINDOW))
        script = SCRIPT.format(tests=str(Path(__file__).parent), db=str(db.uri), enough=2 * WINDOW)
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().strip() == "enough"
        process.send_signal(signal.SIGKILL)
        process.wait()
        made.checkout_latest()
        assert lr.multivector_status(made).missing == 3 * WINDOW, "nothing half-done is seen"
        again = Words()
        lr.add_multivector_column(made, encoder=again)
        assert len(again.texts) == WINDOW
        assert not list(tmp_path.glob("cache/**/*.arrow")), "what was spooled is gone once it is committed"

    def test_a_cache_that_cannot_be_written_costs_resuming_alone(self, db, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        made = db.create_table("docs", rows(0, 10))
        lr.add_multivector_column(made, encoder=Words())
        assert lr.multivector_status(made).encoded == 10
        assert "a kill would lose them" in caplog.text

    def test_another_encoder_does_not_take_what_the_first_left(self, db):
        made = db.create_table("docs", rows(0, 2 * WINDOW))
        with pytest.raises(ModelError):
            lr.add_multivector_column(made, into="one", encoder=Words("one", fail_after=WINDOW))
        made.drop_columns(["one"])
        second = Words("two")
        lr.add_multivector_column(made, into="one", encoder=second)
        assert len(second.texts) == 2 * WINDOW


def test_the_notes_stay_out_of_the_tables_rows(table):
    assert re.fullmatch(r"id,text,colbert", ",".join(table.to_arrow().column_names))
