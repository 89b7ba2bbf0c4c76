"""The command ``lance-rerank``.

Command modules import what is heavy inside their functions, so that ``--help`` takes a moment only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lance_rerank import __version__
from lance_rerank.cli import (
    compare,
    demo,
    evaluate,
    fit_blend,
    index,
    lexical,
    mine,
    reindex,
    search,
    train,
    tune_and_reindex,
)
from lance_rerank.cli.progress import talk
from lance_rerank.cli.wording import in_commands, in_options
from lance_rerank.errors import LanceRerankError

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "index": index.index,
    "search": search.search,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "fit-blend": fit_blend.fit_blend,
    "mine": mine.mine,
    "tune-and-reindex": tune_and_reindex.tune_and_reindex,
}

_REINDEXING = ("reindex", "tune-and-reindex")  # what the library says of these is told as commands

# Read by the libraries when they are imported, which is after this. Errors are shown all the same.
_QUIET = {
    "LANCEDB_LOG": "error",  # LanceDB 0.40 warns of something it deprecated itself on every search with `select`
    "LANCE_LOG": "error",  # pylance warns of every commit of a column file
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


class _Commands(TyperGroup):
    """Commands whose errors are one line on stderr and the exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LanceRerankError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            message = in_options(" ".join(str(error).split()))
            talk(f"error: {in_commands(message) if ctx.invoked_subcommand in _REINDEXING else message}")
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name)(command)
GROUPS = {
    "lexical": (lexical.COMMANDS, "A Tantivy index beside a table."),
    "reindex": (reindex.COMMANDS, "Another embedding model behind a vector column of a live table."),
    "train": (train.COMMANDS, "An embedder or a cross-encoder of one's own."),
}
for group, (commands, told) in GROUPS.items():
    grouped = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=told)
    for name, command in commands.items():
        grouped.command(name)(command)
    app.add_typer(grouped, name=group)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lance-rerank {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,  # noqa: ARG001 (read by _Commands)
    version: Annotated[  # noqa: ARG001 (printed by its callback)
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Better search results from LanceDB: index, search, rerank, evaluate."""
    quiet_libraries()


def quiet_libraries() -> None:
    """Keep other libraries' progress bars and load reports off stderr, unless the environment asks for them."""
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)


def main() -> None:
    """Run the command line."""
    app(prog_name="lance-rerank")
