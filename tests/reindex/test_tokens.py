"""Another ColBERT model behind a column of token vectors: the whole life of a job, and what readers of it meet.

The kill test runs this file as a script.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import FTS, IvfFlat

import lance_rerank as lr
from lance_rerank import lance
from lance_rerank.columns.record import ColumnRecord
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, ModelError, UnsupportedError
from lance_rerank.fingerprint import PROBES, sketch
from lance_rerank.multivector import mean_vectors, pool_tokens
from lance_rerank.multivector.maxsim import Ragged
from lance_rerank.reindex import Plan, ReindexJob, plan_reindex
from lance_rerank.reindex.model_spec import ModelSpec
from lance_rerank.reindex.token_samples import agreements
from lance_rerank.reindex.worker_model import WorkerModel, embedded_or_raised
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Qrel, Query

BATCH = 8
WRITTEN = 6  # rows that `World.write` leaves without token vectors, or with those of another text


class Words:
    """A token encoder whose vector of a word hangs on the word and a seed. It counts texts but those of fingerprints.

    `before` is called with the number of each batch, `answer` may spoil it.
    """

    def __init__(self, seed: int, dim: int = 8):
        self.seed, self.dim = seed, dim
        self.fingerprint = f"words {seed}"
        self.texts: list[str] = []
        self.batches = 0
        self.before = lambda batch: None
        self.answer = lambda vectors: vectors

    def _vector(self, word):
        drawn = np.random.default_rng([self.seed, *hashlib.blake2b(word.encode(), digest_size=8).digest()])
        vector = drawn.standard_normal(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def encode_queries(self, texts):
        return [np.array([self._vector(w) for w in text.split()], np.float32).reshape(-1, self.dim) for text in texts]

    def encode_documents(self, texts):
        if not set(texts) <= set(PROBES):
            self.batches += 1
            self.before(self.batches)
            self.texts += texts
        return self.answer(self.encode_queries(texts))


class Backwards(Words):
    """A model whose documents are as far from queries as can be."""

    def encode_documents(self, texts):
        return [-document for document in super().encode_documents(texts)]


class OneVector:
    """A model of one vector a text."""

    dim, fingerprint = 8, None

    def encode_queries(self, texts):
        return np.ones((len(texts), 8), np.float32)

    encode_documents = encode_queries


def texts(start, stop):
    return [{"id": i, "text": f"text number {i} {'more ' * (i % 4)}of them".strip()} for i in range(start, stop)]


class World:
    """A table with a token column of seed 1, and the rows that it has to hold whatever was written when."""

    def __init__(self, folder, *, stable=False, parts=(12, 24, 36), **made_with):
        self.uri = str(folder)
        options = {"new_table_enable_stable_row_ids": "true"} if stable else None
        db = lancedb.connect(self.uri, storage_options=options)
        self.table = db.create_table("docs", texts(0, parts[0]))
        for start, stop in pairwise(parts):
            self.table.add(texts(start, stop))
        self.texts = {row["id"]: row["text"] for row in texts(0, parts[-1])}
        self.made_with = {"dtype": "float16", "pool_factor": 1, **made_with}
        self.old = Words(1)
        lr.add_multivector_column(self.table, encoder=self.old, **self.made_with)

    def fresh(self):
        return lancedb.connect(self.uri).open_table("docs")

    def job(self, encoder=None, **arguments):
        self.new = Words(2) if encoder is None else encoder
        plan = plan_reindex(self.fresh(), column="colbert", model=self.new, batch_size=BATCH, **arguments)
        self.made_with |= {"dtype": plan.dtype, "pool_factor": plan.pool_factor}
        return ReindexJob(plan)

    def ready(self, encoder=None, **arguments):
        job = self.job(encoder, **arguments)
        job.backfill()
        assert job.verify(sample=1000).faults == ()
        return job

    def write(self):
        """Add, update, upsert, delete and compact."""
        table, at = self.fresh(), max(self.texts) + 1
        table.add([{"id": i, "text": f"added number {i}"} for i in range(at, at + 3)])
        self.texts |= {i: f"added number {i}" for i in range(at, at + 3)}
        changed, dropped = sorted(self.texts)[1:3]
        table.update(where=f"id = {changed}", values={"text": f"changed number {at}"})
        self.texts[changed] = f"changed number {at}"
        rows = [{"id": i, "text": f"upserted number {i} at {at}"} for i in (sorted(self.texts)[0], at + 3)]
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self.texts |= {row["id"]: row["text"] for row in rows}
        table.delete(f"id = {dropped}")
        del self.texts[dropped]
        table.optimize()

    def stored(self, column="colbert"):
        rows = self.fresh().to_lance().to_table(columns=["id", "text", column])
        found = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        assert found == self.texts
        assert rows.num_rows == len(found), "a row was doubled"
        vectors = rows[column].combine_chunks() if rows.num_rows else []
        return dict(zip(rows["id"].to_pylist(), vectors.to_pylist(), strict=True))

    def check(self, encoder, column="colbert"):
        """Every row has the vectors of its very text as add_multivector_column stores them."""
        other = lancedb.connect(self.uri + "-made").create_table("docs", self.rows(), mode="overwrite")
        lr.add_multivector_column(other, encoder=encoder, resume=False, **self.made_with)
        made = other.to_lance().to_table(columns=["id", "colbert"])
        expected = dict(zip(made["id"].to_pylist(), made["colbert"].combine_chunks().to_pylist(), strict=True))
        assert self.stored(column) == expected
        assert lr.multivector_status(self.fresh(), column).outdated == 0

    def rows(self):
        return pa.table({"id": list(self.texts), "text": pa.array(self.texts.values(), pa.string())})

    def late(self, encoder, **arguments):
        return lr.LateInteractionReranker(encoder, table=self.fresh(), **arguments)

    def check_search(self, encoder):
        """Each text finds its own row first, by an encoder that the column lets search."""
        self.fresh().create_index("text", config=FTS(), replace=True)
        reranker = self.late(encoder)
        search = Retriever(self.fresh(), query_type="fts", reranker=reranker, candidates=100)
        for row_id, text in list(self.texts.items())[:12]:
            if text:
                assert search.retrieve(text, k=1)[0].doc_id == str(row_id), text
        assert reranker.documents_encoded == 0, "all vectors are stored"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "db")


class TestLife:
    @pytest.mark.parametrize("stable", [False, True])
    def test_from_plan_to_the_end_with_writers_meanwhile(self, tmp_path, stable):
        world = World(tmp_path / "db", stable=stable)
        world.check_search(world.old)
        job = world.job()
        world.new.before = lambda batch: world.write() if batch == 9 else None
        report = job.backfill()
        assert (report.column, report.commits > 0, report.late) == ("colbert", True, 0)
        world.check(world.new, job.plan.shadow)
        world.write()
        found = job.verify(sample=1000)
        assert (found.ok, found.late, found.swept) == (True, 0, WRITTEN)
        assert found.cosine == pytest.approx(1, abs=1e-5)
        assert found.norms.mean == pytest.approx(1, abs=1e-3)
        assert 0 <= found.overlap < 0.9
        lr.sync_multivector_column(world.fresh(), encoder=world.old)
        world.check_search(world.old)
        report = job.swap()
        assert (report.phase, report.late, report.without_vector) == ("swapped", 0, 0)
        world.check(world.new)
        world.check_search(world.new)
        world.write()
        assert job.verify().ok, "sweeps what was added after the swap"
        world.check(world.new)
        job.drop_old()
        table = world.fresh()
        assert table.schema.names == ["id", "text", "colbert"]
        assert lance.table_metadata(table) == {}
        assert not (Path(table.uri) / "_lance_rerank" / "reindex").exists()
        world.write()
        assert lr.sync_multivector_column(table, encoder=world.new).rows == WRITTEN
        world.check(world.new)
        ReindexJob(plan_reindex(table, column="colbert", model=Words(3))).backfill()

    def test_each_text_is_encoded_once(self, world):
        job = world.ready()
        job.swap()
        assert len(world.new.texts) == (BATCH + 36) + 36 + 36, (
            "by the plan's sample, by backfill, and by verify's sample"
        )

    def test_abort_leaves_the_table_as_it_was(self, world):
        before = world.fresh().to_arrow(), world.fresh().schema
        job = world.ready()
        assert job.status().shadow_rows.encoded == job.status().spooled == 36
        job.abort()
        assert (world.fresh().to_arrow(), world.fresh().schema) == before
        assert lance.table_metadata(world.fresh()) == {}
        world.check(world.old)

    @pytest.mark.parametrize(("dtype", "pool_factor", "dim"), [("int8", 1, 5), ("float32", 2, 8), ("int8", 3, 5)])
    def test_as_the_column_is_stored_in_another_dimension_too(self, tmp_path, dtype, pool_factor, dim):
        world = World(tmp_path / "db", dtype=dtype, pool_factor=pool_factor)
        job = world.ready(Words(2, dim))
        world.write()
        job.swap()
        world.check(world.new)
        if pool_factor == 1:
            world.check_search(world.new)
        lr.sync_multivector_column(world.fresh(), job.plan.column + f"_prev_{job.plan.job}", encoder=world.old)
        job.rollback()
        world.check(world.old)

    def test_another_dtype_and_pool_factor_with_the_same_model(self, world):
        job = world.ready(Words(1), dtype="int8", pool_factor=2)
        job.swap()
        world.check(world.old)
        assert ColumnRecord.of(world.fresh().schema, "colbert") == ColumnRecord("text", "words 1", "int8", 2)

    def test_null_and_empty_texts(self, tmp_path):
        world = World(tmp_path / "db", parts=(4,))
        world.fresh().update(where="id = 1", values_sql={"text": "NULL"})
        world.fresh().update(where="id = 2", values={"text": ""})
        world.texts |= {1: None, 2: ""}
        job = world.job()
        assert job.backfill().zero_vectors == 1
        assert job.verify().ok
        job.swap()
        world.check(world.new)
        assert world.stored()[1] is None
        assert world.stored()[2] == []

    def test_an_empty_table(self, tmp_path):
        db = lancedb.connect(tmp_path / "db")
        table = db.create_table("docs", schema=pa.schema({"id": pa.int64(), "text": pa.string()}))
        lr.add_multivector_column(table, encoder=Words(1))
        job = ReindexJob(plan_reindex(table, column="colbert", model=Words(2)))
        job.backfill()
        assert job.verify().ok
        job.swap()
        table.checkout_latest()
        table.add([{"id": 1, "text": "one"}])
        assert lr.sync_multivector_column(table, encoder=Words(2)).rows == 1

    def test_the_index_is_built_again_and_goes_with_its_column(self, tmp_path):
        world = World(tmp_path / "db", parts=(200, 300))
        world.fresh().create_index("colbert", config=IvfFlat(distance_type="cosine", num_partitions=2))
        job = world.ready()
        assert str(job.plan.index) == "ivf_flat (cosine, num_partitions 2)"
        world.write()
        job.swap()
        table = world.fresh()
        assert [index.name for index in table.list_indices()] == ["colbert_idx"]
        assert table.index_stats("colbert_idx").num_unindexed_rows == 0
        search = Retriever(table, query_type="multivector", encoder=world.new)
        assert search.retrieve("changed number 300", k=1)[0].doc_id == "1"
        lr.sync_multivector_column(table, f"colbert_prev_{job.plan.job}", encoder=world.old)
        job.rollback()
        search = Retriever(world.fresh(), query_type="multivector", encoder=world.old)
        assert search.retrieve("changed number 300", k=1)[0].doc_id == "1"
        assert "colbert_idx" in [index.name for index in world.fresh().list_indices()]


class TestReaders:
    def test_the_old_encoder_is_refused_from_the_swap_to_the_rollback(self, world):
        job = world.ready()
        old, new = world.late(world.old), world.late(world.new)
        rows = world.fresh().search().limit(5).with_row_id(True).select(["id", "text"]).to_arrow()
        right = old.rerank_vector("text number 3", rows)
        with pytest.raises(ColumnError, match="was filled by words 1"):
            new.rerank_vector("text number 3", rows)
        job.swap()
        with pytest.raises(ColumnError, match=r"was filled by words 2.*encoder in hand is words 1"):
            old.rerank_vector("text number 3", rows)
        assert new.rerank_vector("text number 3", rows).num_rows == 5
        with pytest.raises(ColumnError, match="was filled by words 2"):
            lr.sync_multivector_column(world.fresh(), encoder=world.old)
        job.rollback()
        assert old.rerank_vector("text number 3", rows).equals(right)
        job.verify()
        job.swap()
        assert world.late(world.new).rerank_vector("text number 3", rows).num_rows == 5

    def test_rows_of_the_old_column_are_filled_or_left_when_going_back(self, world):
        job = world.ready()
        job.swap()
        world.write()
        retired = f"colbert_prev_{job.plan.job}"
        with pytest.raises(
            ArgumentError, match=rf"{WRITTEN} rows came or changed.*sync_multivector_column.table, '{retired}'"
        ):
            job.rollback()
        assert job.status().phase == "swapped"
        assert job.rollback(allow_nulls=True).without_vector == 4
        assert lr.multivector_status(world.fresh()).outdated == WRITTEN, (
            "those that were changed are not taken for right"
        )
        lr.sync_multivector_column(world.fresh(), encoder=world.old)
        world.check(world.old)

    def test_rows_that_were_stale_before_the_swap_stay_known_as_such(self, world):
        world.fresh().update(where="id = 7", values={"text": "changed before"})
        world.texts[7] = "changed before"
        job = world.ready()
        job.swap()
        world.check(world.new)
        job.rollback(allow_nulls=True)
        assert lr.multivector_status(world.fresh()).stale == 1

    @pytest.mark.parametrize("dim", [8, 5])
    def test_means_follow_the_swap_and_the_rollback(self, tmp_path, dim):
        world = World(tmp_path / "db", parts=(200, 300))
        lr.add_mean_vector_column(world.fresh())
        world.fresh().create_index("colbert_mean", config=IvfFlat(distance_type="cosine", num_partitions=2))
        job = world.ready(Words(2, dim))
        self.assert_means(world, world.old)
        job.swap()
        self.assert_means(world, world.new)
        world.write()
        job.verify()
        self.assert_means(world, world.new)
        assert job.swap().version is None
        lr.sync_multivector_column(world.fresh(), f"colbert_prev_{job.plan.job}", encoder=world.old)
        job.rollback()
        self.assert_means(world, world.old)

    @staticmethod
    def assert_means(world, encoder):
        table = world.fresh()
        rows = table.to_lance().to_table(columns=["colbert", "colbert_mean"])
        expected = mean_vectors(Ragged.from_arrow(rows["colbert"]))
        np.testing.assert_allclose(rows["colbert_mean"].combine_chunks().storage.to_pylist(), expected, atol=1e-5)
        record = ColumnRecord.of(table.schema, "colbert_mean")
        assert (record.encoder, record.source, record.kind) == (encoder.fingerprint, "colbert", "mean")
        [index] = [i for i in table.list_indices() if i.columns == ["colbert_mean"]]
        assert table.index_stats(index.name).num_unindexed_rows == 0
        [other] = {"words 1", "words 2"} - {encoder.fingerprint}
        search = Retriever(table, query_type="multivector", encoder=encoder)
        assert search.vector_columns == ("colbert_mean",)
        assert search.retrieve(world.texts[150], k=1)[0].doc_id == "150"
        with pytest.raises(ColumnError, match="was filled by"):
            Retriever(table, query_type="multivector", encoder=Words(int(other[-1]), encoder.dim)).retrieve("text")

    def test_means_that_somebody_dropped_stay_away(self, world):
        lr.add_mean_vector_column(world.fresh())
        job = world.ready(Words(2, 5))
        job.swap()
        world.fresh().drop_columns(["colbert_mean"])
        assert job.verify().ok
        job.rollback()
        assert "colbert_mean" not in world.fresh().schema.names

    def test_a_swap_that_stopped_before_the_means_goes_on_with_them(self, world, monkeypatch):
        lr.add_mean_vector_column(world.fresh())
        job = world.ready(Words(2, 5))

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(lance, "write_column_file", stop)
        with pytest.raises(KeyboardInterrupt):
            job.swap()
        monkeypatch.undo()
        search = Retriever(world.fresh(), query_type="multivector", encoder=world.new, vector_columns="colbert_mean")
        with pytest.raises(ColumnError, match="was filled by a job that has not made all of it yet"):
            search.retrieve("text")
        ReindexJob.open(world.fresh(), model=world.new).swap()
        rows = world.fresh().to_lance().to_table(columns=["colbert", "colbert_mean"])
        expected = mean_vectors(Ragged.from_arrow(rows["colbert"]))
        np.testing.assert_allclose(rows["colbert_mean"].combine_chunks().storage.to_pylist(), expected, atol=1e-5)


class TestVerify:
    def test_wrong_vectors_are_found(self, world):
        job = world.job()
        wrong = Words(3)
        job.backfill()
        model, job._model = job._model, None
        job._model = type(model)(model.spec, _PretendingToBe(model.encoder, wrong))
        found = job.verify(sample=1000)
        assert "36 of 36 vectors sampled are not those of their text" in found.faults[0]
        with pytest.raises(lr.errors.GateError, match="plan anew"):
            found.raise_if_wrong()

    def test_int8_that_cuts_longer_vectors(self, tmp_path):
        world = World(tmp_path / "db", dtype="int8")
        longer = Words(2)
        longer.answer = lambda documents: [3 * document for document in documents]
        job = world.job(longer)
        job.backfill()
        assert "of other lengths than the model makes (int8 holds unit vectors)" in str(job.verify())

    def test_agreement_by_hand(self):
        a, b = np.eye(2, dtype=np.float32), np.array([[1, 0], [1, 1]], np.float32)
        assert agreements([a, a, a[:1], a[:0]], [a, b, a, a[:0]], False) == pytest.approx([1, (1 + 2**-0.5) / 2, 0, 1])
        assert agreements([a, a], [a[::-1], b], True) == pytest.approx([1, (1 + 2**-0.5) / 2])


class _PretendingToBe:
    """Queries and documents of one encoder, the documents by another."""

    def __init__(self, named, encoder):
        self.dim, self.fingerprint = named.dim, named.fingerprint
        self.encode_queries, self.encode_documents = named.encode_queries, encoder.encode_documents


class TestEvaluate:
    @pytest.fixture
    def judged(self, world):
        """A job whose new model ranks what was asked for behind what was not."""
        world.fresh().create_index("text", config=FTS())
        job = world.job(Backwards(2))
        job.backfill()
        asked = Dataset.from_memory(
            [Query(f"q{i}", world.texts[i]) for i in range(8)], [Qrel(f"q{i}", str(i), 1) for i in range(8)]
        )
        return job, asked

    @pytest.mark.parametrize("form", ["reranker", "blend", "multivector", "means"])
    def test_the_old_vectors_against_the_new_ones(self, world, judged, form):
        job, asked = judged
        table = world.fresh()
        late = lr.LateInteractionReranker(world.old, table=table)
        options = {"query_type": "fts", "reranker": late}
        if form == "blend":
            options["reranker"] = lr.BlendReranker(late, k=0.001)
        elif form in ("multivector", "means"):
            options = {"query_type": "multivector", "encoder": world.old}
        if form == "means":
            lr.add_mean_vector_column(table)
        gate = job.evaluate(asked, Retriever(table, **options), ["RR@10"])
        assert gate.result.means["old"] == {"RR@10": 1.0}
        assert set(gate.result.means) == {"old", "new"}
        assert gate.result.runs["new"] != gate.result.runs["old"]
        assert bool(gate.notes) == (form == "means")
        if form != "blend":
            assert gate.result.means["new"]["RR@10"] < 0.3
            with pytest.raises(lr.errors.GateError):
                gate.raise_if_worse()

    def test_what_does_not_read_the_column_is_refused(self, world, judged):
        job, asked = judged
        for retriever in (None, Retriever(world.fresh(), query_type="fts")):
            with pytest.raises(ArgumentError, match=r"reranker=LateInteractionReranker\(encoder, table=table, vec"):
                job.evaluate(asked, retriever)
        other = lr.LateInteractionReranker(world.old, vectors=None)
        with pytest.raises(ArgumentError, match="does not read that column"):
            job.evaluate(asked, Retriever(world.fresh(), query_type="fts", reranker=other))


class TestPlan:
    def test_what_is_taken_from_the_column_and_in_words(self, tmp_path):
        world = World(tmp_path / "db", dtype="int8", pool_factor=2)
        plan = plan_reindex(world.table, column="colbert", model=Words(2, 5))
        assert (plan.kind, plan.source, plan.dtype, plan.pool_factor) == ("tokens", "text", "int8", 2)
        assert (plan.dim, plan.old_dim, plan.index) == (5, 8, None)
        tokens = [len(pool_tokens(vectors, 2)) for vectors in Words(2).encode_queries(world.texts.values())]
        assert plan.vectors_a_text == pytest.approx(np.mean(tokens))
        assert plan.column_bytes == pytest.approx(36 * 5 * np.mean(tokens), abs=1)
        for part in (
            "Reindex docs.colbert with words 2 (job ",
            "vectors a text as int8, 2 tokens to a vector",
            "rerankers and searches by 'colbert' refuse the old encoder from the swap on",
            "sync_multivector_column(table, 'colbert', encoder=...)",
        ):
            assert part in str(plan), part
        assert "search(" not in str(plan)

    def test_written_down_and_read_again_and_of_before(self, world):
        plan = world.job().plan
        assert Plan.from_json(plan.to_json()) == plan
        new = ("kind", "pool_factor", "vectors_a_text")
        assert Plan.from_dict({key: said for key, said in plan.to_dict().items() if key not in new}).kind == "vector"

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"model": OneVector()}, ArgumentError, "makes one vector a text, and the column holds one a token"),
            ({"model": Words(1)}, ArgumentError, r"holds the vectors of words 1 already.*sync_multivector_column"),
            ({"model": 7}, ArgumentError, "for a column of token vectors, is a ColBERT checkpoint.*got int"),
            ({"model": Words}, ArgumentError, "TokenEncoder"),
            ({"dtype": "float64"}, ArgumentError, "dtype must be one of float16, float32, int8"),
            ({"pool_factor": 0}, ArgumentError, "pool_factor must be at least 1"),
            ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1"),
            ({"sample": 0}, ArgumentError, "sample must be at least 1"),
            ({"source": "body"}, ColumnError, "no column 'body'"),
            ({"source": ["text", "id"]}, ArgumentError, "several source columns go with a column of one vector a text"),
            (
                {"transform": lambda row: row["text"]},
                ArgumentError,
                "sync_multivector_column, which knows no transform",
            ),
            ({"column": "colbert_mean"}, ColumnError, "means of the token vectors in 'colbert'.*column='colbert'"),
            ({"index": "ivf_flat", "dtype": "int8"}, UnsupportedError, "cannot index token vectors of int8"),
        ],
    )
    def test_refusals(self, tmp_path, arguments, error, message):
        world = World(tmp_path / "db", parts=(300,))
        lr.add_mean_vector_column(world.table)
        version = world.fresh().version
        with pytest.raises(error, match=message):
            plan_reindex(world.table, **{"column": "colbert", "model": Words(2), **arguments})
        assert world.fresh().version == version

    def test_the_reverse_a_token_encoder_for_single_vectors(self, table):
        with pytest.raises(ArgumentError, match=r"makes a vector a token, and the column holds one a text"):
            plan_reindex(table, model=Words(2))
        with pytest.raises(ArgumentError, match="pool_factor"):
            plan_reindex(table, model="no-matter", pool_factor=2)

    def test_columns_of_a_job_are_no_columns_to_replace(self, world):
        job = world.ready()
        with pytest.raises(ColumnError, match=r"belongs to job .* on 'colbert'"):
            plan_reindex(world.fresh(), column=job.plan.shadow, model=Words(3))
        with pytest.raises(ConflictError, match="is being reindexed"):
            plan_reindex(world.fresh(), column="colbert", model=Words(3))


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda vectors: vectors[1:], "answered with 7 documents on 8 texts, the first of row id"),
        (lambda vectors: [*vectors[:-1], vectors[-1] * np.nan], "NaN or infinite.*That was on the text of row id"),
        (lambda _: 1 / 0, "the model failed on 8 texts, the first of row id .*ZeroDivisionError"),
    ],
)
def test_a_model_that_fails_on_one_batch_keeps_the_others(world, spoiled, message):
    job = world.job()
    world.new.batches, world.new.answer = 0, lambda vectors: spoiled(vectors) if world.new.batches == 3 else vectors
    with pytest.raises(ModelError, match=message):
        job.backfill()
    assert job.status().spooled == 2 * BATCH
    assert job.plan.shadow not in world.fresh().schema.names
    world.new.answer = lambda vectors: vectors
    world.new.texts.clear()
    job.backfill()
    assert len(world.new.texts) == 36 - 2 * BATCH
    world.check(world.new, job.plan.shadow)


@pytest.mark.parametrize("method", ["swap", "rollback"])
def test_writers_around_the_commit_and_a_stop_right_after_it(world, monkeypatch, method):
    job = world.ready()
    if method == "rollback":
        job.swap()
    commit = lance.swap_columns

    def stopping(*arguments, **options):
        world.write()
        commit(*arguments, **options)
        world.write()
        raise KeyboardInterrupt

    monkeypatch.setattr(lance, "swap_columns", stopping)
    with pytest.raises(KeyboardInterrupt):
        getattr(job, method)()
    monkeypatch.undo()
    assert job.status().phase == method
    report = getattr(job, method)()
    if method == "rollback":
        assert report.without_vector, "the old model has no name to be loaded by"
        lr.sync_multivector_column(world.fresh(), encoder=world.old)
    world.check(world.new if method == "swap" else world.old)
    assert job.status().phase == ("swapped" if method == "swap" else "rolled-back")


def test_a_kill_loses_one_batch_at_most(world):
    plan = world.job().plan
    script = [sys.executable, __file__, world.uri, plan.to_json()]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    world.write()
    job = ReindexJob.open(world.fresh(), model=Words(2))
    assert job.status().spooled == 3 * BATCH
    assert job.status().phase == "embed"
    report = job.backfill()
    assert report.embedded <= len(world.texts) - 3 * BATCH + 2
    world.check(Words(2), plan.shadow)
    assert job.verify().ok
    job.swap()
    world.check(Words(2))


class TestCheckpoints:
    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        pytest.importorskip("pylate")
        from lance_rerank import testing

        return [
            testing.save_tiny_colbert(tmp_path_factory.mktemp(f"colbert-{seed}"), "pylate", seed) for seed in (0, 1)
        ]

    def test_by_their_folders_and_back(self, db, folders):
        table = db.create_table("docs", texts(0, 12))
        lr.add_multivector_column(table, encoder=lr.ColBERTEncoder(folders[0]))
        with pytest.raises(ArgumentError, match="holds the vectors of"):
            plan_reindex(table, column="colbert", model=folders[0])
        plan = plan_reindex(table, column="colbert", model=folders[1])
        ReindexJob(Plan.from_json(plan.to_json())).backfill()
        job = ReindexJob.open(table)
        assert job.verify().ok
        job.swap()
        table.checkout_latest()
        assert lr.sync_multivector_column(table, encoder=lr.ColBERTEncoder(folders[1])).rows == 0
        table.add([{"id": 12, "text": "rotate the api keys"}])
        assert job.rollback().swept == 1, "the old model is loaded by the name that the column says"
        table.checkout_latest()
        assert lr.multivector_status(table).outdated == 0
        assert lr.sync_multivector_column(table, encoder=lr.ColBERTEncoder(folders[0])).rows == 0

    def test_workers_of_other_processes_encode_too(self, folders):
        encoder = lr.ColBERTEncoder(folders[0])
        spec = ModelSpec(folders[0], "colbert")
        for fingerprint in (encoder.fingerprint, sketch(encoder, folders[0])):
            loaded = WorkerModel.of(spec, encoder, fingerprint, pickle.dumps).loaded()
            made = embedded_or_raised(loaded, ["rotate the api keys", "bread"])
            for vectors, expected in zip(made, encoder.encode_documents(["rotate the api keys", "bread"]), strict=True):
                np.testing.assert_allclose(vectors, expected, atol=1e-3)
        other = lr.ColBERTEncoder(folders[1]).fingerprint
        with pytest.raises(ModelError, match="makes other vectors"):
            WorkerModel.of(spec, encoder, other, pickle.dumps).loaded()

    def test_models_of_the_other_kind(self, world, db, fakes, folders, tiny_encoder):
        with pytest.raises(ArgumentError, match=r"is no ColBERT checkpoint.*lance_rerank.ColBERTEncoder"):
            plan_reindex(world.table, column="colbert", model=tiny_encoder)
        with pytest.raises(ArgumentError, match="is a ColBERT checkpoint, which makes a vector a token"):
            plan_reindex(fakes.make_table(db, "single"), model=folders[0])


def _die_in_the_fourth_batch(uri, plan):
    encoder = Words(2)
    encoder.before = lambda batch: os.kill(os.getpid(), signal.SIGKILL) if batch == 4 else None
    ReindexJob(Plan.from_json(plan), lancedb.connect(uri).open_table("docs"), model=encoder).backfill()


if __name__ == "__main__":
    _die_in_the_fourth_batch(*sys.argv[1:])
