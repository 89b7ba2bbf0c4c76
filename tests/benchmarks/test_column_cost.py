"""What the token column costs: memory while it is made, bytes on disk, and time of apps that select nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
from measure import medians, table
from tables import RandomTokens

import lance_rerank as lr

MAKE = """
import re, sys
sys.path.insert(0, {here!r})
import lancedb, torch, lance_rerank as lr, lance_rerank.columns
from tables import RandomTokens
docs = lancedb.connect({folder!r}).open_table("docs")
encoder = RandomTokens()
encoder.encode_documents(["a b c"])
def peak():
    # not getrusage: a child inherits its parent's peak there
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
lr.add_multivector_column(docs, encoder=encoder)
print(before, peak())
"""


def made_table(folder: Path, rows: int):
    rng = np.random.default_rng(0)
    words = " ".join("word" for _ in range(130))
    data = [
        {"id": i, "text": words[: 5 * int(n)], "vector": rng.standard_normal(384).astype(np.float32)}
        for i, n in enumerate(rng.integers(50, 130, rows))
    ]
    return lancedb.connect(folder).create_table("docs", data)


def peak_megabytes(folder: Path) -> tuple[float, float]:
    script = MAKE.format(here=str(Path(__file__).parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split()[-2:])
    return before, peak


def test_memory_does_not_grow_with_the_table(tmp_path):
    peaks = {}
    for rows in (5_000, 50_000):
        made_table(tmp_path / str(rows), rows)
        peaks[rows] = peak_megabytes(tmp_path / str(rows))
    table(
        "making a token column",
        [(f"{n:,} rows", f"{a:.0f} MB before", f"{b:.0f} MB peak") for n, (a, b) in peaks.items()],
    )
    assert peaks[50_000][1] <= 1.1 * peaks[5_000][1]
    assert peaks[50_000][1] - peaks[50_000][0] <= 700


def test_apps_that_select_nothing_read_the_column(tmp_path):
    docs = made_table(tmp_path, 5_000)
    query = np.ones(384, np.float32)

    def all_columns():
        return docs.search(query).limit(10).to_list()

    def some_columns():
        return docs.search(query).select(["id", "text"]).limit(10).to_list()

    before = medians(11, all=all_columns, some=some_columns)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.lance"))
    rows = [("", "select nothing", "select id, text", "bytes a document")]
    rows.append(("without", f"{before['all']:.1f} ms", f"{before['some']:.1f} ms", ""))
    for dtype in ("int8", "float16", "float32"):
        lr.add_multivector_column(docs, encoder=RandomTokens(), dtype=dtype)
        after = medians(11, all=all_columns, some=some_columns)
        bytes_each = (sum(file.stat().st_size for file in (tmp_path / "docs.lance" / "data").rglob("*")) - size) / 5_000
        rows.append((dtype, f"{after['all']:.1f} ms", f"{after['some']:.1f} ms", f"{bytes_each:,.0f}"))
        docs.drop_columns(["colbert"])
        size = sum(file.stat().st_size for file in (tmp_path / "docs.lance" / "data").rglob("*"))
    table("a search for 10 rows with a column of 90 x 128 token vectors", rows)
