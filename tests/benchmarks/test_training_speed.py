"""How much faster training is than sentence-transformers' own trainer as it comes, and whether it learns as much.

Both train all-MiniLM-L6-v2 on the same pairs, with the same batch size, token limit and rate; theirs in float32 with
random batches, ours as it comes. Compared is the processor time of one thread for the steps, without loading and
saving: in a run of minutes these would count, in one of an hour they do not, and a busy machine slows neither.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from measure import table

import lance_rerank as lr
from lance_rerank import models
from lance_rerank.datasets import LabelledDocument, TrainingQuery, TrainingSet
from lance_rerank.training import train_cross_encoder, train_embedder
from lance_rerank.training.dev import RerankingDev, retrieval_dev
from lance_rerank.training.preparing import autocast

BASE = models.DEFAULT_MODEL
PAIRS = 256
MAX_TOKENS = 128
RATE = 5e-5


@pytest.fixture(scope="module")
def data(data_folder) -> lr.Dataset:
    return lr.Dataset.from_beir(data_folder / "nl2bash", split="train")


@pytest.fixture(scope="module")
def texts(data) -> dict[str, str]:
    return {document.doc_id: f"{document.title} {document.text}".strip() for document in data.corpus()}


@pytest.fixture(scope="module")
def examples(data, texts) -> TrainingSet:
    """One positive and one random negative a query."""
    rng = np.random.default_rng(0)
    ids = list(texts)
    queries = []
    for query_id in rng.permutation(list(data.queries))[:PAIRS].tolist():
        positive = next(doc_id for doc_id, grade in data.qrels[query_id].items() if grade > 0)
        negative = next(ids[at] for at in rng.integers(len(ids), size=99) if ids[at] not in data.qrels[query_id])
        found = (LabelledDocument(positive, texts[positive], 1.0), LabelledDocument(negative, texts[negative], 0.0))
        queries.append(TrainingQuery(query_id, data.queries[query_id], found))
    return TrainingSet.of(queries)


@pytest.fixture(scope="module")
def dev(data) -> lr.Dataset:
    part = data.dev
    kept = list(part.queries)[:150]
    return lr.Dataset(
        part.name, part.split, part.folder, {q: part.queries[q] for q in kept}, {q: part.qrels[q] for q in kept}
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(model, trainer, arguments, columns, loss, batch_size, folder) -> float:
    """Train with the library as it comes and return the seconds of processor time."""
    from datasets import Dataset

    settings = {"per_device_train_batch_size": batch_size, "num_train_epochs": 1, "learning_rate": RATE}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    args = arguments(output_dir=str(folder), warmup_steps=PAIRS // batch_size // 10, **settings, **quiet)
    training = trainer(model=model, args=args, train_dataset=Dataset.from_dict(columns), loss=loss(model))
    start = time.process_time()
    training.train()
    return time.process_time() - start


class StepClock:
    """A progress that knows how long the steps took; the first counts as the mean of the others."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, done: int, total: int, seconds_left: float) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> float:
        steps = len(self.ends)
        return (self.ends[-1] - self.ends[0]) * steps / (steps - 1)


def report(title: str, seconds: dict[str, float], pairs: int, quality: dict[str, float]) -> float:
    ratio = seconds["library, float32"] / seconds["ours"]
    rows = [(name, f"{pairs / spent:.1f}", f"{quality[name]:.4f}") for name, spent in seconds.items()]
    rows.append(("before", "", f"{quality['before']:.4f}"))
    table(f"{title}: {pairs} pairs, one thread, {ratio:.2f}x", [("", "pairs/s", "dev nDCG@10"), *rows])
    return ratio


def test_an_embedder_trains_twice_as_fast_and_as_well(examples, dev, texts, tmp_path):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    measured = retrieval_dev(dev, texts, "id", "text", 500, 0)
    model = SentenceTransformer(models.resolve_model(BASE), device="cpu")
    model.max_seq_length = MAX_TOKENS
    quality = {"before": measured.measure(model, autocast("bfloat16", "cpu"))}
    columns = {"query": [], "positive": [], "negative": []}
    for query in examples:
        for column, text in zip(columns, (query.text, *(document.text for document in query.documents)), strict=True):
            columns[column].append(text)
    classes = (SentenceTransformerTrainer, SentenceTransformerTrainingArguments)
    seconds = {
        "library, float32": theirs(
            model, *classes, columns, losses.MultipleNegativesRankingLoss, 64, tmp_path / "theirs"
        )
    }
    quality["library, float32"] = measured.measure(model, autocast("bfloat16", "cpu"))

    clock = StepClock()
    settings = {"max_tokens": MAX_TOKENS, "learning_rate": RATE, "device": "cpu", "progress": clock}
    trained = train_embedder(BASE, examples, output=tmp_path / "ours", **settings)
    seconds["ours"] = clock.seconds
    model = SentenceTransformer(str(trained.path), device="cpu")
    quality["ours"] = measured.measure(model, autocast("bfloat16", "cpu"))
    ratio = report("embedder", seconds, PAIRS, quality)
    assert ratio >= 2
    assert quality["ours"] >= quality["library, float32"] - 0.02
    assert quality["ours"] > quality["before"]


def test_a_cross_encoder_trains_two_and_a_half_times_as_fast_and_as_well(examples, dev, texts, tmp_path):
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    rng = np.random.default_rng(1)
    ids = list(texts)
    found = {query_id: [*judged, *rng.choice(ids, 9).tolist()] for query_id, judged in list(dev.qrels.items())[:40]}
    candidates = {
        query_id: [(doc_id, texts[doc_id]) for doc_id in dict.fromkeys(some)] for query_id, some in found.items()
    }
    part = lr.Dataset("dev", "dev", None, {q: dev.queries[q] for q in found}, {q: dev.qrels[q] for q in found})
    measured = RerankingDev.of(part, candidates)
    torch.manual_seed(0)
    model = CrossEncoder(models.resolve_model(BASE), device="cpu", num_labels=1, max_length=MAX_TOKENS)
    quality = {"before": measured.measure(model, autocast("bfloat16", "cpu"))}
    pairs = [(query.text, document.text, document.label) for query in examples for document in query.documents]
    columns = dict(zip(("query", "document", "label"), map(list, zip(*pairs, strict=True)), strict=True))
    classes = (CrossEncoderTrainer, CrossEncoderTrainingArguments)
    seconds = {
        "library, float32": theirs(model, *classes, columns, losses.BinaryCrossEntropyLoss, 32, tmp_path / "theirs")
    }
    quality["library, float32"] = measured.measure(model, autocast("bfloat16", "cpu"))

    clock = StepClock()
    settings = {"max_tokens": MAX_TOKENS, "learning_rate": RATE, "device": "cpu", "progress": clock}
    trained = train_cross_encoder(BASE, examples, output=tmp_path / "ours", **settings)
    seconds["ours"] = clock.seconds
    model = CrossEncoder(str(trained.path), device="cpu")
    quality["ours"] = measured.measure(model, autocast("bfloat16", "cpu"))
    ratio = report("cross-encoder", seconds, len(pairs), quality)
    assert ratio >= 2.5
    assert quality["ours"] >= quality["library, float32"] - 0.05, "of 40 queries"
    assert quality["ours"] > quality["before"]
