"""What a database and its tables say of themselves: names, and the model behind a vector column."""

from __future__ import annotations

from dataclasses import dataclass

from lancedb.db import DBConnection
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.embeddings.sentence_transformers import SentenceTransformerEmbeddings
from lancedb.table import Table


@dataclass(frozen=True, slots=True)
class TableModel:
    """The sentence-transformers model whose vectors a column holds.

    Attributes
    ----------
    name : str
        Where it is loaded from: a folder or a hub id.
    source : str
        The column that is embedded.
    """

    name: str
    source: str


def table_names(db: DBConnection) -> list[str]:
    """Return the names of all tables, sorted."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = db.list_tables(page_token=token)
        names += page.tables
        token = page.page_token
        if not token:
            return sorted(names)


def embedding_config(model: TableModel, column: str) -> EmbeddingFunctionConfig:
    """Return what makes LanceDB embed queries and added rows with a model, in any process that has it.

    The function is one that LanceDB brings along, so that no app has to register anything before it opens the table.
    """
    function = get_registry().get("sentence-transformers").create(name=model.name, trust_remote_code=False)
    return EmbeddingFunctionConfig(vector_column=column, source_column=model.source, function=function)


def table_model(table: Table, column: str) -> TableModel | None:
    """Return the model of a vector column, None where its vectors come from something else or who knows where."""
    try:
        config = table.embedding_functions.get(column)
    except KeyError:  # LanceDB's, for a function that was registered in another process only
        return None
    if config is None or not isinstance(config.function, SentenceTransformerEmbeddings):
        return None
    return TableModel(config.function.name, config.source_column)
