"""Training of models that turn a text into one vector a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from lance_rerank import models
from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError
from lance_rerank.extras import require
from lance_rerank.training import contrasts, preparing
from lance_rerank.training.batches import plan_batches
from lance_rerank.training.config import Progress, TrainingConfig, at_least, library_versions, weights_digest
from lance_rerank.training.dev import Candidates, RerankingDev
from lance_rerank.training.pairs import PairsRow
from lance_rerank.training.result import TrainedModel

if TYPE_CHECKING:
    from lance_rerank.training.loop import Job
    from lance_rerank.training.token_models import TokenModel

Loss = Literal["contrastive", "distillation"]
Rows: TypeAlias = "list[contrasts.ContrastRow] | list[PairsRow]"


def train_colbert(
    model: str | Path,
    examples: TrainingSet,
    *,
    output: str | Path,
    dev: Dataset | None = None,
    candidates: Candidates | None = None,
    loss: Loss = "contrastive",
    negatives: int | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    precision: models.Precision = "auto",
    device: str | None = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> TrainedModel:
    """Return a late-interaction model, trained to give the documents that answer a query the highest MaxSim.

    The model it begins with is a ColBERT checkpoint, run and saved by PyLate or by sentence-transformers 6, whichever
    is installed; or any encoder, which serves without projection: no layer is added, so training begins at the quality
    of its zero-shot MaxSim, and its folder stays that of an encoder. `ColBERTEncoder` loads either as it was trained.

    Training goes on in ``<output>.training``, checkpoints and all; `output` appears once it has ended.

    Parameters
    ----------
    model : str or Path
        A saved model's folder, or a hub id.
    examples : TrainingSet
        What to train on. Weights do not count here.
    output : str or Path
        Where the model is to be.
    dev : Dataset, optional
        What to measure nDCG@10 on, before training and while it goes on; the best weights are kept. By default none,
        and the last weights are kept.
    candidates : Mapping of str to sequence of (str, str), optional
        For `dev`: ids and texts of the documents that a first stage found, by query id.
    loss : {"contrastive", "distillation"}
        "contrastive" tells each positive from the query's negatives and from all documents of the other queries in its
        batch; no batch holds a document that answers two of its queries. "distillation" learns the examples' scores, a
        teacher's logits: the divergence of the softmax of MaxSim from theirs, over the documents of each query.
    negatives : int, optional
        Most negatives a query, each epoch the next ones; by default 1 for "contrastive", where any other document
        takes the place of one that a query lacks, and all for "distillation".
    epochs, learning_rate, warmup, weight_decay
        As usual; warmup is a part of the steps, and the rate falls to 0 after it.
    batch_size : int, default 32
        Positives a step for "contrastive"; pairs of a query and a document for "distillation".
    max_tokens : int, optional
        Where documents, and with a plain encoder queries, are cut off in training; by default where `ColBERTEncoder`
        does. The saved model keeps its own limits.
    seed : int, default 0
        Of data order and dropout: on one CPU, the same seed gives the same weights.
    precision : {"auto", "float32", "bfloat16"}, default "auto"
        What the model computes in; weights, optimizer and MaxSim are float32 in any case.
    device : str, optional
        "cuda", "mps" or "cpu"; by default the fastest there is.
    evaluate_every : int, optional
        Steps; by default a fifth of all.
    patience : int, optional
        End after that many measurements without a better one; by default never.
    checkpoint_every : int, optional
        Steps; by default a tenth of all, 50 at least and 500 at most. The last step is saved in any case.
    resume : bool, default False
        Go on with a run that was killed, from its newest checkpoint; begin where there is none.
    progress : callable, optional
        Called after each step with the steps done, the steps in all and the seconds left.
    trust_remote_code : bool, default False
        Run code that the model brings along.

    Raises
    ------
    ArgumentError
        An argument is out of range, or there is something else in the output folder.
    DatasetError
        The examples hold nothing to learn from, lack scores that the loss learns, or `dev` has nothing to measure by.
    ModelError
        The model cannot be loaded, or the loss became NaN.
    LanceRerankError
        A checkpoint could not be written.
    MissingExtra
        The extra ``train`` is not installed; or the model is a ColBERT checkpoint, and neither PyLate nor
        sentence-transformers 6 is.

    References
    ----------
    Khattab and Zaharia, SIGIR 2020 (ColBERT); Santhanam et al., arXiv:2112.01488 (distillation into it).

    Examples
    --------
    >>> trained = train_colbert("all-MiniLM-L6-v2", examples, output="models/colbert")  # doctest: +SKIP
    """
    for extra in ("accelerate", "datasets"):
        require(extra, extra="train")
    if loss not in get_args(Loss):
        raise ArgumentError(f"loss must be one of {', '.join(get_args(Loss))}; got {loss!r}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        at_least(name, value, 1)
    if negatives is None:
        negatives = 1 if loss == "contrastive" else max((len(query.negatives) for query in examples), default=0)
    at_least("negatives", negatives, 0)
    if (dev is None) != (candidates is None):
        raise ArgumentError("dev and candidates go together: the queries, and the documents to rank for each of them")
    measured = RerankingDev.of(dev, candidates) if dev is not None and candidates is not None else None
    device = preparing.checked_device(device)
    plan = contrasts.plan_rows if loss == "contrastive" else plan_scored_rows
    rows, batches = plan(examples, negatives=negatives, epochs=epochs, batch_size=batch_size, seed=seed)
    every, save_every = preparing.intervals(len(batches), evaluate_every, checkpoint_every)
    with preparing.undisturbed():
        encoder = _loaded(str(model), device, seed, trust_remote_code)
        encoder.max_tokens = preparing.limited(max_tokens or encoder.max_tokens, encoder.most_tokens, str(model))
        config = TrainingConfig(
            kind="colbert",
            base=str(model),
            base_digest=weights_digest(encoder.model),
            loss=loss,
            data_digest=examples.digest,
            dev_digest=measured.digest if measured else None,
            epochs=epochs,
            batch_size=batch_size,
            mini_batch_size=None,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            max_tokens=encoder.max_tokens,
            negatives=negatives,
            matryoshka=None,
            seed=seed,
            precision=preparing.precision_of(precision, device),
            device=device,
            evaluate_every=every,
            checkpoint_every=save_every,
            patience=patience,
            versions=library_versions(),
        )
        from lance_rerank.training.loop import run

        job = _job(encoder, config, rows, batches, measured)
        return run(job, config, preparing.output_path(output), resume, progress)


def plan_scored_rows(
    examples: TrainingSet, *, negatives: int, epochs: int, batch_size: int, seed: int
) -> tuple[list[PairsRow], list[list[int]]]:
    """Return each query with its documents and a teacher's scores as labels, of all epochs, and the rows of each step.

    Raises
    ------
    DatasetError
        Documents lack scores, or no query has documents with different ones.
    """
    _check_scores(examples)
    rows: list[PairsRow] = []
    batches: list[list[int]] = []
    for epoch in range(epochs):
        fresh = []
        for query in examples:
            chosen = [*query.positives, *preparing.in_turn(query.negatives, negatives, epoch)]
            scores = tuple(one.score for one in chosen if one.score is not None)
            if len(set(scores)) > 1:
                fresh.append(PairsRow(query.query_id, query.text, tuple(one.text for one in chosen), scores))
        if not fresh:
            continue
        documents = sum(len(row.documents) for row in fresh) / len(fresh)
        lengths = [max(map(len, row.documents)) for row in fresh]
        plan = plan_batches(lengths, max(1, round(batch_size / documents)), seed=seed, epoch=epoch)
        batches += [[len(rows) + at for at in batch] for batch in plan]
        rows += fresh
    if not batches:
        raise DatasetError(
            f"none of the {len(examples)} queries has documents with different scores, which 'distillation' compares: "
            "add documents that the teacher scored, or raise negatives"
        )
    return rows, batches


def _check_scores(examples: TrainingSet) -> None:
    documents = [(query.query_id, document) for query in examples for document in query.documents]
    without = [(query_id, document.doc_id) for query_id, document in documents if document.score is None]
    if without:
        query_id, doc_id = without[0]
        raise DatasetError(
            f"{len(without)} of {len(documents)} examples have no score, document {doc_id!r} of query {query_id!r} the "
            "first, and 'distillation' learns a teacher's scores. Score them all, or use 'contrastive'"
        )


def _loaded(name: str, device: str, seed: int, trust_remote_code: bool) -> TokenModel:
    from transformers import set_seed

    from lance_rerank.training.token_models import load

    set_seed(seed)  # for weights that a checkpoint lacks
    return load(name, device, trust_remote_code)


def _job(
    encoder: TokenModel,
    config: TrainingConfig,
    rows: Rows,
    batches: Sequence[Sequence[int]],
    dev: RerankingDev | None,
) -> Job:
    from lance_rerank.training import late_interaction
    from lance_rerank.training.loop import Job

    losses: dict[str, Any] = {
        "contrastive": late_interaction.ContrastiveLoss,
        "distillation": late_interaction.DistillationLoss,
    }
    return Job(
        model=encoder.model,
        trainer=encoder.trainer,
        arguments=encoder.arguments,
        columns={},  # the loss gets row numbers alone, and pads to the longest of its batch what it turns to tokens
        query_ids=[row.query_id for row in rows],
        batches=batches,
        pairs_per_row=[1 if config.loss == "contrastive" else len(row.documents) for row in rows],
        loss=losses[config.loss](encoder, rows, config.precision),
        labels=list,
        save=encoder.save,
        measure=preparing.measuring(dev, late_interaction.PairScorer(encoder), config),
    )
