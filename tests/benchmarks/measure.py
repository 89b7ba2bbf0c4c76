"""A way to time several things fairly, and to print what came out."""

from __future__ import annotations

import statistics
import time


def medians(runs: int, **calls) -> dict[str, float]:
    """Return each call's median milliseconds, the calls taking turns so that a busy machine hits all alike."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print figures in columns."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
