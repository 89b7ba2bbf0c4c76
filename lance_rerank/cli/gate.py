"""`--fail-under`: requirements that end a command with an exit code of its own, for use in a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from lance_rerank.cli.progress import talk

if TYPE_CHECKING:
    from lance_rerank.evaluation import Breach, Requirement

EXIT_CODE = 3  # 1 and 2 are errors


def parse_requirements(texts: Sequence[str] | None) -> list[Requirement]:
    """Return what the options say."""
    from lance_rerank.evaluation import Requirement

    return [Requirement.parse(text) for text in texts or ()]


def end(requirements: Sequence[Requirement], breaches: Sequence[Breach]) -> None:
    """Say on stderr which requirements are not met, and end the command with their exit code; or that all are."""
    for breach in breaches:
        talk(f"failed: {breach}")
    if breaches:
        raise typer.Exit(EXIT_CODE)
    if requirements:
        talk(f"met: {', '.join(map(str, requirements))}")


def as_dict(requirements: Sequence[Requirement], breaches: Sequence[Breach]) -> dict[str, list[dict[str, object]]]:
    """Return what stands in the JSON of a command: the breaches, and nothing where there was no requirement."""
    return {"breaches": [breach.to_dict() for breach in breaches]} if requirements else {}
