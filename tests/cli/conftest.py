"""Fixtures that the tests of commands share: a judged folder, and the database that it was indexed into."""

from __future__ import annotations

import json

import lancedb
import pytest
from typer.testing import CliRunner

from lance_rerank.cli.app import app

CORPUS = [
    ("a", "Keys", "rotate the api keys of a user"),
    ("b", "", "bake bread"),
    ("c", "", "read a file and write [it] back"),
    ("d", "", "the cat and the dog"),
]
QUERIES = [("q1", "rotate keys", "a"), ("q2", "bread", "b"), ("q3", "cat", "d")]


@pytest.fixture(scope="session")
def beir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beir")
    lines = [json.dumps({"_id": key, "title": title, "text": text}) for key, title, text in CORPUS]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": q, "text": text}) for q, text, _ in QUERIES))
    (folder / "qrels").mkdir()
    rows = "".join(f"{query}\t{document}\t1\n" for query, _, document in QUERIES)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture(scope="session")
def indexed(tmp_path_factory, beir, tiny_encoder):
    """The database of the indexed folder: table "docs" with token vectors, table "plain" with text alone."""
    folder = tmp_path_factory.mktemp("db")
    arguments = ["index", str(beir), "--db", str(folder), "--table", "docs", "--model", tiny_encoder, "--colbert"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lancedb.connect(folder).create_table("plain", [{"id": "a", "text": "keys", "vector": [0.0] * 32}])
    return folder


@pytest.fixture(scope="module", autouse=True)
def silent_models():
    """What `quiet_libraries` does to a process that has not imported transformers yet."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
