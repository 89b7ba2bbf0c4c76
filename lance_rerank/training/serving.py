"""How models are going to serve, so that they are judged by that: tables made for the purpose, searched alike."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS
from lancedb.rerankers import Reranker
from lancedb.table import Table

from lance_rerank import lance
from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError, UnsupportedError
from lance_rerank.rerankers.base import BaseReranker, columns_read
from lance_rerank.rerankers.blend import BlendReranker
from lance_rerank.rerankers.fitted import FittedBlendReranker
from lance_rerank.rerankers.late_interaction import LateInteractionReranker
from lance_rerank.search.retriever import Retriever
from lance_rerank.training.candidates import Kind, Remembering
from lance_rerank.types import Document, Encoder

QueryType = Literal["vector", "hybrid", "fts"]
Corpus: TypeAlias = "Table | Mapping[str, str] | Iterable[Document]"
_BLOCK = 4096


@dataclass(frozen=True)
class Serving:
    """The search that a trained model is going to be part of.

    Attributes
    ----------
    query_type : {"vector", "hybrid", "fts"}
        Which legs find the candidates; the full-text leg stems English.
    encoder : Encoder, optional
        What the vector leg embeds by, where a reranker is judged; an embedder is that itself.
    reranker : Reranker, optional
        What reranks, where an embedder is judged; a reranker is that itself.
    candidates : int
        Rows a leg.
    blend : bool
        Whether a reranker that is judged is going to be blended with the first stage, by `BlendReranker`.
    corpus : Table, Mapping or iterable of Document, optional
        What is searched; by default the corpus of the dev set.
    id_column, text_column : str
        Of a table, and what the rerankers read.
    title_column : str, optional
        Of a table, for queries to tell forgetting by.
    where : str, optional
        A filter on a table.
    retriever : Retriever, optional
        The search in use, on which rerankers are judged as it is. Embedders are judged on tables made for each, by the
        same recipe.

    Examples
    --------
    >>> Serving("hybrid", candidates=50).legs
    ('vector', 'full text')
    """

    query_type: QueryType = "vector"
    encoder: Encoder | None = None
    reranker: Reranker | None = None
    candidates: int = 100
    blend: bool = False
    corpus: Corpus | None = None
    id_column: str = "id"
    text_column: str = "text"
    title_column: str | None = None
    where: str | None = None
    retriever: Retriever | None = None

    def __post_init__(self) -> None:
        if self.query_type not in get_args(QueryType):
            raise ArgumentError(f"query_type must be one of {', '.join(get_args(QueryType))}; got {self.query_type!r}")

    @classmethod
    def of(
        cls, retriever: Retriever, *, text_column: str = "text", title_column: str | None = None, blend: bool = False
    ) -> Self:
        """Return the search that a retriever does, to be repeated with other models.

        Raises
        ------
        UnsupportedError
            It searches by token vectors, several vector columns, or a Tantivy index, which is not repeated.
        """
        kind: Any = retriever.query_type
        if (
            kind not in get_args(QueryType)
            or len(retriever.vector_columns) > 1
            or "Tantivy" in " ".join(retriever.legs)
        ):
            raise UnsupportedError(
                f"{retriever} is no search that can be repeated with another model: take one by a vector column, by "
                "LanceDB's full-text index, or by both"
            )
        return cls(
            kind,
            retriever.encoder or _own_encoder(retriever),  # type: ignore[arg-type]
            retriever.reranker,
            retriever.candidates,
            blend,
            retriever.table,
            retriever.id_column,
            text_column,
            title_column,
            retriever.where,
            retriever,
        )

    @property
    def legs(self) -> tuple[str, ...]:
        """What searches."""
        return {"vector": ("vector",), "fts": ("full text",), "hybrid": ("vector", "full text")}[self.query_type]

    def documents(self, dataset: Dataset) -> list[Document]:
        """Return what is searched: the corpus, or that of a data set."""
        if self.corpus is None:
            return list(dataset.corpus())
        if isinstance(self.corpus, Table):
            return list(self._rows(self.corpus))
        if isinstance(self.corpus, Mapping):
            return [Document(doc_id, text) for doc_id, text in self.corpus.items()]
        return list(self.corpus)

    def _rows(self, table: Table) -> Iterator[Document]:
        columns = [self.id_column, self.text_column, *([self.title_column] if self.title_column else [])]
        for batch in lance.dataset(table).to_batches(columns=columns, filter=self.where):
            for row in batch.to_pylist():
                if row[self.text_column] and row[self.text_column].strip():
                    title = row[self.title_column] or "" if self.title_column else ""
                    yield Document(row[self.id_column], row[self.text_column], title)


def _own_encoder(retriever: Retriever) -> Encoder | None:
    """Return the table's own embedding function, None where it has none or needs none."""
    if not retriever.vector_columns:
        return None
    config = retriever.table.embedding_functions.get(retriever.vector_columns[0])
    return None if config is None else lance.FunctionEncoder(config.function)


class Bench:
    """Retrievers that differ in the model alone; a context, at whose end their tables are gone.

    Parameters
    ----------
    kind : {"embedder", "cross-encoder", "colbert"}
        What is judged.
    serving : Serving
        How it is to serve.

    Attributes
    ----------
    notes : list of str
        In what the search differs from the one that serves.
    """

    def __init__(self, kind: Kind, serving: Serving) -> None:
        self.kind = kind
        self.serving = replace(serving, reranker=_portable(serving.reranker) if kind == "embedder" else None)
        if kind == "embedder" and serving.query_type == "fts":
            raise ArgumentError("a search of query_type='fts' has no embedder to judge: take 'vector' or 'hybrid'")
        self._require_readable(self.serving.reranker)
        self.notes: list[str] = []
        if kind == "embedder" and isinstance(serving.reranker, FittedBlendReranker):
            self.notes.append(
                f"{serving.reranker} was fitted for the model in use: in its place BlendReranker around the same inner "
                "reranker serves here. Fit it again for a model that ships: lance_rerank.fit_blend(retriever, dataset)"
            )
        self._tables: dict[tuple[int, int], tuple[Table, object, object]] = {}
        self._numbers = count()
        self._open = ExitStack()
        self._folder = Path()

    def __enter__(self) -> Self:
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="lance_rerank_gate")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tables.clear()
        self._open.close()

    def retriever(
        self, model: Encoder | BaseReranker | None, documents: list[Document], *, live: bool, bare: bool = False
    ) -> Retriever:
        """Return the search with a model in its place.

        Parameters
        ----------
        model : Encoder, BaseReranker or None
            By the kind that is judged; None for a search without a reranker.
        documents : list of Document
            What is searched.
        live : bool
            Whether these are the documents that the serving retriever has.
        bare : bool, default False
            Leave out the reranker that an embedder is to serve with.
        """
        serving = self.serving
        if not isinstance(model, BaseReranker | None):
            return self._search(model, documents).with_reranker(None if bare else serving.reranker)
        if live and serving.retriever is not None:
            searched = serving.retriever
        else:
            searched = self._search(serving.encoder, documents)
        return searched.with_reranker(model if model is None or not serving.blend else BlendReranker(model))

    def _search(self, encoder: Encoder | None, documents: list[Document]) -> Retriever:
        """Return the search of some documents by an encoder, without a reranker."""
        serving = self.serving
        if encoder is None and serving.query_type != "fts":
            raise ArgumentError(
                f"a search of query_type={serving.query_type!r} finds the reranker's candidates by vectors: give "
                "Serving its encoder, or query_type='fts'"
            )
        key = (id(encoder), id(documents))
        if key not in self._tables:
            self._tables[key] = (self._made(encoder, documents), encoder, documents)  # kept: the ids stay theirs
        return Retriever(
            self._tables[key][0],
            query_type=serving.query_type,
            candidates=serving.candidates,
            id_column=serving.id_column,
            encoder=encoder if serving.query_type != "fts" else None,
        )

    def _require_readable(self, reranker: Reranker | None) -> None:
        there = (self.serving.id_column, self.serving.text_column)
        lacking = [column for column in columns_read(reranker) if column not in there]
        if lacking:
            raise ArgumentError(
                f"{reranker} reads the column {lacking[0]!r}, and the tables that models are compared on have "
                f"{there[0]!r} and {there[1]!r} alone. Give one for {there[1]!r}, or set text_column"
            )

    def _made(self, encoder: Encoder | None, documents: list[Document]) -> Table:
        serving = self.serving
        with_vectors = encoder is not None and serving.query_type != "fts"
        schema = pa.schema([(serving.id_column, pa.string()), (serving.text_column, pa.string())])
        if encoder is not None and with_vectors:
            schema = schema.append(pa.field("vector", pa.list_(pa.float32(), encoder.dim)))

        def rows() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(documents), _BLOCK):
                block = documents[start : start + _BLOCK]
                texts = [f"{document.title} {document.text}".strip() for document in block]
                columns: list[Any] = [pa.array([document.doc_id for document in block]), pa.array(texts)]
                if encoder is not None and with_vectors:
                    vectors = _unit(encoder.encode_documents(texts))
                    columns.append(pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]))
                yield pa.record_batch(columns, schema=schema)

        name = f"documents-{next(self._numbers)}"
        reader = pa.RecordBatchReader.from_batches(schema, rows())
        table = lancedb.connect(self._folder).create_table(name, reader)
        if serving.query_type != "vector":
            table.create_index(serving.text_column, config=FTS(stem=True, remove_stop_words=True))
        return table


def _unit(vectors: Any) -> Any:
    """Return vectors of length 1, so that the nearest is the one of the highest cosine."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def _portable(reranker: Reranker | None) -> Reranker | None:
    """Return a reranker that serves any table: without vectors stored in one, and without what was fitted for one."""
    if isinstance(reranker, LateInteractionReranker):
        return LateInteractionReranker(Remembering(reranker.encoder), vectors=None, column=reranker.column)
    if isinstance(reranker, FittedBlendReranker | BlendReranker):
        inner = _portable(reranker.inner)
        assert isinstance(inner, BaseReranker)
        return BlendReranker(inner, reranker.k) if isinstance(reranker, BlendReranker) else BlendReranker(inner)
    return reranker
