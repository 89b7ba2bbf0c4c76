"""The models of a retriever that read documents: how much they read, and from which columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time these would import torch and LanceDB
    from lance_rerank.rerankers.texts import TextSource
    from lance_rerank.search.retriever import Retriever

Cut = Callable[[str, str], bool]


@dataclass(frozen=True)
class Reader:
    """A model that reads documents; `cut` tells whether it reads less than all of one, None where that is unknown."""

    name: str
    source: TextSource | None
    tokenizer: Any | None = None
    limit: int | None = None
    cut: Cut | None = None


def readers_of(retriever: Retriever) -> list[Reader]:
    """Return the models of a retriever that read documents."""
    found = []
    if retriever.vector_columns:
        embedder = retriever.encoder if retriever.encoder is not None else _table_function(retriever)
        found.append(_reader("embedder", embedder, _embedded(retriever), retriever))
    reranker: Any = retriever.reranker
    reranker = getattr(reranker, "inner", reranker)  # what a blend asks
    if reranker is not None and _reads_documents(reranker):
        found.append(_reader("reranker", reranker, getattr(reranker, "texts", None), retriever))
    return found


def _reads_documents(reranker: Any) -> bool:
    from lance_rerank.rerankers.base import columns_read
    from lance_rerank.rerankers.late_interaction import LateInteractionReranker

    return isinstance(reranker, LateInteractionReranker) or bool(columns_read(reranker))


def _table_function(retriever: Retriever) -> Any:
    config = retriever.table.embedding_functions.get(retriever.vector_columns[0])
    return None if config is None else config.function


def _reader(name: str, model: Any, source: TextSource | None, retriever: Retriever) -> Reader:
    from lance_rerank.encoder import SentenceEncoder
    from lance_rerank.multivector.encoder import ColBERTEncoder
    from lance_rerank.rerankers.cross_encoder import CrossEncoderReranker
    from lance_rerank.rerankers.late_interaction import LateInteractionReranker

    if isinstance(model, LateInteractionReranker):
        source = _stored_from(retriever, model.vectors) or source
        model = model.encoder
    if isinstance(model, ColBERTEncoder):
        return Reader(name, source, _tokenizer(model.model_name), None, _last_letter_is_lost(model.document_tokens))
    if isinstance(model, CrossEncoderReranker):
        return _pair_reader(name, source, model.model.tokenizer)
    if isinstance(model, SentenceEncoder):
        return _sentence_reader(name, source, model.model)
    if type(model).__name__ == "SentenceTransformerEmbeddings":  # LanceDB's
        return _sentence_reader(name, source, model.embedding_model)
    return Reader(name, source)


def _sentence_reader(name: str, source: TextSource | None, model: Any) -> Reader:
    tokenizer, limit = model.tokenizer, model.get_max_seq_length()
    if not callable(tokenizer) or not _is_said(limit):  # static embeddings have a tokenizer of another kind
        return Reader(name, source)

    @cache
    def is_long(text: str) -> bool:
        return len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) > limit

    return Reader(name, source, tokenizer, limit, lambda _, text: is_long(text))


def _pair_reader(name: str, source: TextSource | None, tokenizer: Any) -> Reader:
    limit = tokenizer.model_max_length

    def cut(query: str, text: str) -> bool:
        return len(tokenizer(query, text, truncation=False, verbose=False)["input_ids"]) > limit

    return Reader(name, source, tokenizer, limit, cut) if _is_said(limit) else Reader(name, source, tokenizer)


def _is_said(limit: int | None) -> bool:
    return limit is not None and limit < 10**9  # transformers has a far larger number for models that do not say


def _last_letter_is_lost(tokens: Callable[[str], Sequence[str]]) -> Cut:
    """Return what tells that a text is cut off by what is left of it: its tokens are the same without the last letter.

    A ColBERT drops punctuation and adds markers, so that the number of its tokens does not tell.
    """

    @cache
    def is_long(text: str) -> bool:
        shorter = re.sub(r"\w\W*$", "", text)
        return bool(shorter.strip()) and shorter != text and list(tokens(shorter)) == list(tokens(text))

    return lambda _, text: is_long(text)


def _tokenizer(model_name: str) -> Any | None:
    from transformers import AutoTokenizer

    from lance_rerank import models

    try:
        return AutoTokenizer.from_pretrained(models.resolve_model(model_name), local_files_only=True)
    except (OSError, ValueError):  # what transformers raises for a model saved without one
        return None


# --- where texts come from -------------------------------------------------------------------------------------


def _embedded(retriever: Retriever) -> TextSource | None:
    """Return what the vectors were made of, as far as the table says; else what is searched or reranked by words."""
    from lance_rerank.rerankers.texts import TextSource

    if retriever.vectors is not None:
        return _stored_from(retriever, retriever.vectors)
    config = retriever.table.embedding_functions.get(retriever.vector_columns[0])
    if config is not None:
        return TextSource(config.source_column)
    texts = getattr(retriever.reranker, "texts", None)
    if texts is not None and set(texts.columns) <= set(retriever.table.schema.names):
        return texts
    indexed = [
        column for index in retriever.table.list_indices() if index.index_type == "FTS" for column in index.columns
    ]
    return TextSource(indexed) if indexed else None


def _stored_from(retriever: Retriever, vectors: str | None) -> TextSource | None:
    """Return what a column of token vectors was made of, where it says so."""
    from lance_rerank.columns.record import ColumnRecord
    from lance_rerank.rerankers.texts import TextSource

    schema = retriever.table.schema
    record = ColumnRecord.of(schema, vectors) if vectors is not None and vectors in schema.names else None
    return None if record is None else TextSource([record.source])
