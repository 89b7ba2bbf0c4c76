"""Runs that are kept: what hits, what does not, and what a damaged file does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lance_rerank.evaluation.cache as module
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import Cacheable, evaluate
from lance_rerank.types import Hit, Qrel, Query

N = 200  # blocks of 64, 64, 64 and 8


class Counting:
    """Finds the document that a query names, and counts what it was asked; may stop after some queries."""

    def __init__(self, key: str | None = "recipe", stop_after: float = float("inf")) -> None:
        self.key, self.stop_after, self.asked = key, stop_after, []

    def cache_key(self) -> str | None:
        return self.key

    def retrieve_many(self, queries, k):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += queries
        return [[Hit("other", 1.0, 1), Hit(query.split()[-1], 0.5, 2)] for query in queries]


def judged(*, n: int = N, grade: int = 1, text: str = "find") -> Dataset:
    queries = [Query(i, f"{text} d{i}") for i in range(n)]
    return Dataset.from_memory(queries, [Qrel(i, f"d{i}", grade) for i in range(n)])


def run(retriever: object, folder: Path, data: Dataset | None = None, **options):
    return evaluate({"a": retriever}, data or judged(), ["RR@10"], cache=folder, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "runs"


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_a_run_is_not_searched_twice(folder):
    first, second = Counting(), Counting()
    result = run(first, folder)
    assert run(second, folder) == result
    assert (len(first.asked), second.asked) == (N, [])
    assert isinstance(first, Cacheable)


def test_a_run_that_was_stopped_goes_on(folder):
    stopped, resumed, told = Counting(stop_after=128), Counting(), []
    with pytest.raises(KeyboardInterrupt):
        run(stopped, folder)
    result = run(resumed, folder, progress=lambda *step: told.append(step))
    assert len(resumed.asked) == N - 128
    assert told == [("a", 128, N), ("a", 192, N), ("a", N, N)]
    assert list(result.runs["a"]) == [str(i) for i in range(N)]
    assert result.means == {"a": {"RR@10": 0.5}}


def test_a_process_that_is_killed_loses_one_block(folder):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cache as t
class Dying(t.Counting):
    def retrieve_many(self, queries, k):
        if len(self.asked) >= 128:
            os._exit(9)
        return super().retrieve_many(queries, k)
t.run(Dying(), t.Path({str(folder)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    resumed = Counting()
    run(resumed, folder)
    assert len(resumed.asked) == N - 128


@pytest.mark.parametrize(
    "other",
    [
        {"retriever": Counting("another recipe")},
        {"data": judged(text="seek")},
        {"data": judged(n=N - 1)},
    ],
)
def test_what_would_answer_otherwise_does_not_hit(folder, other):
    run(Counting(), folder)
    retriever = other.get("retriever", Counting())
    retriever.asked = []
    data = other.get("data", judged())
    run(retriever, folder, data)
    assert len(retriever.asked) == len(data.queries)


def test_a_changed_query_does_not_hit(folder):
    data = judged()
    run(Counting(), folder, data)
    data.queries["7"] = "find d8"
    result = run(Counting(), folder, data)
    assert result.per_query["a"]["7"] == {"RR@10": 0}


def test_another_depth_or_package_does_not_hit(folder, monkeypatch):
    run(Counting(), folder)
    deeper = Counting()
    evaluate({"a": deeper}, judged(), ["R@100"], cache=folder)
    monkeypatch.setattr(module, "_version", lambda: "0.0.0")
    newer = Counting()
    run(newer, folder)
    assert len(deeper.asked) == len(newer.asked) == N


def test_other_judgements_and_measures_and_names_hit(folder):
    run(Counting(), folder)
    again = Counting()
    run(again, folder, judged(grade=2))
    evaluate({"b": again}, judged(), ["nDCG@5"], cache=folder)
    assert again.asked == []


@pytest.mark.parametrize(
    "retriever", [Counting(None), type("Keyless", (), {"retrieve_many": Counting.retrieve_many})()]
)
def test_what_has_no_key_is_not_kept_and_that_is_said(folder, retriever, caplog):
    retriever.asked, retriever.stop_after = [], float("inf")
    run(retriever, folder)
    run(retriever, folder)
    assert len(retriever.asked) == 2 * N
    assert f"the run of 'a' is not kept: {type(retriever).__name__} cannot say" in caplog.text


def test_without_a_folder_nothing_is_said(caplog):
    evaluate({"a": Counting(None)}, judged(), ["RR@10"])
    assert not caplog.records


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],  # cut off by a full disk
        lambda content: content.replace(b'"d70"', b'"d71"'),  # still JSON
        lambda content: content[:3000] + b"\x00\xff" * 50 + content[3100:],
        lambda content: content + b"deadbeef {}\n",
        lambda content: b"not one of ours",
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_mended(folder, damage, caplog):
    expected = run(Counting(), folder)
    path = the_file(folder)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    result = run(Counting(), folder)
    assert (result.means, result.runs) == (expected.means, expected.runs)
    assert ("damaged and are searched again" in caplog.text) == bool(damaged)
    again = Counting()
    assert run(again, folder).runs == expected.runs
    assert again.asked == []


def test_only_the_damaged_block_is_searched_again(folder):
    run(Counting(), folder)
    path = the_file(folder)
    path.write_bytes(path.read_bytes().replace(b'"d70"', b'"d71"'))
    again = Counting()
    run(again, folder)
    assert again.asked == [f"find d{i}" for i in range(64, 128)]


def test_failed_queries_are_asked_again(folder):
    class Flaky(Counting):
        busy = True

        def retrieve_many(self, queries, k):
            if self.busy and "find d7" in queries:
                raise ValueError("busy")
            return super().retrieve_many(queries, k)

    flaky = Flaky()
    first = run(flaky, folder, on_error="count")
    assert first.failures == {"a": {"7": "ValueError: busy"}}
    flaky.busy, flaky.asked = False, []
    second = run(flaky, folder, on_error="count")
    assert (second.failures, second.means) == ({}, {"a": {"RR@10": 0.5}})
    assert flaky.asked == ["find d7"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    retriever = Counting()
    with pytest.raises(ArgumentError, match="is no folder and cannot be made"):
        run(retriever, tmp_path / "file")
    assert retriever.asked == []


def test_a_disk_that_stops_taking_writes_stops_nothing(folder, monkeypatch, caplog):
    opened = Path.open

    def full(path, mode="r", *arguments, **options):
        if mode == "ab":
            raise OSError(28, "No space left on device")
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    assert run(Counting(), folder).means == {"a": {"RR@10": 0.5}}
    assert len([record for record in caplog.records if "goes on without keeping" in record.message]) == 1


def test_nothing_else_is_left_behind(folder):
    run(Counting(), folder)
    path = the_file(folder)
    path.write_bytes(path.read_bytes()[:-5])
    run(Counting(), folder)
    assert os.listdir(folder) == [path.name]
