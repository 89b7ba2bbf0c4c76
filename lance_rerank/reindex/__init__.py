"""Replacing the model behind a vector column of a live table: plan it, fill the new column, take it back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lance_rerank.reindex.bridge import Bridge
    from lance_rerank.reindex.bridging import fit_bridge
    from lance_rerank.reindex.evaluating import Gate
    from lance_rerank.reindex.filling import BackfillReport
    from lance_rerank.reindex.job import ReindexJob
    from lance_rerank.reindex.plan import Plan, Step
    from lance_rerank.reindex.planning import plan_reindex
    from lance_rerank.reindex.status import Status
    from lance_rerank.reindex.swapping import SwapReport
    from lance_rerank.reindex.verifying import Verification

# Loaded when first asked for: a process that only embeds for a job needs none of it.
_HOMES = {
    "bridge": ("Bridge",),
    "bridging": ("fit_bridge",),
    "evaluating": ("Gate",),
    "filling": ("BackfillReport",),
    "job": ("ReindexJob",),
    "plan": ("Plan", "Step"),
    "planning": ("plan_reindex",),
    "status": ("Status",),
    "swapping": ("SwapReport",),
    "verifying": ("Verification",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BackfillReport",
    "Bridge",
    "Gate",
    "Plan",
    "ReindexJob",
    "Status",
    "Step",
    "SwapReport",
    "Verification",
    "fit_bridge",
    "plan_reindex",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
