"""The training loop that all trainers share: sentence-transformers' own, told what to train on and when to stop.

Needs the extra ``train``; imported when training begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import PrinterCallback, TrainerCallback, set_seed

from lance_rerank.errors import ModelError
from lance_rerank.extras import require
from lance_rerank.training.checkpoints import WorkFolder, write_json
from lance_rerank.training.config import Progress, TrainingConfig
from lance_rerank.training.result import FILE, Measurement, TrainedModel


@dataclass(frozen=True)
class Job:
    """What a trainer hands to the loop.

    Attributes
    ----------
    model : Any
        Of sentence-transformers, float32, on its device.
    trainer, arguments : type
        sentence-transformers' classes for this kind of model.
    columns : Mapping of str to sequence
        What the loss is called with, by row.
    query_ids : sequence of str
        By row, for messages.
    batches : sequence of sequence of int
        Rows by step, of all epochs.
    pairs_per_row : sequence of int
        Pairs of a query and a document, by row.
    loss : Any
        A torch module of sentence-transformers'.
    labels : callable, optional
        Returns what the loss takes as labels, of row numbers.
    weights : sequence of float, optional
        By row, where the loss gives a value a row.
    measure : callable, optional
        Returns how good the model is on dev.
    save : callable
        Writes the finished model to a folder.
    prompts : Mapping of str to str
        What goes before the texts of a column.
    """

    model: Any
    trainer: type[Any]
    arguments: type[Any]
    columns: Mapping[str, Sequence[Any]]
    query_ids: Sequence[str]
    batches: Sequence[Sequence[int]]
    pairs_per_row: Sequence[int]
    loss: Any
    save: Callable[[Path], None]
    labels: Callable[[Sequence[int]], Any] | None = None
    weights: Sequence[float] | None = None
    measure: Callable[[], float] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class RunState:
    """How a run stands; saved with each checkpoint, so that a resumed run knows what the unbroken one would."""

    history: list[Measurement] = field(default_factory=list)
    best: float | None = None
    best_step: int | None = None
    without_better: int = 0
    stopped: bool = False
    seconds: float = 0.0
    dev_seconds: float = 0.0
    pairs: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunState:
        """Return the state of a checkpoint."""
        state = cls(**values)
        state.history = [Measurement(*entry) for entry in state.history]
        return state


def run(job: Job, config: TrainingConfig, output: Path, resume: bool, progress: Progress | None) -> TrainedModel:
    """Return the model trained to the end: of a job that is new, or of one that goes on."""
    folder = WorkFolder(output)
    finished = folder.open(config, resume)
    if finished is not None:
        return finished
    complete = folder.complete()
    state = RunState.from_dict(folder.read(complete[-1])) if complete else RunState()
    with folder:
        if not state.stopped:
            _train(job, config, folder, state, progress)
        if state.best_step is not None:
            job.model.load_state_dict(torch.load(folder.best(state.best_step), weights_only=True))
        require_finite(job.model, folder)
        return _publish(job, config, folder, state)


def _train(job: Job, config: TrainingConfig, folder: WorkFolder, state: RunState, progress: Progress | None) -> None:
    columns = {**job.columns, "label": list(range(len(job.query_ids)))}
    dataset = require("datasets", extra="train").Dataset.from_dict(columns)
    set_seed(config.seed)
    watch = _Watch(job, config, folder, state, progress)
    trainer = type("PlannedTrainer", (_PlannedBatches, job.trainer), {})(
        model=job.model,
        args=_arguments(job, config, folder),
        train_dataset=dataset,
        loss=_RowLoss(job, folder, state),
        callbacks=[watch],
    )
    trainer.plan = job.batches
    trainer.remove_callback(PrinterCallback)
    job.model._create_model_card = _no_model_card
    complete = folder.complete()
    set_seed(config.seed)
    trainer.train(resume_from_checkpoint=str(folder.checkpoint(complete[-1])) if complete else None)


def _no_model_card(*_: Any) -> None:
    """Do without: the library's card asks a hub for data sets, and `FILE` says more."""


def _arguments(job: Job, config: TrainingConfig, folder: WorkFolder) -> Any:
    return job.arguments(
        output_dir=str(folder.path),
        num_train_epochs=1,  # to the library all epochs are one: where it resumes then depends on the step alone
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup * len(job.batches)),
        lr_scheduler_type="linear",
        bf16=config.precision == "bfloat16",
        use_cpu=config.device == "cpu",
        seed=config.seed,
        prompts=dict(job.prompts) or None,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=config.device == "cuda",
    )


class _PlannedBatches:
    """Puts the batches of a plan into sentence-transformers' trainers."""

    plan: Sequence[Sequence[int]]

    def get_batch_sampler(self, dataset: Any, *_: Any, **__: Any) -> BatchSampler:
        return _PlannedSampler(dataset, self.plan)

    def add_model_card_callback(self, *_: Any) -> None:
        """Do without: it reads the data for a card that is not written."""


class _PlannedSampler(BatchSampler):
    def __init__(self, dataset: Any, plan: Sequence[Sequence[int]]) -> None:
        super().__init__(SequentialSampler(dataset), batch_size=1, drop_last=False)
        self.plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self.plan])

    def __len__(self) -> int:
        return len(self.plan)


class _RowLoss(torch.nn.Module):
    """A loss that gets row numbers as labels: it looks up the rest, and says which queries it failed on."""

    def __init__(self, job: Job, folder: WorkFolder, state: RunState) -> None:
        super().__init__()
        self.inner = job.loss
        self.job, self.folder, self.state = job, folder, state
        self.weights = job.weights or [1.0] * len(job.query_ids)

    def forward(self, features: Any, labels: torch.Tensor, prompt: None = None, task: None = None) -> torch.Tensor:  # noqa: ARG002 (release 6 passes them)
        rows = labels.tolist()
        value: torch.Tensor = self.inner(features, self.job.labels(rows) if self.job.labels else None)
        if value.ndim:
            value = (value * torch.tensor([self.weights[row] for row in rows], device=value.device)).mean()
        loss = float(value.detach())
        if not torch.isfinite(value):
            queries = ", ".join(dict.fromkeys(self.job.query_ids[row] for row in rows))
            raise ModelError(
                f"the loss became {loss} in the batch of the queries {queries}. Training stopped; {self.folder.left()} "
                f"in {str(self.folder.path)!r}. Look at these queries' texts and labels, or lower learning_rate"
            )
        self.state.loss_sum += loss
        self.state.loss_count += 1
        self.state.pairs += sum(self.job.pairs_per_row[row] for row in rows)
        return value


class _Watch(TrainerCallback):
    """Measures, stops early, reports and completes checkpoints, as sentence-transformers' trainer gets on."""

    def __init__(
        self, job: Job, config: TrainingConfig, folder: WorkFolder, state: RunState, progress: Progress | None
    ) -> None:
        self.job, self.config, self.folder, self.state, self.progress = job, config, folder, state, progress
        self.total = len(job.batches)
        self.tick = time.perf_counter()
        self.begun = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 (the library's signature)
        self.tick = time.perf_counter()
        if not self.state.history:
            self._measure(0)
        self.begun = (state.global_step, self.state.seconds)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if control.should_save:
            require_finite(self.job.model, self.folder)
        if step % self.config.evaluate_every == 0 or step == self.total:
            self._measure(step)
        if self.config.patience is not None and self.state.without_better >= self.config.patience:
            self.state.stopped = True
        control.should_training_stop = control.should_training_stop or self.state.stopped
        self._count_seconds()
        if self.progress is not None:
            first, seconds = self.begun
            pace = (self.state.seconds - seconds) / (step - first)
            self.progress(step, self.total, 0.0 if self.state.stopped else pace * (self.total - step))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._count_seconds()
        self.folder.seal(state.global_step, asdict(self.state), self.state.best_step)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self.tick
        self.tick = now

    def _measure(self, step: int) -> None:
        """Note loss and dev measure, and keep the weights where they are the best so far."""
        begin = time.perf_counter()
        dev = self.job.measure() if self.job.measure else None
        state = self.state
        loss = state.loss_sum / state.loss_count if state.loss_count else None
        state.history.append(Measurement(step, loss, dev))
        state.loss_sum, state.loss_count = 0.0, 0
        if dev is not None and (state.best is None or dev > state.best):
            save_weights(self.job.model, self.folder.best(step))
            state.best, state.best_step, state.without_better = dev, step, 0
        elif dev is not None:
            state.without_better += 1
        state.dev_seconds += time.perf_counter() - begin


def save_weights(model: Any, path: Path) -> None:
    """Write a model's weights in one piece or not at all."""
    part = path.with_name(f"{path.name}.part")
    torch.save(model.state_dict(), part)
    part.replace(path)


def require_finite(model: Any, folder: WorkFolder) -> None:
    """Raise `ModelError` where a model's weights are not all finite numbers."""
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights are no finite numbers any more, {broken[0]!r} the first. Training stopped; "
            f"{folder.left()} in {str(folder.path)!r}. Lower learning_rate"
        )


def _publish(job: Job, config: TrainingConfig, folder: WorkFolder, state: RunState) -> TrainedModel:
    part = folder.path / "model.part"
    job.save(part)
    training = max(state.seconds - state.dev_seconds, 1e-9)
    last = state.history[-1].step
    best = last if state.best_step is None else state.best_step
    model = TrainedModel(folder.output, config, tuple(state.history), best, state.seconds, state.pairs / training)
    write_json(part / FILE, model.to_dict())
    folder.publish(part)
    return model
