"""`lance-rerank compare`: results of several evaluations, query by query."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lance_rerank.cli import gate
from lance_rerank.cli.tables import AsJson
from lance_rerank.errors import ArgumentError

if TYPE_CHECKING:
    from lance_rerank.evaluation import EvaluationResult


def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT", help="Two or more files of evaluate --output, the earlier first.")
    ],
    measure: Annotated[str | None, typer.Option(help="What decides; by default the first that all have.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="End with exit code 3 where a mean of a later result is further below the earlier one's than this, "
            "'nDCG@10 -0.005', or below a number, 'nDCG@10 >= 0.5'. May be given again.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare later results with an earlier one, on the same queries.

    Compared are retrievers of the same name; where each result has only one, those. Queries that a result lacks are
    left out, and that is said. The exit code is 3 where a requirement of --fail-under is not met.
    """
    from lance_rerank.evaluation import compare_results

    requirements = gate.parse_requirements(fail_under)
    compared = compare_results(*map(_load, results), measure=measure, labels=_labels(results))
    breaches = [breach for one in requirements for breach in one.check_pairs(compared.result, compared.pairs)]
    if as_json:
        print(json.dumps(compared.to_dict() | gate.as_dict(requirements, breaches)))
    else:
        print(compared)
    gate.end(requirements, breaches)


def _labels(files: Sequence[Path]) -> list[str]:
    """Return what the files are called: their names, or their paths where two have the same name."""
    names = [file.stem for file in files]
    labels = names if len(set(names)) == len(names) else list(map(str, files))
    again = [label for label in labels if labels.count(label) > 1]
    if again:
        raise ArgumentError(f"{again[0]} is named twice; name each result once")
    return labels


def _load(file: Path) -> EvaluationResult:
    from lance_rerank.evaluation import EvaluationResult

    try:
        return EvaluationResult.from_json(file)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # whatever else may be in a file
        raise ArgumentError(f"{file} is no result of evaluate --output: {error}") from error
