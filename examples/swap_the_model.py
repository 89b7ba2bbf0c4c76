"""Another embedding model behind a live table: planned, filled, verified, judged, swapped, and back.

The other model is all-MiniLM-L6-v2 without its last layer, saved in a folder, as a model that you trained would be.

Run it: python examples/swap_the_model.py
"""

import tempfile
from datetime import timedelta
from pathlib import Path

from lancedb.embeddings import get_registry
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector
from sentence_transformers import SentenceTransformer

import lance_rerank as lr
from lance_rerank.models import resolve_model

TEXTS = [
    "To rotate an API key, create a second key, deploy it, then revoke the first.",
    "Bread rises for an hour before it is baked.",
    "Keys are listed under Settings. Every key has a name and a date.",
    "Invoices are sent on the first of the month.",
    "The cat sleeps on the keyboard.",
    "Two-factor authentication is switched on in the security settings.",
    "A refund takes five working days.",
    "Fold the dough twice and let it rest.",
]
QUESTIONS = {"how do I change an api key": 0, "baking bread": 1, "when do I get my bill": 3, "get money back": 6}


def shorter_model(folder: Path) -> str:
    model = SentenceTransformer(resolve_model("all-MiniLM-L6-v2"), device="cpu")
    layers = model[0].auto_model.encoder.layer
    del layers[-1]
    model[0].auto_model.config.num_hidden_layers = len(layers)
    model.save(str(folder))
    return str(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        minilm = get_registry().get("sentence-transformers").create(name=resolve_model("all-MiniLM-L6-v2"))

        class Doc(LanceModel):
            id: str
            text: str = minilm.SourceField()
            vector: Vector(minilm.ndims()) = minilm.VectorField()

        # as lancedb.connect, but its tables follow a swap: here at once, by default once they are at a new version
        db = lr.connect(Path(folder, "db"), read_consistency_interval=timedelta(0))
        docs = db.create_table("docs", schema=Doc)
        docs.add([{"id": str(number), "text": text} for number, text in enumerate(TEXTS)])
        docs.create_index("text", config=FTS())
        judged = lr.Dataset.from_memory(
            [lr.Query(f"q{number}", question) for number, question in enumerate(QUESTIONS)],
            [lr.Qrel(f"q{number}", str(answer), 1) for number, answer in enumerate(QUESTIONS.values())],
        )

        plan = lr.plan_reindex(docs, model=shorter_model(Path(folder, "shorter")))
        print(plan)  # nothing is written yet
        job = lr.ReindexJob(plan)
        print(job.backfill())  # run it again after a kill: what was embedded is kept
        docs.add([{"id": "8", "text": "Keys that were never used are revoked after a year."}])  # apps go on
        print(job.verify())
        gate = job.evaluate(judged)
        print(gate)
        gate.raise_if_worse(max_loss=0.5)  # four questions tell little: 0.005 is the default

        print(job.swap())
        print("the new model finds:", docs.search("unused keys").limit(1).to_list()[0]["text"])
        docs.add([{"id": "9", "text": "The kitchen opens at noon."}])
        print(job.rollback())
        print("the old model finds:", docs.search("when does the kitchen open").limit(1).to_list()[0]["text"])
        job.verify()
        job.swap()
        job.drop_old()
        print("columns at the end:", docs.schema.names)


if __name__ == "__main__":
    main()
