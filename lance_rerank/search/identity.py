"""When a retriever answers as it did before: what its recipe, its table and its models are, in one text."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from lancedb.table import LanceTable

from lance_rerank import lance
from lance_rerank.fingerprint import PROBES
from lance_rerank.rerankers.base import BaseReranker

# not the name, and not what is selected: neither changes an answer
_RECIPE = (
    *("query_type", "candidates", "where", "id_column", "vector_columns", "nprobes", "refine_factor", "fts_columns"),
    *("vectors", "exact"),
)


def cache_key(retriever: Any) -> str | None:
    """Return what `Retriever.cache_key` does.

    Models are known by what they make of a few texts, so that one which was trained on under the same name is another.
    """
    parts = {
        "recipe": {name: getattr(retriever, name) for name in _RECIPE},
        "table": _table(retriever.table),
        "encoder": _encoder(retriever),
        "reranker": _reranker(retriever.reranker),
        "lexical": _lexical(retriever._lexical),
    }
    if any(part is None for part in parts.values()):
        return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _table(table: Any) -> dict[str, Any] | None:
    """The files that a version of a table is made of: a table made again under its name begins at version 1, too."""
    if not isinstance(table, LanceTable):
        return None
    return {"uri": table.uri, "version": table.version, "files": lance.files_of(table)}


def _encoder(retriever: Any) -> str | None:
    if not retriever.vector_columns:
        return ""
    if retriever.encoder is None:
        functions = (retriever.table.schema.metadata or {}).get(b"embedding_functions")
        return None if functions is None else functions.decode()
    return retriever.encoder.fingerprint or _digest(retriever.encoder.encode_queries(PROBES))


def _reranker(reranker: Any) -> str | None:
    if reranker is None:
        return ""
    key = reranker.cache_key() if isinstance(reranker, BaseReranker) else None
    return key if key is None or reranker.min_score is None else f"{key}, from {reranker.min_score} on"


def _lexical(leg: Any) -> dict[str, Any] | str | None:
    if leg is None:
        return ""
    index = leg.index.cache_key() if hasattr(leg.index, "cache_key") else None
    return None if index is None else {"index": index, "how": [leg.freshness, leg.syntax, leg.fuzzy]}


def _digest(vectors: Any) -> str:
    """Rounded, so that another number of threads makes no other model of it."""
    rounded = [np.round(np.asarray(vector, np.float32), 2) + 0.0 for vector in vectors]
    return hashlib.sha256(b"".join(vector.tobytes() for vector in rounded)).hexdigest()
