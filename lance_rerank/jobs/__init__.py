"""What chains several parts of this package: from files to a searchable table."""

from __future__ import annotations

from lance_rerank.jobs.index import IndexResult, index_documents

__all__ = ["IndexResult", "index_documents"]
