"""The page of a report, made from templates: every value is escaped, and no script runs but the page's own.

Data reaches the page in two ways: as text that the templates escape, and as JSON that is no script and of which the
page's script makes text nodes. Should either have a hole, the browser still refuses scripts and styles whose digest is
not in the page's policy, and any address.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from itertools import chain
from pathlib import Path
from typing import Any

from lance_rerank import extras
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.evaluation.report import plots
from lance_rerank.evaluation.report.charts import Chart, style_of, tick_text
from lance_rerank.evaluation.report.drilldown import DEPTH, TEXT_LETTERS, drill_down
from lance_rerank.evaluation.report.subject import Diagnosed, Finding, Reported
from lance_rerank.evaluation.report.summary import families, headline, intervals, summary_columns
from lance_rerank.evaluation.thresholds import ThresholdPoint, Thresholds

_TEMPLATES = "lance_rerank.evaluation.report"
_SCRIPTS = ("elements.js", "changes.js", "movement.js", "queries.js", "start.js")
_PRECISIONS = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class _ThresholdPanel:
    """What is shown of one retriever's scores; just `refusal` where there is nothing to show."""

    number: int
    retriever: str
    refusal: str = ""
    found: Thresholds | None = None
    curve: Chart | None = None
    calibration: Chart | None = None
    targets: list[tuple[float, ThresholdPoint | None]] | None = None


@dataclass(frozen=True, slots=True)
class _DiagnosisPanel:
    retriever: str
    advice: str
    findings: list[Finding]


def write_report(
    result: Reported,
    path: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    texts: Mapping[str, str] | None = None,
    diagnosis: Diagnosed | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of a result, and return the file; the arguments are those of `EvaluationResult.to_html`.

    Parameters
    ----------
    result : Reported
        What it is about.
    path : str or path
        The file.
    dataset : Dataset, optional
        Where the documents are found, without `texts`.
    texts, diagnosis, title
        As there.
    """
    if texts is not None and not isinstance(texts, Mapping):
        raise ArgumentError(f"expected texts by document id, got {type(texts).__name__}; write {{'d1': 'text'}}")
    environment = _environment()  # first: whoever lacks Jinja2 shall not wait for the comparisons
    title = title or f"{result.dataset}, split {result.split}"
    context = _context(result, _corpus_texts(dataset) if texts is None else texts, diagnosis, title)
    style, script = _template("report.css"), "\n".join(map(_template, _SCRIPTS))
    blocks = {"style": style, "script": script, "policy": _policy(style, script)}
    html: str = environment.get_template("report.html").render(context | blocks)
    path = Path(path)
    path.write_bytes(html.encode("utf-8", "replace"))
    return path


def _corpus_texts(dataset: Dataset | None) -> Iterable[tuple[str, str]]:
    """Return the documents of a data set with their texts, none where it has no corpus."""
    if dataset is None or (dataset.documents is None and dataset.folder is None):
        return []
    if dataset.folder is not None and not (dataset.folder / "corpus.jsonl").is_file():
        return []
    return (
        (document.doc_id, f"{document.title}: {document.text}" if document.title else document.text)
        for document in dataset.corpus()
    )


def _context(
    result: Reported, texts: Mapping[str, str] | Iterable[tuple[str, str]], diagnosis: Diagnosed | None, title: str
) -> dict[str, Any]:
    means, found, data = intervals(result), families(result), drill_down(result, texts)
    judged = any(result.qrels.values())
    context = {
        "title": title,
        "result": result,
        "judged": judged,
        "headline": headline(result, found),
        "columns": summary_columns(result, means),
        "families": found,
        "deepest": max(plots.depth_of(result, retriever) for retriever in result.retrievers),
        "recall": plots.recall_chart(result) if judged else None,
        "curves": {name: plots.recall_by_depth(result, name) for name in result.retrievers} if judged else {},
        "latency": plots.latency_chart(result, means),
        "thresholds": [_threshold_panel(result, n, name) for n, name in enumerate(result.retrievers)] if judged else [],
        "failures": [(name, query, why) for name, failed in result.failures.items() for query, why in failed.items()],
        "diagnosis": [] if diagnosis is None else _diagnosis_panels(result, diagnosis),
        "data": data,
        "depth_shown": DEPTH,
        "text_letters": TEXT_LETTERS,
        "version": metadata.version("lance-rerank"),
    }
    return context | {"sections": _sections(context)}


def _sections(there: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of the templates and headings of what there is to show."""
    paired, judged = bool(there["families"]), there["judged"]
    sections = [
        ("summary", "Summary", True),
        ("comparisons", "Comparisons", paired),
        ("depth", "Depth and latency" if judged else "Latency", True),
        ("changes", "Gains and losses by query", paired),
        ("movement", "Rank movement of the relevant documents", paired and judged),
        ("diagnosis", "Diagnosis", bool(there["diagnosis"])),
        ("thresholds", "Thresholds", judged),
        ("failures", "Failures", bool(there["failures"])),
        ("queries", "Queries", True),
    ]
    return [(template, heading) for template, heading, shown in sections if shown]


def _threshold_panel(result: Reported, number: int, retriever: str) -> _ThresholdPanel:
    try:
        found = result.thresholds(retriever)
    except ArgumentError as error:
        return _ThresholdPanel(number, retriever, str(error))
    calibration = found.calibration
    scores = {precision: found.for_precision(precision) for precision in _PRECISIONS}
    return _ThresholdPanel(
        number,
        retriever,
        "",
        found,
        plots.precision_recall_chart(found, number),
        plots.calibration_chart(calibration, retriever, number) if calibration and len(calibration.bins) > 1 else None,
        [(precision, None if score is None else found.at(score)) for precision, score in scores.items()],
    )


def _diagnosis_panels(result: Reported, diagnosis: Diagnosed) -> list[_DiagnosisPanel]:
    """Return findings and advice by retriever, in the order of the result."""
    named = chain(result.retrievers, diagnosis.advice, (finding.retriever for finding in diagnosis.findings))
    panels = [
        _DiagnosisPanel(
            retriever,
            diagnosis.advice.get(retriever, ""),
            [finding for finding in diagnosis.findings if finding.retriever == retriever],
        )
        for retriever in dict.fromkeys(named)
    ]
    return [panel for panel in panels if panel.advice or panel.findings]


def _environment() -> Any:
    jinja2 = extras.require("jinja2", extra="report")
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_template),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["style_of"] = style_of
    environment.filters |= {"signed": _signed, "tick": tick_text}
    return environment


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _template(name: str) -> str:
    return resources.files(_TEMPLATES).joinpath("templates", name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Return what the page may do: its one style sheet and its one script, by digest, and nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ]
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
