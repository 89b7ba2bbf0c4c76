"""What comes out of a training run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from lance_rerank.errors import ModelError
from lance_rerank.training.config import TrainingConfig

FILE = "lance_rerank_training.json"


class Measurement(NamedTuple):
    """How training stood after a step.

    Attributes
    ----------
    step : int
        0 for before the first.
    loss : float or None
        Its mean since the measurement before; None at step 0.
    dev : float or None
        nDCG@10 of ranking the dev queries' documents; None without any.
    """

    step: int
    loss: float | None
    dev: float | None


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model that was trained to the end, in a folder that sentence-transformers loads.

    Attributes
    ----------
    path : Path
        The folder, which holds all this as ``lance_rerank_training.json`` too.
    config : TrainingConfig
        What it was trained by.
    history : tuple of Measurement
        Step by step.
    best_step : int
        Whose weights these are: the step with the best dev measure, the last one without a dev set. 0 says that no
        step was better than the model it began with.
    seconds : float
        How long training took, measuring included, breaks between resumed parts not.
    pairs_per_second : float
        Pairs of a query and a document trained on in a second, the time for measuring left out.

    Examples
    --------
    >>> print(TrainedModel.load("models/embedder"))  # doctest: +SKIP
    embedder 'models/embedder' from 'all-MiniLM-L6-v2': 151 steps, 38.2 pairs/s, 281 s
    dev nDCG@10 0.5127 before, 0.6481 at step 151, the best and kept
    """

    path: Path
    config: TrainingConfig
    history: tuple[Measurement, ...]
    best_step: int
    seconds: float
    pairs_per_second: float

    def __str__(self) -> str:
        steps = self.history[-1].step
        first = (
            f"{self.config.kind} {str(self.path)!r} from {self.config.base!r}: {steps} steps, "
            f"{self.pairs_per_second:.1f} pairs/s, {self.seconds:.0f} s"
        )
        measured = {step: dev for step, _, dev in self.history if dev is not None}
        if not measured:
            return f"{first}\nno dev set: the weights are those of the last step"
        if self.best_step == 0:
            return f"{first}\nno step was better on dev than the {measured[0]:.4f} nDCG@10 before: nothing was learned"
        best = f"{measured[self.best_step]:.4f} at step {self.best_step}, the best and kept"
        return f"{first}\ndev nDCG@10 {measured[0]:.4f} before, {best}"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return what a model's folder says of its training.

        Raises
        ------
        ModelError
            The folder holds no model that was trained here.
        """
        try:
            values = json.loads((Path(path) / FILE).read_text("utf-8"))
            config, history = TrainingConfig.from_dict(values.pop("config")), values.pop("history")
            return cls(Path(path), config, tuple(Measurement(*entry) for entry in history), **values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{os.fspath(path)!r} holds no model trained by lance_rerank: {error}") from error

    def to_dict(self) -> Mapping[str, Any]:
        """Return all but the path as JSON has it."""
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        return {**values, "config": self.config.to_dict(), "history": [list(entry) for entry in self.history]}
