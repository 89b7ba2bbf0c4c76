"""Embedding by other processes and on Ray: the same table, what a dead worker costs, and what is refused."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from lance_rerank.errors import ArgumentError, MissingExtra, ModelError
from lance_rerank.reindex import ReindexJob, plan_reindex, ray_workers
from lance_rerank.reindex.executors import opened
from lance_rerank.reindex.models import Model, ModelSpec
from lance_rerank.reindex.pool import IN_FLIGHT, Lost, WorkerPool
from lance_rerank.reindex.worker_model import Raised, WorkerModel, loaded_or_raised

HERE = str(Path(__file__).parent)
BATCH = 8
ROWS = 120
SLOW = {"seconds_a_text": 0.002}


@pytest.fixture(scope="module", autouse=True)
def worker_fakes():
    """The module of the model, which workers find by the path of this process."""
    sys.path.insert(0, HERE)
    import worker_fakes

    yield worker_fakes
    sys.path.remove(HERE)


@pytest.fixture(scope="module")
def cluster(worker_fakes):
    """A cluster that is connected before, and stays so."""
    ray = pytest.importorskip("ray")
    assert ray_workers._connect(ray, 2)
    yield ray
    ray.shutdown()


@pytest.fixture(params=["local", "ray"])
def executor(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return request.param


@pytest.fixture
def docs(db, fakes):
    return fakes.make_table(db, parts=(40, 80, ROWS))


@pytest.fixture
def planned(docs, worker_fakes, tmp_path):
    """A job by a model that does something at a text; what the plan embedded is not counted."""

    def plan(at=None, action=None, **arguments):
        encoder = worker_fakes.WorkerEncoder(tmp_path / "embedded.log", **arguments)
        job = ReindexJob(plan_reindex(docs, model=encoder, batch_size=BATCH))
        encoder.log.unlink()
        encoder.at, encoder.action = at, action
        return job, encoder

    return plan


TEXT = "text number 50"


# --- on processes and on Ray -----------------------------------------------------------------------------------------


def test_the_table_is_as_one_process_makes_it(planned, docs, fakes, executor):
    job, encoder = planned(**SLOW)
    progress, phases = [], []
    report = job.backfill(lambda *done: progress.append(done), phases.append, executor=executor, workers=2)
    fakes.assert_filled(docs, job.plan)
    assert (report.rows, report.embedded, report.commits, report.late) == (ROWS, ROWS, 3, 0)
    assert sorted(text for _, text in encoder.embedded()) == sorted(row["text"] for row in fakes.rows(0, ROWS))
    assert os.getpid() not in {process for process, _ in encoder.embedded()}
    assert phases == ["embed", "write", "catch-up", "ready"]
    assert progress[: ROWS // BATCH] == [(done, ROWS) for done in range(BATCH, ROWS + 1, BATCH)]
    assert job.backfill(executor=executor, workers=2).embedded == 0
    if executor == "ray":
        import ray

        assert ray.is_initialized(), "what was connected before stays so"


def test_a_worker_that_is_killed_costs_the_batch_it_was_at(planned, docs, fakes, executor):
    job, encoder = planned(TEXT, "die_once")
    assert job.backfill(executor=executor, workers=2).embedded == ROWS
    fakes.assert_filled(docs, job.plan)
    embedded = encoder.embedded()
    assert len(embedded) == ROWS + BATCH
    assert [text for _, text in embedded].count(TEXT) == 2
    assert len({process for process, text in embedded if text == TEXT}) == 2


def test_a_text_that_kills_every_worker(planned, docs, fakes, executor):
    job, encoder = planned(TEXT, "die")
    with pytest.raises(ModelError, match=r"failed on 8 texts, the first of row id \d+.*WorkerDied: 3 workers died of"):
        job.backfill(executor=executor, workers=2)
    assert [text for _, text in encoder.embedded()].count(TEXT) == 3
    status = job.status()
    assert (status.phase, status.running) == ("embed", False)
    encoder.action = None
    assert job.backfill().embedded == ROWS - status.spooled
    fakes.assert_filled(docs, job.plan)


def test_a_model_that_raises_is_told_as_by_one_process(planned, docs, fakes, executor):
    job, encoder = planned(TEXT, "fail")
    with pytest.raises(ModelError, match="MemoryError: too large") as by_one:
        job.backfill()
    job.abort()
    with pytest.raises(ModelError) as by_workers:
        job.backfill(executor=executor, workers=2)
    assert str(by_workers.value) == str(by_one.value)
    assert "worker_fakes.py" in by_workers.value.__cause__.__notes__[0]
    encoder.action = None
    job.backfill(executor=executor, workers=2)
    fakes.assert_filled(docs, job.plan)


def test_workers_with_another_model_embed_nothing(docs, worker_fakes, tmp_path, executor):
    spec = ModelSpec("trained since", "encoder")
    model = Model(spec, worker_fakes.WorkerEncoder(tmp_path / "log", seed=3))
    planned_with = Model(spec, worker_fakes.WorkerEncoder(tmp_path / "log", seed=2)).sketch()
    with (
        opened(executor, 2, model, planned_with, lambda: None) as pool,
        pytest.raises(ModelError, match=r"a worker cannot embed: .*other vectors than trained since did in the plan"),
    ):
        list(pool.embed([["a"], ["b"]]))
    assert not model.encoder.embedded()


def test_a_folder_is_loaded_by_its_name(docs, tiny_encoder):
    _, model = plan_reindex(docs, model=tiny_encoder).handles
    portable = WorkerModel.of(model.spec, model.encoder, model.sketch(), pickle.dumps)
    assert portable.pickled is None
    again = pickle.loads(pickle.dumps(portable)).loaded()
    assert np.allclose(again.encode_documents(["a cat"]), model.encoder.encode_documents(["a cat"]), atol=1e-5)


# --- the process that has the lease ----------------------------------------------------------------------------------

DRIVER = """
import sys

sys.path[:0] = [{here!r}]

if __name__ == "__main__":  # workers read this file, too
    import conftest, worker_fakes
    from lance_rerank.reindex import ReindexJob

    encoder = worker_fakes.WorkerEncoder({log!r}, seconds_a_text=0.02)
    job = ReindexJob.open(conftest.open_docs({uri!r}), model=encoder)
    job.backfill(progress=lambda *done: print(*done, flush=True), executor="local", workers=2)
"""


def test_workers_end_with_it_and_what_came_back_is_kept(planned, docs, fakes, tmp_path):
    job, encoder = planned()

    def interrupted(phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.backfill(on_phase=interrupted)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(here=HERE, log=str(encoder.log), uri=str(Path(docs.uri).parent)))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    spooled = job.status().spooled
    assert spooled >= 3 * BATCH
    deadline = time.monotonic() + 20
    while any(_lives(worker) for worker in {worker for worker, _ in encoder.embedded()}):
        assert time.monotonic() < deadline, "a worker outlived the process that it worked for"
        time.sleep(0.05)
    assert len(encoder.embedded()) - spooled <= 2 * IN_FLIGHT * BATCH
    assert job.backfill().embedded == ROWS - spooled
    fakes.assert_filled(docs, job.plan)


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": 0}, "workers is a number of processes, at least 1, got 0"),
        ({"workers": True}, "got True"),
        ({"workers": 1.5}, "got 1.5"),
        ({"executor": "slurm"}, "executor must be one of local, ray, got 'slurm'"),
    ],
)
def test_bad_arguments(planned, arguments, said):
    job, _ = planned()
    with pytest.raises(ArgumentError, match=said):
        job.backfill(**arguments)
    assert job.status().phase == "planned"


def test_ray_is_an_extra(planned, monkeypatch):
    job, _ = planned()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lance-rerank\[ray\]'"):
        job.backfill(executor="ray")
    assert job.status().phase == "planned"


def test_an_encoder_that_cannot_be_pickled_stays_in_this_process(docs, fakes):
    encoder = fakes.HashEncoder()
    job = ReindexJob(plan_reindex(docs, model=encoder, batch_size=BATCH))
    with pytest.raises(ArgumentError, match=r"'HashEncoder' cannot be pickled .*a folder or a hub id"):
        job.backfill(workers=2)
    assert not job.status().running
    job.backfill(workers=1)
    fakes.assert_filled(docs, job.plan)


def test_a_function_that_no_worker_has_registered():
    found = loaded_or_raised(WorkerModel(ModelSpec("a", "function", {"name": "nobody's", "model": {}}), ""))
    with pytest.raises(ModelError, match=r"a worker cannot embed: .*nobody's.* is not registered in this process"):
        raise found.error()


# --- which cluster, and how much of it -------------------------------------------------------------------------------


class FakeRay:
    """What `RayWorkers` asks of Ray before it starts an actor."""

    def __init__(self, connected=False, **resources):
        self.connected, self.resources = connected, resources
        self.started_with = self.actors_with = None

    def is_initialized(self):
        return self.connected

    def init(self, **arguments):
        self.connected, self.started_with = True, arguments

    def shutdown(self):
        self.connected = False

    def cluster_resources(self):
        return self.resources

    def remote(self, **arguments):
        self.actors_with = arguments
        return lambda cls: cls

    def put(self, value):
        return value


@pytest.fixture
def on_ray(monkeypatch):
    def make(fake, size=None):
        monkeypatch.setitem(sys.modules, "ray", fake)
        return ray_workers.RayWorkers(WorkerModel(ModelSpec("a", "encoder"), ""), size)

    return make


def test_a_cluster_that_is_connected_stays_so(on_ray):
    ray = FakeRay(connected=True, CPU=4.0)
    on_ray(ray).close()
    assert (ray.connected, ray.started_with) == (True, None)


def test_the_cluster_that_the_environment_names_is_let_go_of(on_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = FakeRay(CPU=4.0)
    workers = on_ray(ray, 2)
    assert ray.started_with["address"] == "10.0.0.1:6379"
    workers.close()
    assert not ray.connected


def test_without_one_it_is_started_here_and_shut_down(on_ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay(CPU=3.0)
    workers = on_ray(ray, 3)
    assert (ray.started_with["num_cpus"], ray.started_with["include_dashboard"]) == (3, False)
    workers.close()
    assert not ray.connected


@pytest.mark.parametrize(
    ("resources", "size", "actors", "gpus"),
    [
        ({"CPU": 2.0}, None, 2, 0),
        ({"CPU": 64.0}, None, 8, 0),
        ({"CPU": 64.0}, 20, 20, 0),
        ({"CPU": 64.0, "GPU": 4.0}, None, 4, 1),
        ({"CPU": 64.0, "GPU": 2.0}, 3, 3, 0.5),
        ({"CPU": 64.0, "GPU": 4.0}, 2, 2, 1),
        ({}, None, 1, 0),
    ],
)
def test_how_many_actors_and_what_each_gets_of_a_gpu(on_ray, resources, size, actors, gpus):
    ray = FakeRay(connected=True, **resources)
    assert on_ray(ray, size).size == actors
    assert (ray.actors_with["num_gpus"], ray.actors_with["max_restarts"]) == (gpus, 0)


# --- the pool, with workers of one's own -----------------------------------------------------------------------------


class Scripted:
    """Workers that answer when they are asked; `before` may say what one answers to a batch."""

    def __init__(self, before=lambda worker, batch: None, silent=0):
        self.before, self.silent = before, silent
        self.started = 0
        self.asked: dict[int, deque] = {}
        self.most_in_flight = 0

    def start(self):
        self.started += 1
        self.asked[self.started] = deque([None])
        return self.started

    def send(self, worker, batch):
        self.asked[worker].append(batch)
        self.most_in_flight = max(self.most_in_flight, len(self.asked[worker]))

    def answers(self, timeout_s):
        self.silent -= 1
        if self.silent >= 0:
            return []
        return [(worker, self.answer(worker)) for worker, asked in list(self.asked.items()) if asked]

    def answer(self, worker):
        batch = self.asked[worker].popleft()
        given = self.before(worker, batch)
        if isinstance(given, Lost):
            del self.asked[worker]
        return given if given is not None or batch is None else np.full((len(batch), 1), float(batch[0]))


def batches(number):
    return [[str(at)] for at in range(number)]


def answered(workers, number, size=2, renew=lambda: None):
    return dict(WorkerPool(workers, size, renew).embed(batches(number)))


def test_every_batch_is_answered_once_and_few_are_on_their_way():
    workers = Scripted()
    found = [(at, float(answer[0, 0])) for at, answer in WorkerPool(workers, 3, lambda: None).embed(batches(50))]
    assert sorted(found) == [(at, float(at)) for at in range(50)]
    assert workers.started == 3
    assert workers.most_in_flight == IN_FLIGHT


def test_no_more_workers_are_started_than_there_are_batches():
    workers = Scripted()
    pool = WorkerPool(workers, 4, lambda: None)
    assert not list(pool.embed([]))
    assert workers.started == 0
    assert len(list(pool.embed(batches(1)))) == 1
    assert workers.started == 1
    assert len(list(pool.embed(batches(9)))) == 9
    assert workers.started == 4


def test_the_lease_is_looked_at_while_workers_are_waited_for():
    renewed = []
    answered(Scripted(silent=5), 1, renew=lambda: renewed.append(True))
    assert len(renewed) >= 6


def test_a_death_is_laid_to_the_batch_at_the_head_alone():
    workers = Scripted(lambda worker, batch: Lost("exit code 1") if batch == ["3"] else None)
    found = answered(workers, 12, size=1)
    assert str(found.pop(3)) == "3 workers died of it; the last one: exit code 1"
    assert {at: float(answer[0, 0]) for at, answer in found.items() if not isinstance(answer, Exception)} == {
        at: float(at) for at in range(12) if at != 3
    }


def test_workers_that_die_before_they_have_the_model():
    with pytest.raises(ModelError, match="3 workers in a row died before they had the model; the last one: exit code"):
        answered(Scripted(lambda worker, batch: Lost("exit code 1")), 4)


def test_one_that_died_early_is_made_up_for():
    workers = Scripted(lambda worker, batch: Lost("exit code 1") if batch is None and worker < 3 else None)
    assert sorted(answered(workers, 4, size=1)) == [0, 1, 2, 3]


def test_errors_come_as_they_were_raised():
    class OddError(Exception):
        pass

    for error in (OddError("strange"), ModelError("ours"), KeyError("k")):
        made = Raised.of(error).error()
        assert type(made).__name__ == type(error).__name__
        assert str(made) == str(error)
    assert isinstance(Raised.of(ModelError("ours")).error(), ModelError)


def test_what_a_worker_needs_of_a_function_is_its_module(fakes):
    spec = ModelSpec("a", "function", {"name": "reindex-hash", "model": {}})
    portable = WorkerModel.of(spec, fakes.HashEncoder(), "", lambda encoder: b"")
    assert (portable.pickled, portable.module) == (None, fakes.HashFunction.__module__)
