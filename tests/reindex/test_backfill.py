"""Backfills: what is in the new column at the end, what it cost, and what others may do meanwhile."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS, BTree, IvfFlat

from lance_rerank import lance
from lance_rerank.columns.backfill import ATTEMPTS
from lance_rerank.errors import ColumnError, ConflictError, ModelError
from lance_rerank.reindex import Plan, ReindexJob, plan_reindex


@pytest.fixture
def plan(table, encoder):
    return plan_reindex(table, model=encoder, batch_size=8)


@pytest.fixture
def begun(plan, encoder):
    """A job that was planned and not begun; the texts that the plan embedded do not count."""
    encoder.texts.clear()
    encoder.batches = 0
    return ReindexJob(plan)


def planned(table, encoder, **arguments):
    job = ReindexJob(plan_reindex(table, model=encoder, **{"batch_size": 8, **arguments}))
    encoder.texts.clear()
    encoder.batches = 0
    return job


class TestWhatIsWritten:
    def test_every_row_has_the_vector_of_its_text(self, begun, table, encoder, plan, fakes):
        report = begun.backfill()
        fakes.assert_filled(table, plan)
        assert (report.rows, report.embedded, report.commits, report.late) == (60, 60, 3, 0)
        assert str(report) == f"{plan.shadow}: 60 rows in 3 commits, 60 texts embedded, no index"
        assert len(encoder.texts) == 60
        assert table.schema.field(plan.shadow).type == pa.fixed_shape_tensor(pa.float32(), [8])

    def test_equal_texts_are_embedded_once(self, table, encoder, fakes):
        table.add([{"id": 100 + i, "text": "the same"} for i in range(20)])
        job = planned(table, encoder)
        assert job.backfill().rows == 80
        assert len(encoder.texts) == 61
        fakes.assert_filled(table, job.plan)

    def test_null_empty_and_blank_texts(self, db, fakes, encoder):
        made = fakes.make_table(db, parts=())
        values = ["a", None, "", "  ", None]
        made.add(pa.table({"id": range(5), "text": values, "vector": pa.nulls(5, pa.list_(pa.float32(), 8))}))
        report = planned(made, encoder).backfill()
        assert (report.rows, report.without_text) == (3, 2)
        assert sorted(encoder.texts) == ["", "  ", "a"], "blank texts have a vector, as LanceDB gives them"
        assert "2 rows without text left null" in str(report)

    def test_as_float16_and_of_another_dimension(self, table, fakes):
        job = planned(table, fakes.HashEncoder(dim=12), dtype="float16")
        job.backfill()
        table.checkout_latest()
        assert table.schema.field(job.plan.shadow).type == pa.fixed_shape_tensor(pa.float16(), [12])
        fakes.assert_filled(table, job.plan)

    @pytest.mark.parametrize("parts", [(), (1,), tuple(range(1, 101))], ids=["no rows", "one row", "100 fragments"])
    def test_tables_small_and_in_pieces(self, db, fakes, encoder, parts):
        made = fakes.make_table(db, parts=parts)
        job = planned(made, encoder)
        report = job.backfill()
        assert (report.rows, report.commits) == (len(parts), len(parts))
        fakes.assert_filled(made, job.plan)
        assert job.status().phase == "ready"

    def test_stable_row_ids(self, tmp_path, fakes, encoder):
        db = lancedb.connect(tmp_path / "stable", storage_options={"new_table_enable_stable_row_ids": "true"})
        made = fakes.make_table(db)
        made.update(where="id < 5", values={"text": "changed 7"})
        made.delete("id = 30")
        job = planned(made, encoder)
        encoder.once(lambda: made.update(where="id = 50", values={"text": "changed 50"}))
        job.backfill()
        made.checkout_latest()
        made.optimize()
        made.add(fakes.rows(60, 65))
        assert job.backfill().embedded == 5
        fakes.assert_filled(made, job.plan)

    def test_text_that_is_no_unicode_does_not_stop_it(self, db, fakes, encoder):
        made = fakes.make_table(db, parts=())
        made.add([{"id": 1, "text": "snow ☃ 𝄞 \x00"}, {"id": 2, "text": "x" * 100_000}])
        job = planned(made, encoder)
        job.backfill()
        fakes.assert_filled(made, job.plan)

    def test_other_columns_and_indices_stay_as_they_are(self, db, fakes, encoder):
        made = fakes.make_table(db, parts=(300, 600))
        made.create_index("text", config=FTS())
        made.create_index("id", config=BTree())
        made.create_index("vector", config=IvfFlat(num_partitions=2))
        before = made.to_arrow()
        job = planned(made, encoder)
        job.backfill()
        made.checkout_latest()
        assert made.to_arrow().drop_columns([job.plan.shadow]).equals(before)
        stats = {index.name: made.index_stats(index.name) for index in made.list_indices()}
        assert len(stats) == 4
        assert {(s.num_indexed_rows, s.num_unindexed_rows) for s in stats.values()} == {(600, 0)}

    def test_commits_are_counted(self, begun, table):
        version = table.version
        begun.backfill()
        table.checkout_latest()
        # begin, add the column, three fragments, two phases, done
        assert table.version - version == 1 + 1 + 3 + 2 + 1


class TestPhases:
    def test_the_table_is_not_touched_while_texts_are_embedded(self, begun, encoder, table, other, plan):
        seen = []

        def look(_):
            other.checkout_latest()
            seen.append((other.version, plan.shadow in other.schema.names))

        encoder.before = look
        begun.backfill()
        assert len(seen) == 8
        assert set(seen) == {(table.version + 1, False)}, "one commit says that the job began"

    def test_they_are_told_and_kept(self, begun, table):
        phases, progress = [], []
        begun.backfill(progress=lambda done, total: progress.append((done, total)), on_phase=phases.append)
        assert phases == ["embed", "write", "catch-up", "ready"]
        assert progress[:8] == [(n, 60) for n in (8, 16, 24, 32, 40, 48, 56, 60)]
        assert progress[8:] == [(20, 60), (40, 60), (60, 60)]
        assert [event["event"] for event in begun._journal.events()] == phases

    def test_a_second_run_finds_nothing_to_do(self, begun, encoder):
        begun.backfill()
        phases = []
        report = begun.backfill(on_phase=phases.append)
        assert (report.rows, report.commits, report.embedded, len(encoder.texts)) == (0, 0, 0, 60)
        assert phases == ["catch-up", "ready"]

    def test_apps_search_as_before_at_every_phase(self, table, encoder, other, plan, fakes, begun):
        def answers():
            opened = fakes.open_docs(str(Path(table.uri).parent))
            return [
                (name, [row["id"] for row in found.limit(5).to_list()])
                for name, found in (
                    ("string", opened.search("text number 7")),
                    ("vector", opened.search(fakes.vector_of("text number 7", 1))),
                    ("full text", opened.search("7", query_type="fts")),
                    ("hybrid", opened.search("text number 7", query_type="hybrid")),
                    ("old handle", other.search("text number 7")),
                )
            ]

        expected = answers()
        seen = []
        encoder.once(lambda: seen.append(answers()))
        begun.backfill(on_phase=lambda phase: seen.append(answers()))
        assert seen == [expected] * 5
        other.add([{"id": 99, "text": "late"}])
        assert other.search("late").limit(1).to_list()[0]["id"] == 99


def changes(fakes):
    """What another writer may do, by name."""
    no_old_versions = {"cleanup_older_than": timedelta(0), "delete_unverified": True}
    return {
        "append": lambda table: table.add(fakes.rows(60, 75)),
        "update": lambda table: table.update(where="id IN (3, 25, 50)", values={"text": "changed"}),
        "update all": lambda table: table.update(where="id >= 0", values={"text": "changed"}),
        "take a text away": lambda table: table.update(where="id = 7", values_sql={"text": "NULL"}),
        "delete": lambda table: table.delete("id % 7 = 0"),
        "delete a fragment": lambda table: table.delete("id < 20"),
        "delete all": lambda table: table.delete("id >= 0"),
        "compact": lambda table: table.optimize(),
        "compact and clean up": lambda table: table.optimize(**no_old_versions),
        "merge": lambda table: _merge(table, fakes),
        "a full-text index": lambda table: table.create_index("text", config=FTS(), replace=True),
        "everything": lambda table: (
            table.add(fakes.rows(60, 75)),
            table.update(where="id IN (3, 61)", values={"text": "changed"}),
            table.delete("id = 5"),
            table.optimize(),
        ),
    }


pytestmark = pytest.mark.filterwarnings("ignore:.*cleanup_older_than=0:UserWarning")

NAMES = [
    *("append", "update", "update all", "take a text away", "delete", "delete a fragment", "delete all", "compact"),
    *("compact and clean up", "merge", "a full-text index", "everything"),
]


def _merge(table, fakes):
    merged = [{"id": i, "text": f"merged {i}", "vector": [0.0] * 8} for i in range(10, 65)]
    table.checkout_latest()
    columns = [table.schema.field(name) for name in ("id", "text", "vector")]
    source = pa.Table.from_pylist(merged, schema=pa.schema(columns))
    table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(source)


class TestOtherWritersMeanwhile:
    @pytest.mark.parametrize("name", ["append", "update", "compact", "everything"])
    @pytest.mark.parametrize("moment", ["embed", "write", "catch-up", "ready"])
    def test_the_column_is_right_at_the_end(self, begun, table, other, plan, fakes, name, moment, encoder):
        def act(phase):
            if phase == moment:
                other.checkout_latest()
                changes(fakes)[name](other)

        begun.backfill(on_phase=act)
        report = begun.backfill()
        fakes.assert_filled(table, plan)
        assert report.late == 0
        assert len(encoder.texts) == len(set(encoder.texts)), "no text was embedded twice"

    @pytest.mark.parametrize("name", NAMES)
    def test_within_the_embedding(self, begun, table, other, plan, fakes, name, encoder):
        encoder.once(lambda: changes(fakes)[name](other))
        begun.backfill()
        fakes.assert_filled(table, plan)
        assert len(encoder.texts) == len(set(encoder.texts))

    @pytest.mark.parametrize("name", ["update", "compact", "compact and clean up", "merge", "delete", "append"])
    def test_between_reading_a_fragment_and_committing_it(self, begun, table, other, plan, fakes, name, monkeypatch):
        write, done = lance.write_column_file, []

        def write_late(*arguments):
            path = write(*arguments)
            if not done:
                done.append(name)
                other.checkout_latest()
                changes(fakes)[name](other)
            return path

        monkeypatch.setattr(lance, "write_column_file", write_late)
        begun.backfill()
        fakes.assert_filled(table, plan)
        assert done

    def test_compaction_costs_no_embedding(self, begun, table, other, encoder, plan, fakes):
        begun.backfill()
        table.checkout_latest()
        table.optimize()
        assert begun.backfill().embedded == 0
        fakes.assert_filled(table, plan)

    def test_a_writer_that_adds_all_the_time_does_not_hold_it_up(self, begun, other, encoder, plan, fakes, table):
        encoder.before = lambda batch: other.add([{"id": 1000 + batch, "text": f"added {batch}"}])
        report = begun.backfill()
        assert report.late
        assert f"{report.late} rows came late: run backfill() again before the swap" in str(report)
        assert begun.status().phase == "ready"
        encoder.before = lambda batch: None
        assert begun.backfill().late == 0
        fakes.assert_filled(table, plan)

    def test_updates_on_every_attempt_end_in_an_error_and_lose_nothing(
        self, begun, other, plan, table, fakes, monkeypatch
    ):
        write = lance.write_column_file

        def busy(*arguments):
            other.checkout_latest()
            other.update(where="id >= 0", values_sql={"id": "id"})
            return write(*arguments)

        monkeypatch.setattr(lance, "write_column_file", busy)
        with pytest.raises(ConflictError, match=f"each of {ATTEMPTS} attempts"):
            begun.backfill()
        monkeypatch.setattr(lance, "write_column_file", write)
        assert begun.backfill().embedded == 0
        fakes.assert_filled(table, plan)

    def test_the_source_column_is_dropped_midway(self, begun, other, encoder):
        encoder.once(lambda: other.drop_columns(["text"]))
        with pytest.raises(ColumnError, match=r"'text'.*abort"):
            begun.backfill()
        assert not begun.status().running
        begun.abort()

    def test_the_vector_column_is_dropped_between(self, begun, other):
        other.drop_columns(["vector"])
        with pytest.raises(ColumnError, match="'vector'"):
            begun.backfill()
        assert begun.status().phase == "planned"


class TestModelsThatFail:
    def test_nan_in_one_batch_names_the_row_and_keeps_the_others(self, begun, encoder, table, plan, fakes):
        calls = []

        def spoil(vectors):
            calls.append(len(vectors))
            return vectors * np.nan if len(calls) == 4 else vectors

        encoder.answer = spoil
        with pytest.raises(ModelError, match=r"NaN.*of row id \d+"):
            begun.backfill()
        assert begun.status().spooled == 24, "three batches of 8 came before"
        encoder.texts.clear()
        assert begun.backfill().embedded == len(encoder.texts) == 36
        fakes.assert_filled(table, plan)

    @pytest.mark.parametrize("wrong", [lambda v: v[:-1], lambda v: v[:, :-1], lambda v: v * np.inf])
    def test_answers_of_a_wrong_form(self, begun, encoder, wrong, table):
        encoder.answer = wrong
        with np.errstate(invalid="ignore"), pytest.raises(ModelError):
            begun.backfill()
        assert begun.status().spooled == 0

    def test_one_that_raises(self, begun, encoder, table, plan, fakes):
        def fail(batch):
            if batch == 5:
                raise MemoryError("too large")

        encoder.before = fail
        with pytest.raises(ModelError, match="too large"):
            begun.backfill()
        encoder.before = lambda batch: None
        encoder.texts.clear()
        begun.backfill()
        assert len(encoder.texts) == 60 - 32
        fakes.assert_filled(table, plan)

    def test_one_that_was_trained_since_the_plan(self, plan, table, fakes, encoder):
        read = Plan.from_json(plan.to_json())
        with pytest.raises(ModelError, match="other vectors than HashEncoder"):
            ReindexJob(read, table, model=fakes.HashEncoder(seed=3)).backfill()
        with pytest.raises(ValueError, match="pass it as model="):
            ReindexJob(read, table).backfill()
        assert ReindexJob(read, table, model=fakes.HashEncoder()).backfill().rows == 60


class TestTheIndex:
    @pytest.fixture
    def indexed(self, db, fakes):
        made = fakes.make_table(db, parts=(300, 600))
        made.create_index("vector", config=IvfFlat(num_partitions=3, distance_type="cosine"))
        return made

    def test_is_of_the_kind_of_the_live_one_and_covers_every_row(self, indexed, encoder):
        job = planned(indexed, encoder)
        phases = []
        report = job.backfill(on_phase=phases.append)
        assert phases == ["embed", "write", "catch-up", "index", "ready"]
        assert report.index == "ivf_flat (cosine, num_partitions 3)"
        indexed.checkout_latest()
        stats = indexed.index_stats(f"{job.plan.shadow}_idx")
        assert (stats.index_type, stats.distance_type, stats.num_unindexed_rows) == ("IVF_FLAT", "cosine", 0)
        assert job.status().unindexed == 0

    def test_rows_that_come_while_it_is_built_are_in_it(self, indexed, encoder, fakes):
        job = planned(indexed, encoder)

        def add(phase):
            if phase == "index":
                indexed.checkout_latest()
                indexed.add(fakes.rows(600, 620))

        job.backfill(on_phase=add)
        assert job.status().unindexed == 0
        fakes.assert_filled(indexed, job.plan)
        indexed.optimize()

    def test_rows_that_come_later_are_added_by_another_run_and_optimize_works_then(self, indexed, encoder, fakes):
        job = planned(indexed, encoder)
        job.backfill()
        indexed.checkout_latest()
        indexed.add(fakes.rows(600, 620))
        with pytest.raises(RuntimeError, match="Not found"):
            indexed.optimize()  # LanceDB's own error; when it is gone, what the plan says of it can go too
        job.backfill()
        assert job.status().unindexed == 0
        assert indexed.index_stats("vector_idx").num_unindexed_rows == 20, "other indices are not ours to extend"
        indexed.checkout_latest()
        indexed.optimize()

    def test_none_is_built_where_no_row_has_a_vector(self, indexed, encoder):
        indexed.update(where="id >= 0", values_sql={"text": "NULL"})
        report = planned(indexed, encoder).backfill()
        assert report.index is None


class TestWhereItIsKept:
    def test_a_lost_spool_costs_embedding_of_what_is_missing_alone(self, begun, table, plan, encoder, fakes):
        begun.backfill()
        shutil.rmtree(begun.folder)
        table.checkout_latest()
        table.add(fakes.rows(60, 65))
        encoder.texts.clear()
        assert begun.backfill().embedded == len(encoder.texts) == 5
        fakes.assert_filled(table, plan)

    def test_another_folder(self, table, encoder, tmp_path, fakes):
        job = planned(table, encoder, work_dir=tmp_path / "elsewhere")
        job.backfill()
        assert (tmp_path / "elsewhere" / job.plan.job / "vectors.bin").exists()
        assert not (Path(table.uri) / "_lance_rerank" / "reindex").exists()
        fakes.assert_filled(table, job.plan)
        job.abort()
        assert not list((tmp_path / "elsewhere").iterdir())
