"""Training of models that read a query and a document together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lance_rerank import models
from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.extras import require
from lance_rerank.training import preparing
from lance_rerank.training.config import Progress, TrainingConfig, at_least, library_versions, weights_digest
from lance_rerank.training.dev import Candidates, RerankingDev
from lance_rerank.training.pairs import LISTWISE, Loss, PairsRow, plan_rows
from lance_rerank.training.result import TrainedModel

if TYPE_CHECKING:
    from lance_rerank.training.loop import Job


def train_cross_encoder(
    model: str | Path,
    examples: TrainingSet,
    *,
    output: str | Path,
    dev: Dataset | None = None,
    candidates: Candidates | None = None,
    loss: Loss = "bce",
    negatives: int = 4,
    epochs: int = 1,
    batch_size: int = 32,
    mini_batch_size: int | None = None,
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
    """Return a cross-encoder, trained to score the documents that answer a query above those that do not.

    The model it begins with is an encoder, which gets a fresh head, or a cross-encoder with one output. What it makes
    are logits, without an activation; `CrossEncoderReranker` loads it as it is.

    Training goes on in ``<output>.training``, checkpoints and all; `output` appears once it has ended.

    Parameters
    ----------
    model : str or Path
        A saved model's folder, or a hub id.
    examples : TrainingSet
        What to train on; needs negatives. Best are those that the search in use finds.
    output : str or Path
        Where the model is to be.
    dev : Dataset, optional
        What to measure nDCG@10 on, before training and while it goes on; the best weights are kept. By default none,
        and the last weights are kept.
    candidates : Mapping of str to sequence of (str, str), optional
        For `dev`: ids and texts of the documents that a first stage found, by query id.
    loss : {"bce", "mse", "margin-mse", "ranknet", "listnet", "lambda"}
        One document at a time: "bce" takes labels from 0 to 1, "mse" any; both multiply by the examples' weights,
        which the others leave out. Two at a time: "margin-mse" learns the differences of the examples' scores or,
        where there are none, of their labels. All of a query at a time: "ranknet", "listnet" (cross-entropy of a
        softmax against the labels as shares) and "lambda" (LambdaLoss, for grades up to 10).
    negatives : int, default 4
        Most negatives a query, each epoch the next ones.
    epochs, learning_rate, warmup, weight_decay
        As usual; warmup is a part of the steps, and the rate falls to 0 after it.
    batch_size : int, default 32
        Pairs of a query and a document a step, about: queries are not torn apart where the loss looks at several
        documents.
    mini_batch_size : int, optional
        Pairs in the model at a time, for the losses over all of a query; by default `batch_size`.
    max_tokens : int, optional
        Where pairs are cut off in training; the saved model keeps its own limit.
    seed : int, default 0
        Of the fresh head, data order and dropout: on one CPU, the same seed gives the same weights.
    precision : {"auto", "float32", "bfloat16"}, default "auto"
        What the model computes in; weights and optimizer are float32 in any case.
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
        The examples hold nothing to learn from, or labels that the loss does not take.
    ModelError
        The model cannot be loaded, has several outputs, or the loss became NaN.
    LanceRerankError
        A checkpoint could not be written.
    MissingExtra
        The extra ``train`` is not installed.

    References
    ----------
    Burges et al. 2005 (RankNet); Cao et al. 2007 (ListNet); Wang et al. 2018 (LambdaLoss); Hofstätter et al.,
    arXiv:2010.02666 (margin MSE).

    Examples
    --------
    >>> trained = train_cross_encoder("all-MiniLM-L6-v2", examples, output="models/reranker", loss="listnet")
    ... # doctest: +SKIP
    """
    for extra in ("accelerate", "datasets"):
        require(extra, extra="train")
    if loss not in get_args(Loss):
        raise ArgumentError(f"loss must be one of {', '.join(get_args(Loss))}; got {loss!r}")
    if mini_batch_size is not None and loss not in LISTWISE:
        raise ArgumentError(f"mini_batch_size is for the losses {', '.join(LISTWISE)}; {loss!r} has all in memory")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("negatives", negatives)):
        at_least(name, value, 1)
    if (dev is None) != (candidates is None):
        raise ArgumentError("dev and candidates go together: the queries, and the documents to rank for each of them")
    measured = RerankingDev.of(dev, candidates) if dev is not None and candidates is not None else None
    device = preparing.checked_device(device)
    rows, batches = plan_rows(examples, loss, negatives=negatives, epochs=epochs, batch_size=batch_size, seed=seed)
    every, save_every = preparing.intervals(len(batches), evaluate_every, checkpoint_every)
    with preparing.undisturbed():
        loaded = _loaded(str(model), device, seed, trust_remote_code)
        config = TrainingConfig(
            kind="cross-encoder",
            base=str(model),
            base_digest=weights_digest(loaded),
            loss=loss,
            data_digest=examples.digest,
            dev_digest=measured.digest if measured else None,
            epochs=epochs,
            batch_size=batch_size,
            mini_batch_size=mini_batch_size or (batch_size if loss in LISTWISE else None),
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            max_tokens=preparing.limited(max_tokens, loaded.tokenizer.model_max_length, str(model)),
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

        job = _job(loaded, config, rows, batches, measured)
        return run(job, config, preparing.output_path(output), resume, progress)


def _loaded(name: str, device: str, seed: int, trust_remote_code: bool) -> Any:
    """Return a sentence-transformers cross-encoder in float32; an encoder gets a head."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import set_seed

    set_seed(seed)  # for the fresh head
    with models.loading(name):
        model = CrossEncoder(
            models.resolve_model(name),
            device=device,
            trust_remote_code=trust_remote_code,
            activation_fn=torch.nn.Identity(),
        )
    if model.num_labels != 1:
        raise ModelError(f"{name!r} has {model.num_labels} outputs; a reranker has one")
    model.float()
    preparing.require_tokenizer(model, name, _transformer(model))
    preparing.choose_attention(_transformer(model), device)
    if model.tokenizer.sep_token is None and model.tokenizer.eos_token is None:
        raise ModelError(f"the tokenizer of {name!r} has no separator, so a pair of texts would read as one text")
    return model


def _transformer(model: Any) -> Any:
    """Return the transformers model inside, which has another place from release 6 on."""
    import torch

    return model[0].auto_model if isinstance(model, torch.nn.Sequential) else model.model


def _job(
    model: Any,
    config: TrainingConfig,
    rows: Sequence[PairsRow],
    batches: Sequence[Sequence[int]],
    dev: RerankingDev | None,
) -> Job:
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    from lance_rerank.training.loop import Job

    columns: dict[str, Sequence[Any]] = {"query": [row.query for row in rows]}
    if config.loss in LISTWISE:
        columns["documents"] = [list(row.documents) for row in rows]
    else:
        names = ("document", "worse")
        columns |= {names[place]: [row.documents[place] for row in rows] for place in range(len(rows[0].documents))}
    own_limit = model.tokenizer.model_max_length
    model.tokenizer.model_max_length = config.max_tokens

    def save(folder: Path) -> None:
        model.tokenizer.model_max_length = own_limit
        model.save_pretrained(str(folder))

    return Job(
        model=model,
        trainer=CrossEncoderTrainer,
        arguments=CrossEncoderTrainingArguments,
        columns=columns,
        query_ids=[row.query_id for row in rows],
        batches=batches,
        pairs_per_row=[len(row.documents) for row in rows],
        loss=_loss(model, config),
        save=save,
        labels=_labels(rows, config),
        weights=[row.weight for row in rows],
        measure=preparing.measuring(dev, model, config),
    )


def _loss(model: Any, config: TrainingConfig) -> Any:
    from sentence_transformers.cross_encoder import losses

    if config.loss == "bce":
        return losses.BinaryCrossEntropyLoss(model, reduction="none")  # one value a row, to be weighted
    if config.loss == "mse":
        return losses.MSELoss(model, reduction="none")
    if config.loss == "margin-mse":
        return losses.MarginMSELoss(model)
    listwise = {"ranknet": losses.RankNetLoss, "listnet": losses.ListNetLoss, "lambda": losses.LambdaLoss}
    return listwise[config.loss](model, mini_batch_size=config.mini_batch_size)


def _labels(rows: Sequence[PairsRow], config: TrainingConfig) -> Callable[[Sequence[int]], Any]:
    """Return what gives a loss its labels, by row number."""
    import torch

    def labels(places: Sequence[int]) -> Any:
        if config.loss not in LISTWISE:
            return torch.tensor([rows[place].labels[0] for place in places], device=config.device)
        listed = [torch.tensor(rows[place].labels, device=config.device) for place in places]
        # ListNet takes the softmax of the labels: of their logarithms, that is each label's share
        return [torch.log(one) for one in listed] if config.loss == "listnet" else listed

    return labels
