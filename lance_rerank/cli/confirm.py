"""Asking before a step that shows, or that has no way back."""

from __future__ import annotations

import sys

import typer

from lance_rerank.cli.progress import talk

EXIT_CODE = 4  # 1 and 2 are errors, 3 is a gate that was not passed


def confirm(question: str, step: str, *, yes: bool) -> bool:
    """Return whether a step is to be taken; where it is not, say on stderr that it was not.

    Parameters
    ----------
    question : str
        To ask on a terminal.
    step : str
        What it is about, as in "the swap".
    yes : bool
        Whether the answer was given beforehand.
    """
    if yes:
        return True
    if not has_terminal():
        talk(f"stopped before {step}: there is no terminal to ask on, and no --yes")
        return False
    if typer.confirm(question, err=True):
        return True
    talk(f"stopped before {step}")
    return False


def has_terminal() -> bool:
    """Return whether somebody can answer."""
    return sys.stdin.isatty()
