"""Commands as the tests run them."""

from __future__ import annotations

from typer.testing import CliRunner

from lance_rerank.cli.app import app


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "60"})


def run(*arguments: object):
    """Invoke a command that has to succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the one line that a command says on stderr before it gives up."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
