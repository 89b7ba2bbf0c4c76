"""Where this package leans on LanceDB's internals: query builders' private hooks, embedding metadata, commits.

LanceDB makes no promise about these, so they are gathered in this folder, the dependency is pinned to one minor
version, and `tests/lance/` fails when one of them moves. Callers write ``from lance_rerank import lance`` and
``lance.name``. In the modules here ``import lance`` is pylance.
"""

from lance_rerank.lance.commits import (
    Commit,
    SideDataset,
    add_hidden_column,
    commit,
    commit_retried,
    dataset,
    deletions,
    field_id,
    files_of,
    fragment_file,
    is_gone,
    live_places,
    replace_column,
    write_column_file,
)
from lance_rerank.lance.following import (
    FollowingConnection,
    FollowingTable,
    connect,
    follow,
    patch,
    unpatch,
)
from lance_rerank.lance.functions import FunctionEncoder
from lance_rerank.lance.hybrid import (
    AsyncHybridBuilder,
    HybridBuilder,
    HybridSeams,
    adding,
    async_hybrid_inner,
    by_rank,
    lancedb_combine,
)
from lance_rerank.lance.indices import (
    default_index_name,
    indices_of,
    rename_indices,
    rename_indices_after,
)
from lance_rerank.lance.legs import (
    Filter,
    FullTextLeg,
    LegRequest,
    LegSteps,
    Projection,
    RowRead,
    any_of,
    quoted,
    run_leg,
    run_leg_async,
)
from lance_rerank.lance.metadata import (
    EMBEDDING_FUNCTIONS,
    compare_and_set_metadata,
    embedding_entries,
    model_key,
    schema_metadata,
    table_metadata,
    update_schema_metadata,
    update_table_metadata,
)
from lance_rerank.lance.models import (
    EmbeddedQuery,
    functions_named,
    model_named,
)
from lance_rerank.lance.queries import (
    clear_errors,
    embed_query,
    query_text,
    run_search,
)
from lance_rerank.lance.schema_edit import (
    SchemaCommit,
    SchemaEdit,
    commit_schema,
)
from lance_rerank.lance.schemas import (
    is_hidden,
    is_int8,
    the_vector_column,
    token_dim,
    vector_columns,
    visible_columns,
)
from lance_rerank.lance.swap import (
    ColumnSwap,
    drop_column,
    swap_columns,
)
from lance_rerank.lance.tables import (
    has_index,
    latest_handle,
    require_async_table,
    require_index_of,
    require_index_of_async,
    require_same_table,
    require_sync_table,
    take_rows,
)

__all__ = [
    # commits
    "Commit",
    "SideDataset",
    "add_hidden_column",
    "commit",
    "commit_retried",
    "dataset",
    "deletions",
    "field_id",
    "files_of",
    "fragment_file",
    "is_gone",
    "live_places",
    "replace_column",
    "write_column_file",
    # following
    "FollowingConnection",
    "FollowingTable",
    "connect",
    "follow",
    "patch",
    "unpatch",
    # hybrid
    "AsyncHybridBuilder",
    "HybridBuilder",
    "HybridSeams",
    "adding",
    "async_hybrid_inner",
    "by_rank",
    "lancedb_combine",
    # indices
    "default_index_name",
    "indices_of",
    "rename_indices",
    "rename_indices_after",
    # legs
    "Filter",
    "FullTextLeg",
    "FunctionEncoder",
    "LegRequest",
    "LegSteps",
    "Projection",
    "RowRead",
    "any_of",
    "quoted",
    "run_leg",
    "run_leg_async",
    # metadata
    "EMBEDDING_FUNCTIONS",
    "compare_and_set_metadata",
    "embedding_entries",
    "model_key",
    "schema_metadata",
    "table_metadata",
    "update_schema_metadata",
    "update_table_metadata",
    # models
    "EmbeddedQuery",
    "functions_named",
    "model_named",
    # queries
    "clear_errors",
    "embed_query",
    "query_text",
    "run_search",
    # schema_edit
    "SchemaCommit",
    "SchemaEdit",
    "commit_schema",
    # schemas
    "is_hidden",
    "is_int8",
    "the_vector_column",
    "token_dim",
    "vector_columns",
    "visible_columns",
    # swap
    "ColumnSwap",
    "drop_column",
    "swap_columns",
    # tables
    "has_index",
    "latest_handle",
    "require_async_table",
    "require_index_of",
    "require_index_of_async",
    "require_same_table",
    "require_sync_table",
    "take_rows",
]
