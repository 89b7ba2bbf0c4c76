"""`lance-rerank fit-blend`, and the retrievers that its file guards."""

from __future__ import annotations

import json

import pytest
from commands import refused, run

THINGS = ("keys", "bread", "files", "cats", "dogs", "users")
DEEDS = ("rotate", "bake", "read", "write", "delete")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty documents, and a query for each that has its words."""
    folder = tmp_path_factory.mktemp("beir")
    pairs = [(deed, thing) for deed in DEEDS for thing in THINGS]
    corpus = [{"_id": f"d{i}", "text": f"how to {deed} the {thing}"} for i, (deed, thing) in enumerate(pairs)]
    queries = [{"_id": f"q{i}", "text": f"{deed} {thing}"} for i, (deed, thing) in enumerate(pairs)]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "qrels").mkdir()
    for split, ids in (("dev", range(25)), ("test", range(25, 30)), ("few", range(3))):
        rows = "".join(f"q{i}\td{i}\t1\n" for i in ids)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


@pytest.fixture(scope="module")
def place(data, tmp_path_factory, tiny_encoder):
    db = tmp_path_factory.mktemp("db")
    run("index", data, "--db", db, "--table", "docs", "--model", tiny_encoder, "--colbert")
    return ("--db", db, "--table", "docs", "--data", data)


@pytest.fixture(scope="module")
def fitted(place, tmp_path_factory):
    """The file that the command wrote, and what it printed."""
    path = tmp_path_factory.mktemp("fitted") / "guard.json"
    return path, run("fit-blend", *place, "--retriever", "hybrid+late-interaction", "--output", path)


def test_it_prints_its_estimate_and_writes_a_file(fitted):
    path, result = fitted
    assert result.stdout.startswith("nDCG@10, 25 queries, 5-fold cross-validation")
    assert result.stderr == f"written to {path}; search by it: hybrid+late-interaction+guard:{path}\n"
    assert json.loads(path.read_text())["estimate"]["n_queries"] == 25


def test_the_file_guards_a_retriever_of_flags_and_of_files(place, fitted, tmp_path):
    path, _ = fitted
    name = f"hybrid+late-interaction+guard:{path}"
    flags = json.loads(run("evaluate", *place, "--retrievers", name, "--json").stdout)
    assert flags["retrievers"] == [name]
    assert all(0 <= score <= 1 for scores in flags["scores"][name].values() for score in scores)
    recipe = "type = 'hybrid'\nreranker = 'late-interaction'\nguard = 'guard.json'\n"
    file = path.with_name("recipes.toml")
    file.write_text(f"[retrievers.all]\n{recipe}[retrievers.likely]\n{recipe}min_score = 0.5")
    found = json.loads(run("evaluate", *place, "--recipes", file, "--json").stdout)
    assert found["runs"]["all"] == flags["runs"][name], "relative paths start at the file"
    for query_id, scores in found["scores"]["all"].items():
        assert len(found["runs"]["likely"][query_id]) == sum(score >= 0.5 for score in scores)
    rows = run("search", "bake bread", *place[:4], "--rerank", f"late-interaction+guard:{path}", "--json")
    assert json.loads(rows.stdout)["recipe"] == name


def test_json_and_another_measure(place, tmp_path):
    arguments = ("--retriever", "hybrid+late-interaction+blend", "--output", tmp_path / "guard.json")
    result = run("fit-blend", *place, *arguments, "--measure", "RR@10", "--json")
    values = json.loads(result.stdout)
    assert values["retriever"] == "hybrid+late-interaction+blend"
    assert values["estimate"]["measure"] == "RR@10"
    assert values["form"] == json.loads((tmp_path / "guard.json").read_text())["model"]["form"]


def test_a_retriever_of_a_file_is_fitted_again_whatever_it_was_guarded_by(place, tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text(
        "[retrievers.late]\ntype = 'hybrid'\nreranker = 'late-interaction'\ncandidates = 7\nguard = 'guard.json'"
    )
    arguments = ("fit-blend", *place, "--recipes", file, "--output", tmp_path / "guard.json")
    run(*arguments, "--retriever", "late")
    assert json.loads((tmp_path / "guard.json").read_text())["fitted_for"]["candidates"] == 7
    assert "has no retriever 'early'; there are late" in refused(*arguments, "--retriever", "early")
    message = refused(*arguments, "--retriever", "late", "--candidates", 9)
    assert f"--candidates is not for retrievers of a file: write candidates = ... into {file}" in message


def test_a_guard_of_other_legs_is_refused(place, fitted):
    path, _ = fitted
    message = refused("evaluate", *place, "--retrievers", f"vector+late-interaction+guard:{path}")
    assert "fitted on the legs vector, full text" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--retriever", "hybrid"), "'hybrid' has no reranker to combine with its legs; name one: hybrid+RERANKER"),
        (("--split", "few"), "3 of 3 queries have a relevant document"),
        (("--split", "train"), "the splits there are: dev, few, test"),
        (("--measure", "magic"), "unknown measure 'magic'"),
        (("--output", "/no/such/folder/guard.json"), "there is no folder /no/such/folder"),
        (("--fuzzy", 1), "are for a Tantivy index: --lexical INDEX"),
    ],
)
def test_bad_input_is_refused(place, tmp_path, arguments, message):
    needed = ("--retriever", "hybrid+late-interaction", "--output", tmp_path / "guard.json")
    assert message in refused("fit-blend", *place, *needed, *arguments)
    assert not (tmp_path / "guard.json").exists()
