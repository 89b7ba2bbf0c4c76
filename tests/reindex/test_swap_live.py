"""The whole job under load: writers that never stop, readers that never get a wrong answer."""

from __future__ import annotations

import threading
import time
import traceback
from datetime import timedelta

import lancedb
import pytest
from lancedb.index import FTS

import lance_rerank
from lance_rerank.reindex import ReindexJob, plan_reindex

AT_ONCE = timedelta(0)
STABLE = 60  # rows that nobody writes: readers ask for them
PAUSE_S = 0.02


class Load:
    """One writer and four readers, each with a handle that it keeps."""

    def __init__(self, fakes, uri):
        self.fakes = fakes
        self.uri = uri
        self.texts = {row["id"]: row["text"] for row in fakes.rows(0, STABLE)}
        self.failures: list[str] = []
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self.preempted = 0  # compactions that had to be run again
        self._stop = threading.Event()
        runs = {
            "write": self._write,
            "search by text": lambda table, row: table.search(row["text"]),
            "search by words": lambda table, row: table.search(str(row["id"]), query_type="fts"),
            "hybrid search": lambda table, row: table.search(row["text"], query_type="hybrid"),
            "search by Retriever": None,
        }
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True) for item in runs.items()]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, name, step):
        handle = lance_rerank.connect(self.uri, read_consistency_interval=AT_ONCE).open_table("docs")
        retriever = lance_rerank.Retriever(handle, query_type="vector", candidates=5)
        turn = 0
        while not self._stop.is_set():
            try:
                if name == "write":
                    step(handle, turn)
                else:
                    self._read(name, step, handle, retriever, self.fakes.rows(turn % STABLE, turn % STABLE + 1)[0])
            except Exception:  # noqa: BLE001 (told by the test)
                self.failures.append(f"{name}, turn {turn}: {traceback.format_exc()}")
            turn += 1
            self.counts[name] = turn
            time.sleep(PAUSE_S)

    def _read(self, name, step, handle, retriever, row):
        if step is None:
            found = [int(hit.doc_id) for hit in retriever.retrieve(row["text"], k=1)]
        else:
            found = [hit["id"] for hit in step(handle, row).select(["id"]).limit(10).to_list()]
            found = found if name in ("search by words", "hybrid search") else found[:1]
        if row["id"] not in found:
            self.wrong.append(f"{name}: {row} -> {found}")

    def _write(self, handle, turn):
        """One write, of rows that are no reader's; a row is changed or deleted some turns after it came."""
        new, old = 1000 + turn, 1000 + turn - 8
        kind = turn % 4
        if kind == 0:
            handle.add([{"id": new, "text": f"added {new}"}])
            self.texts[new] = f"added {new}"
        elif kind == 1 and old - 1 in self.texts:
            handle.update(where=f"id = {old - 1}", values={"text": f"changed {turn}"})
            self.texts[old - 1] = f"changed {turn}"
        elif kind == 2 and old - 26 in self.texts:
            handle.delete(f"id = {old - 26}")
            del self.texts[old - 26]
        elif kind == 3:
            self._optimize(handle)

    def _optimize(self, handle):
        """Optimize, again where Lance asks for that: compaction loses to any commit of the same rows in between."""
        for _ in range(5):
            try:
                handle.optimize()
            except RuntimeError as error:
                if "Please retry" not in str(error):
                    raise
                self.preempted += 1
            else:
                return
        raise AssertionError("compaction was preempted five times in a row")

    def wait(self, turns):
        """Let the writer and every reader go on for so many turns."""
        goal = {name: count + turns for name, count in self.counts.items()}
        deadline = time.monotonic() + 30
        while any(self.counts[name] < count for name, count in goal.items()):
            assert time.monotonic() < deadline, self.failures
            time.sleep(PAUSE_S)


def assert_right(load, seed):
    """Every row is there once, with the vector of its text, and is what its text finds."""
    table = load.fakes.open_docs(load.uri)
    stored = table.to_lance().to_table(columns=["id", "text", "vector"]).to_pylist()
    assert {row["id"]: row["text"] for row in stored} == load.texts
    assert len(stored) == len(load.texts)
    for row in stored:
        assert row["vector"] == pytest.approx(load.fakes.vector_of(row["text"], seed).tolist(), abs=1e-3), row["text"]
        [found] = table.search(row["text"], query_type="vector").select(["id"]).limit(1).to_list()
        assert found["id"] == row["id"]


def test_under_a_writer_and_four_readers(fakes, tmp_path):
    uri = str(tmp_path / "db")
    table = fakes.make_table(lancedb.connect(uri), parts=(20, 40, STABLE))
    table.create_index("text", config=FTS())
    with Load(fakes, uri) as load:
        time.sleep(0.5)
        job = ReindexJob(plan_reindex(table, model=fakes.function(seed=2), batch_size=8))
        for step in (job.backfill, job.verify, job.swap, job.verify, job.rollback, job.verify, job.swap):
            step()
            load.wait(4)
    assert not load.failures, "\n".join(load.failures)
    assert load.wrong == []
    assert min(load.counts.values()) >= 28
    found = job.verify(sample=1000)
    assert (found.ok, found.late) == (True, 0)
    assert_right(load, seed=2)
    assert job.rollback().late == 0
    assert_right(load, seed=1)
