"""From judged queries to a guarded reranker: fit it, save it, load it, measure it on other queries, set a threshold.

The texts are docstrings of Python, the queries questions written for them, as in `lance-rerank demo`.

Run it: python examples/fit_a_guard.py
"""

import json
import random
import tempfile
from pathlib import Path

import lancedb

import lance_rerank as lr
from lance_rerank.demo.corpus import build_corpus
from lance_rerank.demo.questions import load_questions


def main() -> None:
    corpus = {document.doc_id: document for document in build_corpus()}
    queries, qrels, _ = load_questions(set(corpus))
    answers = {qrel.doc_id for qrel in qrels}
    others = random.Random(0).sample(sorted(set(corpus) - answers), 400)
    documents = [corpus[doc_id] for doc_id in sorted(answers) + others]

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "docs.jsonl")
        with source.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps({"id": one.doc_id, "text": one.text}) + "\n" for one in documents)
        lr.index_documents(source, Path(folder, "db"), "docs")
        table = lancedb.connect(Path(folder, "db")).open_table("docs")

        dev, test = split(queries, qrels)
        encoder = lr.ColBERTEncoder()
        lr.add_multivector_column(table, encoder=encoder)
        late = lr.LateInteractionReranker(encoder, table=table)
        hybrid = lr.Retriever(table, query_type="hybrid", candidates=50)

        guard = lr.fit_blend(hybrid.with_reranker(late), dev)
        guard.save(Path(folder, "guard.json"))
        print(guard.estimate)

        loaded = lr.FittedBlendReranker.load(Path(folder, "guard.json"), late)
        retrievers = {
            "hybrid": hybrid,
            "late interaction": hybrid.with_reranker(late),
            "blend": hybrid.with_reranker(lr.BlendReranker(late)),
            "guard": hybrid.with_reranker(loaded),
        }
        result = lr.evaluate(retrievers, test, ["nDCG@10", "Success@1"])
        print(f"\n{result}\n\n{result.comparisons(baseline='hybrid')}")
        print(f"\nwhat a threshold costs and brings:\n{result.thresholds('guard')}")


def split(queries: list[lr.Query], qrels: list[lr.Qrel]) -> list[lr.Dataset]:
    """Return two halves of the judged queries: one to fit on, one to report on."""
    shuffled = random.Random(1).sample(queries, len(queries))
    half = len(shuffled) // 2
    parts = {"dev": shuffled[:half], "test": shuffled[half:]}
    datasets = []
    for name, part in parts.items():
        ids = {query.query_id for query in part}
        judged = [qrel for qrel in qrels if qrel.query_id in ids]
        datasets.append(lr.Dataset.from_memory(part, judged, name="questions", split=name))
    return datasets


if __name__ == "__main__":
    main()
