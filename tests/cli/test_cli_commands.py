"""The commands, driven through typer: what they print where, and the one line that bad input gets."""

from __future__ import annotations

import json

import pytest
from commands import invoke, refused, run
from typer.testing import CliRunner

from lance_rerank import __version__
from lance_rerank.cli.app import app


@pytest.fixture
def docs(indexed):
    return ("--db", indexed, "--table", "docs")


# --- index -----------------------------------------------------------------------------------------------------


def test_index_prints_what_it_did(beir, tmp_path, tiny_encoder):
    arguments = ("index", beir, "--db", tmp_path / "db", "--table", "docs", "--model", tiny_encoder)
    first = run(*arguments)
    assert first.stdout.startswith("docs: 4 rows added, 0 updated, 0 unchanged; 4 rows in all")
    assert "no vector index: up to 50,000 rows" in first.stderr
    again = run(*arguments, "--colbert", "--json", "--vector-index", "ivf_flat")
    answer = json.loads(again.stdout)
    assert (answer["added"], answer["unchanged"], answer["vector_index"]) == (0, 4, "ivf_flat")
    assert answer["token_vectors"] == {"column": "colbert", "rows": 4, "without_text": 0, "fragments": 1}
    assert again.stderr == (
        "apps that select no columns now read 'colbert' too, which is large: let them select what they need\n"
    )
    assert run(*arguments, "--colbert", "--vector-index", "ivf_flat").stderr == ""


def test_index_says_when_token_vectors_are_missing(tmp_path, tiny_encoder):
    source = tmp_path / "docs.jsonl"
    arguments = ("index", source, "--db", tmp_path / "db", "--table", "docs", "--model", tiny_encoder)
    source.write_text('{"id": "a", "text": "bake bread"}')
    run(*arguments, "--colbert")
    source.write_text('{"id": "a", "text": "bake a cake"}\n{"id": "b", "text": "read a file"}')
    assert "2 rows have no token vectors yet; run this again with --colbert" in run(*arguments).stderr
    assert json.loads(run(*arguments, "--colbert", "--json").stdout)["token_vectors"]["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "nowhere"), "there is no file or folder nowhere"),
        (("index", "{beir}", "--vector-index", "best"), "vector_index must be one of auto, none"),
        (("index", "{beir}", "--language", "Klingon"), "no full-text index for the language 'Klingon'"),
        (("index", "{beir}", "--model", "./nothing"), "no model folder"),
        (("index", "{beir}", "--text", "{body}"), "no column 'body' (there: id, title, text)"),
    ],
)
def test_index_refuses_bad_input(beir, tmp_path, arguments, message):
    arguments = (str(part).replace("{beir}", str(beir)) for part in arguments)
    assert message in refused(*arguments, "--db", tmp_path / "db", "--table", "docs")


def test_index_refuses_another_model(beir, docs, tiny_cross_encoder):
    assert "they cannot be compared" in refused("index", beir, *docs, "--model", tiny_cross_encoder)


def test_index_stores_means_to_find_candidates_by(beir, tmp_path, tiny_encoder):
    table = ["--db", tmp_path / "db", "--table", "docs"]
    arguments = ["index", beir, *table, "--model", tiny_encoder, "--colbert-dtype", "int8", "--colbert-means"]
    assert "colbert_mean: 4 rows encoded in 1 fragment" in run(*arguments).stdout
    found = json.loads(run("search", "bake bread", *table, "--type", "multivector", "--json").stdout)
    assert found["hits"][0]["doc_id"] == "b"


# --- search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_type", ["hybrid", "vector", "fts", "multivector"])
@pytest.mark.parametrize("rerank", ["none", "rrf", "late-interaction", "late-interaction+blend"])
def test_search_finds_the_row(docs, query_type, rerank):
    result = run("search", "bake bread", *docs, "--type", query_type, "--rerank", rerank, "--json")
    answer = json.loads(result.stdout)
    assert answer["hits"][0]["doc_id"] == "b"
    assert answer["hits"][0]["text"] == "bake bread"
    assert "candidates" not in answer


def test_search_prints_a_table_as_wide_as_the_terminal(docs):
    head, *rows = run("search", "write a file of the user", *docs, "--type", "fts").stdout.splitlines()
    assert head.split() == ["rank", "id", "score", "text"]
    assert [row.split()[:2] for row in rows] == [["1", "c"], ["2", "a"]]
    assert rows[0].endswith("read a file and write [it] back"), "brackets are no markup"
    assert float(rows[0].split()[2]) > float(rows[1].split()[2])


def test_long_texts_are_cut_off_and_scores_are_not(docs):
    arguments = ["search", "file user", *map(str, docs), "--type", "fts"]
    rows = CliRunner().invoke(app, arguments, env={"COLUMNS": "40"}).stdout.splitlines()
    assert all(len(row) <= 40 for row in rows)
    assert any(row.endswith("…") for row in rows)
    assert all(float(row.split()[2]) > 0 for row in rows[1:])


def test_search_with_a_cross_encoder(docs, tiny_cross_encoder):
    result = run("search", "keys", *docs, "--rerank", f"cross-encoder:{tiny_cross_encoder}", "--json")
    answer = json.loads(result.stdout)
    assert answer["recipe"] == f"hybrid+cross-encoder:{tiny_cross_encoder}"
    assert len(answer["hits"]) == 4


def test_search_traces_candidates_and_stages(docs):
    printed = run("search", "keys", *docs, "--trace").stdout
    assert "'keys': 4 candidates (encode" in printed
    answer = json.loads(run("search", "keys", *docs, "--trace", "--json").stdout)
    assert {stage["name"] for stage in answer["stages"]} == {"encode", "vector", "fts", "search", "rerank"}
    assert {candidate["doc_id"] for candidate in answer["candidates"]} == {"a", "b", "c", "d"}
    assert [candidate["leg_ranks"]["fts"] for candidate in answer["candidates"] if candidate["doc_id"] == "a"] == [1]


def test_search_filters(docs):
    answer = json.loads(run("search", "keys", *docs, "--where", "title = ''", "--json").stdout)
    assert {hit["doc_id"] for hit in answer["hits"]} == {"b", "c", "d"}
    nothing = run("search", "keys", *docs, "--where", "title = 'no'")
    assert (nothing.stdout, nothing.stderr) == ("", "nothing was found\n")


@pytest.mark.parametrize(
    ("query", "arguments", "message"),
    [
        (" ", (), "the query is empty"),
        ("keys", ("--type", "dense"), "unknown recipe 'dense+none': expected TYPE"),
        ("keys", ("--rerank", "magic"), "unknown reranker 'magic' in 'hybrid+magic': expected one of none, rrf"),
        ("keys", ("--rerank", "cross-encoder"), "names no model; write cross-encoder:MODEL"),
        ("keys", ("--rerank", "rrf:60"), "has a colon too many"),
        ("keys", ("--rerank", "none+blend"), "'hybrid+none+blend': blend is for a reranker, and there is none"),
        ("keys", ("--rerank", "cross-encoder:./nothing"), "no model folder at './nothing'"),
        ("keys", ("--where", "title ="), "the filter --where 'title =' cannot be run: "),
        ("keys", ("--id-column", "key"), "has no column 'key'"),
        ("keys", ("--candidates", "0"), "candidates must be at least 1"),
        ("keys", ("-k", "0"), "k must be at least 1"),
        ("keys", ("--table", "dogs"), "has no table 'dogs'; its tables are: docs, plain"),
        ("keys", ("--db", "nowhere"), "there is no database folder nowhere; make one: lance-rerank index"),
        ("keys", ("--table", "plain"), "has no full-text index. Make one: lance-rerank index"),
        ("keys", ("--table", "plain", "--type", "vector"), "has no embedding function"),
        ("keys", ("--table", "plain", "--type", "vector", "--rerank", "late-interaction"), "--table plain --colbert"),
    ],
)
def test_search_refuses_bad_input(docs, query, arguments, message):
    assert message in refused("search", query, *docs, *arguments)


# --- the command itself ----------------------------------------------------------------------------------------


def test_debug_shows_the_cause(docs):
    result = invoke("--debug", "search", " ", *docs)
    assert type(result.exception).__name__ == "QueryError"


def test_version():
    assert run("--version").stdout == f"lance-rerank {__version__}\n"
