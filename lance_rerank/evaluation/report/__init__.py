"""An evaluation's result as one HTML file: opens from disk, asks no network, runs no script but its own."""

from __future__ import annotations

from lance_rerank.evaluation.report.page import write_report

__all__ = ["write_report"]
