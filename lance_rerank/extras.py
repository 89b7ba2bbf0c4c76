"""Optional packages, asked for at the moment of need."""

from __future__ import annotations

import importlib
from types import ModuleType

from lance_rerank.errors import MissingExtra


def require(module: str, *, extra: str) -> ModuleType:
    """Return the imported module, or raise `MissingExtra` with the pip line that brings it.

    Parameters
    ----------
    module : str
        Dotted import name, for example ``"pylate.models"``.
    extra : str
        The extra of this package that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(f"{package!r} is not installed. Run: pip install 'lance-rerank[{extra}]'") from error
