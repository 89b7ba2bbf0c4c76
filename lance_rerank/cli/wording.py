"""What the library says in terms of Python, in terms of the command line."""

from __future__ import annotations

import re

_ARGUMENT = re.compile(r"\b(id_column|text|overwrite)=")
_SETTING = re.compile(r"\b(column|source|work_dir|batch_size|index)=(?:\.\.\.|(?P<value>(?=['\d])))?")
_JOB = r"lance_rerank\.ReindexJob\.open\([^()]*\)"
_CALL = re.compile(rf"(?:{_JOB})?\.?\b(backfill|verify|evaluate|swap|rollback|drop_old|abort)\(([^()]*)\)")
_OPTIONS = {"": "", "require_verified=False": " --force", "allow_nulls=True": " --allow-nulls"}


def in_options(message: str) -> str:
    """Return a message of the library with its arguments written as options.

    Examples
    --------
    >>> in_options("no column 'key'; name one: id_column='id'")
    "no column 'key'; name one: --id-column 'id'"
    """
    return _ARGUMENT.sub(lambda argument: f"--{argument[1].replace('_', '-')} ", message)


def in_commands(text: str) -> str:
    """Return what a reindexing says with the methods of `ReindexJob` written as commands.

    Examples
    --------
    >>> in_commands("run verify() and look at what it says, or swap(require_verified=False)")
    "run 'reindex verify' and look at what it says, or 'reindex swap --force'"
    >>> in_commands("call swap() again when they are through")
    "run 'reindex swap' again when they are through"
    >>> in_commands("name the one to replace, column=. Use index='none'")
    "name the one to replace, --column. Use --index 'none'"
    """
    told = _CALL.sub(_command, text)
    told = re.sub(_JOB, "'reindex status'", told).replace("lance_rerank.plan_reindex", "'reindex plan'")
    told = re.sub(r"\bcall (?=it again|'reindex)", "run ", told)
    return _SETTING.sub(_option, told)


def _command(call: re.Match[str]) -> str:
    options = _OPTIONS.get(call[2])
    return call[0] if options is None else f"'reindex {call[1].replace('_', '-')}{options}'"


def _option(setting: re.Match[str]) -> str:
    return f"--{setting[1].replace('_', '-')}" + (" " if setting["value"] is not None else "")
