"""Jobs: who may run one, what a kill costs, how another process goes on, and how all is taken back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import pytest
from lancedb.index import IvfFlat

from lance_rerank import lance
from lance_rerank.columns.ledger import Ledger
from lance_rerank.errors import ArgumentError, ConflictError, ModelError
from lance_rerank.reindex import Plan, ReindexJob, plan_reindex
from lance_rerank.reindex.state import read_state, state_key


class Clock:
    """Stands still until a test moves it."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plan(table, encoder):
    return plan_reindex(table, model=encoder, batch_size=8)


@pytest.fixture
def job(plan, clock, encoder):
    made = ReindexJob(plan, clock=clock)
    encoder.texts.clear()
    return made


def owned_by(table, owner: str, until: float):
    """Write the job's lease as another process has it."""
    state = json.loads(lance.table_metadata(table)[state_key("vector")])
    lance.update_table_metadata(
        table, {state_key("vector"): json.dumps({**state, "owner": owner, "expires_at": until})}
    )


class TestStatus:
    def test_before_and_after(self, job, table, plan, clock):
        status = job.status()
        assert (status.phase, status.running, status.rows, status.spooled) == ("planned", False, 60, 0)
        assert status.shadow_rows is None
        job.backfill()
        status = job.status()
        assert (status.phase, status.running, status.spooled, status.started_at) == ("ready", False, 60, clock.now)
        assert (status.shadow_rows.encoded, status.shadow_rows.outdated, status.unindexed) == (60, 0, None)
        assert f"job {plan.job} on 'vector' with HashEncoder: ready, not being run, begun 1970-01-12" in str(status)
        assert f"{plan.shadow}: 60 rows: 60 encoded, 0 missing" in str(status)

    def test_while_it_runs_from_another_handle(self, job, other, encoder, clock, fakes):
        seen = []

        def look(batch):
            opened = ReindexJob.open(other, "vector", model=fakes.HashEncoder(), clock=clock)
            seen.append(opened.status())

        encoder.before = look
        job.backfill()
        assert [status.spooled for status in seen] == list(range(0, 60, 8))
        assert {(status.phase, status.running) for status in seen} == {("embed", True)}
        assert f"/{os.getpid()}/" in seen[0].owner
        assert seen[0].lease_until == clock.now + 600

    def test_rows_that_came_since(self, job, table, fakes):
        job.backfill()
        table.checkout_latest()
        table.add(fakes.rows(60, 63))
        table.update(where="id = 3", values={"text": "changed"})
        rows = job.status().shadow_rows
        assert (rows.missing, rows.stale) == (3, 1)

    def test_it_writes_nothing(self, job, table, fakes):
        job.backfill()
        files = fakes.files_under(table.uri)
        job.status()
        assert fakes.files_under(table.uri) == files


class TestAnotherProcessGoesOn:
    def test_by_the_tables_metadata_alone(self, db, fakes, tmp_path):
        made = fakes.make_table(db)
        plan = plan_reindex(made, model=fakes.function(seed=2))
        ReindexJob(plan).backfill()
        again = ReindexJob.open(fakes.open_docs(str(tmp_path / "db")))
        assert again.plan == plan
        assert again.backfill().embedded == 0

    def test_by_a_saved_plan_without_a_handle(self, job, plan, tmp_path, encoder, fakes, table):
        plan.save(tmp_path / "plan.json")
        ReindexJob(Plan.load(tmp_path / "plan.json"), model=encoder).backfill()
        fakes.assert_filled(table, plan)

    def test_of_a_database_that_was_moved(self, table, job, encoder, fakes, plan, tmp_path):
        job.backfill()
        (tmp_path / "db").rename(tmp_path / "moved")
        moved = lancedb.connect(tmp_path / "moved").open_table("docs")
        again = ReindexJob.open(moved, model=encoder)
        assert again.status().phase == "ready"
        assert again.verify(sample=10).ok
        again.abort()
        moved.checkout_latest()
        assert moved.schema.names == ["id", "text", "vector"]
        assert not (tmp_path / "db").exists()

    def test_there_has_to_be_one(self, table, job):
        with pytest.raises(ArgumentError, match="no such job"):
            ReindexJob.open(table)
        job.backfill()
        with pytest.raises(ArgumentError, match="no such job"):
            ReindexJob.open(table, "second")

    def test_the_plan_of_another_table(self, plan, db, fakes):
        with pytest.raises(ArgumentError, match="the plan is for the table at"):
            ReindexJob(plan, fakes.make_table(db, "another"))

    def test_a_table_that_is_gone(self, plan, db, encoder):
        db.drop_table("docs")
        with pytest.raises(ArgumentError, match="cannot be opened"):
            ReindexJob(Plan.from_json(plan.to_json()), model=encoder)


class TestOneAtATime:
    def test_a_second_run_of_the_job_is_refused_while_the_first_one_lives(self, job, plan, other, encoder, clock):
        second = ReindexJob(plan, other, clock=clock)
        refused = []

        def try_it():
            with pytest.raises(ConflictError, match="is being run by"):
                second.backfill()
            with pytest.raises(ConflictError, match="is being run by"):
                second.abort()
            refused.append(True)

        encoder.once(try_it)
        job.backfill()
        assert refused
        assert second.backfill().rows == 0

    def test_a_second_job_on_the_column_is_refused(self, job, table, encoder):
        plan = plan_reindex(table, model=encoder)
        job.backfill()
        with pytest.raises(ConflictError, match=r"is being reindexed by job \w+ \(phase 'ready', model HashEncoder\)"):
            ReindexJob(plan).backfill()
        with pytest.raises(ConflictError, match="being reindexed"):
            plan_reindex(table, model=encoder)

    def test_two_that_begin_at_the_same_moment(self, job, table, encoder, monkeypatch):
        other = ReindexJob(plan_reindex(table, model=encoder))
        compare = lance.compare_and_set_metadata

        def after_the_other(*arguments):
            monkeypatch.setattr(lance, "compare_and_set_metadata", compare)
            other.backfill()
            return compare(*arguments)

        monkeypatch.setattr(lance, "compare_and_set_metadata", after_the_other)
        with pytest.raises(ConflictError, match="at the same moment"):
            job.backfill()
        assert other.status().phase == "ready"

    def test_a_process_elsewhere_holds_on_until_its_lease_expires(self, job, table, clock, plan, fakes):
        job.backfill()
        owned_by(table, "elsewhere/1/abc", clock.now + 100)
        assert job.status().running
        with pytest.raises(ConflictError, match=r"run by elsewhere/1/abc .* until \d\d:\d\d:\d\d UTC at most"):
            job.backfill()
        clock.now += 101
        assert not job.status().running
        assert job.backfill().late == 0

    def test_a_process_that_died_here_holds_on_to_nothing(self, job, table, clock):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        job.backfill()
        owned_by(table, f"{os.uname().nodename}/{dead.pid}/abc", clock.now + 100)
        assert job.backfill().late == 0

    def test_the_lease_is_renewed_while_it_runs(self, job, encoder, clock, table):
        seen = []

        def wait(batch):
            clock.now += 250
            seen.append(read_state(table, "vector").expires_at - clock.now)

        encoder.before = wait
        job.backfill()
        assert len(seen) == 8
        assert min(seen) > 0

    def test_one_that_was_taken_over_stops_and_what_it_wrote_is_kept(self, job, encoder, clock, table, plan, fakes):
        def lose(batch):
            if batch == 3:
                clock.now += 1000
                owned_by(table, "elsewhere/1/abc", clock.now + 100)

        encoder.batches = 0
        encoder.before = lose
        with pytest.raises(ConflictError, match="taken over by another process"):
            job.backfill()
        assert job.status().owner == "elsewhere/1/abc"
        assert job.status().spooled == 24
        clock.now += 101
        encoder.before = lambda batch: None
        assert job.backfill().embedded == 36
        fakes.assert_filled(table, plan)

    def test_an_error_lets_go(self, job, encoder):
        def fail():
            raise RuntimeError("no")

        encoder.once(fail)
        with pytest.raises(ModelError):
            job.backfill()
        assert job.status().owner is None
        assert job.status().phase == "embed"

    def test_a_job_that_was_swapped_is_not_filled_or_taken_back(self, job, table, encoder):
        job.backfill()
        state = json.loads(lance.table_metadata(table)[state_key("vector")])
        lance.update_table_metadata(table, {state_key("vector"): json.dumps({**state, "phase": "swapped"})})
        for step in (job.backfill, job.abort):
            with pytest.raises(ArgumentError, match=r"is past that.*rollback\(\) takes that back"):
                step()
        assert job.status().owner is None


class TestAbort:
    def test_leaves_the_table_as_it_was(self, db, fakes, encoder):
        made = fakes.make_table(db, parts=(300, 600))
        made.create_index("vector", config=IvfFlat(num_partitions=2))
        before = (made.schema, made.to_arrow(), lance.table_metadata(made), [i.name for i in made.list_indices()])
        found = made.search("text number 5").limit(10).to_list()
        job = ReindexJob(plan_reindex(made, model=encoder))
        job.backfill()
        assert len(lance.indices_of(made, job.plan.shadow)) == 1
        job.abort()
        made.checkout_latest()
        after = (made.schema, made.to_arrow(), lance.table_metadata(made), [i.name for i in made.list_indices()])
        assert after == before
        assert made.schema.metadata == before[0].metadata
        assert made.search("text number 5").limit(10).to_list() == found
        assert not (Path(made.uri) / "_lance_rerank").exists()
        assert job.status().phase == "planned"

    def test_one_that_was_killed_leaves_a_job_that_fills_anew(self, job, table, encoder, fakes, plan, monkeypatch):
        job.backfill()

        def killed():
            raise KeyboardInterrupt

        monkeypatch.setattr(job, "_remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            job.abort()
        assert plan.shadow not in table.to_lance().schema.names
        again = ReindexJob.open(table, model=encoder)
        assert again.status().phase == "embed"
        assert again.backfill().rows == 60
        fakes.assert_filled(table, plan)
        assert again.verify(sample=10).ok

    def test_after_a_failure_in_any_phase_and_before_any(self, job, table, encoder, fakes, plan):
        job.abort()
        for stop in ("embed", "write", "catch-up", "ready"):

            def fail(phase, stop=stop):
                if phase == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                job.backfill(on_phase=fail)
            job.abort()
            table.checkout_latest()
            assert table.schema.names == ["id", "text", "vector"]
            assert state_key("vector") not in lance.table_metadata(table)
            assert not (Path(table.uri) / "_lance_rerank").exists()
        job.backfill()
        fakes.assert_filled(table, plan)

    def test_notes_on_other_columns_stay(self, table, encoder, plan):
        side = Path(table.uri) / "_lance_rerank" / "field-99.lance"
        side.mkdir(parents=True)
        (side / "note").write_text("of another column")
        job = ReindexJob(plan)
        job.backfill()
        job.abort()
        assert (side / "note").exists()

    def test_another_job_can_follow(self, job, table, encoder):
        job.backfill()
        job.abort()
        ReindexJob(plan_reindex(table, model=encoder)).backfill()


def test_the_notes_on_a_column_follow_it_to_another_name(job, table, plan, encoder):
    job.backfill()
    table.checkout_latest()
    swap = lance.ColumnSwap("vector", shadow=plan.shadow, retired="vector_old")
    lance.swap_columns(table, swap, embedding_functions=None)
    data = lance.dataset(table)
    ledger = Ledger(data, "vector")
    rows = data.to_table(columns=["text", "vector"])
    texts, vectors = (rows.column(name).combine_chunks() for name in ("text", "vector"))
    assert ledger.fresh(texts, vectors).all()
    assert not Ledger(data, "vector_old").fresh(texts, vectors).any()


# --- kills -----------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, time
sys.path.insert(0, {here!r})
import conftest
from lance_rerank.reindex import ReindexJob

class Slow(conftest.HashEncoder):
    def encode_documents(self, texts):
        if not set(texts) <= conftest.PROBES:
            with open({log!r}, "a") as log:
                log.write("".join(text + "\\n" for text in texts))
            time.sleep(0.004)
        return super().encode_documents(texts)

job = ReindexJob.open(conftest.open_docs({uri!r}), model=Slow())
print("begun", flush=True)
print(job.backfill(), flush=True)
"""
BATCH = 16


def run_and_kill(fakes, made, tmp_path, kills: int, seed: int) -> None:
    """Begin a job, kill each process that goes on with it at a random moment, finish it here, and look at it all."""
    log, rng = tmp_path / "embedded.log", random.Random(seed)
    plan = plan_reindex(made, model=fakes.HashEncoder(), batch_size=BATCH)

    def interrupted(phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReindexJob(plan).backfill(on_phase=interrupted)
    script = CHILD.format(here=str(Path(__file__).parent), log=str(log), uri=str(Path(made.uri).parent))
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    encoder = fakes.HashEncoder()
    assert ReindexJob.open(made, model=encoder).backfill().late == 0
    fakes.assert_filled(made, plan)
    texts = [*log.read_text().splitlines(), *encoder.texts]
    rows = made.count_rows()
    assert set(texts) == {row["text"] for row in fakes.rows(0, rows)}
    assert len(texts) <= rows + kills * BATCH, "a kill costs a batch at most"
    job = ReindexJob.open(made, model=encoder)
    assert (job.status().phase, job.status().running) == ("ready", False)
    assert job.backfill().rows == 0
    job.abort()
    made.checkout_latest()
    assert made.schema.names == ["id", "text", "vector"]
    assert not (Path(made.uri) / "_lance_rerank").exists()


def test_kills_at_random_moments_cost_a_batch_each_and_change_nothing(db, fakes, tmp_path):
    run_and_kill(fakes, fakes.make_table(db, parts=(100, 200, 300, 600)), tmp_path, kills=2, seed=0)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(db, fakes, tmp_path, seed):
    run_and_kill(fakes, fakes.make_table(db, parts=(500, 1000, 1500, 2000)), tmp_path, kills=10, seed=seed)
