"""The Tantivy leg of hybrid search: an index beside the table, in step with it."""

from lance_rerank.lexical.clauses import Expand
from lance_rerank.lexical.index import Freshness, IndexStatus, Matches, TantivyIndex, stored_settings
from lance_rerank.lexical.query import synonyms
from lance_rerank.lexical.snippets import LexicalExplanation, Snippet
from lance_rerank.lexical.sync import SyncResult

__all__ = [
    "Expand",
    "Freshness",
    "IndexStatus",
    "LexicalExplanation",
    "Matches",
    "Snippet",
    "SyncResult",
    "TantivyIndex",
    "stored_settings",
    "synonyms",
]
