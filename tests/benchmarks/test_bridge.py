"""What new queries find in an old column over a bridge, on real data, beside the old model and the new one.

There is one real embedding model here; the others are made of it, or of word counts. MiniLM less two of its layers
makes related vectors of another space, MiniLM trained on the data set makes near ones, and TF-IDF reduced to 256
dimensions has nothing in common with it but the texts.
"""

from __future__ import annotations

import random
import time

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from measure import table as print_table
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

import lance_rerank as lr

ROWS, QUERIES = 3000, 300
STEPS, BATCH = 60, 16
MEASURES = ("nDCG@10", "R@10")


class Remembering:
    """A model that is asked once for each text, and by no later run again: what takes minutes here is embedding."""

    fingerprint = None

    def __init__(self, name: str, encode, file=None) -> None:
        self.model_name, self._encode, self._file = name, encode, file
        self._known: dict[str, np.ndarray] = {}
        if file is not None and file.exists():
            kept = np.load(file)
            self._known = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))
        self.dim = self.encode_documents(["how many are there"]).shape[1]

    def encode_queries(self, texts):
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known |= dict(zip(new, self._encode(new), strict=True))
        return np.array([self._known[text] for text in texts], np.float32).reshape(len(texts), -1)

    encode_documents = encode_queries

    def keep(self) -> None:
        if self._file is not None:
            np.savez(self._file, texts=np.array(list(self._known)), vectors=np.array(list(self._known.values())))


def four_layers() -> lr.SentenceEncoder:
    encoder = lr.SentenceEncoder()
    layers = encoder.model[0].auto_model.encoder
    layers.layer = layers.layer[:4]
    return encoder


def trained(data: lr.Dataset, folder) -> lr.SentenceEncoder:
    """MiniLM, trained on queries and their documents, other documents of a batch being wrong; kept in the folder."""
    if (folder / "modules.json").exists():
        return lr.SentenceEncoder(folder)
    torch.manual_seed(0)
    documents = {one.doc_id: one.text for one in data.corpus()}
    pairs = [(text, documents[next(iter(data.qrels[query_id]))]) for query_id, text in data.queries.items()]
    random.Random(0).shuffle(pairs)
    model = lr.SentenceEncoder(precision="float32", device="cpu").model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    model.train()
    for step in range(STEPS):
        batch = [pairs[(step * BATCH + at) % len(pairs)] for at in range(BATCH)]
        sides = []
        for texts in zip(*batch, strict=True):
            features = model.tokenize(list(texts))
            sides.append(torch.nn.functional.normalize(model(features)["sentence_embedding"], dim=-1))
        loss = torch.nn.functional.cross_entropy(20 * sides[0] @ sides[1].T, torch.arange(BATCH))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save(str(folder))
    return lr.SentenceEncoder(folder)


def word_counts(texts: list[str]):
    counts = TfidfVectorizer(sublinear_tf=True).fit(texts)
    reduced = TruncatedSVD(256, random_state=0).fit(counts.transform(texts))

    def encode(asked):
        vectors = reduced.transform(counts.transform(asked))
        # a text of unknown words has the zero vector, which stays as it is
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    return encode


def some_of(data: lr.Dataset) -> lr.Dataset:
    """Some queries, all their documents, and others up to a few thousand."""
    asked = random.Random(0).sample(sorted(data.queries), min(QUERIES, len(data.queries)))
    wanted = {doc_id for query_id in asked for doc_id in data.qrels[query_id]}
    corpus = list(data.corpus())
    random.Random(0).shuffle(corpus)
    corpus.sort(key=lambda one: one.doc_id not in wanted)
    return lr.Dataset.from_memory(
        [lr.Query(query_id, data.queries[query_id]) for query_id in asked],
        [lr.Qrel(query_id, doc, grade) for query_id in asked for doc, grade in data.qrels[query_id].items()],
        corpus[:ROWS],
        name=data.name,
    )


def filled(db, name: str, data: lr.Dataset, model: Remembering):
    ids, texts = zip(*[(one.doc_id, f"{one.title} {one.text}".strip()) for one in data.corpus()], strict=True)
    vectors = model.encode_documents(list(texts))
    return db.create_table(
        name,
        pa.table(
            {
                "id": list(ids),
                "text": list(texts),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            }
        ),
    )


@pytest.mark.parametrize("name", ["squad", "nl2bash"])
def test_what_is_found_over_a_bridge(name, data_folder, tmp_path, pytestconfig):
    whole = lr.Dataset.from_beir(data_folder / name, split="test")
    data = some_of(whole)
    texts = [f"{one.title} {one.text}".strip() for one in data.corpus()]
    kept = pytestconfig.cache.mkdir("bridge-vectors")
    models = {
        "MiniLM": Remembering("MiniLM", lr.SentenceEncoder().encode_documents, kept / f"{name}-MiniLM.npz"),
        "4 layers": Remembering("4 layers", four_layers().encode_documents, kept / f"{name}-4-layers.npz"),
        "TF-IDF": Remembering("TF-IDF", word_counts(texts)),
    }
    pairs = [("MiniLM", "4 layers"), ("4 layers", "MiniLM"), ("MiniLM", "TF-IDF"), ("TF-IDF", "MiniLM")]
    if name == "nl2bash":  # texts are short there, and trained on in a minute
        folder = pytestconfig.cache.mkdir("nl2bash-embedder")
        encoder = trained(whole.train, folder)
        models["trained"] = Remembering("trained", encoder.encode_documents, kept / "nl2bash-trained.npz")
        pairs.append(("MiniLM", "trained"))
    for model in models.values():
        model.encode_queries([*texts, *data.queries.values()])
        model.keep()
    db = lancedb.connect(tmp_path)
    tables = {key: filled(db, key.replace(" ", "-"), data, model) for key, model in models.items()}
    near = [("old -> new", "map", "recall@10", "by old vectors", "own row", "in all rows", "seconds")]
    judged = [("old -> new", *(f"{measure} {side}" for measure in MEASURES for side in SIDES))]
    for old, new in pairs:
        start = time.perf_counter()
        bridge = lr.fit_bridge(tables[old], models[new], source="text")
        seconds = time.perf_counter() - start
        means = judge(tables, models, old, new, bridge, data)
        figures = bridge.figures
        near.append(
            (
                f"{old} -> {new}",
                "centred" if bridge.map.centred else "plain",
                str(figures.recall),
                f"{figures.old_recall.mean:.3f}",
                f"{figures.self_hit.mean:.3f}",
                f"{recall_in_all(texts, models[old], models[new], bridge):.3f}",
                f"{seconds:.1f}",
            )
        )
        shown = [f"{means[side][measure]:.4f}" if side in means else "-" for measure in MEASURES for side in SIDES]
        judged.append((f"{old} -> {new}", *shown))
        found = {side: values["nDCG@10"] for side, values in means.items()}
        assert found["bridged"] > 0.5 * min(found["old"], found["new"])
        if {old, new} == {"MiniLM", "4 layers"}:
            assert found["bridged"] > found["unbridged"]
            assert figures.self_hit.low > 0.8
    print_table(f"{name}: {figures.rows:,} rows sampled of {len(texts):,}, without embedding them", near)
    print_table(f"{name}: {len(data.queries)} judged queries, exact search of {len(texts):,} rows", judged)


SIDES = ("old", "unbridged", "bridged", "new")


def judge(tables, models, old: str, new: str, bridge, data: lr.Dataset) -> dict[str, dict[str, float]]:
    """Return what queries find by each model in its own column, and by the new one in the old column."""
    encoders = {"old": models[old], "bridged": bridge.encoder(models[new], tables[old]), "new": models[new]}
    if models[old].dim == models[new].dim:
        encoders["unbridged"] = models[new]
    retrievers = {
        side: lr.Retriever(
            tables[new if side == "new" else old], query_type="vector", encoder=encoder, candidates=10, exact=True
        )
        for side, encoder in encoders.items()
    }
    return lr.evaluate(retrievers, data, MEASURES).means


def recall_in_all(texts: list[str], old: Remembering, new: Remembering, bridge) -> float:
    """Return the recall of every tenth row among all rows: some of them were fitted on, which helps a little."""
    asked = np.arange(0, len(texts), 10)
    vectors, stored = new.encode_documents(texts), old.encode_documents(texts)
    sides = (vectors[asked] @ vectors.T, bridge.map(vectors[asked]) @ stored.T)
    for scores in sides:
        scores[np.arange(len(asked)), asked] = -np.inf
    wanted, got = (np.argsort(-scores, axis=1)[:, :10] for scores in sides)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(wanted, got, strict=True)]))
