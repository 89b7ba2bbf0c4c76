"""The command in a process of its own: it starts at once, and keeps results and talk apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

COMMANDS = (
    "demo",
    "index",
    "search",
    "evaluate",
    "compare",
    "fit-blend",
    "mine",
    "train",
    "tune-and-reindex",
    "reindex",
)
HEAVY = ("torch", "lancedb", "lance", "pyarrow", "transformers", "sentence_transformers", "numpy", "ir_measures")


def python(code: str) -> subprocess.CompletedProcess[str]:
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("LANCEDB_", "TRANSFORMERS_"))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=quiet, timeout=120)


def test_help_comes_at_once_and_loads_nothing_heavy():
    code = (
        "import sys; from lance_rerank.cli.app import app\n"
        f"for command in {COMMANDS}: app([command, '--help'], standalone_mode=False)\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    start = time.perf_counter()
    done = python(code)
    assert time.perf_counter() - start < 5, "generous, for busy machines; it takes 0.2 s on an idle one"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in COMMANDS)


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    code = f"import sys; sys.argv[1:] = ['search', 'x', '--db', {str(tmp_path)!r}, '--table', 't']\n"
    done = python(f"{code}from lance_rerank.cli.app import main; main()")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path} has no table 't'; its tables are: none\n"


def test_stderr_stays_readable_while_models_load(tmp_path, tiny_encoder):
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "bake bread"}\n')
    place = ["--db", str(tmp_path / "db"), "--table", "t"]
    indexing = [
        "index",
        str(tmp_path / "docs.jsonl"),
        *place,
        "--model",
        tiny_encoder,
        "--vector-index",
        "none",
        "--colbert",
    ]
    searching = ["search", "bread", *place, "--json"]
    done = python(
        "from lance_rerank.cli.app import app\n"
        f"for arguments in {indexing!r}, {searching!r}: app(arguments, standalone_mode=False)"
    )
    said = ("is no ColBERT checkpoint", "apps that select no columns now read 'colbert' too")
    assert [line for line in done.stderr.splitlines() if not any(part in line for part in said)] == []
    assert json.loads(done.stdout.splitlines()[-1])["hits"][0]["doc_id"] == "a"
