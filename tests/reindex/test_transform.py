"""Embedding a text that is made of a row: what is asked how often, what makes it stale, and what its errors say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import EmbeddingFunctionConfig

from lance_rerank.columns.arrays import without_extension
from lance_rerank.errors import ArgumentError, ColumnError, ConflictError, ModelError
from lance_rerank.reindex import Plan, ReindexJob, plan_reindex
from lance_rerank.reindex.transforming import IN_FLIGHT, THREADS

HERE = str(Path(__file__).parent)
ROWS = 30


def made_rows(start, stop):
    return [{"id": i, "title": f"title {i % 3}", "text": f"text number {i}"} for i in range(start, stop)]


class Context:
    """A transform that counts what it is asked; `answer` may be changed by a test."""

    def __init__(self):
        self.asked: list[dict] = []
        self.most_at_a_time = self.now = 0
        self.answer = lambda row: f"{row['title']}: {row['text']}"
        self._lock = threading.Lock()

    def __call__(self, row):
        with self._lock:
            self.asked.append(dict(row))
            self.now += 1
            self.most_at_a_time = max(self.most_at_a_time, self.now)
        try:
            return self.answer(row)
        finally:
            with self._lock:
                self.now -= 1


@pytest.fixture
def docs(db, fakes):
    """30 rows in three fragments, with titles, embedded by the function of seed 1 from their texts."""
    config = EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=fakes.function(seed=1))
    schema = pa.schema(
        {"id": pa.int64(), "title": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), fakes.DIM)}
    )
    table = db.create_table("docs", schema=schema, embedding_functions=[config])
    for start in (0, 10, 20):
        table.add(made_rows(start, start + 10))
    return table


@pytest.fixture
def context():
    return Context()


@pytest.fixture
def planned(docs, fakes):
    """A job by a function that apps can load, so that it can be swapped."""

    def plan(transform, source=("text", "title"), **arguments):
        arguments = {"model": fakes.function(seed=2), "batch_size": 8, "sample": 4, **arguments}
        return ReindexJob(plan_reindex(docs, source=source, transform=transform, **arguments))

    return plan


@pytest.fixture
def assert_right(docs, fakes):
    def check(column, text_of=lambda row: f"{row['title']}: {row['text']}"):
        docs.checkout_latest()
        stored = docs.to_lance().to_table(columns=["id", "title", "text", column])
        vectors = without_extension(stored[column].combine_chunks()).to_pylist()
        for row, vector in zip(stored.drop_columns([column]).to_pylist(), vectors, strict=True):
            text = None if row["text"] is None else text_of(row)
            if text is None:
                assert vector is None, row
            else:
                np.testing.assert_allclose(vector, fakes.vector_of(text, 2), rtol=1e-3, atol=1e-3, err_msg=str(row))

    return check


# --- what is embedded, and how often it is asked ---------------------------------------------------------------------


def test_vectors_are_those_of_the_texts_made(planned, context, assert_right):
    job = planned(context)
    assert len(context.asked) == 4, "the plan asks for its sample"
    context.answer = lambda row: time.sleep(0.02) or f"{row['title']}: {row['text']}"
    report = job.backfill()
    assert (report.rows, report.embedded, report.late, report.without_text) == (ROWS, ROWS, 0, 0)
    assert_right(job.plan.shadow)
    assert sorted(row["text"] for row in context.asked) == sorted(row["text"] for row in made_rows(0, ROWS))
    assert set(context.asked[0]) == {"text", "title"}
    assert job.backfill().embedded == 0
    assert job.verify().ok
    assert len(context.asked) == ROWS, "the plan's answers are not asked for again, nor are those of the job"
    assert 1 < context.most_at_a_time <= THREADS


def test_one_source_column_and_the_tables_own(planned, context, assert_right):
    context.answer = lambda row: row["text"].upper()
    job = planned(context, source=None)
    assert job.plan.sources == ("text",)
    job.backfill()
    assert_right(job.plan.shadow, lambda row: row["text"].upper())


def test_columns_of_any_type_and_with_nulls(planned, context, docs, assert_right):
    docs.update(where="id = 3", values_sql={"title": "NULL"})
    context.answer = lambda row: f"{row['id'] + 1} {row['title']} {row['text']}"
    job = planned(context, source=("text", "title", "id"))
    job.backfill()
    assert_right(job.plan.shadow, lambda row: f"{row['id'] + 1} {row['title']} {row['text']}")
    assert {"text": "text number 3", "title": None, "id": 3} in context.asked


def test_equal_sources_are_asked_for_once(planned, context, docs, assert_right):
    docs.add([{"id": 100 + i, "title": "same", "text": "same"} for i in range(20)])
    docs.add([{"id": 200, "title": "other", "text": "same"}])
    job = planned(context)
    assert job.backfill().rows == ROWS + 21
    assert sum(row["text"] == "same" for row in context.asked) == 2
    assert_right(job.plan.shadow)


def test_rows_without_a_text_and_texts_that_are_not_made(planned, context, docs, assert_right):
    docs.update(where="id = 1", values_sql={"text": "NULL"})

    def some(row):
        return None if row["title"] == "title 2" else row["text"]

    context.answer = some
    job = planned(context)
    report = job.backfill()
    assert all(row["text"] is not None for row in context.asked)
    assert (report.rows, report.without_text, report.late) == (ROWS - 11, 10, 0), "a fragment of nulls is not met"
    assert_right(job.plan.shadow, some)
    shadow = job.status().shadow_rows
    assert (shadow.encoded, shadow.without_text, shadow.outdated) == (ROWS - 11, 11, 0)
    asked = len(context.asked)
    docs.checkout_latest()
    docs.optimize()
    assert job.backfill().rows == 0
    found = job.verify(sample=ROWS)
    assert (found.ok, found.checked, found.late) == (True, ROWS - 11, 0)
    assert len(context.asked) == asked, "that there is none is kept, too"


def test_compaction_and_a_lost_column_cost_no_call(planned, context, docs, assert_right):
    job = planned(context)
    job.backfill()
    docs.checkout_latest()
    docs.optimize()
    assert job.backfill().embedded == 0
    docs.checkout_latest()
    docs.drop_columns([job.plan.shadow])
    job.backfill()
    assert_right(job.plan.shadow)
    assert len(context.asked) == ROWS


# --- what makes a row stale ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "title"])
@pytest.mark.parametrize("moment", ["embed", "catch-up", "ready"])
def test_a_change_of_any_source_column(planned, context, docs, assert_right, fakes, tmp_path, column, moment):
    job = planned(context)
    other = fakes.open_docs(str(tmp_path / "db"))

    def change(phase):
        if phase == moment:
            other.checkout_latest()
            other.update(where="id IN (2, 25)", values={column: "changed"})

    job.backfill(on_phase=change)
    job.backfill()
    assert_right(job.plan.shadow)
    assert 0 < sum("changed" in row.values() for row in context.asked) <= 2
    assert job.status().shadow_rows.outdated == 0


def test_a_change_of_another_column_does_not(planned, context, docs, assert_right):
    context.answer = lambda row: row["text"]
    job = planned(context, source="text")
    job.backfill()
    docs.checkout_latest()
    docs.update(where="id = 4", values={"title": "changed"})
    assert job.backfill().rows == 0


# --- after the swap --------------------------------------------------------------------------------------------------


def test_rows_that_apps_add_are_mended_by_verify(planned, context, docs, fakes, assert_right):
    job = planned(context)
    assert "rows that apps add get the vector of the untransformed text until verify() runs again" in str(job.plan)
    job.backfill()
    job.verify()
    report = job.swap()
    assert any("untransformed text until verify() runs again" in note for note in report.notes)
    assert_right("vector")
    fakes.open_docs(str(Path(docs.uri).parent)).add(made_rows(ROWS, ROWS + 2))
    docs.checkout_latest()
    docs.update(where="id = 5", values={"title": "changed"})
    added = docs.search().where(f"id = {ROWS}").to_list()[0]["vector"]
    np.testing.assert_allclose(added, fakes.vector_of(f"text number {ROWS}", 2), rtol=1e-5)
    found = job.verify(sample=100)
    assert (found.swept, found.ok, found.late) == (3, True, 0)
    assert_right("vector")
    assert len(context.asked) == ROWS + 3


def test_rollback_and_swap_again(planned, context, docs, fakes, assert_right):
    job = planned(context)
    job.backfill()
    job.verify()
    job.swap()
    docs.checkout_latest()
    docs.update(where="id = 5", values={"text": "changed"})
    job.rollback()
    docs.checkout_latest()
    stored = docs.search().where("id = 5").to_list()[0]
    np.testing.assert_allclose(stored["vector"], fakes.vector_of("changed", 1), rtol=1e-5)
    assert job.verify().ok
    job.swap()
    assert_right("vector")
    job.drop_old()
    assert not job.folder.exists()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_one_that_raises_midway_names_the_row_and_loses_nothing(planned, context, docs, assert_right):
    job = planned(context)
    sampled = {row["text"] for row in context.asked}
    bad = next(row for row in made_rows(12, 20) if row["text"] not in sampled)

    def fail(row):
        if row["text"] == bad["text"]:
            raise TimeoutError("the server is away")
        return f"{row['title']}: {row['text']}"

    context.answer = fail
    row_id = docs.search().where(f"id = {bad['id']}").with_row_id(True).to_list()[0]["_rowid"]
    row = rf"\(text='{bad['text']}', title='{bad['title']}'\)"
    said = rf"failed on row id {row_id} {row}: TimeoutError: the server is away"
    with pytest.raises(ModelError, match=said) as raised:
        job.backfill()
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert not job.status().running
    with pytest.raises(ModelError, match=said):
        job.backfill()
    context.answer = lambda row: f"{row['title']}: {row['text']}"
    job.backfill()
    assert_right(job.plan.shadow)
    texts = [row["text"] for row in context.asked]
    assert len(texts) == ROWS + 2, "what was answered is not asked for again"
    assert texts.count(bad["text"]) == 3


@pytest.mark.parametrize("answer", [3, b"bytes", ["a"]])
def test_an_answer_that_is_no_text(planned, context, answer):
    job = planned(context)
    context.answer = lambda row: answer
    with pytest.raises(ModelError, match=f"it answered with {type(answer).__name__}, not with a text or None"):
        job.backfill()


def test_one_that_fails_on_the_sample_stops_the_plan(planned, context):
    context.answer = lambda row: 1 / 0
    with pytest.raises(ModelError, match=r"the transform .*Context failed on the row .*ZeroDivisionError"):
        planned(context)


def test_the_lease_is_looked_at_while_it_is_waited_for(planned, context, monkeypatch):
    job = planned(context)
    stolen = threading.Event()

    def slow(row):
        stolen.wait(20)
        return "never kept"

    context.answer = slow

    def renew(*arguments):
        stolen.set()
        raise ConflictError("taken over")

    monkeypatch.setattr("lance_rerank.reindex.state.Lease.renew", renew)
    with pytest.raises(ConflictError, match="taken over"):
        job.backfill()
    assert len(context.asked) <= 4 + IN_FLIGHT


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"transform": None}, ArgumentError, "go with transform="),
        ({"transform": None, "source": "text", "transform_version": "2"}, ArgumentError, "go with transform="),
        ({"transform": "module:name"}, ArgumentError, "transform is a function"),
        ({"transform": Context}, ArgumentError, "transform is a function"),
        ({"source": ("text", "nothing")}, ColumnError, "no column 'nothing' for the transform to read"),
        ({"source": ("text", "text")}, ColumnError, "reads each column once"),
        ({"source": ("id", "text")}, ColumnError, "'id' holds int64, not texts"),
    ],
)
def test_bad_arguments(planned, context, arguments, error, said):
    with pytest.raises(error, match=said):
        planned(**{"transform": context, **arguments})


# --- other processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def contextual(monkeypatch):
    """A transform that every process can import."""
    monkeypatch.syspath_prepend(HERE)
    import worker_fakes

    return worker_fakes.contextual


def test_the_plan_is_written_down_and_read(planned, contextual, tmp_path, assert_right):
    plan = planned(contextual, transform_version="prompt 3").plan
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert read == plan
    assert (read.transform.name, read.transform.version) == ("worker_fakes:contextual", "prompt 3")
    assert "made by   worker_fakes:contextual (prompt 3) of 'text', 'title'" in str(read)
    job = ReindexJob(read, transform=contextual)
    job.backfill()
    assert_right(job.plan.shadow)


def test_a_plan_from_before_there_were_transforms(docs, fakes):
    plan = plan_reindex(docs, model=fakes.function(seed=2), sample=4)
    said = plan.to_dict()
    assert said.pop("transform") is None
    assert Plan.from_dict(said) == plan


def test_one_of_a_plan_that_was_read_has_to_be_passed_again(planned, context, docs, contextual, assert_right):
    plan = Plan.from_json(planned(lambda row: f"{row['title']}: {row['text']}").plan.to_json())
    for name in (plan, Plan.from_json(planned(context).plan.to_json())):
        with pytest.raises(ArgumentError, match=r"not loaded by what a plan or a table says: pass it"):
            ReindexJob(name).backfill()
        with pytest.raises(ArgumentError, match="the transform in hand is 'worker_fakes:contextual', and the plan was"):
            ReindexJob(name, transform=contextual)
    job = ReindexJob(Plan.from_json(planned(context).plan.to_json()), transform=context)
    job.backfill()
    assert_right(job.plan.shadow)
    assert ReindexJob.open(docs).status().phase == "ready", "to look at it takes no transform"
    assert ReindexJob.open(docs, transform=context).backfill().rows == 0


def test_a_job_without_one_takes_none(docs, fakes, context):
    plan = plan_reindex(docs, model=fakes.function(seed=2), sample=4)
    assert plan.transform is None
    with pytest.raises(ArgumentError, match="the plan was made without any"):
        ReindexJob(plan, transform=context)


CHILD = """
import sys
sys.path[:0] = [{here!r}]
import conftest, worker_fakes
from lance_rerank.reindex import ReindexJob

ReindexJob.open(conftest.open_docs({uri!r}), transform=worker_fakes.contextual).backfill()
"""


def test_another_process_goes_on_and_a_kill_costs_what_is_on_its_way(
    planned, contextual, docs, tmp_path, assert_right, monkeypatch
):
    log = tmp_path / "asked.log"
    job = planned(contextual)

    def interrupted(phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.backfill(on_phase=interrupted)
    with pytest.raises(ArgumentError, match=r"'worker_fakes:contextual', which is not loaded by what .* a table says"):
        ReindexJob.open(docs).backfill()  # though it could be
    script = CHILD.format(here=HERE, uri=str(Path(docs.uri).parent))
    environment = {**os.environ, "TRANSFORM_LOG": str(log)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 2 * THREADS:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    by_child = log.read_text().splitlines()
    monkeypatch.setenv("TRANSFORM_LOG", str(log))
    assert ReindexJob.open(docs, transform=contextual).backfill().late == 0
    assert_right(job.plan.shadow)
    asked = log.read_text().splitlines()
    assert len(asked) <= ROWS - 4 + THREADS, "the plan has asked for 4"
    assert len(set(asked)) == ROWS - 4
    assert len(asked) - len(by_child) < ROWS - 4


def test_lost_answers_cost_calls_and_nothing_else(planned, context, docs, assert_right):
    job = planned(context)
    job.backfill()
    shutil.rmtree(job.folder)
    docs.checkout_latest()
    docs.add(made_rows(ROWS, ROWS + 1))
    context.asked.clear()
    job.backfill()
    assert [row["text"] for row in context.asked] == [f"text number {ROWS}"]
    assert_right(job.plan.shadow)


def test_workers_embed_what_is_made_here(planned, contextual, tmp_path, assert_right):
    import worker_fakes

    encoder = worker_fakes.WorkerEncoder(tmp_path / "embedded.log")
    job = planned(contextual, model=encoder)
    encoder.log.unlink()
    assert job.backfill(workers=2).embedded == ROWS
    assert os.getpid() not in {process for process, _ in encoder.embedded()}
    assert_right(job.plan.shadow)
