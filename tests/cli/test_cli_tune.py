"""`lance-rerank tune-and-reindex`: from judged queries to another model under the table, resumed at will."""

from __future__ import annotations

import json
from pathlib import Path

import lancedb
import pytest
from commands import invoke, refused, run

from lance_rerank import lance
from lance_rerank.fingerprint import model_name
from lance_rerank.jobs import tuning

SUBJECTS = ("key", "cat", "dog", "bread", "file", "user", "api", "keys")
SPLITS = {"train": range(64), "dev": range(64, 88), "test": range(88, 112)}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A query is answered by the document of its subject and number, which the model has to learn."""
    folder = tmp_path_factory.mktemp("judged")
    subject = [SUBJECTS[i % 8] for i in range(112)]
    documents = [{"_id": f"d{i}", "text": f"the {subject[i]} number {i} is read"} for i in range(112)]
    queries = [{"_id": f"q{i}", "text": f"how to {subject[i]} {i}"} for i in range(112)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels").mkdir()
    for split, numbers in SPLITS.items():
        rows = "".join(f"q{i}\td{i}\t1\n" for i in numbers)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture
def place(tmp_path, judged, tiny_encoder):
    run("index", judged, "--db", tmp_path / "db", "--table", "docs", "--model", tiny_encoder)
    return tmp_path


def arguments(place, judged, *more):
    settings = ["--batch-size", "16", "--epochs", "6", "--learning-rate", "3e-3", "--per-query", "2"]
    where = ["--db", place / "db", "--table", "docs", "--data", judged, "--output", place / "tuned"]
    return ["tune-and-reindex", *where, *settings, "--retriever", "vector", *more]


def table_of(place):
    return lancedb.connect(place / "db").open_table("docs")


def test_all_the_way_and_again(place, judged):
    before = table_of(place).search("how to cat 65").limit(1).to_list()[0]["id"]
    result = run(*arguments(place, judged, "--yes"))
    for said in ("kept for 64 queries", "ship", "on   model  against", "vector: swapped in version"):
        assert said in result.output, result.output
    table = table_of(place)
    assert model_name(lance.schema_metadata(table)[lance.model_key("vector")]) == str((place / "tuned").resolve())
    found = [table.search(f"how to {SUBJECTS[i % 8]} {i}").limit(1).to_list()[0]["id"] for i in SPLITS["test"]]
    assert before != found[0]
    assert sum(one == f"d{i}" for one, i in zip(found, SPLITS["test"], strict=True)) >= 18

    again = run(*arguments(place, judged, "--yes"))
    assert "all is done but for the old column" in again.output
    assert table_of(place).version == table.version


def test_a_stage_that_is_done_is_not_done_again(place, judged, monkeypatch):
    calls = []

    def interrupted(*_, **__):
        calls.append("train")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "train_embedder", interrupted)
        assert invoke(*arguments(place, judged)).exit_code != 0
    assert calls == ["train"]
    mined = place / "tuned.tuning" / "negatives.parquet"
    written = mined.stat().st_mtime_ns
    result = invoke(*arguments(place, judged))
    assert result.exit_code == 4, result.output  # nobody confirms, and there is no terminal
    assert mined.stat().st_mtime_ns == written
    assert "the swap" in result.stderr
    monkeypatch.setattr(tuning, "train_embedder", interrupted)
    monkeypatch.setattr(tuning, "judge_training", interrupted)
    monkeypatch.setattr(tuning, "mine_negatives", interrupted)
    assert run(*arguments(place, judged, "--yes")).exit_code == 0
    assert calls == ["train"]


def test_a_model_that_is_no_better_is_not_used(place, judged):
    version = table_of(place).version
    result = invoke(*arguments(place, judged, "--yes", "--learning-rate", "1e-9"))
    assert result.exit_code == 3, result.output
    assert "do not ship" in result.stderr
    assert table_of(place).version == version


def test_other_settings_and_other_data_are_refused(place, judged, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "mine_negatives", stopped)
    invoke(*arguments(place, judged))
    said = refused(*arguments(place, judged, "--epochs", "2", "--seed", "3"))
    assert "was begun with other epochs, seed" in said
    assert "remove the folder" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--table": "plain"}, "name"),
        ({"--data": "nowhere"}, "no folder nowhere"),
        ({"--model": "no/such/model"}, "no/such/model"),
    ],
)
def test_what_is_wrong_is_said_at_once(place, judged, change, says):
    lancedb.connect(place / "db").create_table("plain", [{"id": "a", "text": "keys", "vector": [0.0] * 32}])
    flat = arguments(place, judged)
    for option, value in change.items():
        flat = [*flat, option, value]
    result = invoke(*flat)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path(place / "tuned").exists()
