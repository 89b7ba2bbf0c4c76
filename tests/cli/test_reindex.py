"""`lance-rerank reindex`: each step, the whole way at once, and the way on after kills."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from commands import invoke, refused, run
from typer.testing import CliRunner

from lance_rerank import lance, testing
from lance_rerank.cli import confirm
from lance_rerank.cli.app import app
from lance_rerank.columns.ledger import Ledger, digests
from lance_rerank.encoder import SentenceEncoder
from lance_rerank.reindex.state import read_state

WORDS = [
    "rotate",
    "the",
    "api",
    "keys",
    "of",
    "a",
    "user",
    "bake",
    "bread",
    "read",
    "file",
    "write",
    "cat",
    "dog",
    "in",
    "morning",
]
TEXTS = [" ".join(WORDS[(i * step) % len(WORDS)] for step in (1, 3, 4, 7)) + f" {i}" for i in range(40)]
COLUMNS = {"id", "title", "text", "vector", "colbert"}
QUERIES = {f"q{i}": f"{WORDS[i]} {WORDS[i + 5]} {WORDS[i + 8]}" for i in range(6)}


@pytest.fixture(scope="module")
def new_model(tmp_path_factory) -> str:
    return testing.save_tiny_encoder(tmp_path_factory.mktemp("new-encoder"), seed=1)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, tiny_encoder, new_model):
    """A BEIR folder; by the split "old" the old model finds all it should at once, by "new" the new one does."""
    folder = tmp_path_factory.mktemp("judged")
    lines = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": q, "text": text}) for q, text in QUERIES.items())
    )
    (folder / "qrels").mkdir()
    for split, model in (("old", tiny_encoder), ("new", new_model)):
        encoder = SentenceEncoder(model)
        scores = encoder.encode_queries(list(QUERIES.values())) @ encoder.encode_documents(TEXTS).T
        rows = "".join(f"{q}\td{best}\t1\n" for q, best in zip(QUERIES, scores.argmax(axis=1), strict=True))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory, judged, tiny_encoder, new_model):
    """A database at one place, before a job and with one that is ready, as folders to be copied back to that place."""
    folder = tmp_path_factory.mktemp("live")
    table = ("--db", folder / "db", "--table", "docs")
    run("index", judged, *table, "--model", tiny_encoder, "--colbert")
    shutil.copytree(folder / "db", folder / "before")
    run("reindex", "backfill", *table, "--model", new_model, "--batch-size", 8)
    shutil.copytree(folder / "db", folder / "ready")
    return folder


class Live:
    """The table "docs", as the options name it, and as an app has it open."""

    def __init__(self, folder: Path, snapshot: str):
        self.db = folder / "db"
        shutil.rmtree(self.db, ignore_errors=True)
        shutil.copytree(folder / snapshot, self.db)
        self.options = ("--db", self.db, "--table", "docs")

    @property
    def table(self):
        return lancedb.connect(self.db).open_table("docs")

    @property
    def columns(self) -> set[str]:
        return set(self.table.schema.names)

    @property
    def phase(self) -> str | None:
        state = read_state(self.table, "vector")
        return state and state.phase

    def reindex(self, step: str, *arguments: object, code: int = 0, **options):
        parts = ("reindex", step, *self.options, *arguments)
        result = CliRunner().invoke(app, [str(part) for part in parts], env={"COLUMNS": "60"}, **options)
        assert result.exit_code == code, result.output
        assert not isinstance(result.exception, Exception), result.exception
        return result

    def refused(self, step: str, *arguments: object) -> str:
        return refused("reindex", step, *self.options, *arguments)

    def has_vectors_of(self, model: str) -> bool:
        rows = self.table.to_lance().to_table(columns=["text", "vector"])
        made = SentenceEncoder(model).encode_documents(rows["text"].to_pylist())
        return np.allclose(np.array(rows["vector"].to_pylist()), made, atol=2e-2)


@pytest.fixture
def live(snapshots):
    return Live(snapshots, "before")


@pytest.fixture
def ready(snapshots):
    return Live(snapshots, "ready")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(confirm, "has_terminal", lambda: True)


# --- step by step ----------------------------------------------------------------------------------------------------


def test_plan_says_what_would_be_done_and_writes_nothing(live, new_model, tmp_path):
    version = live.table.version
    told = live.reindex("plan", "--model", new_model, "--dtype", "float16").stdout
    assert told.startswith(f"Reindex docs.vector with {new_model} (job ")
    assert "index     none, as now" in told
    assert "undo: 'reindex abort' takes all of it back" in told
    assert "abort()" not in told
    as_json = json.loads(live.reindex("plan", "--model", new_model, "--json", "--batch-size", 4).stdout)
    assert (as_json["column"], as_json["rows"], as_json["batch_size"]) == ("vector", 40, 4)
    assert (live.table.version, live.phase) == (version, None)


def test_a_plan_that_was_saved_is_run(live, new_model, tmp_path):
    file = tmp_path / "plan.json"
    assert (
        f"backfill --db {live.db} --table docs --plan {file}"
        in live.reindex("plan", "--model", new_model, "--batch-size", 4, "--save", file).stderr
    )
    planned = json.loads(file.read_text())
    assert "--model is not for a plan" in live.refused("backfill", "--plan", file, "--model", new_model)
    done = json.loads(live.reindex("backfill", "--plan", file, "--json").stdout)
    assert (done["job"], done["rows"]) == (planned["job"], 40)
    assert live.reindex("backfill", "--plan", file).stdout.startswith(f"{done['shadow']}: 0 rows in 0 commits")


def test_all_the_steps_one_by_one(live, new_model, tiny_encoder, judged):
    filled = live.reindex("backfill", "--model", new_model, "--work-dir", live.db.parent / "work")
    assert filled.stdout.startswith("vector_next_")
    assert [line for line in filled.stderr.splitlines() if line.startswith("phase: ")] == [
        "phase: embed",
        "phase: write",
        "phase: catch-up",
    ]
    assert ": verified\n" in live.reindex("verify", "--sample", 10, "--seed", 3).stdout
    gate = live.reindex("evaluate", "--data", judged, "--split", "new", "--measures", "RR@10")
    assert "new against old: RR@10 +" in gate.stdout
    assert live.reindex("swap", "--yes").stdout.startswith("vector: swapped in version ")
    assert live.has_vectors_of(new_model)
    assert live.reindex("rollback").stdout.startswith("vector: rolled-back in version ")
    assert live.has_vectors_of(tiny_encoder)
    live.reindex("verify")
    assert json.loads(live.reindex("swap", "--yes", "--json", "--dual-writing").stdout)["phase"] == "swapped"
    again = live.reindex("swap")  # nothing is asked: it is done, and sweeps
    assert "swapped already, 0 rows swept" in again.stdout
    assert "job " in live.reindex("drop-old", "--yes").stdout
    assert (live.columns, live.phase) == (COLUMNS, None)


def test_backfill_goes_on_with_the_job_that_is_there(ready, new_model, tiny_encoder):
    ready.table.add([{"id": "late", "text": "a cat that came late", "colbert": None}])
    done = json.loads(ready.reindex("backfill", "--model", new_model, "--json").stdout)
    assert (done["rows"], done["embedded"]) == (1, 1)
    assert "is being reindexed with" in ready.refused("backfill", "--model", tiny_encoder)


def test_progress_has_the_phase_the_rows_and_their_rate(live, new_model, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    shown = re.sub(
        r"\x1b\[[0-9;?]*[a-zA-Z]", "", live.reindex("backfill", "--model", new_model, "--batch-size", 4).stderr
    )
    assert re.search(r"embed +━+ 40/40 [\d,.]+ rows/s", shown), shown
    assert re.search(r"write +━+ 40/40 ", shown), shown
    assert "phase: " not in shown


def plant_a_wrong_vector(table) -> None:
    """Put a vector that is not the first text's beside it, and note it as right."""
    data = lance.dataset(table)
    [column] = [name for name in data.schema.names if name.startswith("vector_next")]
    [fragment] = data.get_fragments()
    rows = fragment.to_table(columns=["text", column])
    vectors = [[1.0] * testing.TINY_DIM, *rows[column].combine_chunks().storage.to_pylist()[1:]]
    storage = pa.list_(pa.float32(), testing.TINY_DIM)
    path = lance.write_column_file(data, column, iter([pa.array(vectors, storage)]), storage)
    key = digests(rows["text"].combine_chunks().slice(0, 1), pa.array(vectors[:1], storage))
    Ledger(data, column).add(list(key), "planted", "planted")
    lance.replace_column(data, fragment.fragment_id, path)


def test_a_wrong_column_is_not_swapped(ready):
    plant_a_wrong_vector(ready.table)
    told = ready.reindex("verify", code=3)
    assert ": WRONG\n" in told.stdout
    assert "failed: column 'vector_next_" in told.stderr
    assert "take the job back, 'reindex abort', and plan anew" in told.stderr
    assert json.loads(ready.reindex("verify", "--json", code=3).stdout)["ok"] is False
    assert "run 'reindex verify' and look at what it says, or 'reindex swap --force'" in ready.refused("swap", "--yes")
    stopped = json.loads(ready.reindex("run", "--yes", "--json", code=3).stdout)
    assert (stopped["exit_code"], "swap" in stopped) == (3, False)
    ready.reindex("swap", "--force", "--yes")
    assert ready.phase == "swapped"


def test_evaluate_ends_with_3_where_the_new_column_is_worse(ready, judged):
    arguments = ("--data", judged, "--split", "old", "--retriever", "vector", "--measures", "RR@10,R@5")
    told = ready.reindex("evaluate", *arguments, code=3)
    assert (
        "failed: the new column is worse than the old one by more than the 0.005 allowed: new against old: RR@10"
        in (" ".join(told.stderr.split()))
    )
    told = json.loads(ready.reindex("evaluate", *arguments, "--max-loss", 1, "--json").stdout)
    assert (told["measure"], told["ok"], told["max_loss"]) == ("RR@10", True, 1)
    assert told["difference"] < 0


def test_evaluate_takes_the_retriever_of_a_file(ready, judged, tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text('[retrievers.serving]\ntype = "hybrid"\nreranker = "late-interaction"\n')
    arguments = ("--data", judged, "--split", "new", "--recipes", file, "--json")
    told = json.loads(ready.reindex("evaluate", *arguments, "--retriever", "serving").stdout)
    assert "old without reranker" in told["result"]["retrievers"]
    assert "Name it: --retriever NAME" in ready.refused("evaluate", *arguments)


def test_status(live, ready):
    told = ready.reindex("status").stdout
    assert ": ready, not being run, begun " in told
    assert f"next: lance-rerank reindex verify --db {ready.db} --table docs --column vector\n" in told
    [job] = json.loads(ready.reindex("status", "--json").stdout)["jobs"]
    assert (job["phase"], job["rows"], job["shadow_rows"]["encoded"]) == ("ready", 40, 40)


def test_status_of_no_job(live):
    assert live.reindex("status").stdout == "nothing is being reindexed in docs\n"
    assert json.loads(live.reindex("status", "--json").stdout) == {"jobs": []}


# --- asking ----------------------------------------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_done_that_was_not_confirmed(ready):
    ready.reindex("verify")
    for step, what in (("swap", "the swap"), ("abort", "taking the job back")):
        told = ready.reindex(step, code=4)
        assert told.stderr == f"stopped before {what}: there is no terminal to ask on, and no --yes\n"
        assert ready.phase == "ready"
    ready.reindex("swap", "-y")
    assert "stopped before dropping the old column: there is no terminal" in ready.reindex("drop-old", code=4).stderr
    assert ready.phase == "swapped"


def test_the_answer_decides(ready, terminal, tiny_encoder):
    ready.reindex("verify")
    declined = ready.reindex("swap", code=4, input="n\n")
    assert "be searched by" in declined.stderr
    assert declined.stderr.endswith("stopped before the swap\n")
    ready.reindex("abort", code=4, input="\n")
    assert ready.phase == "ready"
    ready.reindex("swap", input="y\n")
    assert ready.phase == "swapped"
    ready.reindex("rollback")
    assert "the table is as it was" in ready.reindex("abort", input="y\n").stdout
    assert (ready.columns, ready.phase) == (COLUMNS, None)
    assert ready.has_vectors_of(tiny_encoder)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "arguments", "message"),
    [
        ("plan", ("--model", "{new}", "--column", "nope"), "no column 'nope'; its vector columns are: vector"),
        ("plan", ("--model", "{new}", "--source", "body"), "no column 'body' to read texts from"),
        ("plan", ("--model", "{old}"), "holds the vectors of {old} already"),
        ("plan", ("--model", "./nothing"), "no model folder"),
        ("plan", ("--model", "{new}", "--index", "best"), "index must be "),
        ("plan", ("--model", "{new}", "--index", "ivf_flat"), "Use --index 'auto' or 'none'"),
        ("plan", ("--model", "{new}", "--save", "no/such/plan.json"), "there is no folder no/such"),
        ("backfill", (), "to begin, name the new model: --model MODEL"),
        ("backfill", ("--plan", "{new}/model.safetensors"), "holds no plan of 'reindex plan --save'"),
        ("backfill", ("--plan", "{new}/config.json"), "holds no plan of 'reindex plan --save'"),
        ("backfill", ("--plan", "nowhere.json"), "nowhere.json"),
        ("backfill", ("--model", "{new}", "--executor", "moon"), "executor must be one of local, ray"),
        ("verify", (), "nothing is being reindexed in docs; begin: lance-rerank reindex run --db "),
        ("verify", ("--column", "vector"), "nothing is being reindexed in docs.vector"),
        ("swap", ("--yes",), "nothing is being reindexed"),
        ("rollback", (), "nothing is being reindexed"),
        ("drop-old", ("--yes",), "nothing is being reindexed"),
        ("abort", ("--yes",), "nothing is being reindexed"),
        ("run", (), "name the new model: --model MODEL"),
        ("run", ("--model", "{new}", "--retriever", "vector"), "the queries of --data, and there is none"),
        ("run", ("--model", "{new}", "--data", "nowhere"), "nowhere"),
        ("run", ("--model", "{new}", "--data", "{judged}", "--split", "new", "--measures", "nGCD@10"), "nGCD@10"),
        ("run", ("--model", "{new}", "--data", "{judged}", "--retriever", "fts"), "searches no vectors"),
    ],
)
def test_refusals_without_a_job_leave_the_table_alone(live, new_model, tiny_encoder, judged, step, arguments, message):
    def named(text):
        return text.replace("{new}", new_model).replace("{old}", tiny_encoder).replace("{judged}", str(judged))

    version = live.table.version
    assert named(message) in live.refused(step, *map(named, arguments))
    assert live.table.version == version


@pytest.mark.parametrize(
    ("step", "arguments", "message"),
    [
        ("plan", ("--model", "{new}"), "Go on with it, 'reindex backfill', or take it back with its 'reindex abort'"),
        ("swap", ("--yes",), "the new column was not verified"),
        ("rollback", (), "'reindex verify' and 'reindex swap' come first"),
        ("drop-old", ("--yes",), "'reindex drop-old' is for a job that is in phase swapped"),
    ],
)
def test_refusals_of_a_job_that_is_ready(ready, new_model, step, arguments, message):
    assert message in ready.refused(step, *(part.replace("{new}", new_model) for part in arguments))
    assert ready.phase == "ready"


def test_no_table(tmp_path):
    assert "has no table 'docs'" in refused("reindex", "status", "--db", tmp_path, "--table", "docs")
    assert invoke("reindex", "evaluate", "--db", tmp_path, "--table", "docs", "--max-loss", -1).exit_code == 2


# --- run -------------------------------------------------------------------------------------------------------------


def test_run_without_a_terminal_stops_before_the_swap_and_goes_on_with_yes(live, new_model, judged):
    judging = ("--data", judged, "--split", "new", "--measures", "RR@10")
    stopped = live.reindex("run", "--model", new_model, *judging, code=4)
    told = stopped.stdout
    assert [told.index(part) for part in ("Reindex docs", ": 40 rows", ": verified", "new against old")] == sorted(
        told.index(part) for part in ("Reindex docs", ": 40 rows", ": verified", "new against old")
    )
    assert stopped.stderr.splitlines()[-3:] == [
        "stopped before the swap: there is no terminal to ask on, and no --yes",
        f"the new column is kept. Go on: lance-rerank reindex run --db {live.db} --table docs --yes",
        f"or take it back: lance-rerank reindex abort --db {live.db} --table docs",
    ]
    assert live.phase == "ready"
    done = live.reindex("run", "--model", new_model, *judging, "--yes", "--json")
    found = json.loads(done.stdout)
    assert list(found) == ["verification", "gate", "swap", "exit_code"]
    assert (found["swap"]["phase"], found["exit_code"]) == ("swapped", 0)
    assert done.stderr.splitlines()[-2:] == [
        f"to take the swap back: lance-rerank reindex rollback --db {live.db} --table docs",
        f"when all is well, to drop the old column: lance-rerank reindex drop-old --db {live.db} --table docs",
    ]
    assert live.has_vectors_of(new_model)
    third = live.reindex("run", "--model", new_model, "--yes")
    assert ": swapped, not being run" in third.stdout
    assert "all is done but for the old column" in third.stderr
    live.reindex("rollback")
    assert "somebody took its swap back" in live.refused("run", "--yes")


def test_run_does_not_swap_what_is_worse(ready, judged):
    arguments = ("--data", judged, "--split", "old", "--retriever", "vector", "--measures", "RR@10")
    assert "failed: the new column is worse" in ready.reindex("run", *arguments, "--yes", code=3).stderr
    assert ready.phase == "ready"
    ready.reindex("run", *arguments, "--yes", "--max-loss", 1)
    assert ready.phase == "swapped"


def test_run_asks(ready, terminal):
    ready.reindex("run", code=4, input="n\n")
    assert ready.phase == "ready"
    ready.reindex("run", input="y\n")
    assert ready.phase == "swapped"


CHILD = """
import os, signal
from lance_rerank.cli.app import main
from lance_rerank.reindex import ReindexJob

def backfill(job, progress, on_phase, **options):
    def count(done, total):
        progress(done, total)
        if done >= 24:
            os.kill(os.getpid(), signal.SIGKILL)
    return fill(job, count, on_phase, **options)

fill, ReindexJob.backfill = ReindexJob.backfill, backfill
main()
"""


def test_run_goes_on_after_a_kill_while_embedding_and_a_stop_half_way_through_the_swap(live, new_model, monkeypatch):
    command = ["reindex", "run", *map(str, live.options), "--model", new_model, "--batch-size", "8"]
    done = subprocess.run([sys.executable, "-c", CHILD, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    [first] = json.loads(live.reindex("status", "--json").stdout)["jobs"]
    assert (first["phase"], first["running"], first["shadow_rows"]) == ("embed", False, None)
    assert 16 <= first["spooled"] < 40

    swap_columns = lance.swap_columns

    def stop_after(*arguments, **options):
        swap_columns(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(lance, "swap_columns", stop_after)
    stopped = invoke(*command, "--yes")
    assert stopped.exit_code in (1, 130)  # as typer has it
    assert f"going on with job {first['job']} on 'vector' from phase 'embed'" in stopped.stderr
    embedded = int(re.search(r"(\d+) texts embedded, no index", stopped.stdout)[1])
    assert embedded == 40 - first["spooled"], "what was embedded before the kill is kept"
    assert live.phase == "swap"

    monkeypatch.undo()
    last = live.reindex("run", "--model", new_model)  # the swap was confirmed before it was begun
    assert last.stdout.startswith("vector: swapped already")
    assert "Traceback" not in last.stderr
    assert live.has_vectors_of(new_model)
    live.reindex("drop-old", "--yes")
    assert (live.columns, live.phase) == (COLUMNS, None)


# --- the README ------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_readme(live, new_model, judged, tmp_path, terminal, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\$ lance-rerank (reindex .*)$", readme, re.MULTILINE)
    assert {shlex.split(command)[1] for command in commands} >= {"plan", "run", "status", "rollback", "drop-old"}
    (tmp_path / "data").symlink_to(live.db)
    (tmp_path / "models").mkdir()
    shutil.copytree(new_model, tmp_path / "models" / "embedder")
    shutil.copytree(judged, tmp_path / "corpus")
    shutil.copy(judged / "qrels" / "new.tsv", tmp_path / "corpus" / "qrels" / "dev.tsv")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command, comments=True), input="y\n")
        assert result.exit_code == 0, (command, result.output)
    assert (live.columns, live.phase) == (COLUMNS, None)
