"""What `fit_blend` makes of rerankers that help, that hurt, and that do both, on real data.

A guard is fitted on development queries and measured on test queries, once. The pools are small and the harmful
cross-encoders have one layer, to keep this to minutes: what is measured is the guard and not the cross-encoder.
"""

from __future__ import annotations

import random

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from lancedb.index import FTS
from measure import table as print_table

import lance_rerank as lr
from lance_rerank import arrow, models
from lance_rerank.evaluation.significance import compare

CANDIDATES = 20
DEV, TEST = 200, 300  # queries
LONGEST = 48  # tokens that a harmful cross-encoder reads
SEEDS = range(5)
SETS = ("squad", "nl2bash")


class Searched:
    """A data set in a table, with samples of its queries."""

    def __init__(self, datasets: list[lr.Dataset], folder) -> None:
        rows = [
            (f"{data.name}/{one.doc_id}", f"{one.title} {one.text}".strip())
            for data in datasets
            for one in data.corpus()
        ]
        texts = [text for _, text in rows]
        vectors = lr.SentenceEncoder().encode_documents(texts)
        self.table = lancedb.connect(folder).create_table(
            "docs",
            pa.table(
                {
                    "id": [doc_id for doc_id, _ in rows],
                    "text": texts,
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
                }
            ),
        )
        self.table.create_index("text", config=FTS(stem=True, remove_stop_words=True))
        self.hybrid = lr.Retriever(self.table, encoder=lr.SentenceEncoder(), candidates=CANDIDATES)
        self.dev = sampled([data.dev for data in datasets], DEV)
        self.test = sampled([data.test for data in datasets], TEST)
        self.train = sampled([data.train for data in datasets], 500)
        noting = Noting()
        self.candidates = {}  # of the test queries: the same for every reranker, so searched once
        for query_id, text in self.test.queries.items():
            self.hybrid.with_reranker(noting).retrieve(text, 1)
            self.candidates[query_id] = noting.seen


def sampled(datasets: list[lr.Dataset], n: int) -> lr.Dataset:
    queries, qrels = [], []
    for data in datasets:
        for query_id in random.Random(0).sample(list(data.queries), min(n // len(datasets), len(data.queries))):
            known = f"{data.name}/{query_id}"
            queries.append(lr.Query(known, data.queries[query_id]))
            qrels += [lr.Qrel(known, f"{data.name}/{doc}", grade) for doc, grade in data.qrels[query_id].items()]
    return lr.Dataset.from_memory(queries, qrels, name="+".join(data.name for data in datasets))


@pytest.fixture(scope="module")
def searched(data_folder, tmp_path_factory):
    made: dict[tuple[str, ...], Searched] = {}

    def get(*names: str) -> Searched:
        if names not in made:
            datasets = [lr.Dataset.from_beir(data_folder / name, split="test") for name in names]
            made[names] = Searched(datasets, tmp_path_factory.mktemp("-".join(names)))
        return made[names]

    return get


class Noting(lr.BaseReranker):
    """Keeps the candidates that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: arrow.Candidates | None = None

    def score_candidates(self, query, candidates):
        self.seen = candidates
        return np.zeros(candidates.n_rows)


def measured(data: Searched, reranker: lr.BaseReranker, seed: int = 0) -> tuple[str, dict[str, np.ndarray]]:
    """Return the guard's form, and nDCG@10 by query of everything on the test queries."""
    guard = lr.fit_blend(data.hybrid.with_reranker(reranker), data.dev, seed=seed)
    rerankers = {
        "first stage": lr.RRFReranker(),
        "reranker": reranker,
        "blend": lr.BlendReranker(reranker),
        "guard": guard,
    }
    runs = {
        name: {
            query_id: one.rerank_candidates(data.test.queries[query_id], candidates)["id"].to_pylist()
            for query_id, candidates in data.candidates.items()
        }
        for name, one in rerankers.items()
    }
    result = lr.evaluate_runs(runs, data.test, ["nDCG@10"])
    values = {name: np.array([one["nDCG@10"] for one in result.per_query[name].values()]) for name in runs}
    return guard.model.form, values


def row(name: str, form: str, values: dict[str, np.ndarray]) -> tuple[str, ...]:
    first = values["first stage"]
    guard = compare("first stage", "guard", "nDCG@10", list(values["guard"] - first))
    return (
        name,
        form,
        f"{first.mean():.4f}",
        *(f"{100 * (values[other] - first).mean():+.2f}" for other in ("reranker", "blend")),
        f"{100 * guard.difference:+.2f} ({100 * guard.low:+.2f} to {100 * guard.high:+.2f})",
    )


HEADER = ("reranker", "form chosen", "first stage", "reranker", "blend", "guard (95 % interval)")


class Remembering(lr.BaseReranker):
    """Asks a reranker once for each pair."""

    def __init__(self, inner: lr.BaseReranker) -> None:
        super().__init__()
        self.inner = inner
        self.known: dict[tuple[str, str], float] = {}

    def score_texts(self, query, texts):
        new = [text for text in dict.fromkeys(texts) if (query, text) not in self.known]
        if new:
            self.known |= {(query, text): s for text, s in zip(new, self.inner.score_texts(query, new), strict=True)}
        return [self.known[query, text] for text in texts]


def small_cross_encoder(folder, seed: int) -> None:
    """Save the first layer of the default model with a random head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    base = models.resolve_model(models.DEFAULT_MODEL)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, num_hidden_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def trained_on_shuffled_labels(data: Searched, folder, seed: int) -> None:
    """Train a small cross-encoder to prefer a document drawn by lot to the others of the pool."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    small_cross_encoder(folder, seed)
    rng = random.Random(seed)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    queries = list(data.train.queries.values())
    model.train()
    reading = lr.Retriever(data.table, encoder=data.hybrid.encoder, candidates=10, select="text")
    for start in range(0, len(queries), 8):
        pairs = []
        for query in queries[start : start + 8]:
            pool = [hit.row["text"] for hit in reading.retrieve(query, 8)]
            pairs += [(query, text) for text in rng.sample(pool, 4)]  # the first of the four counts as relevant
        features = tokenizer(pairs, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        logits = model(**features).logits.float().reshape(-1, 4)
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["random head", "shuffled labels"])
def test_a_harmful_reranker_does_no_harm(searched, tmp_path, name, kind):
    data = searched(name)
    rows, losses = [HEADER], []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        if kind == "random head":
            small_cross_encoder(folder, seed)
        else:
            trained_on_shuffled_labels(data, folder, seed)
        form, values = measured(
            data, Remembering(lr.CrossEncoderReranker(folder, device="cpu", max_length=LONGEST)), seed
        )
        rows.append(row(f"{kind}, seed {seed}", form, values))
        losses.append((values["first stage"] - values["guard"]).mean())
    print_table(f"{name}, {len(data.test.queries)} test queries: nDCG@10, points against the first stage", rows)
    assert max(losses) <= 0.005


def late_interaction(data: Searched) -> lr.LateInteractionReranker:
    colbert = lr.ColBERTEncoder()
    if "colbert" not in data.table.schema.names:
        lr.add_multivector_column(data.table, encoder=colbert)
    return lr.LateInteractionReranker(colbert, table=data.table)


def test_the_gain_of_a_helpful_reranker_is_kept(searched):
    data = searched("squad")
    form, values = measured(data, late_interaction(data))
    print_table(
        f"squad, {len(data.test.queries)} test queries: nDCG@10, points against the first stage",
        [HEADER, row("late interaction", form, values)],
    )
    gain = (values["reranker"] - values["first stage"]).mean()
    assert gain > 0, "else there is nothing to keep"
    assert (values["guard"] - values["first stage"]).mean() >= 0.9 * gain


def test_on_mixed_queries_the_guard_is_better_than_both(searched):
    """Late interaction with plain MiniLM helps on squad and does not on nl2bash; here they are one table."""
    data = searched(*SETS)
    form, values = measured(data, late_interaction(data))
    print_table(
        f"squad and nl2bash, {len(data.test.queries)} test queries: nDCG@10, points against the first stage",
        [HEADER, row("late interaction", form, values)],
    )
    assert values["guard"].mean() > max(values["first stage"].mean(), values["reranker"].mean())
