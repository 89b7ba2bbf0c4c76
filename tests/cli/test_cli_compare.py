"""`lance-rerank compare`: results of evaluations from files, their notes, and when a pipeline fails."""

from __future__ import annotations

import json
from functools import partial

import commands
import pytest
from typer.testing import CliRunner

from lance_rerank.cli.app import app
from lance_rerank.evaluation import EvaluationResult, evaluate_runs

QRELS = {f"q{i}": {"d1": 1} for i in range(8)}


invoke, run, refused = (partial(one, "compare") for one in (commands.invoke, commands.run, commands.refused))


@pytest.fixture
def write(tmp_path):
    """Writes a result in which retrievers have the right answer first on so many queries and second on the others."""

    def write(name: str, queries: int = 8, grade: int = 1, **first: int):
        qrels = {query: {"d1": grade} for query in list(QRELS)[:queries]}
        runs = {
            retriever: {query: ["d1"] if i < good else ["x", "d1"] for i, query in enumerate(qrels)}
            for retriever, good in first.items()
        }
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        evaluate_runs(runs, qrels, ["RR@10", "Success@1"]).to_json(path)
        return path

    return write


def test_two_results_are_compared_by_name(write):
    result = run(write("monday.json", late=0, plain=4), write("tuesday.json", plain=4, late=8))
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [" ".join(line.split()[:2]) for line in lines[3:7]] == [
        "late (monday)",
        "late (tuesday)",
        "plain (monday)",
        "plain (tuesday)",
    ]
    assert "RR@10, 8 queries, 2 comparisons, p-values corrected for them (Holm)" in lines
    assert any("late (tuesday) against late (monday)" in line and line.endswith("better") for line in lines)


def test_results_of_evaluate_itself_are_compared(indexed, beir, tmp_path):
    place = ["--db", str(indexed), "--table", "docs", "--data", str(beir), "--measures", "RR@10"]
    for name in ("fts", "hybrid+late-interaction"):
        arguments = ["evaluate", *place, "--retrievers", name, "--output", str(tmp_path / f"{name}.json")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    printed = run(tmp_path / "fts.json", tmp_path / "hybrid+late-interaction.json").stdout
    assert "hybrid+late-interaction against fts" in printed
    assert "note:" not in printed


def test_another_measure_may_decide(write):
    files = (write("a.json", late=0), write("b.json", late=8))
    assert json.loads(run(*files, "--json").stdout)["measure"] == "RR@10"
    values = json.loads(run(*files, "--measure", "Success@1", "--json").stdout)
    [one] = values["comparisons"]
    assert (one["measure"], one["a"], one["b"], one["difference"]) == ("Success@1", "late (a)", "late (b)", 1.0)
    assert values["means"]["late (b)"] == {"RR@10": 1.0, "Success@1": 1.0}
    assert "breaches" not in values


def test_left_out_queries_and_old_files_are_noted(write):
    before, after = write("a.json", late=8), write("b.json", queries=6, late=6)
    values = json.loads(before.read_text())
    del values["qrels"], values["queries"], values["scores"]
    before.write_text(json.dumps(values))
    printed = run(before, after).stdout
    assert "note: 2 queries are in a but not in every result, and left out, the first 'q6'" in printed
    assert "note: a has no judgements in it, so it could not be checked that all were judged alike" in printed
    assert len(json.loads(run(before, after, "--json").stdout)["notes"]) == 2


def test_files_of_the_same_name_are_told_apart_by_their_folders(write):
    one, other = write("a/result.json", late=8), write("b/result.json", late=4)
    assert f"late ({other}) against late ({one})" in run(one, other).stdout


def test_three_results_are_one_family(write):
    files = [write(f"{name}.json", late=good) for name, good in (("a", 2), ("b", 4), ("c", 8))]
    comparisons = json.loads(run(*files, "--json").stdout)["comparisons"]
    assert [(one["a"], one["b"]) for one in comparisons] == [("late (a)", "late (b)"), ("late (a)", "late (c)")]
    assert comparisons[1]["p_corrected"] == pytest.approx(2 * comparisons[1]["p_value"])


# --- --fail-under ----------------------------------------------------------------------------------------------


def test_a_breach_ends_with_its_own_code(write):
    files = (write("a.json", late=8), write("b.json", late=4))
    result = invoke(*files, "--fail-under", "RR@10 -0.005", "--fail-under", "Success@1 >= 0.4")
    assert result.exit_code == 3
    assert "late (b) against late (a)" in result.stdout
    [line] = result.stderr.splitlines()
    assert line.startswith("failed: late (b) against late (a): RR@10 -0.2500 (95 % interval -0.")
    assert line.endswith("), 0.2450 below the required -0.005")


def test_a_mean_is_required_of_later_results_only(write):
    files = (write("a.json", late=2), write("b.json", late=8))
    assert run(*files, "--fail-under", "Success@1 >= 0.9").stderr == "met: Success@1 >= 0.9\n"
    assert invoke(*reversed(files), "--fail-under", "Success@1 >= 0.9").exit_code == 3


def test_json_carries_the_breaches(write):
    files = (write("a.json", late=8), write("b.json", late=4))
    result = invoke(*files, "--json", "--fail-under", "MRR@10 -0.1")
    assert result.exit_code == 3
    [breach] = json.loads(result.stdout)["breaches"]
    assert (breach["requirement"], breach["retriever"], breach["value"]) == ("MRR@10 -0.1", "late (b)", -0.25)
    assert json.loads(run(*files, "--json", "--fail-under", "RR@10 -0.3").stdout)["breaches"] == []


# --- what is refused -------------------------------------------------------------------------------------------


def test_results_that_do_not_belong_together_are_refused(write):
    late, other = write("a.json", late=8), write("b.json", other=8, another=2)
    assert "a and b have no retriever of the same name: there are late, and other, another" in refused(late, other)
    graded = write("graded.json", late=8, grade=2)
    assert "a and graded were judged differently on 8 of 8 queries, the first 'q0'" in refused(late, graded)


def test_results_without_a_common_query_are_refused(write, tmp_path):
    result = evaluate_runs({"late": {"x": ["d1"]}}, {"x": {"d1": 1}}, ["RR@10"])
    result.to_json(tmp_path / "b.json")
    assert "no query in common (their first: 'q0', 'x')" in refused(write("a.json", late=8), tmp_path / "b.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--measure", "AP"), "'AP' was not evaluated in all results; there are RR@10, Success@1"),
        (("--fail-under", "AP -0.1"), "'AP -0.1' needs the measure AP, which is not evaluated; there are RR@10"),
        (("--fail-under", "RR@10"), "'RR@10' is no requirement; write 'nDCG@10 -0.005'"),
    ],
)
def test_bad_options_are_refused(write, arguments, message):
    assert message in refused(write("a.json", late=8), write("b.json", late=4), *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "bad.json is no result of evaluate --output: not the JSON of an evaluation result"),
        (b'{"dataset": "a"}', "bad.json is no result of evaluate --output: no evaluation result: it lacks split"),
        (b"[1, 2]", "bad.json is no result of evaluate --output: no evaluation result"),
        (b"\xff\xfe\x00", "bad.json is no result of evaluate --output: 'utf-8' codec"),
        (None, "bad.json"),
    ],
)
def test_files_that_are_no_results_are_refused(write, tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.json").write_bytes(content)
    assert message in refused(write("a.json", late=8), tmp_path / "bad.json")


def test_one_result_or_the_same_twice_is_refused(write):
    file = write("a.json", late=8)
    assert "there is one result, and nothing to compare it with" in refused(file)
    assert f"{file} is named twice; name each result once" in refused(file, file)


def test_a_result_with_breaches_is_a_result(write, tmp_path):
    values = EvaluationResult.from_json(write("a.json", late=8)).to_dict()
    (tmp_path / "b.json").write_text(json.dumps(values | {"breaches": []}))
    assert run(tmp_path / "a.json", tmp_path / "b.json").exit_code == 0
