"""What the benchmarks share: real data and models trained on it.

Set LANCE_RERANK_DATA to a folder that holds the data sets `squad` and `nl2bash` in BEIR form.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import lance_rerank as lr
from lance_rerank import models


def pytest_collection_modifyitems(items):
    for item in items:
        if "benchmarks" in str(item.fspath):
            item.add_marker(pytest.mark.benchmark)
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the data sets are."""
    folder = os.environ.get("LANCE_RERANK_DATA")
    if not folder:
        pytest.skip("set LANCE_RERANK_DATA to a folder with squad/ and nl2bash/ in BEIR form")
    return Path(folder)


@pytest.fixture(scope="session")
def squad(data_folder) -> lr.Dataset:
    return lr.Dataset.from_beir(data_folder / "squad", split="test")


@pytest.fixture(scope="session")
def squad_cross_encoder(squad, pytestconfig) -> str:
    """The folder of a cross-encoder whose head was trained on squad: 1,000 queries, one positive, three negatives."""
    folder = pytestconfig.cache.mkdir("squad-cross-encoder")
    if not (folder / "config.json").exists():
        train_cross_encoder(squad.train, folder)
    return str(folder)


def train_cross_encoder(data: lr.Dataset, folder: Path, n_queries: int = 1000, n_negatives: int = 3) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    random.seed(0)
    torch.manual_seed(0)
    documents = {d.doc_id: d.text for d in data.corpus()}
    ids = list(documents)
    encoder = lr.SentenceEncoder()
    vectors = encoder.encode_documents(list(documents.values()))
    queries = random.sample(list(data.queries.items()), n_queries)
    nearest = np.argsort(-(encoder.encode_queries([text for _, text in queries]) @ vectors.T), axis=1)[:, :30]

    base = models.resolve_model(models.DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    model.train()
    group = n_negatives + 1
    for start in range(0, n_queries, 8):
        pairs = []
        for (query_id, text), order in zip(queries[start : start + 8], nearest[start : start + 8], strict=True):
            relevant = data.qrels[query_id]
            negatives = [ids[i] for i in order if ids[i] not in relevant]
            chosen = [next(iter(relevant)), *random.sample(negatives, n_negatives)]
            pairs += [(text, documents[doc_id]) for doc_id in chosen]
        features = tokenizer(pairs, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**features).logits.float().reshape(-1, group)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        loss.backward()
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        if start % 80 == 0:
            print(f"training a cross-encoder: query {start} of {n_queries}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
