"""`lance-rerank evaluate`: retrievers from flags and from files, what is written, and when a pipeline fails."""

from __future__ import annotations

import json
import sys
from typing import get_args

import lancedb
import pytest
from commands import invoke, refused, run

from lance_rerank.cli.recipe_file import read_recipes
from lance_rerank.cli.recipes import RERANKERS, Recipe
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation import EvaluationResult
from lance_rerank.lexical.index import Freshness


@pytest.fixture(scope="module")
def judged(indexed, beir):
    """The command, with the table and the data it is run on."""
    return ("evaluate", "--db", indexed, "--table", "docs", "--data", beir, "--measures", "RR@10,Success@1")


@pytest.fixture
def recipes(tmp_path):
    """Writes a file of recipes, and returns its path."""

    def write(text: str, name: str = "recipes.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def evaluated(*arguments: object) -> EvaluationResult:
    return EvaluationResult.from_json(run(*arguments, "--json").stdout)


# --- what it prints and writes ---------------------------------------------------------------------------------


def test_it_prints_a_table(judged, tmp_path):
    output = tmp_path / "result.json"
    result = run(*judged, "--retrievers", "vector, fts,hybrid+late-interaction,multivector", "--output", output)
    lines = result.stdout.splitlines()
    assert lines[0].endswith("split test, 3 queries")
    assert [line.split()[0] for line in lines[3:7]] == ["vector", "fts", "hybrid+late-interaction", "multivector"]
    assert result.stderr == f"written to {output}\n"
    stored = EvaluationResult.from_json(output)
    assert stored.means["fts"]["RR@10"] == 1.0
    assert stored.n_queries == 3


def test_it_compares_times_keeps_and_writes_runs(judged, tmp_path):
    arguments = [*judged, "--retrievers", "vector,fts", "--measures", "RR@10"]
    result = run(*arguments, "--cache", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert "fts against vector" in result.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert run(*arguments, "--cache", tmp_path / "cache").stdout.split()[:20] == result.stdout.split()[:20]
    timed = run(*arguments, "--latency").stdout
    assert "p95 ms" in timed
    assert "queries a second at concurrency 1" in timed


def test_it_takes_some_queries_and_measures_with_commas(judged):
    measures = "P(rel=1,judged_only=True)@5,RR@10"
    result = evaluated(*judged, "--limit", 2, "--retrievers", "fts", "--measures", measures)
    assert list(result.runs["fts"]) == ["q1", "q2"]
    assert len(result.measures) == 2


def test_without_names_three_types_are_compared(judged):
    assert evaluated(*judged).retrievers == ("vector", "fts", "hybrid")


def test_a_baseline_is_what_the_others_are_compared_with(judged):
    printed = run(*judged, "--baseline", "fts").stdout
    assert "vector against fts" in printed
    assert "hybrid against fts" in printed
    assert "hybrid against vector" not in printed
    assert "hybrid against vector" in run(*judged).stdout


def test_the_blend_of_a_reranker_is_another_retriever(judged):
    names = ("hybrid", "hybrid+late-interaction", "hybrid+late-interaction+blend")
    result = evaluated(*judged, "--retrievers", ",".join(names))
    assert result.retrievers == names
    assert result.scores[names[2]]["q1"] != result.scores[names[1]]["q1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--measures", "nDCG@ten"), "unknown measure 'nDCG@ten'"),
        (("--measures", ","), "--measures names nothing"),
        (("--retrievers", "vector,magic"), "unknown recipe 'magic'"),
        (("--retrievers", "hybrid+blend"), "'hybrid+blend': blend is for a reranker, and there is none"),
        (("--retrievers", "hybrid+none+guard:x"), "guard is for a reranker, and there is none"),
        (("--retrievers", "hybrid+rrf+guard"), "names no file of fit-blend; write +guard:FILE"),
        (("--retrievers", "hybrid+rrf+blend+guard:x"), "blend and guard are two ways"),
        (("--retrievers", "hybrid+cross-encoder+blend"), "names no model; write cross-encoder:MODEL"),
        (("--retrievers", "hybrid+late-interaction+guard:gone.json"), "gone.json"),
        (("--split", "dev"), "the splits there are: test"),
        (("--data", "nowhere"), "no folder nowhere"),
        (("--output", "/no/such/folder/file.json"), "/no/such/folder/file.json cannot be written: there is no folder"),
        (("--baseline", "late"), "--baseline 'late' is none of the retrievers vector, fts, hybrid"),
        (("--syntax",), "are for a Tantivy index: --lexical INDEX"),
        (("--fuzzy", 1), "are for a Tantivy index: --lexical INDEX"),
        (("--freshness", "scan"), "are for a Tantivy index: --lexical INDEX"),
        (("--lexical", "/no/such/index"), "lance-rerank lexical build"),
    ],
)
def test_bad_input_is_refused(judged, arguments, message):
    assert message in refused(*judged, *arguments)


# --- the Tantivy leg -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lexical(indexed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lexical") / "docs.tantivy"
    run("lexical", "build", folder, "--db", indexed, "--table", "docs")
    return folder


def test_queries_may_be_searched_as_search_does_it(judged, beir, lexical, tmp_path):
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tb\t1\n")
    fts = (*judged, "--data", data, "--retrievers", "fts", "--lexical", lexical)

    def found(query: str, *options: object) -> list[str]:
        (data / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": query}))
        return evaluated(*fts, *options).runs["fts"]["q1"]

    assert found("+bread -bake") == ["b"], "read as words"
    assert found("+bread -bake", "--syntax") == []
    assert found("breaf") == []
    assert found("breaf", "--fuzzy", 1) == ["b"]
    assert "freshness must be one of" in refused(*fts, "--freshness", "sometimes")


def test_freshness_is_heeded(judged, lexical, tmp_path, tiny_encoder, beir):
    place = ("--db", tmp_path / "db", "--table", "docs")
    run("index", beir, *place, "--model", tiny_encoder)
    run("lexical", "build", tmp_path / "index", *place)
    lancedb.connect(tmp_path / "db").open_table("docs").delete("id = 'b'")
    arguments = ("evaluate", *place, "--data", beir, "--retrievers", "fts", "--lexical", tmp_path / "index")
    assert "freshness='scan'" in refused(*arguments, "--freshness", "error")
    assert evaluated(*arguments, "--freshness", "sync").runs["fts"]["q2"] == []


# --- recipes from a file ---------------------------------------------------------------------------------------


def test_a_file_of_recipes_is_read(recipes, tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    path = recipes(
        """
        candidates = 70
        nprobes = 9
        lexical = "all.tantivy"
        fuzzy = 1
        [retrievers.words]
        type = "fts"
        [retrievers.late]
        type = "hybrid"
        reranker = "late-interaction"
        model = "models/mine"
        candidates = 50
        where = "lang = 'en'"
        nprobes = 20
        refine_factor = 5
        lexical = "/elsewhere/docs.tantivy"
        freshness = "sync"
        syntax = true
        blend = true
        min_score = 0.3
        [retrievers."cross: guarded"]
        type = "vector"
        reranker = "cross-encoder"
        model = "BAAI/bge-reranker-v2-m3"
        guard = "guard.json"
        """
    )
    words, late, cross = read_recipes(path).values()
    assert list(read_recipes(path)) == ["words", "late", "cross: guarded"]
    assert (words.query_type, words.candidates, words.nprobes, words.reranker) == ("fts", 70, None, "none")
    assert (words.lexical.folder, words.lexical.fuzzy) == (tmp_path / "all.tantivy", 1)
    assert (late.candidates, late.where, late.nprobes, late.refine_factor) == (50, "lang = 'en'", 20, 5)
    assert (late.blend, late.min_score, late.model) == (True, 0.3, str(tmp_path / "models" / "mine"))
    assert str(late.lexical.folder) == "/elsewhere/docs.tantivy"
    assert (late.lexical.freshness, late.lexical.syntax, late.lexical.fuzzy) == ("sync", True, 1)
    assert (cross.guard, cross.model, cross.lexical) == (tmp_path / "guard.json", "BAAI/bge-reranker-v2-m3", None)
    assert cross.nprobes == 9


@pytest.mark.parametrize("freshness", get_args(Freshness))
def test_a_file_may_name_every_freshness(recipes, freshness):
    path = recipes(f"lexical = 'x'\nfreshness = '{freshness}'\n[retrievers.a]\ntype = 'fts'")
    assert read_recipes(path)["a"].lexical.freshness == freshness


def test_flags_and_files_make_the_same_retrievers(judged, recipes, lexical):
    names = ("fts", "hybrid+late-interaction", "hybrid+rrf+blend")
    flags = evaluated(*judged, "--retrievers", ",".join(names), "--lexical", lexical, "--candidates", 3)
    path = recipes(
        f"""
        lexical = '{lexical}'
        candidates = 3
        [retrievers.fts]
        type = "fts"
        [retrievers."hybrid+late-interaction"]
        type = "hybrid"
        reranker = "late-interaction"
        [retrievers."hybrid+rrf+blend"]
        type = "hybrid"
        reranker = "rrf"
        blend = true
        """
    )
    file = evaluated(*judged, "--recipes", path)
    assert file.retrievers == flags.retrievers == names
    assert file.runs == flags.runs
    assert file.scores == flags.scores


def test_settings_of_a_file_take_effect(judged, recipes):
    path = recipes(
        """
        [retrievers.all]
        type = "vector"
        [retrievers.some]
        type = "vector"
        candidates = 2
        [retrievers.untitled]
        type = "vector"
        where = "title = ''"
        [retrievers.none]
        type = "hybrid"
        reranker = "late-interaction"
        min_score = 1000
        """
    )
    runs = evaluated(*judged, "--recipes", path).runs
    assert {name: len(run["q1"]) for name, run in runs.items()} == {"all": 4, "some": 2, "untitled": 3, "none": 0}
    assert "a" not in runs["untitled"]["q1"]


def test_retrievers_of_a_file_come_after_those_named(judged, recipes):
    path = recipes('[retrievers.mine]\ntype = "hybrid"\ncandidates = 2')
    result = evaluated(*judged, "--retrievers", "fts,hybrid", "--candidates", 3, "--recipes", path)
    assert result.retrievers == ("fts", "hybrid", "mine")
    assert len(result.runs["hybrid"]["q1"]) > len(result.runs["mine"]["q1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{file} has no retrievers; write a table for each: [retrievers.NAME]"),
        ("[retrievers]", "{file} has no retrievers"),
        ("retrievers = 3", "{file} has no retrievers"),
        ("[retrievers.a", "{file} is no TOML file: "),
        ("candidate = 3", "{file}: unknown key 'candidate' (the nearest is 'candidates'); there are candidates, where"),
        ("blend = true", "{file}: blend is for one retriever, not for all; write it under [retrievers.NAME]"),
        ("[late]\ntype = 'fts'", "{file}: unknown table [late]; that of a retriever is [retrievers.late]"),
        ("candidates = '5'", "{file}: candidates = '5'; expected a whole number from 1 on"),
        ("[retrievers]\na = 'hybrid'", "{file}, [retrievers.a]: expected a table, got 'hybrid'"),
        ("[retrievers.a]", "{file}, [retrievers.a]: the key type is missing; expected one of hybrid, vector"),
        (
            "[retrievers.a]\ntype = 'vectors'",
            "[retrievers.a]: type = 'vectors' (the nearest is 'vector'); expected one",
        ),
        ("[retrievers.a]\ntype = 'fts'\nrerank = 'rrf'", "[retrievers.a]: unknown key 'rerank' (the nearest is 'rer"),
        ("[retrievers.a]\ntype = 'fts'\nreranker = 'crossencoder'", "reranker = 'crossencoder' (the nearest is 'cross"),
        ("[retrievers.a]\ntype = 'fts'\nreranker = true", "reranker = True; expected one of none, rrf, cross-encoder"),
        ("[retrievers.a]\ntype = 'fts'\ncandidates = true", "[retrievers.a]: candidates = True; expected a whole"),
        ("[retrievers.a]\ntype = 'fts'\ncandidates = 0", "[retrievers.a]: candidates = 0; expected a whole number"),
        ("[retrievers.a]\ntype = 'fts'\nfuzzy = 3", "[retrievers.a]: fuzzy = 3; expected 0, 1 or 2"),
        ("[retrievers.a]\ntype = 'fts'\nwhere = ' '", "[retrievers.a]: where = ' '; expected text in quotes"),
        ("[retrievers.a]\ntype = 'fts'\nmin_score = nan", "[retrievers.a]: min_score = nan; expected a number"),
        ("[retrievers.a]\ntype = 'fts'\nmin_score = 0.3", "[retrievers.a]: min_score is for a reranker, and there is"),
        ("[retrievers.a]\ntype = 'fts'\nblend = true", "[retrievers.a]: blend is for a reranker, and there is none"),
        ("[retrievers.a]\ntype = 'fts'\nblend = 'yes'", "[retrievers.a]: blend = 'yes'; expected true or false"),
        ("[retrievers.a]\ntype = 'fts'\nnprobes = 3", "nprobes is read by searches of type hybrid, vector or multivec"),
        ("[retrievers.a]\ntype = 'vector'\nlexical = 'x'", "lexical is read by searches of type hybrid or fts, not by"),
        ("[retrievers.a]\ntype = 'fts'\nsyntax = true", "[retrievers.a]: syntax is for a Tantivy index; name one"),
        (
            "[retrievers.a]\ntype = 'fts'\nreranker = 'rrf'\nmodel = 'x'",
            "reranker 'rrf' has no model, and 'x' is named",
        ),
        (
            "[retrievers.a]\ntype = 'fts'\nreranker = 'cross-encoder'",
            "[retrievers.a]: it names no model; write cross-e",
        ),
        ("[retrievers.a]\ntype = 'fts'\nwhere = 'title ='", "the filter 'title =' of 'a' cannot be run: "),
    ],
)
def test_a_bad_file_is_refused_by_file_table_and_key(judged, recipes, text, message):
    path = recipes(text)
    assert message.replace("{file}", str(path)) in refused(*judged, "--recipes", path)


def test_files_that_are_no_text_or_not_there_are_refused(judged, tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "binary.toml is no TOML file" in refused(*judged, "--recipes", tmp_path / "binary.toml")
    assert "gone.toml" in refused(*judged, "--recipes", tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("option", "value"),
    [("candidates", 100), ("lexical", "index"), ("freshness", "warn"), ("fuzzy", 0)],
)
def test_options_of_named_retrievers_are_refused_where_none_is_named(judged, recipes, option, value):
    path = recipes("[retrievers.a]\ntype = 'fts'")
    assert f"--{option} is not for retrievers of a file: write {option} = ... into {path}" in refused(
        *judged, "--recipes", path, f"--{option}", value
    )


def test_two_retrievers_of_one_name_are_refused(judged, recipes):
    path = recipes("[retrievers.fts]\ntype = 'fts'")
    message = refused(*judged, "--recipes", path, "--retrievers", "hybrid,fts")
    assert f"two retrievers are called 'fts': one of --retrievers, one in {path}; rename that" in message


# --- recipes as values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reranker", RERANKERS[1:])
@pytest.mark.parametrize("around", ["", "+blend", "+guard:a+b/guard.json"])
def test_a_recipe_prints_as_it_is_written(reranker, around):
    model = ":org/a+b" if reranker == "cross-encoder" else ""
    text = f"hybrid+{reranker}{model}{around}"
    recipe = Recipe.parse(text)
    assert str(recipe) == text
    assert recipe.model == (model[1:] or None)
    assert recipe.blend == (around == "+blend")
    assert (recipe.guard is None) == ("guard" not in around)


def test_a_recipe_that_contradicts_itself_is_not_made():
    with pytest.raises(ArgumentError, match="min_score is for a reranker"):
        Recipe("hybrid", min_score=0.0)


# --- --fail-under ----------------------------------------------------------------------------------------------


@pytest.fixture
def worse(recipes):
    """Recipes of a baseline and of a candidate that lacks the answer to the first query."""
    return recipes(
        """
        [retrievers.plain]
        type = "fts"
        [retrievers.filtered]
        type = "fts"
        where = "title = ''"
        """
    )


def test_a_breach_ends_with_its_own_code_and_everything_is_written(judged, worse, tmp_path):
    output, runs = tmp_path / "result.json", tmp_path / "runs"
    result = invoke(*judged, "--recipes", worse, "--fail-under", "RR@10 -0.005", "--output", output, "--runs", runs)
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1] == (
        "failed: filtered against plain: RR@10 -0.3333 (95 % interval -1.0000 to +0.0000), 0.3283 below the required "
        "-0.005"
    )
    assert "filtered against plain" in result.stdout, "the table is printed all the same"
    assert EvaluationResult.from_json(output).means["filtered"]["RR@10"] == pytest.approx(2 / 3)
    assert len(list(runs.iterdir())) == 2


def test_a_requirement_that_is_met_is_said(judged, worse):
    result = run(*judged, "--recipes", worse, "--fail-under", "RR@10 -0.5", "--fail-under", "RR@10>=0.5")
    assert result.stderr == "met: RR@10 -0.5, RR@10 >= 0.5\n"


def test_json_carries_the_breaches(judged, worse):
    arguments = (*judged, "--recipes", worse, "--json")
    result = invoke(*arguments, "--fail-under", "MRR@10 -0.1", "--fail-under", "Success@1 >= 0.9")
    assert result.exit_code == 3
    relative, absolute = json.loads(result.stdout)["breaches"]
    assert (relative["retriever"], relative["baseline"], relative["measure"]) == ("filtered", "plain", "RR@10")
    assert relative["value"] == pytest.approx(-1 / 3)
    assert relative["requirement"] == "MRR@10 -0.1"
    assert (absolute["retriever"], absolute["baseline"], absolute["least"]) == ("filtered", None, 0.9)
    assert result.stderr.count("failed: ") == 2
    assert json.loads(run(*arguments, "--fail-under", "RR@10 -1").stdout)["breaches"] == []
    assert "breaches" not in json.loads(run(*arguments).stdout)


def test_with_a_baseline_each_other_has_to_keep_up(judged, worse):
    arguments = (*judged, "--retrievers", "fts", "--recipes", worse, "--fail-under", "RR@10 -0.1")
    assert invoke(*arguments, "--baseline", "plain").stderr.count("failed: filtered against plain") == 1
    assert run(*arguments, "--baseline", "filtered").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fail-under", "nDCG@10 -0.005"), "needs the measure nDCG@10, which is not evaluated; there are RR@10"),
        (("--fail-under", "RR@10 0.5"), "'RR@10 0.5' is no requirement; write 'nDCG@10 -0.005'"),
        (("--fail-under", "RR@10 -0.1", "--retrievers", "fts"), "fts is the only retriever; name another before it"),
        (("--fail-under", "RR@10 -0.1", "--baseline", "late"), "there is no retriever 'late' to be the baseline"),
    ],
)
def test_a_requirement_that_cannot_be_checked_is_refused_before_anything_is_opened(arguments, message):
    nothing = ("evaluate", "--db", "nowhere", "--table", "none", "--data", "nowhere", "--measures", "RR@10")
    assert message in refused(*nothing, *arguments)


class TestDiagnosisAndReport:
    def test_a_diagnosis_is_printed_and_in_the_json(self, beir, indexed):
        arguments = ["evaluate", "--db", indexed, "--table", "docs", "--data", beir, "--retrievers", "fts,hybrid"]
        printed = run(*arguments, "--diagnose").stdout
        assert "fts: nDCG@10" in printed
        assert "-> " in printed
        values = json.loads(run(*arguments, "--diagnose", "--json").stdout)
        assert set(values["diagnosis"]["advice"]) == {"fts", "hybrid"}
        assert "diagnosis" not in json.loads(run(*arguments, "--json").stdout)

    def test_a_report_has_the_diagnosis_that_was_asked_for(self, beir, indexed, tmp_path):
        arguments = ["evaluate", "--db", indexed, "--table", "docs", "--data", beir, "--retrievers", "fts,hybrid"]
        report = tmp_path / "report.html"
        assert f"report written to {report}" in run(*arguments, "--report", report).stderr
        plain = report.read_text()
        run(*arguments, "--report", report, "--diagnose")
        assert "rotate keys" in plain
        assert "Diagnosis" in report.read_text()
        assert len(report.read_text()) > len(plain)

    def test_a_report_that_cannot_be_written_is_refused_before_the_search(self, beir, indexed, tmp_path):
        where = ["--db", indexed, "--table", "docs", "--data", beir]
        assert "there is no folder" in refused("evaluate", *where, "--report", tmp_path / "none" / "report.html")

    def test_a_report_without_jinja_is_refused_before_the_search(self, beir, indexed, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        where = ["--db", indexed, "--table", "docs", "--data", beir]
        assert "lance-rerank[report]" in refused("evaluate", *where, "--report", tmp_path / "report.html")
