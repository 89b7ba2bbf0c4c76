"""A reranker of your own: prefer fresh rows among those that match, and hold it to the contract.

Run it: python examples/own_reranker.py
Test it: python -m pytest examples/own_reranker.py
"""

import tempfile
from datetime import date

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS

import lance_rerank as lr
from lance_rerank.arrow import Candidates
from lance_rerank.testing import RerankerContract


class FreshFirst(lr.BaseReranker):
    """Reciprocal rank fusion, halved for every `half_life_days` of a row's age."""

    def __init__(self, dates: str = "published", half_life_days: float = 365.0, today: date | None = None, **base):
        super().__init__(**base)
        self.dates = dates
        self.half_life_days = half_life_days
        self.today = today or date.today()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.dates,)

    def score_candidates(self, query: str | None, candidates: Candidates) -> pa.Array:
        ranks = candidates.ranks
        relevance = np.where(ranks > 0, 1 / (60 + np.maximum(ranks, 1)), 0).sum(axis=0)
        if self.dates not in candidates.rows.column_names:
            raise lr.errors.ColumnError(f"select the column {self.dates!r} too: .select([..., {self.dates!r}])")
        days = np.array([(self.today - day).days for day in candidates.rows[self.dates].to_pylist()])
        return pa.array((relevance * 0.5 ** (days / self.half_life_days)).astype(np.float32))


class TestFreshFirst(RerankerContract):
    reads_text = False

    def make_reranker(self, **arguments):
        return FreshFirst(today=date(2026, 1, 1), **arguments)

    def prepare(self, rows):
        return rows.append_column("published", pa.array([date(2025, 1, 1)] * rows.num_rows))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {
                "id": 1,
                "text": "release notes of the search engine",
                "published": date(2019, 5, 1),
                "vector": [1.0, 0.0],
            },
            {"id": 2, "text": "search engine release notes", "published": date(2025, 11, 1), "vector": [0.9, 0.1]},
            {"id": 3, "text": "a recipe for bread", "published": date(2025, 12, 1), "vector": [0.0, 1.0]},
        ]
        table = lancedb.connect(folder).create_table("posts", rows)
        table.create_index("text", config=FTS())
        search = lr.hybrid(table, "search engine release notes", vector=[1.0, 0.0]).select(["id", "text"]).limit(2)
        fresh = FreshFirst(today=date(2026, 1, 1))
        print("by rank fusion:", [hit["id"] for hit in search.to_list()])
        print("fresh first:   ", [hit["id"] for hit in search.rerank(fresh).to_list()])


if __name__ == "__main__":
    main()
