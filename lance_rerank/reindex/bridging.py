"""Fitting a bridge: from rows that the new model embeds anew to the old vectors that are stored beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.columns.arrays import without_extension
from lance_rerank.columns.vectors import checked_vectors
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, LanceRerankError, ModelError, QueryError
from lance_rerank.evaluation.evaluate import evaluate
from lance_rerank.fingerprint import PROBES, model_name
from lance_rerank.reindex import checks
from lance_rerank.reindex.bridge import Bridge, BridgedEncoder, Side, mostly_same, noted_model
from lance_rerank.reindex.bridge_figures import BridgeFigures, Share, nearest, shares
from lance_rerank.reindex.models import resolve
from lance_rerank.reindex.procrustes import LinearMap, procrustes
from lance_rerank.search.retriever import Retriever
from lance_rerank.types import Encoder, FloatArray

SAMPLE = 2000
# Rows a dimension. Over four pairs of models of 256 and 384 dimensions on two corpora, nDCG@10 of bridged queries was
# 11 to 49 % lower with one fitted row a dimension than with four, 5 to 21 % with two, and 2 to 10 % with three. A fifth
# of the rows is held out, so that these are two fitted ones, and four.
FEWEST, ENOUGH = 2.5, 5.0
HELD_OUT = 0.2
_BATCH = 64
_LEAST_ROWS = 100  # whatever the dimension: a fifth of them says something
_MEASURES = ("nDCG@10", "R@10")


class _Rows(NamedTuple):
    """Rows by both models, the last of them held out."""

    new: FloatArray
    old: FloatArray
    fitted: int

    @classmethod
    def of(cls, new: FloatArray, old: FloatArray) -> _Rows:
        """Return rows of which a fifth is held out."""
        return cls(new, old, len(new) - int(HELD_OUT * len(new)))

    @property
    def first(self) -> _Rows:
        """The rows that are not held out, divided in the same way."""
        return _Rows.of(self.new[: self.fitted], self.old[: self.fitted])

    def map(self, *, centred: bool) -> LinearMap:
        """Return what is fitted on all but the rows held out."""
        return procrustes(self.new[: self.fitted], self.old[: self.fitted], centred=centred)


def fit_bridge(
    table: object,
    model: object,
    *,
    column: str | None = None,
    source: str | None = None,
    sample: int | None = None,
    queries: Sequence[str] | Dataset | None = None,
    id_column: str = "id",
    k: int = 10,
    seed: int = 0,
) -> Bridge:
    """Return a map by which a new model's queries search the old model's column, and how well they do.

    For the time of a backfill, where the old model can no longer be asked: an API that is gone, say. It is not needed
    here either, for the column holds what it made. Sampled texts are embedded by the new model, and on four fifths of
    them the rotation that brings these vectors nearest to the stored ones is computed (orthogonal Procrustes; between
    different dimensions a rotation with dimensions added or left out). The last fifth says how good it is.

    Nothing is written, and no search uses the map unless it is given `Bridge.encoder`.

    Parameters
    ----------
    table : lancedb.table.Table
        Local or on an object store.
    model : str, Path, EmbeddingFunction or Encoder
        The new model, as for `plan_reindex`.
    column, source : str, optional
        The old vectors and their texts; by default as for `plan_reindex`.
    sample : int, optional
        Rows to embed; by default 2,000, or five a dimension where that is more. Two and a half a dimension are the
        fewest; more give a better map.
    queries : sequence of str or Dataset, optional
        Measure with these, too: queries are unlike documents. Judged ones are searched for in the whole column.
    id_column : str, default "id"
        For a `Dataset`: the column of its document ids.
    k : int, default 10
        Of how many nearest rows the recall is taken.
    seed : int, default 0
        For the drawing of rows.

    Raises
    ------
    ColumnError, ArgumentError, ModelError, UnsupportedError
        What stands against it, each with what to do.

    Examples
    --------
    >>> import lancedb, lance_rerank
    >>> docs = lancedb.connect("data").open_table("docs")  # doctest: +SKIP
    >>> bridge = lance_rerank.fit_bridge(docs, "models/new")  # doctest: +SKIP
    >>> print(bridge)  # doctest: +SKIP
    A bridge from models/new (384 dimensions) to column 'vector' of ada-002 (1536 dimensions)
    ...
    >>> lance_rerank.Retriever(docs, encoder=bridge.encoder("models/new", docs))  # doctest: +SKIP
    """
    asked = _checked(sample, queries, k, seed)
    opened = checks.require_table(table, "fit_bridge")
    data = lance.dataset(opened)  # one version of it: a swap may come while texts are embedded
    name, data_type = checks.vector_column(data.schema, column)
    text_column = checks.source_column(opened, name, source)
    new = resolve(model, None, PROBES)
    dims = (new.encoder.dim, data_type.list_size)
    size = sample or max(SAMPLE, int(ENOUGH * max(dims)))
    texts, old = _drawn(data, name, text_column, size, seed)
    _require_rows(len(texts), size, max(dims), k)
    vectors = _embedded(new.encoder, texts)
    if dims[0] == dims[1] and mostly_same(vectors, old):
        raise ArgumentError(
            f"column {name!r} holds the vectors of {new.spec.name} already: its queries need no bridge. Give the model "
            "that is to come"
        )
    rows, distance = _Rows.of(vectors, old), _distance(opened, name)
    chosen = _best_map(rows, distance, k)
    figures = _figures(rows, chosen, distance, k)
    if asked:
        figures = replace(figures, query_recall=_query_recall(new.encoder, asked, rows, chosen, distance, k))
    bridge = Bridge(
        map=chosen,
        column=name,
        source=text_column,
        fitted=rows.fitted,
        new=Side(new.spec.name, new.sketch(), dims[0]),
        old=Side(_old_name(data.schema, name), noted_model(data.schema, name), dims[1]),
        figures=figures,
    )
    if not isinstance(queries, Dataset):
        return bridge
    judged = _judged(opened, bridge, new.encoder, queries, id_column)
    return replace(bridge, figures=replace(figures, judged=judged))


def _checked(sample: object, queries: object, k: object, seed: object) -> list[str]:
    """Return the texts of the queries that were given."""
    for setting, number in (("sample", 1 if sample is None else sample), ("k", k)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ArgumentError(f"{setting} must be at least 1, got {number!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ArgumentError(f"seed must be 0 or more, got {seed!r}")
    if queries is None:
        return []
    texts = list(queries.queries.values()) if isinstance(queries, Dataset) else queries
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not len(texts):
        raise ArgumentError(f"queries is a list of texts, at least one, or a Dataset, got {texts!r}")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"a query is a string with words in it, got {text!r}")
    return list(texts)


def _drawn(data: Any, column: str, source: str, size: int, seed: int) -> tuple[list[str], FloatArray]:
    """Return texts and their stored vectors, each text once, in random order: at most `size`."""
    rows = data.count_rows()
    # some have no vector or no text, or one that was drawn before
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(2 * size, rows), replace=False))
    if not len(chosen):
        return [], np.empty((0, 0), np.float32)
    drawn = data.take(chosen.tolist(), columns=[source, column]).combine_chunks()
    drawn = drawn.filter(np.asarray(drawn.column(source).is_valid()) & np.asarray(drawn.column(column).is_valid()))
    vectors = without_extension(drawn.column(column).combine_chunks())
    numbers = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float32)
    numbers = numbers.reshape(len(vectors), vectors.type.list_size)
    lengths = np.linalg.norm(numbers, axis=1)
    texts = drawn.column(source).to_pylist()
    usable = np.isfinite(lengths) & (lengths > 0)
    first = {text: place for place, text in reversed(list(enumerate(texts))) if usable[place]}
    places = np.random.default_rng([seed, 1]).permutation(np.array(sorted(first.values()), np.intp))[:size]
    return [texts[place] for place in places], numbers[places]


def _require_rows(found: int, asked: int, dim: int, k: int) -> None:
    fewest = max(int(FEWEST * dim), _LEAST_ROWS, 2 * k)
    if found >= fewest:
        return
    if asked < fewest:
        what = f"sample={asked} is too small: give at least {fewest:,}"
    else:
        what = (
            f"{found:,} different texts with a vector were found, {fewest:,} are needed. Give a larger sample=, or, if "
            "the table has no more of them, no bridge: it is embedded anew in minutes, lance_rerank.plan_reindex"
        )
    raise ArgumentError(f"a map of {dim} dimensions that is fitted on few rows finds little; {what}")


def _embedded(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]), reverse=True)  # little is spent on padding
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        vectors[places] = _asked(encoder.encode_documents, [texts[at] for at in places], encoder.dim)
    return vectors


def _asked(encode: Callable[[Sequence[str]], FloatArray], texts: Sequence[str], dim: int) -> FloatArray:
    try:
        answer = encode(texts)
    except LanceRerankError:
        raise
    except Exception as error:
        raise ModelError(f"the model failed on {len(texts)} texts: {type(error).__name__}: {error}") from error
    return checked_vectors(answer, texts, dim, "float32")


def _best_map(rows: _Rows, distance: str, k: int) -> LinearMap:
    """Return the map, of vectors centred or not: which is better is seen on rows of the part that it is fitted on."""
    first = rows.first
    recalls = {
        centred: _recall(first, first.map(centred=centred)(first.new[first.fitted :]), distance, k).mean()
        for centred in (False, True)
    }
    return rows.map(centred=recalls[True] > recalls[False])


def _recall(rows: _Rows, found_by: FloatArray, distance: str, k: int) -> npt.NDArray[np.float64]:
    """Return, for each row held out, how many of its nearest by the new model are found by a vector in old space."""
    held = np.arange(rows.fitted, len(rows.new))
    wanted = nearest(rows.new[held], rows.new, k, distance, held)
    return shares(wanted, nearest(found_by, rows.old, k, distance, held))


def _figures(rows: _Rows, chosen: LinearMap, distance: str, k: int) -> BridgeFigures:
    held = np.arange(rows.fitted, len(rows.new))
    bridged = chosen(rows.new[held])
    return BridgeFigures(
        k=k,
        rows=len(rows.new),
        recall=Share.of(_recall(rows, bridged, distance, k)),
        old_recall=Share.of(_recall(rows, rows.old[held], distance, k)),
        self_hit=Share.of(nearest(bridged, rows.old, 1, distance)[:, 0] == held),
    )


def _query_recall(
    encoder: Encoder, texts: Sequence[str], rows: _Rows, chosen: LinearMap, distance: str, k: int
) -> Share:
    vectors = _asked(encoder.encode_queries, texts, encoder.dim)
    wanted = nearest(vectors, rows.new, k, distance)
    return Share.of(shares(wanted, nearest(chosen(vectors), rows.old, k, distance)))


def _judged(table: Table, bridge: Bridge, encoder: Encoder, dataset: Dataset, id_column: str) -> dict[str, Share]:
    """Return how judged queries do in the whole column, past any index."""
    retriever = Retriever(
        table,
        query_type="vector",
        encoder=BridgedEncoder(bridge, encoder),
        vector_columns=bridge.column,
        exact=True,
        id_column=id_column,
    )
    result = evaluate({"bridged": retriever}, dataset, _MEASURES)
    for failed in result.failures.values():
        raise ModelError(f"{len(failed):,} of the judged queries failed, the first: {next(iter(failed.values()))}")
    per_query = result.per_query["bridged"].values()
    return {measure: Share.of([values[measure] for values in per_query]) for measure in result.measures}


def _distance(table: Table, column: str) -> str:
    """Return what near means to searches of a column: what its index was made for, or LanceDB's default."""
    stats = [table.index_stats(name) for name in lance.indices_of(table, column)]
    return next((str(one.distance_type) for one in stats if one is not None), "l2")


def _old_name(schema: pa.Schema, column: str) -> str:
    """Return what is known of the old model, for people."""
    noted = noted_model(schema, column)
    if noted is not None:
        return model_name(noted)
    entries = lance.embedding_entries({key.decode(): value for key, value in (schema.metadata or {}).items()})
    named = [entry for entry in entries if entry["vector_column"] == column]
    return str(named[0]["model"].get("name") or named[0]["name"]) if named else "a model the table does not name"
