"""Every example runs as a user would run it, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMISED = {
    "hybrid_with_late_interaction.py": ["1. Rotating keys", "1. Exporting data", "1. Single sign-on", "candidates ("],
    "fit_a_guard.py": ["5-fold cross-validation", "guard against hybrid", "what a threshold costs"],
    "swap_the_model.py": [
        "8 rows in 1 commit, 8 texts embedded",
        ": verified",
        "the new model finds: Keys that were never used",
        "the old model finds: The kitchen opens at noon.",
        "columns at the end: ['id', 'text', 'vector']",
    ],
    "own_reranker.py": ["by rank fusion: [1, 2]", "fresh first:    [2"],
}


def run(*arguments):
    environment = {**os.environ, "LANCEDB_LOG": "error", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_example(name):
    done = run(str(EXAMPLES / name))
    assert done.returncode == 0, done.stderr
    for line in PROMISED[name]:
        assert line in done.stdout


def test_the_example_reranker_keeps_the_contract():
    done = run("-m", "pytest", "-q", str(EXAMPLES / "own_reranker.py"), "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
