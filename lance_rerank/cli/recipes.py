"""Recipes of retrieval as they are written on the command line: ``hybrid+late-interaction:MODEL``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lance_rerank.errors import ArgumentError, ColumnError, MissingIndexError

if TYPE_CHECKING:
    from lancedb.rerankers import Reranker
    from lancedb.table import Table

    from lance_rerank.jobs.tables import TableModel
    from lance_rerank.lexical import TantivyIndex
    from lance_rerank.search.retriever import QueryType, Retriever
    from lance_rerank.types import TokenEncoder

QUERY_TYPES = ("hybrid", "vector", "fts", "multivector")
TOKENS = "colbert"  # the column of token vectors, as `index --colbert` makes it


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which legs search, and what reranks their rows.

    Attributes
    ----------
    query_type : str
        One of `QUERY_TYPES`.
    reranker : str
        One of `RERANKERS`.
    model : str or None
        The reranker's model, where it has one and it was named.

    Examples
    --------
    >>> Recipe.parse("hybrid+cross-encoder:BAAI/bge-reranker-v2-m3")
    Recipe(query_type='hybrid', reranker='cross-encoder', model='BAAI/bge-reranker-v2-m3')
    >>> print(Recipe.parse("fts"))
    fts
    """

    query_type: str
    reranker: str = "none"
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Return the recipe written as ``TYPE[+RERANKER[:MODEL]]``.

        Raises
        ------
        ArgumentError
            The text is none.
        """
        query_type, _, reranker = text.strip().partition("+")
        kind, colon, model = reranker.partition(":")
        if query_type not in QUERY_TYPES:
            raise ArgumentError(
                f"unknown recipe {text!r}: expected TYPE[+RERANKER[:MODEL]] where TYPE is {', '.join(QUERY_TYPES)}"
            )
        if "+" in text and kind not in RERANKERS:
            raise ArgumentError(f"unknown reranker {kind!r} in {text!r}: expected one of {', '.join(RERANKERS)}")
        if kind == "cross-encoder" and not model:
            raise ArgumentError(f"{text!r} names no model; write cross-encoder:MODEL, a hub id or a folder")
        if colon and (not model or kind in ("none", "rrf")):
            raise ArgumentError(f"{text!r} has a colon too many: it stands between a reranker and its model")
        return cls(query_type, kind or "none", model or None)

    def __str__(self) -> str:
        reranker = "" if self.reranker == "none" else f"+{self.reranker}"
        return f"{self.query_type}{reranker}{f':{self.model}' if self.model else ''}"


@dataclass(frozen=True, slots=True)
class Lexical:
    """The Tantivy index that a command searches, and how.

    Attributes
    ----------
    folder : Path
        The index's.
    freshness : str
        "error", "warn", "sync" or "scan".
    syntax : bool
        Whether queries are in Tantivy's query language.
    fuzzy : int
        How many letters of a word may differ.
    """

    folder: Path
    freshness: str = "warn"
    syntax: bool = False
    fuzzy: int = 0

    def arguments(self, index: TantivyIndex | None) -> dict[str, Any]:
        """Return what a retriever takes."""
        return {"lexical": index, "freshness": self.freshness, "syntax": self.syntax, "fuzzy": self.fuzzy}


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a reranker is made with."""

    table: Table
    model: str | None
    table_model: TableModel | None
    text_column: str


def make_retrievers(
    table: Table,
    recipes: Sequence[Recipe],
    *,
    candidates: int = 100,
    id_column: str = "id",
    where: str | None = None,
    lexical: Lexical | None = None,
) -> dict[str, Retriever]:
    """Return a retriever for each recipe, by its name, with the searched text among its rows.

    Queries are embedded by the model that the table names, loaded once for all. With `lexical` a Tantivy index takes
    the place of the table's own full-text index.

    Raises
    ------
    ColumnError, MissingIndexError
        The table lacks what a recipe needs; says which command adds it.
    """
    from lance_rerank.encoder import SentenceEncoder
    from lance_rerank.search.retriever import Retriever

    model = _model_of(table)
    encoder = SentenceEncoder(model.name) if model else None
    text = text_column(table)
    retrievers = {}
    index = None if lexical is None else _tantivy_index(lexical.folder, table)
    for recipe in recipes:
        reads_words = recipe.query_type in ("hybrid", "fts")
        if reads_words and index is None:
            _require_full_text_index(table)
        retrievers[str(recipe)] = Retriever(
            table,
            query_type=cast("QueryType", recipe.query_type),
            candidates=candidates,
            reranker=RERANKERS[recipe.reranker](_Setting(table, recipe.model, model, text)),
            where=where,
            id_column=id_column,
            encoder=_token_encoder(table, None, model) if recipe.query_type == "multivector" else encoder,
            vectors=TOKENS,
            **(lexical.arguments(index) if lexical and reads_words else {}),
            select=[text] if text in table.schema.names else [],
            name=str(recipe),
        )
    return retrievers


def text_column(table: Table) -> str:
    """Return the column that the table embeds, "text" where it does not say."""
    model = _model_of(table)
    return model.source if model else "text"


def _model_of(table: Table) -> TableModel | None:
    from lance_rerank import lance
    from lance_rerank.jobs.tables import table_model

    columns = list(lance.vector_columns(table.schema))
    return table_model(table, columns[0]) if len(columns) == 1 else None


def _tantivy_index(folder: Path, table: Table) -> TantivyIndex:
    from lance_rerank.lexical import TantivyIndex

    try:
        return TantivyIndex.load(folder, table=table)
    except MissingIndexError as error:
        raise MissingIndexError(
            f"there is no index in {folder}; build one: lance-rerank lexical build {folder} --db DIR --table "
            f"{table.name}"
        ) from error


def _require_full_text_index(table: Table) -> None:
    if not any(index.index_type == "FTS" for index in table.list_indices()):
        raise MissingIndexError(
            f"table {table.name!r} has no full-text index. Make one: lance-rerank index SOURCE --db DIR --table "
            f"{table.name}, or table.create_index('text', config=FTS()) in Python. Or search by vector alone"
        )


def _no_reranker(_: _Setting) -> None:
    return None


def _rrf(_: _Setting) -> Reranker:
    from lance_rerank.rerankers import RRFReranker

    return RRFReranker()


def _cross_encoder(setting: _Setting) -> Reranker:
    from lance_rerank.rerankers import CrossEncoderReranker

    assert setting.model is not None  # Recipe.parse sees to it
    return CrossEncoderReranker(setting.model, column=setting.text_column)


def _late_interaction(setting: _Setting) -> Reranker:
    from lance_rerank.rerankers import LateInteractionReranker

    encoder = _token_encoder(setting.table, setting.model, setting.table_model)
    return LateInteractionReranker(encoder, table=setting.table, vectors=TOKENS)


def _token_encoder(table: Table, model: str | None, table_model: TableModel | None) -> TokenEncoder:
    """Return an encoder of the model named, else of the one that filled the table's token vectors."""
    from lance_rerank import models
    from lance_rerank.columns.record import ColumnRecord
    from lance_rerank.multivector import ColBERTEncoder
    from lance_rerank.multivector.fingerprint import model_name

    if TOKENS not in table.schema.names:
        raise ColumnError(
            f"table {table.name!r} has no column {TOKENS!r} of token vectors, which late interaction reads; add it: "
            f"lance-rerank index SOURCE --db DIR --table {table.name} --colbert"
        )
    record = ColumnRecord.of(table.schema, TOKENS)
    filled_by = model_name(record.encoder) if record and record.encoder else None
    of_table = table_model.name if table_model else models.DEFAULT_MODEL
    return ColBERTEncoder(model or filled_by or of_table)


RERANKERS: dict[str, Callable[[_Setting], Reranker | None]] = {
    "none": _no_reranker,
    "rrf": _rrf,
    "cross-encoder": _cross_encoder,
    "late-interaction": _late_interaction,
}
