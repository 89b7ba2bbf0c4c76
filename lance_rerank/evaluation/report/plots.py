"""The plots of a report that need no choosing: recall by depth, quality against latency, thresholds, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lance_rerank.evaluation.report.charts import Axis, Chart, Mark, Series, linear_axis, log_axis
from lance_rerank.evaluation.report.subject import Reported
from lance_rerank.evaluation.report.summary import Interval
from lance_rerank.evaluation.thresholds import Calibration, ThresholdPoint, Thresholds

_LONGEST_LABEL = 26
_LABELS_ON_A_CURVE = 6
_SHARES = tuple(number / 5 for number in range(6))


def depth_of(result: Reported, retriever: str) -> int:
    """Return how many documents the longest ranking of a retriever has."""
    return max(map(len, result.runs[retriever].values()), default=0)


def recall_by_depth(result: Reported, retriever: str) -> npt.NDArray[np.float64]:
    """Return the mean recall within the first 1, 2, ... documents, to the depth retrieved.

    As in the measures, queries without a relevant document count 0; at depth k this is ``R@k``.
    """
    found = np.zeros(depth_of(result, retriever))
    for query_id, ranking in result.runs[retriever].items():
        relevant = {doc_id for doc_id, grade in result.qrels.get(query_id, {}).items() if grade > 0}
        for place, doc_id in enumerate(ranking):
            if doc_id in relevant:
                found[place] += 1 / len(relevant)
    return found.cumsum() / max(len(result.runs[retriever]), 1)


def recall_chart(result: Reported) -> Chart | None:
    """Return the plot of recall by depth; None where nobody retrieved anything."""
    curves = {retriever: recall_by_depth(result, retriever) for retriever in result.retrievers}
    deepest = max(map(len, curves.values()))
    if not deepest:
        return None
    x = log_axis("documents looked at, from the top", [1, deepest])
    x = replace(x, ticks=tuple(depth for depth in x.ticks if depth.is_integer()))
    y = linear_axis("recall", [float(value) for curve in curves.values() for value in curve])
    series = []
    for number, (retriever, curve) in enumerate(curves.items()):
        line = [(depth, float(recall)) for depth, recall in enumerate(curve, 1)]
        depths = sorted({depth for depth in [*map(round, x.ticks), len(curve)] if 1 <= depth <= len(curve)})
        marks = [Mark(d, float(curve[d - 1]), f"{retriever}: recall {curve[d - 1]:.4f} at {d}") for d in depths]
        series.append(Series(number, line, marks))
    return Chart("Recall by depth, a line a retriever", x, y, series)


def milliseconds_of(result: Reported) -> tuple[str, dict[str, float]]:
    """Return what the times of the retrievers are, and those that are known and more than nothing."""
    if result.latency:
        return "p50, milliseconds", {name: one.total.p50 for name, one in result.latency.items() if one.total.p50 > 0}
    return "milliseconds a query", {name: one for name, one in result.milliseconds.items() if one > 0}


def latency_chart(result: Reported, means: Mapping[str, Mapping[str, Interval | None]]) -> Chart | None:
    """Return the plot of the first measure against latency; None where no times were taken."""
    measure = result.measures[0]
    title, times = milliseconds_of(result)
    if not times:
        return None
    series, ends = [], []
    for number, retriever in enumerate(result.retrievers):
        if retriever not in times:
            continue
        value, interval = result.means[retriever][measure], means[retriever][measure]
        hint = f"{retriever}: {measure} {value:.4f}, {times[retriever]:,.1f} ms"
        label = retriever if len(retriever) <= _LONGEST_LABEL else f"{retriever[: _LONGEST_LABEL - 1]}…"
        series.append(Series(number, marks=[Mark(times[retriever], value, hint, interval, label)]))
        ends += [value, *(interval or ())]
    x = log_axis(title, times.values(), margin=1.5)
    return Chart(f"{measure} against latency, a mark a retriever", x, linear_axis(measure, ends), series)


def precision_recall_chart(found: Thresholds, number: int) -> Chart:
    """Return the plot of precision against recall, some points with their least score."""
    points = [point for point in found.points if point.precision is not None]
    line = [_place(point) for point in points]
    x = linear_axis("recall", [0.0, *(recall for recall, _ in line)], least=0.2)
    y = Axis("precision", 0.0, 1.0, _SHARES)
    labelled = {round(step * (len(points) - 1) / _LABELS_ON_A_CURVE) for step in range(_LABELS_ON_A_CURVE + 1)}
    marks = [
        Mark(*line[index], _hint(points[index]), label=f"{points[index].min_score:.3g}") for index in sorted(labelled)
    ]
    return Chart(f"Precision against recall of {found.retriever}", x, y, [Series(number, line, marks)])


def _place(point: ThresholdPoint) -> tuple[float, float]:
    return point.recall, point.precision or 0.0


def _hint(point: ThresholdPoint) -> str:
    return (
        f"min_score {point.min_score:.6g}: precision {point.precision or 0.0:.3f}, recall {point.recall:.3f}, "
        f"{point.hits_per_query:.2f} hits a query"
    )


def calibration_chart(calibration: Calibration, retriever: str, number: int) -> Chart:
    """Return the plot of the share of relevant documents against the mean score, a mark a bin."""
    marks = [
        Mark(
            one.mean_score,
            one.relevant_share,
            f"{one.low:.1f} to {one.high:.1f}: mean score {one.mean_score:.3f}, {one.relevant_share:.3f} of "
            f"{one.n:,} relevant",
            label=f"{one.n:,}",
        )
        for one in calibration.bins
    ]
    line = [(mark.x, mark.y) for mark in marks]
    x, y = Axis("mean score", 0.0, 1.0, _SHARES), Axis("share that is relevant", 0.0, 1.0, _SHARES)
    return Chart(f"Calibration of {retriever}", x, y, [Series(number, line, marks)], diagonal=True)
