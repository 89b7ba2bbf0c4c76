"""The indexes of a searchable table: made where they are missing, brought up to date where they are not."""

from __future__ import annotations

from typing import Any, Literal, get_args

import lancedb
import pyarrow as pa
from lancedb.index import FTS, HnswFlat, HnswPq, HnswSq, IvfFlat, IvfPq, IvfRq, IvfSq
from lancedb.table import Table

from lance_rerank.errors import ArgumentError

VectorIndex = Literal["auto", "none", "ivf_flat", "ivf_pq", "ivf_hnsw_sq"]

# Up to here "auto" leaves a table without a vector index: a flat scan is exact and takes 13 ms on a busy 2-core machine
# for 20,000 vectors of 384, 65 ms for 50,000, 175 ms for 100,000 (IVF_FLAT 4, 7 and 9 ms). What an index loses
# by default, nDCG@10 on nl2bash (10,579 documents, 1,140 queries): flat .5113, IVF_FLAT .5113, IVF_HNSW_SQ .5112,
# IVF_PQ .4209. IVF_FLAT probes 20 partitions of about 4,096 rows, all there are up to 80,000 rows; on the same data
# cut finer, 20 of 50 partitions give .5080, 20 of 100 .4988, 20 of 200 .4837.
FLAT_UP_TO = 50_000

_CONFIGS: dict[str, Any] = {
    "ivf_flat": IvfFlat,
    "ivf_sq": IvfSq,
    "ivf_pq": IvfPq,
    "ivf_rq": IvfRq,
    "ivf_hnsw_flat": HnswFlat,
    "ivf_hnsw_sq": HnswSq,
    "ivf_hnsw_pq": HnswPq,
}


def require_vector_index(kind: str) -> None:
    """Raise `ArgumentError` unless this is a vector index that `refresh_indexes` can make."""
    if kind not in get_args(VectorIndex):
        raise ArgumentError(f"vector_index must be one of {', '.join(get_args(VectorIndex))}, got {kind!r}")


def require_language(language: str) -> None:
    """Raise `ArgumentError` unless LanceDB can stem this language; better now than after hours of embedding."""
    table = lancedb.connect("memory://").create_table("probe", pa.table({"text": ["probe"]}))
    try:
        table.create_index("text", config=_full_text(language))
    except ValueError as error:
        raise ArgumentError(
            f"LanceDB has no full-text index for the language {language!r}: {error}. Write it as in 'English'"
        ) from error


def refresh_indexes(table: Table, *, text: str, vector: str, language: str, kind: VectorIndex) -> str | None:
    """Make the full-text and the vector index where they are missing, and return the vector index's kind, if any.

    Whatever index the table has is brought up to date; a vector index of another kind is replaced where `kind` names
    one. "auto" makes an index of ``ivf_flat`` for tables of more than `FLAT_UP_TO` rows. Small files are merged.
    """
    _optimize(table, vector)
    if _index_on(table, text) is None:
        table.create_index(text, config=_full_text(language))
    existing = _index_on(table, vector)
    present = None if existing is None else _kind(table, existing)
    wanted = "ivf_flat" if kind == "auto" and table.count_rows() > FLAT_UP_TO else kind
    if wanted in ("auto", "none") or wanted == present or (kind == "auto" and present):
        return present
    table.create_index(vector, config=_CONFIGS[wanted](distance_type="cosine"), replace=True)
    return wanted


def _full_text(language: str) -> FTS:
    return FTS(language=language, stem=True, remove_stop_words=True)


def _index_on(table: Table, column: str) -> Any | None:
    return next((index for index in table.list_indices() if index.columns == [column]), None)


def _kind(table: Table, index: Any) -> str:
    return str(table.index_stats(index.name).index_type).lower()


def _optimize(table: Table, vector: str) -> None:
    """Merge small files and bring indexes up to date."""
    try:
        table.optimize()
    except RuntimeError as error:
        # LanceDB 0.40 cannot add rows to an index of several partitions when none of them has a vector.
        index = _index_on(table, vector)
        make = None if index is None else _CONFIGS.get(_kind(table, index))
        if index is None or make is None or "Not found" not in str(error):
            raise
        config = make(distance_type=table.index_stats(index.name).distance_type)
        table.create_index(vector, config=config, replace=True, name=index.name)
        table.optimize()
