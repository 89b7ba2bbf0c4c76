"""Where a run keeps what it needs to go on after a kill, and how the finished model comes to its place.

A run works in ``<output>.training``, beside the output folder. There a file or folder counts only once it is whole:
checkpoints once they hold the file that is written last, all else under a name ending in ``.part`` until then. The
output folder appears by one rename, when training has ended.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lance_rerank.errors import ArgumentError, LanceRerankError
from lance_rerank.training.config import TrainingConfig
from lance_rerank.training.result import FILE, TrainedModel

KEPT = 2
_COMPLETE = "lance_rerank_run.json"  # written last


class WorkFolder:
    """The folder of an unfinished run.

    As a context it cleans up after a write that failed, for want of space as a rule, and says what is left.

    Parameters
    ----------
    output : str or path
        Where the finished model is to be.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.output = Path(output)
        self.path = self.output.parent / f"{self.output.name}.training"

    def open(self, config: TrainingConfig, resume: bool) -> TrainedModel | None:
        """Make the folder ready for a run; return the model instead where that run has ended already.

        Raises
        ------
        ArgumentError
            There is something in the way: a model, another run, or this run without `resume`.
        """
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            return self._finished(config, resume)
        known = self.path / FILE
        if not known.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            if any(path.suffix != ".part" for path in self.path.iterdir()):  # of this kind is what a kill leaves
                raise ArgumentError(
                    f"{str(self.path)!r}, where the run would work, holds something else: move it, or choose another "
                    "output folder"
                )
            write_json(known, config.to_dict())
            return None
        if not resume:
            raise ArgumentError(
                f"{str(self.path)!r} holds a run that did not end. Go on with it: resume=True; or delete that folder"
            )
        self._require_same(config, TrainingConfig.from_dict(json.loads(known.read_text("utf-8"))), self.path)
        self.remove_incomplete()
        return None

    def _finished(self, config: TrainingConfig, resume: bool) -> TrainedModel:
        if not resume or not (self.output / FILE).exists():
            raise ArgumentError(f"the output folder {str(self.output)!r} is not empty: choose another, or delete it")
        model = TrainedModel.load(self.output)
        self._require_same(config, model.config, self.output)
        shutil.rmtree(self.path, ignore_errors=True)
        return model

    def _require_same(self, here: TrainingConfig, there: TrainingConfig, folder: Path) -> None:
        differences = here.differences(there)
        if differences:
            raise ArgumentError(
                f"{str(folder)!r} holds another run, which this one cannot go on with; they differ in "
                f"{'; '.join(differences)}. Use its settings, or another output folder"
            )

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return self.path / f"checkpoint-{step}"

    def best(self, step: int) -> Path:
        """Return where the weights of a step that was the best so far are."""
        return self.path / f"best-{step}.pt"

    def complete(self) -> list[int]:
        """Return the steps of the checkpoints that are whole, sorted."""
        return [step for step, folder in self._checkpoints() if (folder / _COMPLETE).exists()]

    def read(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint says of its run."""
        values: dict[str, Any] = json.loads((self.checkpoint(step) / _COMPLETE).read_text("utf-8"))
        return values

    def seal(self, step: int, state: Mapping[str, Any], best_step: int | None) -> None:
        """Declare the checkpoint of a step whole, and remove what it makes superfluous."""
        write_json(self.checkpoint(step) / _COMPLETE, state)
        for old in self.complete()[:-KEPT]:
            (self.checkpoint(old) / _COMPLETE).unlink()  # first, so that what is half removed does not count
            shutil.rmtree(self.checkpoint(old))
        for weights in self.path.glob("best-*.pt"):
            if best_step is None or weights != self.best(best_step):
                weights.unlink()

    def publish(self, part: Path) -> None:
        """Move the finished model to the output folder, and remove the rest."""
        if self.output.is_dir():
            self.output.rmdir()  # empty, as `open` has seen
        os.replace(part, self.output)
        shutil.rmtree(self.path, ignore_errors=True)

    def remove_incomplete(self) -> bool:
        """Remove what was being written when a run ended; return whether there was any."""
        doomed = [folder for _, folder in self._checkpoints() if not (folder / _COMPLETE).exists()]
        doomed += self.path.rglob("*.part")
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return bool(doomed)

    def _checkpoints(self) -> Iterator[tuple[int, Path]]:
        folders = [path for path in self.path.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
        yield from sorted((int(folder.name.partition("-")[2]), folder) for folder in folders)

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say what became of a run whose write failed: libraries raise several kinds of errors on a full disk."""
        if error is None or not self.remove_incomplete() or not isinstance(error, Exception):
            return
        raise LanceRerankError(
            f"writing to {str(self.path)!r} failed: {error}. The half-written part was removed, and {self.left()}. "
            "Make room there, then go on with resume=True"
        ) from error

    def left(self) -> str:
        """Say from where the run can go on."""
        complete = self.complete()
        return f"the checkpoint of step {complete[-1]} is whole" if complete else "there is no earlier checkpoint"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON in one piece or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(part, path)
