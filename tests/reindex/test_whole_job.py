"""The whole job from the plan to the swap and back: whatever others write meanwhile, and wherever it is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import lancedb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import lance_rerank
from lance_rerank.reindex import ReindexJob, plan_reindex
from lance_rerank.reindex.state import jobs_of

BATCH = 8


class World:
    """A table, the rows that it has to hold whatever was written when, and the job on it."""

    def __init__(self, fakes, folder, *, dim=8, stable=False, parts=(12, 24, 36)):
        self.fakes = fakes
        self.uri = str(folder)
        options = {"new_table_enable_stable_row_ids": "true"} if stable else None
        self.dims = {1: fakes.DIM, 2: dim}
        fakes.make_table(lancedb.connect(self.uri, storage_options=options), parts=parts)
        self.texts = {row["id"]: row["text"] for row in fakes.rows(0, parts[-1])}
        self.next_id = 1000

    def table(self):
        return self.fakes.open_docs(self.uri)

    def plan(self, **arguments):
        model = self.fakes.function(seed=2, dim=self.dims[2])
        return plan_reindex(self.table(), model=model, batch_size=BATCH, **arguments)

    def phase(self):
        return next((state.phase for state in jobs_of(self.table())), None)

    # --- what others write --------------------------------------------------------------------------------------------

    def add(self):
        rows = [{"id": self.next_id + i, "text": f"added {self.next_id + i}"} for i in range(3)]
        self.table().add(rows)
        self.texts |= {row["id"]: row["text"] for row in rows}
        self.next_id += 3

    def update(self):
        row_id = self._one()
        self.texts[row_id] = f"changed {row_id} {self.next_id}"
        self.next_id += 1
        self.table().update(where=f"id = {row_id}", values={"text": self.texts[row_id]})

    def upsert(self):
        rows = [{"id": row_id, "text": f"upserted {row_id} {self.next_id}"} for row_id in (self._one(), self.next_id)]
        self.table().merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self.texts |= {row["id"]: row["text"] for row in rows}
        self.next_id += 1

    def delete(self):
        row_id = self._one()
        self.table().delete(f"id = {row_id}")
        del self.texts[row_id]

    def compact(self):
        self.table().to_lance().optimize.compact_files()

    def optimize(self):
        self.table().optimize()

    WRITES = ("add", "update", "upsert", "delete", "compact", "optimize")

    def write(self, name):
        getattr(self, name)()

    def _one(self):
        return sorted(self.texts)[self.next_id * 7919 % len(self.texts)]

    # --- what has to hold ---------------------------------------------------------------------------------------------

    def check_rows(self):
        """No row was lost or doubled, and each has its text."""
        stored = self.table().to_lance().to_table(columns=["id", "text"]).to_pylist()
        assert len(stored) == len(self.texts)
        assert {row["id"]: row["text"] for row in stored} == self.texts

    def check(self, seed):
        """Besides, every vector is that of its text by this model, and LanceDB's own search finds rows by it."""
        self.check_rows()
        table = self.table()
        for row in table.to_lance().to_table(columns=["id", "text", "vector"]).to_pylist():
            expected = self.fakes.vector_of(row["text"], seed, self.dims[seed])
            assert row["vector"] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3), row["text"]
        for row_id, text in sorted(self.texts.items())[-20:]:
            [found] = table.search(text, query_type="vector").select(["id"]).limit(1).to_list()
            assert found["id"] == row_id


# --- schedules -------------------------------------------------------------------------------------------------------


class Schedule(RuleBasedStateMachine):
    """Steps of the job and writes of others in any order; some writes land in the middle of a step."""

    fakes = None
    folders = None

    @initialize(stable=st.booleans(), dim=st.sampled_from([8, 12]), index=st.sampled_from(["none", "ivf_flat"]))
    def begin(self, stable, dim, index):
        parts = (9, 18) if index == "none" else (150, 300)  # LanceDB trains no index on fewer than 256 rows
        self.world = World(self.fakes, self.folders.mktemp("world"), dim=dim, stable=stable, parts=parts)
        self.index = index
        self.pending: list[str] = []
        self.live = 1

    def job(self):
        table = self.world.table()
        return ReindexJob.open(table) if jobs_of(table) else ReindexJob(self.world.plan(index=self.index))

    def land(self, *_):
        """Write what was left for the middle of a step."""
        if self.pending:
            self.world.write(self.pending.pop())

    def is_in(*phases):
        return precondition(lambda self: self.world.phase() in phases)

    @rule(name=st.sampled_from(World.WRITES))
    def write(self, name):
        self.world.write(name)

    @rule(names=st.lists(st.sampled_from(World.WRITES), min_size=1, max_size=3))
    def leave_for_the_next_step(self, names):
        self.pending = names

    @is_in(None, "ready", "catch-up", "rolled-back")
    @rule()
    def backfill(self):
        if self.world.phase() is None and self.live == 2:
            return  # it holds that model's vectors already
        self.job().backfill(progress=self.land, on_phase=self.land)

    @is_in("ready", "swapped", "rolled-back")
    @rule()
    def verify(self):
        found = self.job().verify(sample=5)
        assert found.ok, found
        self.land()

    @is_in("ready", "rolled-back")
    @rule(dual_writing=st.booleans())
    def swap(self, dual_writing):
        job = self.job()
        assert job.verify(sample=5).ok
        self.land()
        job.swap(dual_writing=dual_writing)
        self.live = 2
        assert job.verify(sample=5).ok
        self.world.check(2)

    @is_in("swapped")
    @rule()
    def rollback(self):
        self.land()
        self.job().rollback()
        self.live = 1
        self.world.check_rows()

    @is_in("swapped")
    @rule()
    def drop_old(self):
        self.land()
        job = self.job()
        assert job.verify(sample=5).ok
        job.drop_old()
        self.world.check(2)
        assert self.world.table().schema.names == ["id", "text", "vector"]

    @is_in("ready", "rolled-back")
    @rule()
    def abort(self):
        self.land()
        self.job().abort()
        assert self.world.table().schema.names == ["id", "text", "vector"]

    def teardown(self):
        if hasattr(self, "world"):
            self.world.check_rows()


def run_schedules(fakes, tmp_path_factory, examples):
    Schedule.fakes, Schedule.folders = fakes, tmp_path_factory
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    wanted = settings(
        max_examples=examples, stateful_step_count=12, deadline=None, suppress_health_check=checks, derandomize=True
    )
    run_state_machine_as_test(Schedule, settings=wanted)


def test_any_schedule_of_steps_and_writes_keeps_every_row_and_its_vector(fakes, tmp_path_factory):
    run_schedules(fakes, tmp_path_factory, examples=8)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_many_schedules(fakes, tmp_path_factory):
    run_schedules(fakes, tmp_path_factory, examples=150)


# --- kills -----------------------------------------------------------------------------------------------------------

OURS = str(Path(lance_rerank.__file__).parent)
GOALS = ("swapped", "rolled-back", "swapped")


@contextmanager
def counted_calls(each):
    """Call `each` at every call of a function of this package, in this thread."""

    def look(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            each()

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def go_on(fakes, uri: str, goal: str) -> None:
    """Do what is left of the job, whatever was done: to the swap, or back to the old column."""
    table = fakes.open_docs(uri)
    job = ReindexJob.open(table) if jobs_of(table) else None
    job = job or ReindexJob(plan_reindex(table, model=fakes.function(seed=2), batch_size=BATCH))
    while (phase := job.status().phase) != goal:
        if goal == "rolled-back":
            job.rollback()
        elif phase in ("ready", "rolled-back"):
            job.verify(sample=8)
            job.swap()
        elif phase == "swap":
            job.swap()
        else:
            job.backfill()


def go_on_and_die(here: str, uri: str, goal: str, calls: int) -> None:
    """Do it in another process, which ends itself by SIGKILL after so many calls of this package's functions."""
    sys.path.insert(0, here)
    import conftest

    left = itertools.count(calls, -1)
    with counted_calls(lambda: next(left) <= 0 and os.kill(os.getpid(), signal.SIGKILL)):
        go_on(conftest, uri, goal)


def run_with_kills(fakes, folder, kills: int, seed: int) -> int:
    """Swap, roll back and swap again, killed at random places, while others write; return how often it was killed."""
    world, unbroken = (World(fakes, folder / name, parts=(40, 80, 120)) for name in ("killed", "unbroken"))
    rng, killed = random.Random(seed), 0
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["lance_rerank.reindex.job", "lance_rerank.reindex.planning", "pytest"])
    for goal, share in zip(GOALS, (0.5, 0.2, 0.3), strict=True):
        in_all = itertools.count()
        with counted_calls(lambda in_all=in_all: next(in_all)):
            go_on(fakes, unbroken.uri, goal)
        for _ in range(round(kills * share)):
            calls = rng.randrange(next(in_all))
            child = processes.Process(target=go_on_and_die, args=(str(Path(__file__).parent), world.uri, goal, calls))
            child.start()
            child.join(120)
            assert child.exitcode in (0, -signal.SIGKILL)
            killed += child.exitcode != 0
            world.write(rng.choice(World.WRITES))
            world.check_rows()
        go_on(fakes, world.uri, goal)
        if goal == "swapped":
            assert ReindexJob.open(world.table()).verify(sample=8).ok
        world.check(2 if goal == "swapped" else 1)
    ReindexJob.open(world.table()).drop_old()
    world.check(2)
    assert world.table().schema.names == ["id", "text", "vector"]
    assert not (Path(world.uri) / "docs.lance" / "_lance_rerank" / "reindex").exists()
    return killed


def kill_until(fakes, folder, wanted: int) -> None:
    """Live through as many lives as it takes: a process that ends before its turn is no kill."""
    lives = itertools.count()
    while wanted > 0:
        life = next(lives)
        killed = run_with_kills(fakes, folder / str(life), kills=min(2 * wanted, 20), seed=life)
        assert killed, "all of them came too late"
        wanted -= killed


def test_ten_kills_change_nothing(fakes, tmp_path):
    kill_until(fakes, tmp_path, 10)


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_two_hundred_kills_change_nothing(fakes, tmp_path):
    kill_until(fakes, tmp_path, 200)
