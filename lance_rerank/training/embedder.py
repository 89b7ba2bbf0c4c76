"""Training of models that turn a text into one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lance_rerank import models
from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.errors import ArgumentError, DatasetError
from lance_rerank.extras import require
from lance_rerank.training import colbert, pairs, preparing
from lance_rerank.training.config import Progress, TrainingConfig, at_least, library_versions, weights_digest
from lance_rerank.training.contrasts import ContrastRow, plan_rows
from lance_rerank.training.dev import Corpus, RetrievalDev, retrieval_dev
from lance_rerank.training.pairs import PairsRow
from lance_rerank.training.result import TrainedModel

if TYPE_CHECKING:
    from lance_rerank.training.loop import Job

Loss = Literal["multiple-negatives", "cached-multiple-negatives", "margin-mse", "distillation"]
_SCORED = ("margin-mse", "distillation")
_SCALE = 20.0  # of cosines, as in the contrastive losses: a teacher's logits are farther apart than 2


def train_embedder(
    model: str | Path,
    examples: TrainingSet,
    *,
    output: str | Path,
    dev: Dataset | None = None,
    corpus: Corpus | None = None,
    id_column: str = "id",
    text_column: str = "text",
    distractors: int = 2000,
    loss: Loss = "multiple-negatives",
    negatives: int = 1,
    matryoshka: Sequence[int] | None = None,
    epochs: int = 1,
    batch_size: int = 64,
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
    """Return a model of sentence-transformers, trained to put queries near the documents that answer them.

    By default each positive of a query is told from the query's own negatives and from the documents of the other
    queries in its batch. No batch holds a document that answers two of its queries, be it as a positive or a negative.
    Weights and scores of the examples do not count then: these losses know right and wrong alone, and any label above
    0 is right. Two other losses learn the examples' scores, a teacher's logits: see `distill`.

    Training goes on in ``<output>.training``, checkpoints and all; `output` appears once it has ended.

    Parameters
    ----------
    model : str or Path
        A saved model's folder, or a hub id.
    examples : TrainingSet
        What to train on.
    output : str or Path
        Where the model is to be.
    dev : Dataset, optional
        What to measure nDCG@10 on, before training and while it goes on; the best weights are kept. By default none,
        and the last weights are kept.
    corpus : Mapping, iterable of (id, text) or Table, optional
        Where the documents of `dev` are; by default its own corpus.
    id_column, text_column : str
        Of a table.
    distractors : int, default 2000
        How many documents beside the judged ones are ranked in a measurement; drawn once, by `seed`.
    loss : {"multiple-negatives", "cached-multiple-negatives", "margin-mse", "distillation"}
        The cached form (GradCache) gives the same gradient, with no more than `mini_batch_size` texts in memory at a
        time, for a second forward pass. "margin-mse" learns by how much an answer scores above each negative,
        "distillation" the softmax over the documents of a query; both set 20 times the cosine against the scores.
    negatives : int, default 1
        Negatives a query, each epoch the next ones. Where a query has fewer, any other document takes the place; not
        so for the losses that learn scores.
    matryoshka : sequence of int, optional
        Dimensions to which vectors may later be cut off; for the first two losses.
    epochs, batch_size, learning_rate, warmup, weight_decay
        As usual; warmup is a part of the steps, and the rate falls to 0 after it.
    mini_batch_size : int, optional
        For the cached loss; by default 32.
    max_tokens : int, optional
        Where texts are cut off in training; the saved model keeps its own limit.
    seed : int, default 0
        Of data order and dropout: on one CPU, the same seed gives the same weights.
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
        The examples hold nothing to learn from, lack scores that the loss learns, or `dev` has nothing to measure by.
    ModelError
        The model cannot be loaded, or the loss became NaN.
    LanceRerankError
        A checkpoint could not be written.
    MissingExtra
        The extra ``train`` is not installed.

    References
    ----------
    Henderson et al., arXiv:1705.00652 (multiple negatives); Gao et al., arXiv:2101.06983 (GradCache); Kusupati et al.,
    arXiv:2205.13147 (Matryoshka); Hofstätter et al., arXiv:2010.02666 (margin MSE).

    Examples
    --------
    >>> trained = train_embedder("all-MiniLM-L6-v2", examples, output="models/embedder", dev=data.dev)
    ... # doctest: +SKIP
    """
    for extra in ("accelerate", "datasets"):
        require(extra, extra="train")
    if loss not in get_args(Loss):
        raise ArgumentError(f"loss must be one of {', '.join(get_args(Loss))}; got {loss!r}")
    if mini_batch_size is not None and loss != "cached-multiple-negatives":
        raise ArgumentError("mini_batch_size is for loss='cached-multiple-negatives'; the other has all in memory")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        at_least(name, value, 1)
    if matryoshka is not None and loss in _SCORED:
        raise ArgumentError(f"matryoshka is for the losses that tell right from wrong; {loss!r} learns scores")
    at_least("negatives", negatives, 1 if loss in _SCORED else 0)
    at_least("distractors", distractors, 0)
    device = preparing.checked_device(device)
    rows, batches = _planned(examples, loss, negatives, epochs, batch_size, seed)
    measured = retrieval_dev(dev, corpus, id_column, text_column, distractors, seed) if dev is not None else None
    every, save_every = preparing.intervals(len(batches), evaluate_every, checkpoint_every)
    with preparing.undisturbed():
        loaded = _loaded(str(model), device, seed, trust_remote_code)
        config = TrainingConfig(
            kind="embedder",
            base=str(model),
            base_digest=weights_digest(loaded),
            loss=loss,
            data_digest=examples.digest,
            dev_digest=measured.digest if measured else None,
            epochs=epochs,
            batch_size=batch_size,
            mini_batch_size=mini_batch_size or (32 if loss == "cached-multiple-negatives" else None),
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            max_tokens=preparing.limited(max_tokens, loaded.max_seq_length, str(model)),
            negatives=negatives,
            matryoshka=_dimensions(matryoshka, models.embedding_dim(loaded)),
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


def _planned(
    examples: TrainingSet, loss: str, negatives: int, epochs: int, batch_size: int, seed: int
) -> tuple[Sequence[ContrastRow] | Sequence[PairsRow], list[list[int]]]:
    """Return the rows of all epochs, as wide as each other, and which of them make up each step."""
    if loss not in _SCORED:
        return plan_rows(examples, negatives=negatives, epochs=epochs, batch_size=batch_size, seed=seed)
    without = examples.rows["score"].null_count
    if without:
        raise DatasetError(
            f"{without} of {examples.rows.num_rows} examples have no score, and {loss!r} learns a teacher's: have them "
            "all scored by lance_rerank.score_examples, or use 'multiple-negatives'"
        )
    if loss == "margin-mse":
        return pairs.plan_rows(examples, loss, negatives=negatives, epochs=epochs, batch_size=batch_size, seed=seed)
    rows, batches = colbert.plan_scored_rows(
        examples, negatives=negatives, epochs=epochs, batch_size=batch_size, seed=seed
    )
    width = max(len(row.documents) for row in rows)
    return [_widened(row, width) for row in rows], batches


def _widened(row: PairsRow, width: int) -> PairsRow:
    """Return a row with its documents repeated in turn: the divergence stays 0 where it was."""
    turns = [place % len(row.documents) for place in range(width)]
    return row._replace(
        documents=tuple(row.documents[turn] for turn in turns), labels=tuple(row.labels[turn] for turn in turns)
    )


def _loaded(name: str, device: str, seed: int, trust_remote_code: bool) -> Any:
    """Return a sentence-transformers model in float32."""
    from sentence_transformers import SentenceTransformer
    from transformers import set_seed

    set_seed(seed)  # for weights that a checkpoint lacks
    with models.loading(name):
        model = SentenceTransformer(models.resolve_model(name), device=device, trust_remote_code=trust_remote_code)
        model.float()
        preparing.require_tokenizer(model, name, model[0].auto_model)
        preparing.choose_attention(model[0].auto_model, device)
    return model


def _dimensions(matryoshka: Sequence[int] | None, dim: int) -> tuple[int, ...] | None:
    if matryoshka is None:
        return None
    dims = tuple(sorted({*matryoshka}, reverse=True))
    if not dims or not all(isinstance(one, int) and 0 < one <= dim for one in dims):
        raise ArgumentError(f"matryoshka lists dimensions from 1 to the model's {dim}, got {list(matryoshka)}")
    return dims


def _job(
    model: Any,
    config: TrainingConfig,
    rows: Sequence[ContrastRow] | Sequence[PairsRow],
    batches: Sequence[Sequence[int]],
    dev: RetrievalDev | None,
) -> Job:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    from lance_rerank.training.loop import Job

    names = ["positive", *(f"negative_{place}" for place in range(1, len(rows[0].documents)))]
    columns: dict[str, Sequence[str]] = {"query": [row.query for row in rows]}
    columns |= {name: [row.documents[place] for row in rows] for place, name in enumerate(names)}
    own_limit = model.max_seq_length
    model.max_seq_length = config.max_tokens

    def save(folder: Path) -> None:
        model.max_seq_length = own_limit
        model.save_pretrained(str(folder), create_model_card=False)

    return Job(
        model=model,
        trainer=SentenceTransformerTrainer,
        arguments=SentenceTransformerTrainingArguments,
        columns=columns,
        query_ids=[row.query_id for row in rows],
        batches=batches,
        pairs_per_row=[len({*row.documents}) if isinstance(row, PairsRow) else 1 for row in rows],
        loss=_loss(model, config),
        labels=_labels(rows, config.device),
        save=save,
        measure=preparing.measuring(dev, model, config),
        prompts=_prompts(model, names),
    )


def _loss(model: Any, config: TrainingConfig) -> Any:
    from sentence_transformers import losses

    if config.loss == "margin-mse":
        return losses.MarginMSELoss(model, similarity_fct=_scaled_cosine)
    if config.loss == "distillation":
        return losses.DistillKLDivLoss(model, similarity_fct=_scaled_cosine)
    if config.loss == "cached-multiple-negatives":
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=config.mini_batch_size)
    else:
        loss = losses.MultipleNegativesRankingLoss(model)
    return losses.MatryoshkaLoss(model, loss, list(config.matryoshka)) if config.matryoshka else loss


def _scaled_cosine(queries: Any, documents: Any) -> Any:
    from sentence_transformers.util import pairwise_cos_sim

    return _SCALE * pairwise_cos_sim(queries, documents)


def _labels(rows: Sequence[ContrastRow] | Sequence[PairsRow], device: str) -> Callable[[Sequence[int]], Any] | None:
    """Return what gives a loss a teacher's scores, or their differences, by row number; None where it has no use."""
    import torch

    scores = [row.labels for row in rows if isinstance(row, PairsRow)]
    return (lambda places: torch.tensor([scores[place] for place in places], device=device)) if scores else None


def _prompts(model: Any, documents: Sequence[str]) -> dict[str, str]:
    """Return what the model puts before texts when it is used, by column, so that it is trained on the same."""
    known = model.prompts
    of_documents = next((known[name] for name in ("document", "passage", "corpus") if known.get(name)), "")
    prompts = {"query": known.get("query") or "", **dict.fromkeys(documents, of_documents)}
    return {column: prompt for column, prompt in prompts.items() if prompt}
