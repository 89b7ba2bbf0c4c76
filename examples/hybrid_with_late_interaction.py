"""A small searchable help desk: hybrid search, token vectors stored in the table, reranking without encoding documents.

Run it with the extra `demo` installed: python examples/hybrid_with_late_interaction.py
"""

import asyncio
import tempfile

import lancedb
from lancedb.embeddings import get_registry
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector

import lance_rerank as lr
from lance_rerank.models import resolve_model

minilm = get_registry().get("sentence-transformers").create(name=resolve_model("all-MiniLM-L6-v2"))


class Article(LanceModel):
    id: str
    title: str
    text: str = minilm.SourceField()
    vector: Vector(minilm.ndims()) = minilm.VectorField()


ARTICLES = [
    ("keys-rotate", "Rotating keys", "Create a second API key, deploy it everywhere, then revoke the first one."),
    ("keys-list", "Finding keys", "All API keys of a workspace are listed under Settings with name and date."),
    ("sso", "Single sign-on", "Connect your identity provider; members then log in without a password."),
    ("export", "Exporting data", "Download every table of a workspace as Parquet from the export page."),
    ("billing", "Invoices", "Invoices are sent on the first day of the month to the billing contact."),
    ("delete", "Closing a workspace", "An owner can delete a workspace; its data is kept for thirty days."),
]


def build(folder: str) -> lancedb.table.Table:
    table = lancedb.connect(folder).create_table("help", schema=Article)
    table.add([{"id": i, "title": title, "text": text} for i, title, text in ARTICLES])
    table.create_index("text", config=FTS(stem=True, remove_stop_words=True))
    return table


async def ask(retriever: lr.Retriever, *questions: str) -> list[list[lr.Hit]]:
    """Questions of several users at once; none of them blocks the event loop."""
    return await asyncio.gather(*(retriever.aretrieve(question, k=2) for question in questions))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = build(folder)
        encoder = lr.ColBERTEncoder("all-MiniLM-L6-v2")
        print(lr.add_multivector_column(table, source="text", into="colbert", encoder=encoder))

        late = lr.LateInteractionReranker(encoder, table=table)
        retriever = lr.Retriever(table, candidates=50, select=["title"]).with_reranker(late)
        questions = ("how do I replace an API key", "download all my tables", "log in with our company account")
        for question, hits in zip(questions, asyncio.run(ask(retriever, *questions)), strict=True):
            print(f"\n{question}?")
            for hit in hits:
                print(f"  {hit.rank}. {hit.row['title']} ({hit.score:.2f})")

        print()
        print(retriever.trace(questions[0], k=2))


if __name__ == "__main__":
    main()
