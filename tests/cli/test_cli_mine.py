"""`lance-rerank mine`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json

import lancedb
import pytest
from commands import refused, run

import lance_rerank as lr


@pytest.fixture
def place(indexed, beir):
    """The command, with the table and the data it is run on."""
    return ("mine", "--db", indexed, "--table", "docs", "--data", beir, "--split", "test", "--judge", "bm25")


def test_it_writes_examples_and_prints_a_report(place, tmp_path):
    output = tmp_path / "negatives.parquet"
    result = run(*place, "--retriever", "hybrid", "--per-query", 2, "--output", output)
    assert result.stderr == f"written to {output}\n"
    assert result.stdout.startswith("6 negatives were kept for 3 queries, scored by bm25.")
    examples = lr.TrainingSet.load(output)
    assert (len(examples), examples.n_positives, examples.n_negatives) == (3, 3, 6)
    assert examples.about["mining"]["judge"] == "bm25"
    [first, *_] = examples
    assert first.positives[0].text == "Keys rotate the api keys of a user"


def test_it_takes_what_users_said_and_examples_there_are(place, tmp_path):
    given = tmp_path / "said.jsonl"
    given.write_text(
        '{"doc_id": "b", "query_id": "q1", "reason": "skipped"}\n\n{"doc_id": "c", "query": "rotate keys"}\n'
    )
    output = tmp_path / "negatives.parquet"
    told = json.loads(run(*place, "--explicit", given, "--output", output, "--json").stdout)
    assert told["explicit"] == 2
    weights = [(one.doc_id, round(one.weight, 1)) for query in lr.TrainingSet.load(output) for one in query.negatives
               if one.source == "explicit"]  # fmt: skip
    assert weights == [("b", 0.3), ("c", 1.0)]
    again = tmp_path / "again.parquet"
    arguments = ["mine", "--db", place[2], "--table", "docs", "--data", output, "--judge", "none", "--limit", 2]
    told = json.loads(run(*arguments, "--margin", "none", "--ranks", "1-2", "--output", again, "--json").stdout)
    assert (told["queries"], told["judge"]) == (2, None)


def test_a_cross_encoder_checks(place, tmp_path, tiny_cross_encoder):
    arguments = [*place, "--output", tmp_path / "negatives.parquet", "--json"]
    told = json.loads(run(*arguments, "--checker", tiny_cross_encoder, "--checker-margin", 1000).stdout)
    assert told["kept"] == 0
    assert told["dropped"]["failed_check"] > 0


def test_it_mines_by_labels(tmp_path):
    rows = [{"id": str(at), "text": f"row {at}", "kind": "ab"[at % 2], "vector": [float(at), 0.0]} for at in range(6)]
    lancedb.connect(tmp_path / "db").create_table("rows", rows)
    output = tmp_path / "negatives.parquet"
    arguments = ["mine", "--db", tmp_path / "db", "--table", "rows", "--label", "kind", "--per-query", 1]
    printed = run(*arguments, "--near-duplicates", "none", "--output", output).stdout
    assert printed.startswith("6 negatives were kept for 6 queries, by the labels in 'kind'.")
    assert lr.MiningResult.load(output).report.label == "kind"
    assert "--checker and --explicit are for judged queries" in refused(
        *arguments, "--output", output, "--checker", "model"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "text"), "--data FOLDER, or a column of labels, --label COLUMN; one of them"),
        (("--ranks", "5"), "--ranks is FIRST-LAST, as in 5-50"),
        (("--ranks", "a-b"), "--ranks is FIRST-LAST, as in 5-50"),
        (("--margin", "all"), "--margin is a number or none, got 'all'"),
        (("--margin", "1.5"), "from 0 to less than 1, got 1.5"),
        (("--per-query", "0"), "per_query must be at least 1"),
        (("--retriever", "magic"), "unknown recipe 'magic'"),
        (("--split", "dev"), "the splits there are: test"),
        (("--explicit", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--output", "/no/such/folder/file.parquet"), "there is no folder /no/such/folder"),
    ],
)
def test_bad_input_is_refused(place, tmp_path, arguments, message):
    assert message in refused(*place, "--output", tmp_path / "out.parquet", *arguments)


def test_a_line_that_is_no_negative_is_named(place, tmp_path):
    given = tmp_path / "said.jsonl"
    given.write_text('{"doc_id": "b", "query_id": "q1"}\n{"doc_id": "c"}\n')
    assert f"{given}, line 2: the explicit negative 'c' names no query" in refused(
        *place, "--explicit", given, "--output", tmp_path / "out.parquet"
    )
