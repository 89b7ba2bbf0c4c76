"""The vector index of the new column: what the live column has, or what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lancedb.index import HnswFlat, HnswPq, HnswSq, IvfFlat, IvfPq, IvfRq, IvfSq
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.errors import ArgumentError, ConflictError, UnsupportedError

logger = logging.getLogger(__name__)

IndexKind = Literal["ivf_flat", "ivf_sq", "ivf_pq", "ivf_rq", "ivf_hnsw_flat", "ivf_hnsw_sq", "ivf_hnsw_pq"]
IndexChoice = IndexKind | Literal["auto", "none"]

ATTEMPTS = 5  # in a row that other writers thwart
FEWEST_ROWS = 256  # that a product quantiser is trained on

_CONFIGS: dict[str, Any] = {
    "ivf_flat": IvfFlat,
    "ivf_sq": IvfSq,
    "ivf_pq": IvfPq,
    "ivf_rq": IvfRq,
    "ivf_hnsw_flat": HnswFlat,
    "ivf_hnsw_sq": HnswSq,
    "ivf_hnsw_pq": HnswPq,
}
_SUB_INDEX = ("num_sub_vectors", "num_bits")  # settings that belong to one dimension


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """A vector index to build.

    Attributes
    ----------
    kind : str
        As in ``index_stats().index_type``, in small letters.
    distance_type : str
        "l2", "cosine" or "dot".
    settings : mapping of str to int
        Further arguments of LanceDB's configuration; what is left out is LanceDB's default.
    """

    kind: str
    distance_type: str
    settings: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{self.kind} ({self.distance_type}{settings})"


def require_choice(index: str) -> None:
    """Raise `ArgumentError` unless this is an index that can be built."""
    choices = ("auto", "none", *get_args(IndexKind))
    if index not in choices:
        raise ArgumentError(f"index must be one of {', '.join(choices)}, got {index!r}")


def index_wanted(table: Table, column: str, choice: str, same_dim: bool, rows: int) -> IndexSpec | None:
    """Return the index to build: as the live column has it, of the kind named with its distance, or none.

    Raises
    ------
    ArgumentError
        There is no such kind, or the table has too few rows for it.
    UnsupportedError
        The live column has an index of a kind that is not known here.
    """
    require_choice(choice)
    live = None if choice == "none" else live_index(table, column, same_dim)
    if choice in ("auto", "none"):
        return live
    if rows < FEWEST_ROWS:
        raise ArgumentError(
            f"an index of {rows} rows is none: LanceDB needs {FEWEST_ROWS} to train one, and finds so few quickly "
            "without. Use index='auto' or 'none'"
        )
    if live is not None and live.kind == choice:
        return live
    return IndexSpec(choice, live.distance_type if live else "cosine")


def live_index(table: Table, column: str, same_dim: bool = True) -> IndexSpec | None:
    """Return what index a column has; settings that belong to a dimension are left out for another one."""
    names = [name for name in lance.indices_of(table, column) if table.index_stats(name) is not None]
    if not names:
        return None
    stats = table.index_stats(names[0])
    kind = str(stats.index_type).lower()
    if kind not in _CONFIGS:
        raise UnsupportedError(
            f"column {column!r} has an index {names[0]!r} of kind {kind!r}, which is not known here: name one to build "
            f"for the new column, index=... ({', '.join(_CONFIGS)} or 'none')"
        )
    parts = lance.dataset(table).stats.index_stats(names[0]).get("indices") or [{}]
    sub = {"num_bits": parts[0].get("sub_index", {}).get("nbits"), **parts[0].get("sub_index", {})}
    settings = {"num_partitions": parts[0].get("num_partitions")}
    if same_dim and kind in ("ivf_pq", "ivf_hnsw_pq"):
        settings |= {name: sub.get(name) for name in _SUB_INDEX}
    known = {name: int(value) for name, value in settings.items() if isinstance(value, int)}
    return IndexSpec(kind, str(stats.distance_type), known)


def build(table: Table, column: str, spec: IndexSpec) -> None:
    """Build an index on a column under LanceDB's default name for it, given explicitly.

    Raises
    ------
    ConflictError
        Other writers changed the table on every attempt.
    UnsupportedError
        LanceDB cannot build it.
    """
    config = _CONFIGS[spec.kind](distance_type=spec.distance_type, **spec.settings)
    for _ in range(ATTEMPTS):
        table.checkout_latest()
        try:
            table.create_index(column, config=config, name=lance.default_index_name(column), replace=True)
        except (RuntimeError, ValueError, OSError) as error:
            if "conflict" not in str(error).lower():
                raise UnsupportedError(f"LanceDB cannot build an index {spec} on {column!r}: {error}") from error
            logger.info("another commit came before the index on %r, which is built again: %s", column, error)
            cause: Exception = error
        else:
            table.checkout_latest()
            return
    raise ConflictError(
        f"other writers' commits came in between on each of {ATTEMPTS} attempts to build an index on {column!r}. "
        "Nothing is lost: run this again when the table is not being compacted."
    ) from cause


def unindexed_rows(table: Table, column: str) -> int | None:
    """Return how many rows a column's index lacks, None where it has no index."""
    names = lance.indices_of(table, column)
    stats = table.index_stats(names[0]) if names else None
    return None if stats is None else int(stats.num_unindexed_rows)


def extend(table: Table, column: str) -> None:
    """Add the rows to a column's index that came since it was built; no other index is touched.

    LanceDB fails to when none of these rows has a vector, so the column has to be filled before.
    """
    names = lance.indices_of(table, column)
    try:
        lance.dataset(table).optimize.optimize_indices(index_names=names)
    except (OSError, RuntimeError, ValueError) as error:  # rows of nulls alone, or a commit that came in between
        logger.warning("rows that came since are not in the index %s, which stays as it was: %s", names, error)
    table.checkout_latest()
