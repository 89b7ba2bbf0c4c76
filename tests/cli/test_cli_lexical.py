"""`lance-rerank lexical` and `--lexical`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lance_rerank.cli.app import app


@pytest.fixture
def place(docs, tmp_path):
    """Options that name the table of the fixture `docs`, and a folder for an index."""
    return ["--db", str(tmp_path / "db"), "--table", "docs"], str(tmp_path / "index")


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def test_build_sync_status_and_rebuild(docs, place):
    table, index = place
    assert run("lexical", "build", index, *table).endswith("240 added, 0 updated, 0 deleted\n")
    assert json.loads(run("lexical", "build", index, *table, "--json"))["added"] == 0
    docs.delete("id < 5")
    assert "0 added, 0 updated, 5 deleted since" in run("lexical", "status", index, *table)
    assert json.loads(run("lexical", "status", index, *table, "--json"))["behind"] == 5
    assert json.loads(run("lexical", "sync", index, *table, "--json"))["deleted"] == 5
    assert "up to date" in run("lexical", "rebuild", index, *table, "--columns", "text,lang", "--tokenizer", "lang=raw")
    assert "235 rows" in run("lexical", "status", index, *table)


def test_a_rebuild_keeps_the_settings_that_are_not_named(docs, place, tmp_path):
    table, index = place
    run("lexical", "build", index, *table, "--columns", "text,lang", "--tokenizer", "lang=raw", "--language", "German")
    run("lexical", "rebuild", index, *table, "--no-stop-words")
    kept = json.loads((tmp_path / "index" / "index.json").read_text())["settings"]
    assert [name for name, _ in kept["columns"]] == ["text", "lang"]
    assert (kept["tokenizers"][1], kept["language"], kept["stop_words"]) == (["lang", "raw"], "german", False)
    run("lexical", "rebuild", index, *table, "--columns", "text", "--language", "none")
    kept = json.loads((tmp_path / "index" / "index.json").read_text())["settings"]
    assert (kept["tokenizers"], kept["language"]) == ([["text", "words"]], None)
    (tmp_path / "index" / "index.json").write_text("{")
    result = CliRunner().invoke(app, ["lexical", "rebuild", index, *table])
    assert "240 rows" in result.stdout
    assert "cannot be read" in result.stderr


def test_search_takes_the_tantivy_index(docs, place):
    table, index = place
    docs.drop_index("text_idx")
    run("lexical", "build", index, *table)
    found = json.loads(run("search", "baking a cake", *table, "--type", "fts", "--lexical", index, "--json"))
    assert found["hits"][0]["text"].startswith("how to bake a cake")
    docs.add([{"id": 1000, "text": "a quokka", "lang": "en", "vector": [0.0] * 8}])
    arguments = ("search", "quokka", *table, "--type", "fts", "--lexical", index, "--json")
    assert json.loads(run(*arguments))["hits"] == []
    assert json.loads(run(*arguments, "--freshness", "scan"))["hits"][0]["doc_id"] == "1000"
    syntax = json.loads(
        run("search", '"bake a cake"', *table, "--type", "fts", "--lexical", index, "--syntax", "--json")
    )
    assert len(syntax["hits"]) == 10
    fuzzy = json.loads(run("search", "breaf", *table, "--type", "fts", "--lexical", index, "--fuzzy", 1, "--json"))
    assert "bread" in fuzzy["hits"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lexical", "status", "{index}"], "there is no index in"),
        (["lexical", "build", "{index}", "--key", "nope"], "no column 'nope'"),
        (["lexical", "build", "{index}", "--tokenizer", "text="], "neither one name nor pairs"),
        (["search", "x", "--type", "fts", "--lexical", "{index}"], "lance-rerank lexical build"),
        (["search", "x", "--type", "fts", "--syntax"], "--lexical INDEX"),
    ],
)
def test_bad_input(docs, place, arguments, message):
    table, index = place
    assert message in refused(*(argument.replace("{index}", index) for argument in arguments), *table)


def test_other_settings_are_refused(docs, place):
    table, index = place
    run("lexical", "build", index, *table)
    assert "lance-rerank lexical rebuild" in refused("lexical", "build", index, *table, "--language", "German")
