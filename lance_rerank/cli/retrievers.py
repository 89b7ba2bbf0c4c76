"""Retrievers made from recipes: models and indexes are loaded, and what a table lacks is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lance_rerank.cli.recipes import READS_WORDS, Lexical, Recipe
from lance_rerank.errors import ArgumentError, ColumnError, LanceRerankError, MissingIndexError

if TYPE_CHECKING:
    from lancedb.table import Table

    from lance_rerank.encoder import SentenceEncoder
    from lance_rerank.jobs.tables import TableModel
    from lance_rerank.lexical import TantivyIndex
    from lance_rerank.rerankers import BaseReranker
    from lance_rerank.search.retriever import QueryType, Retriever
    from lance_rerank.types import TokenEncoder

TOKENS = "colbert"  # the column of token vectors, as `index --colbert` makes it
_Part = TypeVar("_Part")


def make_retrievers(
    table: Table, recipes: Mapping[str, Recipe], *, id_column: str = "id", column: str | None = None
) -> dict[str, Retriever]:
    """Return a retriever for each recipe, under the same name, with the searched text among its rows.

    Queries are embedded by the model that the table names. What several recipes need is loaded once. `column` is the
    vector column to search, by default the only one.

    Raises
    ------
    ColumnError, MissingIndexError
        The table lacks what a recipe needs; says which command adds it.
    """
    shared = _Shared(table, column)
    return {name: _retriever(shared, name, recipe, id_column) for name, recipe in recipes.items()}


class _Shared:
    """What the retrievers of a table are made from, each part once."""

    def __init__(self, table: Table, column: str | None) -> None:
        self.table = table
        self.column = column
        self.model = _model_of(table, column)
        self.text_column = self.model.source if self.model else "text"
        self._made: dict[tuple[object, ...], Any] = {}

    def once(self, make: Callable[..., _Part], *arguments: object) -> _Part:
        """Return what `make` makes of this and the arguments, the same for the same arguments."""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(self, *arguments)
        return cast("_Part", self._made[key])


def _retriever(shared: _Shared, name: str, recipe: Recipe, id_column: str) -> Retriever:
    from lance_rerank.search.retriever import Retriever

    lexical: dict[str, Any] = {}
    if recipe.query_type in READS_WORDS:
        if recipe.lexical is None:
            _require_full_text_index(shared.table)
        else:
            lexical = _lexical_arguments(shared, recipe.lexical)
    by_tokens = recipe.query_type == "multivector"
    return Retriever(
        shared.table,
        query_type=cast("QueryType", recipe.query_type),
        candidates=recipe.candidates,
        reranker=_reranker(shared, recipe),
        where=recipe.where,
        id_column=id_column,
        encoder=shared.once(_token_encoder, None) if by_tokens else shared.once(_sentence_encoder),
        vector_columns=None if by_tokens else shared.column,
        vectors=TOKENS,
        nprobes=recipe.nprobes,
        refine_factor=recipe.refine_factor,
        **lexical,
        select=[shared.text_column] if shared.text_column in shared.table.schema.names else [],
        name=name,
    )


def _lexical_arguments(shared: _Shared, lexical: Lexical) -> dict[str, Any]:
    index = shared.once(_tantivy_index, lexical.folder)
    return {"lexical": index, "freshness": lexical.freshness, "syntax": lexical.syntax, "fuzzy": lexical.fuzzy}


def _reranker(shared: _Shared, recipe: Recipe) -> BaseReranker | None:
    if recipe.reranker == "none":
        return None
    make, model, least = _RERANKERS[recipe.reranker], recipe.model, recipe.min_score
    if recipe.blend:
        from lance_rerank.rerankers import BlendReranker

        return BlendReranker(shared.once(make, model, None), min_score=least)
    if recipe.guard is not None:
        from lance_rerank.rerankers import FittedBlendReranker

        return FittedBlendReranker.load(recipe.guard, shared.once(make, model, None), min_score=least)
    return shared.once(make, model, least)


def ask_once(retriever: Retriever, query: str) -> None:
    """Ask a retriever a query that is not measured: models are loaded, and a filter is tried.

    Raises
    ------
    ArgumentError
        The filter is none that the table can run.
    """
    try:
        retriever.retrieve(query)
    except LanceRerankError:
        raise
    except ValueError as error:
        if retriever.where is None:
            raise
        raise ArgumentError(f"the filter {retriever.where!r} of {retriever.name!r} cannot be run: {error}") from error


def text_column(table: Table) -> str:
    """Return the column that the table embeds, "text" where it does not say."""
    model = _model_of(table)
    return model.source if model else "text"


def _model_of(table: Table, column: str | None = None) -> TableModel | None:
    from lance_rerank import lance
    from lance_rerank.jobs.tables import table_model

    columns = [column] if column else list(lance.vector_columns(table.schema))
    return table_model(table, columns[0]) if len(columns) == 1 else None


def _sentence_encoder(shared: _Shared) -> SentenceEncoder | None:
    from lance_rerank.encoder import SentenceEncoder

    return SentenceEncoder(shared.model.name) if shared.model else None


def _tantivy_index(shared: _Shared, folder: Path) -> TantivyIndex:
    from lance_rerank.lexical import TantivyIndex

    try:
        return TantivyIndex.load(folder, table=shared.table)
    except MissingIndexError as error:
        raise MissingIndexError(
            f"there is no index in {folder}; build one: lance-rerank lexical build {folder} --db DIR --table "
            f"{shared.table.name}"
        ) from error


def _require_full_text_index(table: Table) -> None:
    if not any(index.index_type == "FTS" for index in table.list_indices()):
        raise MissingIndexError(
            f"table {table.name!r} has no full-text index. Make one: lance-rerank index SOURCE --db DIR --table "
            f"{table.name}, or table.create_index('text', config=FTS()) in Python. Or search by vector alone"
        )


def _rrf(_shared: _Shared, _model: str | None, min_score: float | None) -> BaseReranker:
    from lance_rerank.rerankers import RRFReranker

    return RRFReranker(min_score=min_score)


def _cross_encoder(shared: _Shared, model: str | None, min_score: float | None) -> BaseReranker:
    from lance_rerank.rerankers import CrossEncoderReranker

    assert model is not None  # the recipe sees to it
    return CrossEncoderReranker(model, column=shared.text_column, min_score=min_score)


def _late_interaction(shared: _Shared, model: str | None, min_score: float | None) -> BaseReranker:
    from lance_rerank.rerankers import LateInteractionReranker

    encoder = shared.once(_token_encoder, model)
    return LateInteractionReranker(encoder, table=shared.table, vectors=TOKENS, min_score=min_score)


def _token_encoder(shared: _Shared, model: str | None) -> TokenEncoder:
    """Return an encoder of the model named, else of the one that filled the table's token vectors."""
    from lance_rerank import models
    from lance_rerank.columns.record import ColumnRecord
    from lance_rerank.fingerprint import model_name
    from lance_rerank.multivector import ColBERTEncoder

    table = shared.table
    if TOKENS not in table.schema.names:
        raise ColumnError(
            f"table {table.name!r} has no column {TOKENS!r} of token vectors, which late interaction reads; add it: "
            f"lance-rerank index SOURCE --db DIR --table {table.name} --colbert"
        )
    record = ColumnRecord.of(table.schema, TOKENS)
    filled_by = model_name(record.encoder) if record and record.encoder else None
    of_table = shared.model.name if shared.model else models.DEFAULT_MODEL
    return ColBERTEncoder(model or filled_by or of_table)


# By name, as recipes have them: what makes one of the shared parts, its model and the least score.
_RERANKERS: dict[str, Callable[[_Shared, str | None, float | None], BaseReranker]] = {
    "rrf": _rrf,
    "cross-encoder": _cross_encoder,
    "late-interaction": _late_interaction,
}
