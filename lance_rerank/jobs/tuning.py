"""From judged queries to a better embedder: mine, train, let the gate decide. Each stage is kept once it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from lance_rerank.datasets import Dataset
from lance_rerank.errors import ArgumentError
from lance_rerank.jobs.tables import table_model
from lance_rerank.mining import MiningResult, mine_negatives
from lance_rerank.mining.report import MiningReport
from lance_rerank.search.retriever import Retriever
from lance_rerank.training import TrainedModel, train_embedder
from lance_rerank.training.gate import judge_training
from lance_rerank.training.refusal import require_something_to_learn
from lance_rerank.training.result import FILE
from lance_rerank.training.serving import Serving
from lance_rerank.training.verdict import Verdict

Stage = Literal["mine", "train", "judge"]
OnStage = Callable[[Stage], None]
Progress = Callable[[int, int], None]

_SETTINGS, _MINED, _VERDICT = "settings.json", "negatives.parquet", "verdict.json"


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How an embedder is tuned; the names are those of `mine_negatives` and `train_embedder`.

    Attributes
    ----------
    model : str
        What training begins with.
    judge : str
        Who orders the candidates for negatives.
    per_query : int
        Negatives to mine for each query.
    negatives : int
        How many of them a query meets in an epoch.
    epochs, batch_size, max_tokens, seed : int
        Of the training; None for the model's own limit of tokens.
    learning_rate : float
        Its highest.
    """

    model: str
    judge: str = "bm25"
    per_query: int = 7
    negatives: int = 1
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 5e-5
    max_tokens: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a tuning; prints what each stage says.

    Attributes
    ----------
    mining : MiningReport
        How the negatives were come by.
    trained : TrainedModel
        The model, whether it is to be used or not.
    verdict : Verdict
        Whether it is.
    """

    mining: MiningReport
    trained: TrainedModel
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.mining}\n{self.trained}\n{self.verdict}"


def tune_embedder(
    retriever: Retriever,
    data: Dataset,
    output: str | Path,
    *,
    settings: TuningSettings | None = None,
    max_loss: float = 0.005,
    max_forgetting: float = 0.01,
    column: str = "text",
    on_stage: OnStage | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Return an embedder trained on a data set's judged queries, and whether to use it in place of the table's.

    Negatives are mined by the vector leg, the model learns on the training split, and the gate judges it on the dev
    split in the search that the retriever does, its reranker with it. The test split is not touched. Beside the output,
    in ``<output>.tuning``, stands what is done: after a kill the same call goes on there.

    Parameters
    ----------
    retriever : Retriever
        The search in use.
    data : Dataset
        Has the splits ``train`` and ``dev``, and a corpus where nothing was held back from the table.
    output : str or Path
        Where the model is to be.
    settings : TuningSettings, optional
        By default the table's own model, and what else is usual.
    max_loss, max_forgetting : float
        Of the gate: see `judge_training`.
    column : str, default "text"
        The documents' texts in the table.
    on_stage : callable, optional
        Called with "mine", "train" or "judge" as they begin.
    progress : callable, optional
        Called with (done, total) within a stage.

    Raises
    ------
    ArgumentError
        The table names no model and none is given; or the output was begun with other settings or data.
    DatasetError
        A split is missing, or holds nothing to learn from.
    GateError
        The model ranks first already what it would be trained on.
    ModelError
        A model cannot be loaded, or training went astray.

    Examples
    --------
    >>> tuned = tune_embedder(lance_rerank.Retriever(docs), data, "models/embedder")  # doctest: +SKIP
    >>> print(tuned.verdict)  # doctest: +SKIP
    """
    train, dev = data.train, data.dev
    settings = settings or TuningSettings(tuning_model(retriever, output))
    work = _work_folder(output)
    _begin(work, settings, train, dev)

    def begins(stage: Stage) -> None:
        if on_stage is not None:
            on_stage(stage)

    if not (work / _MINED).exists():
        begins("mine")
        candidates = Retriever(
            retriever.table,
            query_type="vector",
            id_column=retriever.id_column,
            encoder=retriever.encoder,
            where=retriever.where,
            candidates=retriever.candidates,
        )
        mine_negatives(
            candidates,
            train,
            per_query=settings.per_query,
            judge=settings.judge,
            column=column,
            seed=settings.seed,
            progress=progress,
        ).save(work / _MINED)
    mined = MiningResult.load(work / _MINED)
    trained = _trained(mined, dev, retriever, Path(output), settings, column, begins, progress)
    if not (work / _VERDICT).exists():
        begins("judge")
        verdict = judge_training(
            settings.model,
            str(trained.path),
            kind="embedder",
            dev=dev,
            serving=Serving.of(retriever, text_column=column),
            examples=mined.examples,
            max_loss=max_loss,
            max_forgetting=max_forgetting,
            seed=settings.seed,
            progress=None if progress is None else lambda _, done, total: progress(done, total),
        )
        _write(work / _VERDICT, verdict.to_json())
    return Tuned(mined.report, trained, Verdict.from_json((work / _VERDICT).read_text("utf-8")))


def _trained(
    mined: MiningResult,
    dev: Dataset,
    retriever: Retriever,
    output: Path,
    settings: TuningSettings,
    column: str,
    begins: OnStage,
    progress: Progress | None,
) -> TrainedModel:
    if (output / FILE).exists():
        return TrainedModel.load(output)
    begins("train")
    require_something_to_learn(settings.model, mined.examples, kind="embedder", seed=settings.seed)
    return train_embedder(
        settings.model,
        mined.examples,
        output=output,
        dev=dev,
        corpus=retriever.table,
        id_column=retriever.id_column,
        text_column=column,
        negatives=settings.negatives,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        resume=True,
        progress=None if progress is None else lambda done, total, _: progress(done, total),
    )


def tuning_model(retriever: Retriever, output: str | Path) -> str:
    """Return what training begins with: what it began with, or the model that the table names.

    Raises
    ------
    ArgumentError
        The table names none.
    """
    begun = _work_folder(output) / _SETTINGS
    if begun.exists():  # the table may name the tuned model by now
        return str(json.loads(begun.read_text("utf-8"))["model"])
    found = table_model(retriever.table, retriever.vector_columns[0]) if retriever.vector_columns else None
    if found is None:
        raise ArgumentError(
            f"table {retriever.table.name!r} names no sentence-transformers model that its vectors come from. Name the "
            "one to begin with: TuningSettings(model), or --model"
        )
    return found.name


def _work_folder(output: str | Path) -> Path:
    return Path(f"{os.fspath(output)}.tuning")


def _begin(work: Path, settings: TuningSettings, train: Dataset, dev: Dataset) -> None:
    """Write down what is done in a folder, or see that it is what was begun there."""
    said = {**asdict(settings), "train": _digest(train), "dev": _digest(dev)}
    path = work / _SETTINGS
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(said, indent=1))
        return
    begun = json.loads(path.read_text("utf-8"))
    changed = [name for name in said if begun.get(name) != said[name]]
    if changed:
        raise ArgumentError(
            f"{work} was begun with other {', '.join(changed)}: repeat what it was begun with, choose another output, "
            "or remove the folder to begin anew"
        )


def _digest(dataset: Dataset) -> str:
    content = json.dumps([dataset.queries, dataset.qrels], sort_keys=True)
    return blake2b(content.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
