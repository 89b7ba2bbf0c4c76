"""Swaps and rollbacks: what every row has afterwards, whoever wrote meanwhile and wherever it was killed.

The kill tests run this file as a script.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS, IvfFlat

import lance_rerank
from lance_rerank import lance
from lance_rerank.errors import ArgumentError, ColumnError, FittedForError, ModelError
from lance_rerank.lance import commits
from lance_rerank.reindex import ReindexJob, plan_reindex
from lance_rerank.reindex.state import jobs_of, read_state
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.rerankers.fitted import BlendModel, FittedBlendReranker, fitted_for
from lance_rerank.search.retriever import Retriever

AT_ONCE = timedelta(0)


class World:
    """A table, and the rows that it has to hold whatever was written when."""

    def __init__(self, fakes, folder, *, new_dim=8, stable=False, parts=(12, 24, 36)):
        self.fakes = fakes
        self.uri = str(folder)
        options = {"new_table_enable_stable_row_ids": "true"} if stable else None
        self.dims = {1: fakes.DIM, 2: new_dim}
        self.table = fakes.make_table(lancedb.connect(self.uri, storage_options=options), parts=parts)
        self.texts = {row["id"]: row["text"] for row in fakes.rows(0, parts[-1])}

    def job(self, **arguments):
        model = self.fakes.function(seed=2, dim=self.dims[2])
        return ReindexJob(plan_reindex(self.table, model=model, **{"batch_size": 8, **arguments}))

    def ready(self, **arguments):
        job = self.job(**arguments)
        job.backfill()
        job.verify(sample=8)
        return job

    def fresh(self):
        return self.fakes.open_docs(self.uri)

    def write(self, handle=None):
        """Add, update, upsert, delete and compact by one handle."""
        handle = self.fresh() if handle is None else handle
        at = max(self.texts) + 1
        handle.add([{"id": i, "text": f"added {i}"} for i in range(at, at + 3)])
        self.texts |= {i: f"added {i}" for i in range(at, at + 3)}
        changed, upserted, dropped = sorted(self.texts)[1:4]
        handle.update(where=f"id = {changed}", values={"text": f"changed at {at}"})
        self.texts[changed] = f"changed at {at}"
        rows = [{"id": i, "text": f"upserted {i} at {at}"} for i in (upserted, at + 3)]
        handle.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self.texts |= {row["id"]: row["text"] for row in rows}
        handle.delete(f"id = {dropped}")
        del self.texts[dropped]
        handle.optimize()

    def check(self, seed):
        """No row was lost or doubled, every vector is that of its text by this model, and every text finds its row."""
        self.check_rows(seed)
        following = lance_rerank.connect(self.uri, read_consistency_interval=AT_ONCE).open_table("docs")
        for handle in (self.fresh(), following):
            for row_id, text in self.texts.items():
                [found] = handle.search(text, query_type="vector").select(["id"]).limit(1).to_list()
                assert found["id"] == row_id, text

    def check_rows(self, seed):
        stored = self.fresh().to_lance().to_table(columns=["id", "text", "vector"]).to_pylist()
        assert {row["id"]: row["text"] for row in stored} == self.texts
        assert len(stored) == len(self.texts)
        for row in stored:
            expected = self.fakes.vector_of(row["text"], seed, self.dims[seed])
            np.testing.assert_allclose(row["vector"], expected, rtol=1e-3, atol=1e-3, err_msg=row["text"])


@pytest.fixture
def world(fakes, tmp_path):
    return World(fakes, tmp_path / "db")


def around(monkeypatch, module, name, *, before=None, after=None):
    """Run something before or after the first call of a step; return a list that tells whether it was called."""
    step, called = getattr(module, name), []

    def wrapped(*arguments, **options):
        monkeypatch.setattr(module, name, step)
        called.append(True)
        if before:
            before()
        result = step(*arguments, **options)
        if after:
            after()
        return result

    monkeypatch.setattr(module, name, wrapped)
    return called


class TestSwap:
    def test_every_text_finds_its_row_before_and_after_and_after_the_rollback(self, world):
        job = world.ready()
        world.check(1)
        report = job.swap()
        world.check(2)
        assert (report.phase, report.swept, report.late, report.without_vector) == ("swapped", 0, 0, 0)
        assert str(report).startswith(f"vector: swapped in version {report.version}, 0 rows swept")
        assert job.status().phase == "swapped"
        assert job.rollback().phase == "rolled-back"
        world.check(1)
        job.verify()
        job.swap()
        world.check(2)

    @pytest.mark.parametrize(("dim", "stable"), [(5, False), (8, True)])
    def test_another_dimension_and_stable_row_ids(self, fakes, tmp_path, dim, stable):
        world = World(fakes, tmp_path / "db", new_dim=dim, stable=stable)
        job = world.ready()
        world.write()
        report = job.swap()
        assert any("dimensions" in note for note in report.notes) == (dim == 5)
        world.check(2)
        world.write()
        job.rollback()
        world.check(1)

    @pytest.mark.parametrize("dual_writing", [False, True])
    def test_what_is_said_of_the_columns(self, world, dual_writing):
        before = world.fresh().schema
        job = world.ready()
        job.swap(dual_writing=dual_writing)
        schema = world.fresh().schema
        retired = f"vector_prev_{job.plan.job}"
        assert schema.names == ["id", "text", retired, "vector"]
        assert lance.is_hidden(schema.field(retired).type)
        assert schema.field("vector").metadata is None
        entries = {e["vector_column"]: e["model"]["seed"] for e in lance.embedding_entries(_text(schema.metadata))}
        assert entries == ({"vector": 2, retired: 1} if dual_writing else {"vector": 2})
        world.write()
        filled = world.fresh().count_rows(f"`{retired}` IS NULL AND text IS NOT NULL") == 0
        assert filled == dual_writing, "add() makes both vectors only where that was asked for"
        assert schema.metadata[lance.model_key("vector").encode()].decode() == job.plan.fingerprint
        job.rollback()
        schema = world.fresh().schema
        assert schema.field("vector").equals(before.field("vector"), check_metadata=True)
        assert schema.metadata.keys() == before.metadata.keys()

    def test_again_it_does_nothing(self, world):
        job = world.ready()
        job.swap()
        files = lance.files_of(world.fresh())
        again = job.swap()
        assert (again.version, again.swept, again.landed) == (None, 0, 0)
        assert lance.files_of(world.fresh()) == files

    def test_only_what_was_verified(self, world):
        job = world.job()
        with pytest.raises(ArgumentError, match=r"this one is in 'planned'\. Run backfill"):
            job.swap()
        job.backfill()
        with pytest.raises(ArgumentError, match="was not verified"):
            job.swap()
        with pytest.raises(ArgumentError, match=r"rollback\(\) is for a job that is in"):
            job.rollback()
        assert job.swap(require_verified=False).version
        with pytest.raises(ArgumentError, match="is past that"):
            job.backfill()
        with pytest.raises(ArgumentError, match="is past that"):
            job.abort()

    def test_a_rollback_takes_the_verification_back(self, world):
        job = world.ready()
        job.swap()
        job.rollback()
        with pytest.raises(ArgumentError, match="was not verified"):
            job.swap()

    def test_after_a_rollback_abort_leaves_the_table_as_it_was(self, world):
        rows, schema, metadata = _content(world)
        job = world.ready()
        job.swap()
        job.rollback()
        job.abort()
        assert _content(world) == (rows, schema, metadata)
        assert not (Path(world.table.uri) / "_lance_rerank").exists()

    def test_columns_that_somebody_dropped(self, world):
        job = world.ready()
        world.fresh().drop_columns([job.plan.shadow])
        with pytest.raises(ColumnError, match="are not there as they should be"):
            job.swap()

    def test_an_encoder_without_a_function_says_that_search_by_text_ends(self, world, encoder):
        job = ReindexJob(plan_reindex(world.table, model=encoder))
        job.backfill()
        job.verify()
        [first, *_] = job.swap().notes
        assert 'search("text") finds nothing' in first
        found = Retriever(world.fresh(), query_type="vector", encoder=encoder).retrieve(world.texts[7], k=1)
        assert found[0].doc_id == "7"
        job.rollback()
        world.check(1)


def _text(metadata):
    return {key.decode(): value for key, value in metadata.items()}


def _content(world):
    table = world.fresh()
    return table.to_arrow(), table.schema, lance.table_metadata(table)


class TestWritesMeanwhile:
    def test_between_every_two_steps_and_by_stale_handles(self, world, monkeypatch):
        stale = world.fresh()
        stale.count_rows()
        job = world.ready()
        world.write()
        called = around(monkeypatch, lance, "swap_columns", before=world.write, after=world.write)
        assert job.swap().swept
        world.check(2)
        world.write(stale)
        world.write()
        job.swap()
        world.check(2)
        world.write(stale)
        again = around(monkeypatch, lance, "swap_columns", before=world.write, after=world.write)
        job.rollback()
        assert called == again == [True]
        world.check(1)

    def test_between_the_version_read_and_the_commit(self, world, monkeypatch):
        job = world.ready()
        commit = commits.commit

        def write_first(data, operation):
            if type(operation).__name__ == "Project":
                monkeypatch.setattr(commits, "commit", commit)
                world.write()
            return commit(data, operation)

        for step, seed in ((job.swap, 2), (job.rollback, 1)):
            monkeypatch.setattr(commits, "commit", write_first)
            assert step().landed >= 4
            world.check(seed)

    def test_an_add_that_read_the_schema_before_the_swap_and_landed_after_it(self, world):
        """It fills the new column with the old model's vectors, which no null and no changed text tells."""
        job = world.ready()
        job.swap()
        late = [world.fakes.vector_of("late", 1).tolist()]
        world.fresh().add(
            pa.table({"id": [500], "text": ["late"], "vector": pa.array(late, pa.list_(pa.float32(), 8))})
        )
        world.texts[500] = "late"
        assert job.swap().swept == 1
        world.check(2)

    def test_rows_that_are_equal_are_no_trouble(self, world):
        job = world.ready()
        world.fresh().add([{"id": 600 + i, "text": "one text"} for i in range(5)])
        report = job.swap()
        assert (report.swept, report.embedded) == (5, 1)
        job.rollback()
        world.texts |= {600 + i: "one text" for i in range(5)}
        world.check_rows(1)

    def test_updates_before_the_swap_have_the_old_models_vectors_after_the_rollback(self, world):
        job = world.job()
        job.backfill()
        world.write()
        job.verify()
        job.swap()
        job.rollback()
        world.check(1)


class TestIndices:
    @pytest.fixture
    def indexed(self, fakes, tmp_path):
        world = World(fakes, tmp_path / "db", parts=(300, 600))
        world.table.create_index("vector", config=IvfFlat(num_partitions=2))
        world.table.create_index("text", config=FTS())
        return world

    @pytest.mark.parametrize("dual_writing", [False, True])
    def test_names_follow_the_columns_and_nothing_is_left_out(self, indexed, dual_writing):
        job = indexed.ready()
        retired = f"vector_prev_{job.plan.job}"
        indexed.write()
        report = job.swap(dual_writing=dual_writing)
        assert report.indices == {"vector_idx": f"{retired}_idx", f"{job.plan.shadow}_idx": "vector_idx"}
        self.assert_covered(indexed, {"vector_idx", "text_idx"} | ({f"{retired}_idx"} if dual_writing else set()))
        indexed.write()
        indexed.fresh().optimize()
        job.rollback()
        self.assert_covered(indexed, {"vector_idx", f"{job.plan.shadow}_idx", "text_idx"})
        indexed.check_rows(1)
        job.verify(sample=8)
        job.swap()
        job.drop_old()
        self.assert_covered(indexed, {"vector_idx", "text_idx"})
        indexed.check_rows(2)

    @staticmethod
    def assert_covered(world, names):
        table = world.fresh()
        assert {index.name for index in table.list_indices()} == names
        assert table.index_stats("vector_idx").num_unindexed_rows == 0

    def test_optimize_works_for_apps_that_pass_vectors(self, fakes, tmp_path):
        """LanceDB cannot optimize an index for rows of nulls alone, so that of a column nobody fills is dropped."""
        made = lancedb.connect(tmp_path / "db").create_table("docs", _with_vectors(fakes, range(600)))
        made.create_index("vector", config=IvfFlat(num_partitions=2))
        encoder = fakes.HashEncoder()
        job = ReindexJob(plan_reindex(made, source="text", model=encoder))
        job.backfill()
        job.verify()
        job.swap()
        made.checkout_latest()
        assert [index.name for index in made.list_indices()] == ["vector_idx"]
        made.add(_with_vectors(fakes, range(600, 620), seed=2))
        made.optimize()
        with pytest.raises(ArgumentError, match="20 rows have no vector of the old model"):
            job.rollback()
        assert job.status().phase == "swapped"
        report = job.rollback(allow_nulls=True)
        assert report.without_vector == 20
        made.checkout_latest()
        assert "vector_idx" in [index.name for index in made.list_indices()]
        [found] = made.search(fakes.vector_of("text 5", 1)).select(["id"]).limit(1).to_list()
        assert found["id"] == 5


def _with_vectors(fakes, ids, seed=1):
    texts = [f"text {i}" for i in ids]
    vectors = pa.array([fakes.vector_of(text, seed).tolist() for text in texts], pa.list_(pa.float32(), 8))
    return pa.table({"id": list(ids), "text": texts, "vector": vectors})


class TestOldModel:
    def test_one_that_makes_other_vectors_now_is_not_used(self, world, monkeypatch):
        job = world.ready()
        job.swap()
        world.write()
        monkeypatch.setattr(world.fakes.HashFunction, "generate_embeddings", _of_another_seed(world.fakes))
        with pytest.raises(ModelError, match="makes other vectors than the column holds"):
            job.rollback()
        assert job.status().phase == "swapped"
        assert job.rollback(allow_nulls=True).phase == "rolled-back"

    def test_vectors_of_rows_without_a_text_are_not_lost_unasked(self, world, fakes):
        table = world.fresh()
        kept = fakes.vector_of("an image", 9).tolist()
        vectors = pa.array([kept], pa.list_(pa.float32(), 8))
        table.add(pa.table({"id": [900], "text": pa.array([None], pa.string()), "vector": vectors}))
        job = world.ready()
        job.swap()
        world.write()
        with pytest.raises(ArgumentError, match="1 rows without a text"):
            job.rollback()
        assert job.rollback(allow_nulls=True).phase == "rolled-back"


def _of_another_seed(fakes):
    return lambda self, texts: [fakes.vector_of(text, 77, self.dim) for text in texts]


class TestDropOld:
    def test_leaves_the_live_column_and_its_fingerprint_alone(self, world):
        job = world.ready()
        job.swap()
        job.drop_old()
        table = world.fresh()
        assert table.schema.names == ["id", "text", "vector"]
        ours = [key for key in table.schema.metadata if b"lance_rerank" in key]
        assert ours == [lance.model_key("vector").encode()]
        assert lance.table_metadata(table) == {}
        assert jobs_of(table) == []
        assert not (Path(table.uri) / "_lance_rerank").exists()
        world.check(2)
        world.write()
        world.table = world.fresh()
        world.dims[2] = 8
        ReindexJob(plan_reindex(world.table, model=world.fakes.function(seed=3))).backfill()

    def test_only_after_the_swap(self, world):
        job = world.ready()
        with pytest.raises(ArgumentError, match=r"drop_old\(\) is for a job that is in phase swapped"):
            job.drop_old()
        job.swap()
        job.rollback()
        with pytest.raises(ArgumentError, match="drop_old"):
            job.drop_old()


def test_a_reranker_that_was_fitted_for_the_old_model_refuses_without_being_rebuilt(world):
    class Longest(BaseReranker):
        def score_texts(self, query, texts):
            return [len(text) for text in texts]

    world.table.create_index("text", config=FTS())
    handle = lance_rerank.connect(world.uri, read_consistency_interval=AT_ONCE).open_table("docs")
    plain = Retriever(handle)
    inner = Longest()
    model = BlendModel("first stage", {"first stage": 1.0})
    fitted = FittedBlendReranker(inner, model=model, fitted_for=fitted_for(inner, plain, ("vector", "fts"), 100))
    serving = plain.with_reranker(fitted)
    serving._check_reranker(serving._query_vectors("text number 5", None))
    job = world.ready()
    job.swap()
    with pytest.raises(FittedForError, match="fitted for another embedding model"):
        serving.retrieve("text number 5")
    job.rollback()
    serving._check_reranker(serving._query_vectors("text number 5", None))


# --- kills -----------------------------------------------------------------------------------------------------------


def killed(uri, method, step):
    """Run a method of the job in another process, which is killed when a step of it is done."""
    script = [sys.executable, __file__, uri, method, step]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def _die_after(uri, method, step):
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    run = getattr(lance, step)

    def dying(*arguments, **options):
        run(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(lance, step, dying)
    getattr(ReindexJob.open(conftest.open_docs(uri)), method)()


@pytest.mark.parametrize("method", ["swap", "rollback"])
def test_a_kill_after_the_commit_changes_nothing_about_the_end(world, method):
    job = world.ready()
    if method == "rollback":
        job.swap()
    world.write()
    killed(world.uri, method, "swap_columns")
    assert read_state(world.fresh(), "vector").phase == method
    world.write()
    again = ReindexJob.open(world.fresh())
    getattr(again, method)()
    world.check(1 if method == "rollback" else 2)
    assert again.status().phase == ("rolled-back" if method == "rollback" else "swapped")


@pytest.mark.parametrize("method", ["swap", "rollback"])
@pytest.mark.parametrize("step", ["replace_column", "swap_columns", "rename_indices_after"])
def test_whatever_stops_it_wherever_it_goes_on(world, monkeypatch, method, step):
    def stop():
        raise KeyboardInterrupt

    job = world.ready()
    if method == "rollback":
        job.swap()
    world.write()
    around(monkeypatch, lance, step, after=stop)
    with pytest.raises(KeyboardInterrupt):
        getattr(job, method)()
    monkeypatch.undo()
    world.write()
    getattr(job, method)()
    world.check_rows(1 if method == "rollback" else 2)


def test_a_drop_that_was_stopped_goes_on(world, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    job = world.ready()
    job.swap()
    around(monkeypatch, lance, "drop_column", after=stop)
    with pytest.raises(KeyboardInterrupt):
        job.drop_old()
    for other in (job.swap, job.rollback, job.verify):
        with pytest.raises(ArgumentError, match=r"The old column is being dropped: drop_old\(\) goes on"):
            other()
    ReindexJob.open(world.fresh()).drop_old()
    assert world.fresh().schema.names == ["id", "text", "vector"]
    assert lance.table_metadata(world.fresh()) == {}


def test_a_swap_that_stopped_before_its_commit_can_be_rolled_back(world, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    job = world.ready()
    around(monkeypatch, lance, "swap_columns", before=stop)
    with pytest.raises(KeyboardInterrupt):
        job.swap()
    with pytest.raises(ArgumentError, match="is past that"):
        job.abort()
    assert job.rollback().version is None
    world.check(1)
    job.abort()
    assert world.fresh().schema.names == ["id", "text", "vector"]


if __name__ == "__main__":
    _die_after(*sys.argv[1:])
