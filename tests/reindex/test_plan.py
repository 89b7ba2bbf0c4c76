"""Plans: what they say, what they refuse, and that they write nothing."""

from __future__ import annotations

import os
from collections import namedtuple

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import get_registry
from lancedb.index import IvfFlat

from lance_rerank import SentenceEncoder
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, ModelError, UnsupportedError
from lance_rerank.reindex import Plan, ReindexJob, plan_reindex


class TestWhatItSays:
    def test_the_rows_and_what_is_taken_from_the_table(self, table, encoder):
        table.add([{"id": 60, "text": None, "vector": [0.0] * 8}])
        plan = plan_reindex(table, model=encoder)
        assert (plan.table, plan.column, plan.source) == ("docs", "vector", "text")
        assert (plan.rows, plan.fragments, plan.without_text, plan.texts) == (61, 4, 1, 60)
        assert (plan.dim, plan.old_dim, plan.dtype, plan.batch_size) == (8, 8, "float32", 64)
        assert (plan.column_bytes, plan.sampled) == (61 * 8 * 4, 60)
        assert plan.texts_a_second > 0
        assert plan.embed_seconds == pytest.approx(60 / plan.texts_a_second)

    def test_all_of_it_in_words(self, table, encoder):
        said = str(plan_reindex(table, model=encoder))
        for part in (
            "Reindex docs.vector with HashEncoder (job ",
            "60 in 3 fragments; 0 without a text in 'text'",
            "texts a second on the sample",
            "beside it until drop_old() or abort()",
            "searches that select nothing read 'vector_next_",
            "those that pass vectors of their own have to follow at the swap",
            'search("text") stops working at the swap',
            "1. embed 60 texts",
            "commits: the column, then 3 commits, one a fragment",
            "undo: abort() takes all of it back",
            "undo: rollback(), one commit",
        ):
            assert part in said, part

    def test_a_change_of_dimension(self, table, fakes):
        plan = plan_reindex(table, model=fakes.HashEncoder(dim=12))
        assert (plan.dim, plan.old_dim) == (12, 8)
        assert "8 -> 12 dimensions" in str(plan)

    def test_the_type_of_the_column_is_kept_unless_another_is_asked_for(self, db, encoder):
        rows = pa.table({"text": ["a"], "vector": pa.array([[0.0] * 8], pa.list_(pa.float16(), 8))})
        made = db.create_table("half", rows)
        assert plan_reindex(made, source="text", model=encoder).dtype == "float16"
        assert plan_reindex(made, source="text", model=encoder, dtype="float32").dtype == "float32"

    def test_an_empty_table(self, db, fakes, encoder):
        plan = plan_reindex(fakes.make_table(db, parts=()), model=encoder)
        assert (plan.rows, plan.sampled, plan.embed_seconds) == (0, 0, None)
        assert "there is no text to measure by" in str(plan)

    def test_the_index_of_the_live_column(self, db, fakes, encoder):
        made = fakes.make_table(db, parts=(300,))
        assert plan_reindex(made, model=encoder).index is None
        made.create_index("vector", config=IvfFlat(num_partitions=3, distance_type="cosine"))
        plan = plan_reindex(made, model=encoder)
        assert str(plan.index) == "ivf_flat (cosine, num_partitions 3)"
        assert "run backfill() again before table.optimize()" in str(plan)
        assert plan_reindex(made, model=encoder, index="none").index is None
        assert str(plan_reindex(made, model=encoder, index="ivf_sq").index) == "ivf_sq (cosine)"

    def test_a_second_vector_column_is_no_obstacle_when_one_is_named(self, table, encoder):
        table.add_columns(pa.field("second", pa.list_(pa.float32(), 4)))
        assert plan_reindex(table, column="vector", model=encoder).column == "vector"

    def test_it_survives_json_and_files(self, table, encoder, tmp_path):
        plan = plan_reindex(table, model=encoder, work_dir=tmp_path)
        assert Plan.from_json(plan.to_json()) == plan
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan

    @pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"format": 1}', '{"format": 2, "job": "x"}'])
    def test_what_is_no_plan_is_refused(self, text):
        with pytest.raises(ArgumentError, match="plan"):
            Plan.from_json(text)


class TestItWritesNothing:
    def test_no_file_and_no_version(self, table, encoder, fakes):
        files, version = fakes.files_under(table.uri), table.version
        plan_reindex(table, model=encoder)
        assert fakes.files_under(table.uri) == files
        table.checkout_latest()
        assert table.version == version

    def test_and_does_not_move_the_handle(self, table, other, encoder, fakes):
        version = other.version
        table.add(fakes.rows(60, 70))
        assert plan_reindex(other, model=encoder).rows == 70
        assert other.version == version


class TestModels:
    def test_a_folder_becomes_lancedbs_function_and_is_filled_by_the_faster_encoder(self, table, tiny_encoder):
        plan = plan_reindex(table, model=tiny_encoder)
        assert plan.model.kind == "sentence-transformers"
        assert plan.model.function == {
            "name": "sentence-transformers",
            "model": {"name": tiny_encoder, "trust_remote_code": False},
        }
        assert plan.model.function_is_lancedbs
        assert plan.dim == 32
        assert plan.tokens_a_text > 3
        assert "embeds by LanceDB's 'sentence-transformers'" in str(plan)

    def test_a_function_that_does_not_normalise_is_filled_by_itself(self, table, tiny_encoder):
        function = get_registry().get("sentence-transformers").create(name=tiny_encoder, normalize=False)
        plan = plan_reindex(table, model=function)
        assert plan.model.kind == "function"
        job = ReindexJob(Plan.from_json(plan.to_json()), table)
        job.backfill()
        table.checkout_latest()
        stored = table.to_lance().to_table(columns=["text", plan.shadow])
        expected = function.generate_embeddings(stored["text"].to_pylist())
        np.testing.assert_allclose(
            stored[plan.shadow].combine_chunks().storage.flatten().to_numpy().reshape(-1, 32), expected, atol=1e-4
        )

    def test_a_function_of_the_apps_own(self, table, fakes):
        plan = plan_reindex(table, model=fakes.function(seed=5))
        assert plan.model.function == {"name": "reindex-hash", "model": {"seed": 5}}
        assert not plan.model.function_is_lancedbs
        assert "unless it imports the module that registers 'reindex-hash'" in str(plan)

    def test_a_function_beside_an_encoder_has_to_make_the_same_vectors(self, table, encoder, fakes):
        plan = plan_reindex(table, model=encoder, function=fakes.function(seed=2))
        assert plan.model.kind == "encoder"
        assert plan.model.function["model"] == {"seed": 2}
        for wrong, said in (
            (fakes.function(seed=3), "a cosine of"),
            (fakes.function(seed=2, scale=3.0), "times as long"),
            (fakes.function(seed=2, dim=9), "8 dimensions against 9"),
        ):
            with pytest.raises(ArgumentError, match=said):
                plan_reindex(table, model=encoder, function=wrong)

    def test_a_function_that_cannot_be_written_down(self, table, fakes):
        with pytest.raises(ArgumentError, match="create"):
            plan_reindex(table, model=fakes.HashFunction(seed=5))

    @pytest.mark.parametrize("model", [None, 3, object(), SentenceEncoder])
    def test_something_else_is_refused(self, table, model):
        with pytest.raises(ArgumentError, match="model is a folder, a hub id"):
            plan_reindex(table, model=model)

    def test_a_folder_that_is_no_model_fails_at_once(self, table, tmp_path, monkeypatch):
        """LanceDB would try it again for minutes."""
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ModelError, match=str(tmp_path)):
            plan_reindex(table, model=str(tmp_path))

    def test_a_folder_that_is_not_there(self, table):
        with pytest.raises(ModelError, match="no model folder"):
            plan_reindex(table, model="./nothing/here")

    def test_a_model_that_fails_or_answers_wrong_on_the_sample(self, table, encoder):
        encoder.answer = lambda vectors: vectors * np.nan
        with pytest.raises(ModelError, match="NaN"):
            plan_reindex(table, model=encoder)

        def fail(_):
            raise RuntimeError("no memory")

        encoder.before = fail
        with pytest.raises(ModelError, match="no memory"):
            plan_reindex(table, model=encoder)

    def test_the_model_of_now_is_refused(self, table, fakes):
        with pytest.raises(ArgumentError, match="holds the vectors of HashEncoder already"):
            plan_reindex(table, model=fakes.HashEncoder(seed=1))

    def test_the_model_of_now_is_known_by_its_vectors_where_nothing_names_it(self, db, encoder, fakes):
        vectors = [fakes.vector_of(row["text"], 2) for row in fakes.rows(0, 20)]
        rows = [{**row, "vector": vector} for row, vector in zip(fakes.rows(0, 20), vectors, strict=True)]
        with pytest.raises(ArgumentError, match="already"):
            plan_reindex(db.create_table("bare", rows), source="text", model=encoder)

    def test_and_by_its_function_where_there_are_no_vectors(self, db, fakes):
        empty = fakes.make_table(db, parts=())
        with pytest.raises(ArgumentError, match="already"):
            plan_reindex(empty, model=fakes.HashEncoder(seed=1))

    def test_metadata_that_name_the_wrong_model_can_be_mended(self, db, fakes):
        made = fakes.make_table(db, parts=())
        made.add([{**row, "vector": fakes.vector_of(row["text"], 9).tolist()} for row in fakes.rows(0, 20)])
        assert plan_reindex(made, model=fakes.HashEncoder(seed=1)).rows == 20


class TestRefusals:
    def refused(self, table, said, error=ColumnError, **arguments):
        with pytest.raises(error, match=said):
            plan_reindex(table, **{"model": None, **arguments})

    def test_columns(self, db, table):
        self.refused(table, "no column 'nope'", column="nope")
        self.refused(table, "'text' is no vector column", column="text")
        self.refused(table, "no column 'nope' to read texts", source="nope")
        self.refused(table, "'id' holds int64, not texts", source="id")
        nested = pa.table(
            {
                "meta": [{"text": "a", "vector": [1.0]}],
                "tokens": pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32(), 2))),
                "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
                "bytes": pa.array([[1, 2]], pa.list_(pa.uint8(), 2)),
            }
        )
        made = db.create_table("nested", nested)
        self.refused(made, "part of a nested column", column="meta.vector")
        self.refused(made, "part of a nested column", column="vector", source="meta.text")
        self.refused(made, r"'meta' holds struct", column="vector", source="meta")
        self.refused(made, "was not made by add_multivector_column", column="tokens")
        self.refused(made, "one vector of floats a row was expected", column="bytes")
        self.refused(made, "no embedding function that says which column", column="vector")

    def test_no_vector_column_and_two(self, db, table):
        self.refused(db.create_table("bare", [{"text": "a"}]), "no vector column")
        table.add_columns(pa.field("second", pa.list_(pa.float32(), 4)))
        self.refused(table, r"several vector columns \(vector, second\): name the one to replace, column=")

    def test_a_hidden_column_and_one_that_may_not_be_null(self, db, table):
        table.add_columns(pa.field("hidden", pa.fixed_shape_tensor(pa.float32(), [4])))
        self.refused(table, "is hidden from searches", column="hidden")
        schema = pa.schema(
            [pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), 2), nullable=False)]
        )
        self.refused(db.create_table("strict", schema=schema), "may not be null", source="text")

    def test_tables_that_cannot_be_written(self, table, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("_versions"))
        self.refused(table, "folder cannot be written: .*_versions", UnsupportedError)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_read_only_folder(self, table, tmp_path):
        folder = tmp_path / "db" / "docs.lance"
        folder.chmod(0o555)
        self.refused(table, "folder cannot be written", UnsupportedError)

    def test_a_handle_pinned_to_a_version(self, table, encoder):
        table.checkout(1)
        self.refused(table, "pinned to version 1", UnsupportedError)
        assert table.version == 1
        table.checkout_latest()
        assert plan_reindex(table, model=encoder).rows == 60

    async def test_async_remote_and_other_tables(self, table, tmp_path):
        opened = await (await lancedb.connect_async(tmp_path / "db")).open_table("docs")
        self.refused(opened, "connect_async", UnsupportedError)
        self.refused("docs", "takes a LanceDB table", ArgumentError)

    def test_a_table_with_a_write_ahead_log(self, table):
        table.to_lance().initialize_mem_wal()
        self.refused(table, "MemWAL", UnsupportedError)

    def test_a_column_with_a_job(self, table, encoder):
        ReindexJob(plan_reindex(table, model=encoder)).backfill()
        self.refused(table, r"is being reindexed by job \w+ \(phase 'ready'.*ReindexJob.open", ConflictError)

    def test_too_little_disk(self, table, encoder, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("lance_rerank.reindex.checks.shutil.disk_usage", lambda path: usage(9, 9, 4_000))
        self.refused(table, "not enough disk", UnsupportedError, model=encoder)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("dtype", "int8"), ("index", "ivf"), ("batch_size", 0), ("batch_size", True), ("sample", 0), ("sample", 1.5)],
    )
    def test_arguments(self, table, name, value):
        self.refused(table, name, ArgumentError, **{name: value})

    def test_an_index_of_too_few_rows(self, table, encoder):
        self.refused(table, "needs 256", ArgumentError, model=encoder, index="ivf_pq")
