from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, MissingExtra
from lance_rerank.evaluation import EvaluationResult, Latency, StageLatency, evaluate_runs
from lance_rerank.evaluation.report.charts import Chart, Mark, Series, linear_axis, log_axis, style_of
from lance_rerank.evaluation.report.drilldown import DEPTH, drill_down
from lance_rerank.evaluation.report.plots import recall_by_depth
from lance_rerank.evaluation.report.summary import intervals
from lance_rerank.types import Document, Qrel, Query

pytest.importorskip("jinja2")

MEASURES = ["nDCG@10", "RR@10", "R@20"]
EVIL = (
    "</script><script>window.injected = 1</script><img src=x onerror='window.injected = 2'><!-- --> "
    '"\'></title></style></svg><svg onload="window.injected = 3"> {{ 7 * 191 }} \u2028 שלום 🙂'
)
VOID = {"meta", "input"}


class Page(HTMLParser):
    """What is in a page: its elements, the rows of its tables by section, its scripts, its texts by section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.titles: list[str] = []
        self.open: list[str] = []
        self.section = "header"
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "section":
            self.section = str(values["id"])
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] == ["style"]:
            self.styles.append(data)
        elif self.open[-1:] == ["title"]:
            self.titles.append(data)
        else:
            self.texts[self.section] = self.texts.get(self.section, "") + data
            if {"td", "th"} & set(self.open):
                cells = self.rows[self.section][-1]
                cells[-1] = " ".join(f"{cells[-1]} {data}".split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])

    def said(self, section: str) -> str:
        return " ".join(self.texts[section].split())


def page_of(result: EvaluationResult, folder: Path, **arguments) -> Page:
    return Page(result.to_html(folder / "report.html", **arguments).read_text("utf-8"))


def made(names: tuple[str, ...], *, n: int = 32, deep: int = 26, seed: int = 0, mark: str = "") -> EvaluationResult:
    """Runs of which each finds the relevant documents higher than the one before, with scores, texts and times."""
    rng = np.random.default_rng(seed)
    documents = [Document(f"d{i}{mark}", f"text of document {i} {mark} " + "word " * 120) for i in range(deep * 2)]
    ids = [document.doc_id for document in documents]
    queries = [Query(f"q{i}{mark}", f"question number {i} {mark}") for i in range(n)]
    qrels = [
        Qrel(query.query_id, ids[int(place)], int(place) % 3)
        for query in queries
        for place in rng.choice(len(ids), 4, replace=False)
    ]
    data = Dataset.from_memory(queries, qrels, documents, name=f"set{mark}")
    runs = {}
    for strength, name in enumerate(names):
        runs[name] = {}
        for query in queries:
            noise = rng.random(len(ids))
            grades = data.qrels[query.query_id]
            noise += [strength * 0.12 * (grades.get(doc_id, 0) > 0) for doc_id in ids]
            best = np.argsort(-noise)[:deep]
            runs[name][query.query_id] = {ids[place]: float(noise[place]) for place in best}
    result = evaluate_runs(runs, data, MEASURES)
    return replace(result, milliseconds={name: 4.0 * 3**number for number, name in enumerate(names)})


@dataclass(frozen=True)
class Found:
    retriever: str
    cause: str
    count: int
    of: int
    examples: tuple[str, ...]
    meaning: str
    advice: str


@dataclass(frozen=True)
class Diagnosed:
    findings: tuple[Found, ...]
    advice: dict[str, str]


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    return made(("plain", "better", "best"))


@pytest.fixture(scope="module")
def page(result: EvaluationResult, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(result, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationResult, Path]:
    """A result in which every text wants to be a script."""
    result = made((f"plain{EVIL}", f"better{EVIL}", f"best{EVIL}"), mark=EVIL)
    plain, *_ = result.retrievers
    failed = f"q3{EVIL}"
    result = replace(result, failures={plain: {failed: f"ValueError: {EVIL}"}})
    found = Found(plain, f"cause{EVIL}", 3, 40, (failed, f"q5{EVIL}", "unknown"), f"means{EVIL}", f"do{EVIL}")
    path = tmp_path_factory.mktemp("evil") / "report.html"
    result.to_html(path, diagnosis=Diagnosed((found,), {plain: f"next{EVIL}"}), title=f"title{EVIL}")
    return result, path


class TestNumbers:
    def test_the_summary_has_every_mean_with_its_interval_and_marks_the_best(self, result, page) -> None:
        head, *rows = page.rows["summary"]
        assert head == ["retriever", *result.measures, "ms/query"]
        spans = intervals(result)
        for name, row in zip(result.retrievers, rows, strict=True):
            assert row[0] == name
            for measure, cell in zip(result.measures, row[1:], strict=False):
                mean, (low, high) = result.means[name][measure], spans[name][measure]
                is_best = mean == max(means[measure] for means in result.means.values())
                assert cell == f"{mean:.4f}{' *' if is_best else ''} {low:.4f} to {high:.4f}"
            assert row[-1] == f"{result.milliseconds[name]:.2f}{' *' if name == 'plain' else ''}"

    def test_intervals_are_those_of_the_bootstrap(self, result) -> None:
        from scipy.stats import bootstrap

        values = [one["RR@10"] for one in result.per_query["plain"].values()]
        expected = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
        low, high = intervals(result)["plain"]["RR@10"]
        assert (low, high) == pytest.approx(tuple(expected), abs=0.01)
        assert low < result.means["plain"]["RR@10"] < high

    def test_sums_have_no_interval(self) -> None:
        result = evaluate_runs(
            {"a": {"q1": ["d"], "q2": ["x", "y"]}}, {"q1": {"d": 1}, "q2": {"d": 1}}, ["NumRet", "P@1"]
        )
        found = intervals(result)["a"]
        assert found["NumRet"] is None
        assert found["P@1"] == (0.0, 1.0)

    def test_every_comparison_by_every_measure(self, result, page) -> None:
        rows = page.rows["comparisons"]
        expected = [one for measure in result.measures for one in [None, *result.comparisons(measure)]]
        assert len(rows) == len(expected) == 12
        for row, one in zip(rows, expected, strict=True):
            if one is None:
                continue
            p = "< 0.001" if one.p_corrected < 0.001 else f"{one.p_corrected:.3f}"
            signed = [f"{value:+.4f}".replace("-", "−") for value in (one.difference, one.low, one.high)]
            assert row == [
                f"{one.b} against {one.a}",
                signed[0],
                f"{signed[1]} to {signed[2]}",
                "",
                str(one.wins),
                str(one.losses),
                p,
                one.verdict,
            ]
        assert str(result.comparisons()).rsplit("\n", 1)[-1] in page.said("comparisons")
        hidden = [values for tag, values in page.elements if values.get("class") == "family"]
        assert [values["data-measure"] for values in hidden] == list(result.measures)
        assert ["hidden" in values for values in hidden] == [False, True, True]

    @pytest.mark.parametrize("depth", [1, 3, 20])
    def test_recall_by_depth_is_that_of_ir_measures(self, result, depth) -> None:
        judged = evaluate_runs(result.runs, result.qrels, [f"R@{depth}"])
        for name in result.retrievers:
            assert recall_by_depth(result, name)[depth - 1] == pytest.approx(judged.means[name][f"R@{depth}"])

    def test_recall_and_latency_are_plotted_with_their_numbers(self, result, page) -> None:
        for name in result.retrievers:
            assert f"{name}: recall {recall_by_depth(result, name)[19]:.4f} at 20" in page.titles
            hint = f"{name}: nDCG@10 {result.means[name]['nDCG@10']:.4f}, {result.milliseconds[name]:,.1f} ms"
            assert hint in page.titles

    def test_latency_by_stages_is_shown_where_it_was_taken(self, result, tmp_path) -> None:
        total = StageLatency("total", 35.0, 44.5, 57.25, 40)
        taken = {name: Latency((), total, {1: 28.6, 4: 61.2}, 20, None, 40, 8) for name in result.retrievers[:2]}
        page = page_of(replace(result, latency=taken), tmp_path)
        head, first, _, last = page.rows["summary"]
        assert head[4:] == ["p50 ms", "p95 ms", "p99 ms", "q/s x1", "q/s x4"]
        assert first[4:] == ["35.0 *", "44.5 *", "57.2 *", "28.6 *", "61.2 *"]
        assert last[4:] == ["–"] * 5
        assert "p50, milliseconds" in page.said("depth")

    def test_thresholds_are_those_of_the_result(self, result, page) -> None:
        rows = list(page.rows["thresholds"])
        for name in result.retrievers:
            found = result.thresholds(name)
            for precision in (0.5, 0.7, 0.8, 0.9, 0.95):
                score = found.for_precision(precision)
                row = [f"{precision:.0%}".replace("%", " %"), "no score reaches it"]
                if score is not None:
                    point = found.at(score)
                    row = [row[0], f"{score:.4g}", f"{point.precision:.3f}", f"{point.recall:.3f}"]
                    row += [f"{point.hits_per_query:.2f}", str(point.empty_queries)]
                rows.remove(row)
            for point in found.points:
                assert [f"{point.min_score:.4g}", f"{point.precision:.3f}"] in [row[:2] for row in rows]
            for note in found.notes:
                assert f"{note}." in page.said("thresholds")
        calibrated = [result.thresholds(name).calibration for name in result.retrievers]
        assert [found is not None for found in calibrated] == [True, False, False]
        assert f"Expected calibration error {calibrated[0].expected_error:.3f}" in page.said("thresholds")

    def test_the_data_are_rankings_scores_values_and_grades_of_each_query(self, result, page) -> None:
        data = page.data
        assert (data["retrievers"], data["measures"]) == (list(result.retrievers), list(result.measures))
        assert data["start"] == [0, 2]
        ids, texts = data["documents"], data["texts"]
        for query in data["queries"]:
            query_id, qrels = query["id"], result.qrels[query["id"]]
            assert query["text"] == result.queries[query_id].strip()
            shown = set()
            for number, name in enumerate(result.retrievers):
                run = result.runs[name][query_id]
                assert [ids[doc] for doc in query["rankings"][number]] == run[:DEPTH]
                assert query["scores"][number] == pytest.approx(result.scores[name][query_id][:DEPTH], rel=1e-5)
                values = [result.per_query[name][query_id][measure] for measure in result.measures]
                assert query["values"][number] == pytest.approx(values, abs=1e-5)
                ranks = {ids[row[0]]: row[number + 1] for row in query["relevant"]}
                assert ranks == {d: run.index(d) + 1 if d in run else 0 for d, grade in qrels.items() if grade > 0}
                shown |= set(run[:DEPTH])
            assert {ids[doc]: grade for doc, grade in query["grades"]} == {d: g for d, g in qrels.items() if d in shown}
        assert all(len(text) < 410 and text.startswith("text of document") for text in texts)


class TestSentences:
    def test_the_best_and_what_it_is_shown_to_beat(self, result, page) -> None:
        mean = result.means["best"]["nDCG@10"]
        assert f"best has the highest nDCG@10, {mean:.4f}. It is significantly better than plain" in page.said("header")

    def test_nothing_significant(self, tmp_path) -> None:
        result = made(("one", "two"), seed=3)
        alike = replace(result, per_query={"one": result.per_query["one"], "two": result.per_query["one"]})
        assert "Nothing is significant: no two retrievers" in page_of(alike, tmp_path).said("header")

    def test_too_few_queries(self, tmp_path) -> None:
        said = page_of(made(("one", "two"), n=3), tmp_path).said("header")
        assert "Nothing is significant: 3 queries are too few to show any difference" in said

    def test_failures_and_diagnosis_are_sections_with_links_to_queries(self, result, tmp_path) -> None:
        findings = (Found("plain", "lost in fusion", 7, 40, ("q1", "q2"), "what it means", "what helps"),)
        failing = replace(result, failures={"better": {"q4": "ValueError: no such thing"}})
        page = page_of(failing, tmp_path, diagnosis=Diagnosed(findings, {"best": "leave it"}))
        assert page.rows["failures"][1] == ["better", "q4", "ValueError: no such thing"]
        assert page.rows["diagnosis"][1] == ["lost in fusion", "7 of 40", "what it means", "what helps", "q1 q2"]
        assert "Next: leave it" in page.said("diagnosis")
        links = [values["data-query"] for _, values in page.elements if values.get("class") == "to-query"]
        assert links == ["q1", "q2", "q4"]

    def test_without_failures_and_diagnosis_there_are_no_such_sections(self, page) -> None:
        sections = ["summary", "comparisons", "depth", "changes", "movement", "thresholds", "queries"]
        assert [values["id"] for tag, values in page.elements if tag == "section"] == sections
        assert [values["href"] for tag, values in page.elements if tag == "a"] == [f"#{name}" for name in sections]


class TestSmallCases:
    def check(self, result: EvaluationResult, folder: Path) -> Page:
        page = page_of(result, folder)
        assert len(page.data["queries"]) == result.n_queries
        assert "nan" not in page.html.split('<script type="application/json"')[0].lower().replace("nance", "")
        return page

    def test_one_retriever(self, tmp_path) -> None:
        page = self.check(made(("alone",)), tmp_path)
        assert "One retriever was evaluated, so there is nothing to compare" in page.said("header")
        assert not {"comparisons", "changes", "movement"} & set(page.texts)

    def test_one_query(self, tmp_path) -> None:
        page = self.check(made(("one", "two"), n=1), tmp_path)
        assert "1 query is too few" in page.said("header")

    def test_rankings_without_scores_and_times(self, tmp_path) -> None:
        result = evaluate_runs({"a": {"q": ["x", "d"]}, "b": {"q": ["d"]}}, {"q": {"d": 1}}, ["RR@10"])
        page = self.check(result, tmp_path)
        assert "'a' has no scores to set a threshold on" in page.said("thresholds")
        assert "No times: these are runs that were there already" in page.said("depth")
        assert "There were no texts of documents to show" in page.said("queries")

    def test_a_result_without_judgements(self, result, tmp_path) -> None:
        values = {name: value for name, value in result.to_dict().items() if name not in ("qrels", "queries", "scores")}
        page = self.check(EvaluationResult.from_json(json.dumps(values)), tmp_path)
        assert "saved without its judgements" in page.said("header")
        assert not {"movement", "thresholds"} & set(page.texts)
        assert "Recall by depth" not in page.said("depth")
        assert page.data["judged"] is False

    def test_all_zero_and_nothing_found(self, tmp_path) -> None:
        page = self.check(evaluate_runs({"a": {"q": []}, "b": {"q": []}}, {"q": {"d": 1}}), tmp_path)
        assert "No retriever returned a document" in page.said("depth")
        assert "*" not in "".join(page.rows["summary"][1])

    def test_no_relevant_documents(self, tmp_path) -> None:
        page = self.check(evaluate_runs({"a": {"q": {"d": 1.0}}, "b": {"q": {"x": 1.0}}}, {"q": {"d": 0}}), tmp_path)
        assert "no document is judged relevant" in page.said("thresholds")

    def test_scores_that_are_no_numbers(self, result, tmp_path) -> None:
        scores = {
            name: {q: [float("inf"), None, *run[2:]] for q, run in runs.items()} for name, runs in result.scores.items()
        }
        page = self.check(replace(result, scores=scores), tmp_path)
        assert page.data["queries"][0]["scores"][0][:2] == [None, None]

    def test_texts_at_hand_and_none(self, result, tmp_path) -> None:
        some = page_of(result, tmp_path, texts={"d1": "a  text\nof two lines", "unknown": "x"}).data
        assert [text for text in some["texts"] if text] == ["a text of two lines"]
        assert page_of(result, tmp_path, texts={}).data["texts"] == []
        with pytest.raises(ArgumentError, match="expected texts by document id, got list"):
            result.to_html(tmp_path / "x.html", texts=["d1"])
        with pytest.raises(ArgumentError, match="the text of document 'd1' is 3"):
            result.to_html(tmp_path / "x.html", texts={"d1": 3})

    def test_half_a_character_does_not_stop_it(self, result, tmp_path) -> None:
        page = page_of(replace(result, dataset="half \ud800"), tmp_path, texts={"d1": "half \udfff"})
        assert "half ?" in page.said("header")
        assert "half \udfff" in page.data["texts"]

    def test_many_retrievers_differ_in_style(self, tmp_path) -> None:
        assert len({style_of(number) for number in range(64)}) == 64
        self.check(made(tuple(f"r{number}" for number in range(9)), n=6), tmp_path)


class TestFile:
    def test_the_same_result_gives_the_same_file(self, result, tmp_path) -> None:
        first = result.to_html(tmp_path / "a.html")
        assert first == tmp_path / "a.html"
        assert first.read_bytes() == result.to_html(str(tmp_path / "b.html")).read_bytes()

    def test_nothing_points_outside(self, page) -> None:
        for tag, values in page.elements:
            for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
                assert str(values.get(name, "#")).startswith("#"), f"<{tag} {name}={values.get(name)!r}>"
        assert "url(" not in page.html
        assert "@import" not in page.html
        assert re.findall(r"https?://[^\"'\s]*", page.html) == ["http://www.w3.org/2000/svg"]  # the name of SVG

    def test_the_policy_allows_the_two_blocks_of_the_page_and_nothing_else(self, page) -> None:
        [policy] = [
            str(values["content"])
            for tag, values in page.elements
            if values.get("http-equiv") == "Content-Security-Policy"
        ]
        directives = dict(directive.split(" ", 1) for directive in policy.split("; "))

        def digest(text: str) -> str:
            return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

        assert directives == {
            "default-src": "'none'",
            "script-src": digest(page.scripts[1]),
            "style-src": digest(page.styles[0]),
            "base-uri": "'none'",
            "form-action": "'none'",
            "require-trusted-types-for": "'script'",
        }
        assert not [values for _, values in page.elements if "style" in values], "the policy refuses style attributes"

    def test_a_thousand_queries_of_five_retrievers_fit_into_ten_megabytes(self) -> None:
        names = tuple("abcde")
        rng = np.random.default_rng(0)
        ids = [f"document-number-{number}" for number in range(30_000)]
        qrels = {f"query-{i}": {ids[d]: 1 for d in rng.integers(0, len(ids), 3)} for i in range(1000)}
        runs = {name: {q: [ids[d] for d in rng.integers(0, len(ids), 100)] for q in qrels} for name in names}
        scores = {name: {query: rng.random(100).tolist() for query in qrels} for name in names}
        per_query = {name: {query: {"RR@10": rng.random()} for query in qrels} for name in names}
        result = EvaluationResult(
            "big",
            "test",
            1000,
            ("RR@10",),
            names,
            {name: {"RR@10": 0.5} for name in names},
            per_query,
            {},
            runs,
            scores=scores,
            queries=dict.fromkeys(qrels, "what is this about " * 5),
            qrels=qrels,
        )
        data = drill_down(result, ((doc_id, "some words of a text " * 40) for doc_id in ids))
        assert 5_000_000 < len(data.json.encode()) < 9_500_000
        assert data.texts_left_out > 0
        relevant = {row[0] for query in data.values["queries"] for row in query["relevant"]}
        first = {ranking[0] for query in data.values["queries"] for ranking in query["rankings"]}
        assert all(data.values["texts"][number] for number in relevant | first), "the most looked at have their texts"

    def test_very_many_relevant_documents_are_cut_evenly_and_counted(self) -> None:
        qrels = {f"q{i}": {f"d{d}": 1 + (d == 900) for d in range(1000)} for i in range(30)}
        result = evaluate_runs({"a": {query: ["d1"] for query in qrels}}, qrels, ["RR@10"])
        data = drill_down(result, {})
        kept = [len(query["relevant"]) for query in data.values["queries"]]
        assert len(set(kept)) == 1
        assert 10_000 < sum(kept) <= 20_000
        assert data.relevant_left_out == 30_000 - sum(kept)
        assert data.values["documents"][data.values["queries"][0]["relevant"][0][0]] == "d900", "higher grades first"

    def test_without_jinja_the_pip_line_is_said(self, result, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(MissingExtra, match=r"pip install 'lance-rerank\[report\]'"):
            result.to_html(tmp_path / "x.html")

    def test_the_templates_are_in_the_package(self) -> None:
        files = {
            file.name for file in resources.files("lance_rerank.evaluation.report").joinpath("templates").iterdir()
        }
        assert {"report.html", "report.css", "start.js", "queries.html"} <= files


class TestInjection:
    def test_no_text_becomes_an_element_or_ends_one(self, evil) -> None:
        page = Page(evil[1].read_text("utf-8"))
        assert len(page.scripts) == 2
        assert {"img", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
        handlers = [name for _, values in page.elements for name in values if name.startswith("on")]
        assert not handlers
        assert page.titles[0] == f"title{EVIL}"
        assert not re.search(r"[<>&\u2028\u2029]", page.scripts[0])
        assert "1337" not in page.html, "no text is a template"

    def test_every_text_arrives_as_it_was(self, evil) -> None:
        result, path = evil
        page = Page(path.read_text("utf-8"))
        data, written = page.data, " ".join(EVIL.split())
        assert data["retrievers"] == list(result.retrievers)
        assert [query["id"] for query in data["queries"]] == list(result.queries)
        assert data["queries"][0]["text"] == f"question number 0 {written}"
        assert all(doc_id.endswith(EVIL) for doc_id in data["documents"])
        assert all(written in text for text in data["texts"])
        assert data["queries"][3]["failures"][0] == f"ValueError: {EVIL}"
        assert page.rows["summary"][1][0] == f"plain{written}"
        assert page.rows["failures"][1] == [f"plain{written}", f"q3{written}", f"ValueError: {written}"]
        assert page.rows["diagnosis"][1][0] == f"cause{written}"
        for section in ("header", "comparisons", "depth", "thresholds"):
            assert "window.injected" in page.said(section)


class TestCharts:
    def test_linear_axes_begin_and_end_at_round_numbers_around_the_values(self) -> None:
        axis = linear_axis("x", [0.67, 0.98])
        assert (axis.low, axis.high) == pytest.approx((0.6, 1.0))
        assert axis.ticks == pytest.approx((0.6, 0.7, 0.8, 0.9, 1.0))
        assert axis.share(0.8) == pytest.approx(0.5)

    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -3.0, 120.0])
    def test_one_value_has_an_axis_too(self, value) -> None:
        axis = linear_axis("x", [value, value])
        assert axis.low <= value <= axis.high
        assert axis.high - axis.low >= 0.1 - 1e-9
        assert axis.low >= 0 or value < 0

    @pytest.mark.parametrize(("values", "ticks"), [([1, 100], (1, 2, 5, 10, 20, 50, 100)), ([0.001, 1e6], None)])
    def test_log_axes(self, values, ticks) -> None:
        axis = log_axis("x", values)
        assert (axis.share(values[0]), axis.share(values[1])) == pytest.approx((0, 1))
        assert 3 <= len(axis.ticks) <= 10
        assert ticks is None or axis.ticks == pytest.approx(ticks)

    def test_labels_hit_neither_marks_nor_each_other(self) -> None:
        marks = [Mark(0.5 + 0.001 * place, 0.5, "", label=f"label {place}") for place in range(12)]
        chart = Chart("", linear_axis("x", [0, 1]), linear_axis("y", [0, 1]), [Series(0, marks=marks)])
        placed = chart.labels()
        assert 1 < len(placed) < 12, "those without room are left out"
        alone = Chart("", chart.x, chart.y, [Series(0, marks=[Mark(0.5, 0.5, "", label="a")])])
        assert [text for *_, text in alone.labels()] == ["a"]
        line = [(0.5, 0.5), (1.0, 0.5)]
        beside = Chart("", chart.x, chart.y, [Series(0, line, [Mark(0.5, 0.5, "", label="label")])])
        assert [anchor for _, _, anchor, _ in beside.labels()] == ["end"], "to the right lies the line"


# --- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with its driver here")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument("--headless=new")
    options.add_argument("--window-size=1280,900")
    options.add_argument("--force-prefers-reduced-motion")  # so that nothing moves between looking and clicking
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    started.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield started
    started.quit()


@pytest.fixture
def opened(browser, evil):
    """The page full of texts that want to be scripts, opened anew from disk, without a network."""
    browser.get(evil[1].as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.injected") is None
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def pick(driver, selector: str, value: int) -> None:
    """Choose in a select as a user does, so that its listeners hear it."""
    from selenium.webdriver.support.select import Select

    Select(driver.find_element("css selector", selector)).select_by_value(str(value))


def texts(driver, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)", selector
    )


def changes(result: EvaluationResult, a: int, b: int, measure: str = "nDCG@10") -> dict[str, float]:
    one, other = (result.per_query[result.retrievers[number]] for number in (a, b))
    return {query: other[query][measure] - one[query][measure] for query in one}


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−") if round(value, 6) else "±0.0000"


class TestInABrowser:
    def test_it_opens_with_the_largest_change_first(self, opened, evil) -> None:
        result, _ = evil
        by_query = changes(result, 0, 2)
        expected = sorted(by_query.values(), key=lambda change: -round(abs(change), 6))
        assert texts(opened, "#query-list .number") == [signed(change) for change in expected]
        assert opened.title.startswith("title</script>")

    def test_a_script_that_gets_past_the_templates_is_refused_by_the_policy(self, browser, evil, tmp_path) -> None:
        hole = "<script>window.injected = 1</script><img src=x onerror='window.injected = 2'>"
        path = tmp_path / "hole.html"
        path.write_text(evil[1].read_text("utf-8").replace("</h1>", f"</h1>{hole}", 1), "utf-8")
        browser.get(path.as_uri())
        assert browser.execute_script("return window.injected") is None
        assert len(browser.find_elements("css selector", ".rankings > div")) == 2, "the page's own script runs"
        refused = [entry["message"] for entry in browser.get_log("browser")]
        assert sum("Content Security Policy" in message for message in refused) >= 2

    def test_markup_that_a_script_inserts_is_refused_too(self, browser, evil) -> None:
        browser.get(evil[1].as_uri())
        refused = browser.execute_script(
            """
            try { document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.injected = 1'>"); }
            catch (error) { return error.name; }
            """
        )
        assert refused == "TypeError"
        assert browser.execute_script("return window.injected") is None
        assert {entry["source"] for entry in browser.get_log("browser")} == {"security"}

    def test_choosing_a_query_shows_both_rankings(self, opened, evil) -> None:
        result, _ = evil
        pick(opened, "#choose-order", "given")
        opened.find_elements("css selector", "#query-list button")[5].click()
        query = list(result.queries)[5]
        columns = opened.find_elements("css selector", ".rankings > div")
        assert len(columns) == 2
        for name, column in zip((result.retrievers[0], result.retrievers[2]), columns, strict=True):
            assert column.find_element("css selector", "h4 bdi").get_property("textContent") == name
            ids = [
                found.get_property("textContent") for found in column.find_elements("css selector", ".hit-head > bdi")
            ]
            assert ids == result.runs[name][query][:DEPTH]
            marks = [
                mark.get_property("textContent") for mark in column.find_elements("css selector", ".hit-head .mark")
            ]
            grades = [result.qrels[query].get(doc_id) for doc_id in ids]
            assert [mark[0] for mark in marks] == ["?" if g is None else "✓" if g > 0 else "✗" for g in grades]
        assert opened.switch_to.active_element.get_attribute("aria-current") == "true", "the keyboard stays in the list"

    def test_rank_changes_are_those_of_the_runs(self, opened, evil) -> None:
        result, _ = evil
        shown = texts(opened, "#query .note bdi")[0]
        before, after = (result.runs[result.retrievers[number]][shown] for number in (0, 2))
        relevant = {doc_id for doc_id, grade in result.qrels[shown].items() if grade > 0}
        moves = texts(opened, ".rankings > div:last-child .move")
        assert len(moves) == DEPTH
        for rank, (doc_id, move) in enumerate(zip(after, moves, strict=False), 1):
            was = before.index(doc_id) + 1 if doc_id in before else 0
            if doc_id not in relevant and not 0 < was <= DEPTH:
                assert move == "↑ from beyond 20"
            elif not was:
                assert move == "↑ new"
            else:
                up = was - rank
                assert move == (f"↑ {up} from {was}" if up > 0 else f"↓ {-up} from {was}" if up else "= same")

    def test_changing_the_baseline_sorts_anew(self, opened, evil) -> None:
        result, _ = evil
        pick(opened, "#changes .choose-a", 1)
        by_query = changes(result, 1, 2)
        gains = sorted((change for change in by_query.values() if round(change, 6) > 0), reverse=True)
        losses = sorted(change for change in by_query.values() if round(change, 6) < 0)
        assert texts(opened, "#gains .number") == [signed(change) for change in gains[:5]]
        assert texts(opened, "#losses .number") == [signed(change) for change in losses[:5]]
        assert len(opened.find_elements("css selector", "#changes-plot .gain")) == len(gains)
        assert len(opened.find_elements("css selector", "#changes-plot .loss")) == len(losses)
        said = texts(opened, "#changes-said")[0]
        assert f"better on {len(gains)} queries, worse on {len(losses)}, the same on " in said
        chosen = [found.get_property("value") for found in opened.find_elements("css selector", ".choose-a")]
        assert chosen == ["1", "1", "1"], "every section has the same pair"

    def test_the_same_retriever_twice_swaps_the_pair(self, opened, evil) -> None:
        pick(opened, "#movement .choose-a", 2)
        assert opened.find_element("css selector", "#queries .choose-b").get_property("value") == "0"
        result, _ = evil
        worst = min(changes(result, 2, 0).values())
        assert texts(opened, "#losses .number")[0] == signed(worst)

    def test_the_bars_open_their_query_by_keyboard_and_by_pointer(self, opened, evil) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        result, _ = evil
        by_gain = sorted(changes(result, 0, 2).items(), key=lambda item: -round(item[1], 6))
        plot = opened.find_element("css selector", "#changes-plot")
        plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
        assert texts(opened, "#query .note bdi") == [by_gain[1][0]]
        assert opened.switch_to.active_element.get_attribute("id") == "query"
        wide = plot.size["width"]
        ActionChains(opened).move_to_element_with_offset(plot, wide // 2 - 6, 0).perform()
        last = [query for query, change in by_gain if round(change, 6)][-1]
        assert result.queries[last].split(" <")[0].split("</")[0].strip() in texts(opened, "#changes-readout")[0]
        ActionChains(opened).click().perform()
        assert texts(opened, "#query .note bdi") == [last]

    def test_the_marks_of_the_movement_are_the_relevant_documents(self, opened, evil) -> None:
        from selenium.webdriver.common.keys import Keys

        result, _ = evil
        moved = []
        for query, grades in result.qrels.items():
            for doc_id in (doc_id for doc_id, grade in grades.items() if grade > 0):
                runs = [result.runs[result.retrievers[number]][query] for number in (0, 2)]
                moved.append(tuple(run.index(doc_id) + 1 if doc_id in run else 0 for run in runs))
        marks = opened.find_elements("css selector", "#movement-plot .bubble")
        assert len(marks) == len({ranks for ranks in moved if any(ranks)})
        lost = sum(before > 0 and after == 0 for before, after in moved)
        found = sum(before == 0 and after > 0 for before, after in moved)
        assert f"{found} newly found, {lost} lost" in texts(opened, "#movement-said")[0]
        assert len(opened.find_elements("css selector", "#movement-plot [tabindex='0']")) == 1
        marks[0].send_keys(Keys.ARROW_RIGHT)
        opened.switch_to.active_element.send_keys(" ")
        said = marks[1].get_attribute("aria-label")
        assert texts(opened, "#movement-title") == [said]
        assert len(texts(opened, "#movement-list li")) == int(said.split()[0])

    def test_searching_and_filtering_the_queries(self, opened, evil) -> None:
        result, _ = evil
        search = opened.find_element("css selector", "#search")
        search.send_keys("Number 17")
        assert [text.startswith("question number 17") for text in texts(opened, "#query-list .clamp")] == [True]
        search.clear()
        search.send_keys(" ")
        pick(opened, "#choose-filter", "worse")
        worse = sum(round(change, 6) < 0 for change in changes(result, 0, 2).values())
        assert len(texts(opened, "#query-list button")) == worse > 0
        pick(opened, "#choose-filter", "failed")
        [failed] = opened.find_elements("css selector", "#query-list button")
        failed.click()
        assert texts(opened, "#query .error") == [f"ValueError: {EVIL}"]

    def test_links_of_the_diagnosis_and_selectors_of_measure_and_retriever(self, opened, evil) -> None:
        result, _ = evil
        links = opened.find_elements("css selector", "#diagnosis .to-query")
        assert [link.is_enabled() for link in links] == [True, True, False]
        links[1].click()
        assert texts(opened, "#query .note bdi") == [f"q5{EVIL}"]
        pick(opened, "#choose-family", 2)
        shown = [
            found.get_attribute("data-measure")
            for found in opened.find_elements("css selector", ".family")
            if found.is_displayed()
        ]
        assert shown == [result.measures[2]]
        pick(opened, "#choose-threshold", 1)
        shown = [
            found.get_attribute("data-retriever")
            for found in opened.find_elements("css selector", ".threshold")
            if found.is_displayed()
        ]
        assert shown == [result.retrievers[1]]

    @pytest.mark.parametrize("width", [1280, 400])
    def test_the_page_does_not_scroll_sideways(self, opened, width) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            wide, seen = opened.execute_script(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= seen <= width
        finally:
            opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    @pytest.mark.parametrize("names", [("alone",), ("one", "two")])
    def test_small_results_and_rankings_alone_open_too(self, browser, tmp_path, names) -> None:
        result = evaluate_runs({name: {"q": ["x", "d"]} for name in names}, {"q": {"d": 1}}, ["RR@10"])
        browser.get(result.to_html(tmp_path / "small.html").as_uri())
        assert len(browser.find_elements("css selector", ".rankings > div")) == len(names)
        assert texts(browser, "#query h3") == ["q"]
        assert browser.get_log("browser") == []
