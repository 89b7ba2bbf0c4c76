"""What `lance-rerank train` does whatever is trained: refuse what is in vain, train, let the gate decide, and tell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lance_rerank.cli import gate
from lance_rerank.cli.files import require_folder
from lance_rerank.cli.progress import Report, bar, talk
from lance_rerank.cli.retrievers import ask_once
from lance_rerank.errors import ArgumentError, GateError, LanceRerankError

if TYPE_CHECKING:
    from lance_rerank.datasets import Dataset, TrainingSet
    from lance_rerank.search.retriever import Retriever
    from lance_rerank.training import TrainedModel
    from lance_rerank.training.candidates import Kind
    from lance_rerank.training.serving import Serving
    from lance_rerank.training.verdict import Verdict

_BLOCK = 64  # queries searched between two steps of the progress bar
_FLAG = re.compile(r"\b(resume|force)=True")
_ARGUMENT = re.compile(r"\b(?:learning_rate|batch_size|max_tokens)\b")


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on, and the queries that judge what comes out of it."""

    examples: TrainingSet
    dev: Dataset | None
    test: Dataset | None

    @classmethod
    def read(
        cls,
        examples: Path | None,
        data: Path | None,
        split: str,
        dev_data: Path | None,
        dev_split: str,
        test_split: str | None,
    ) -> Material:
        """Return what the options name.

        Raises
        ------
        ArgumentError, DatasetError
            They name nothing to train on, two things, or something that is not there.
        """
        from lance_rerank.datasets import Dataset, TrainingSet

        if (examples is None) == (data is None):
            raise ArgumentError("name what to train on: --examples FILE, or --data FOLDER; one of them")
        if examples is not None:
            learned = TrainingSet.load(examples)
        else:
            assert data is not None
            judged = Dataset.from_beir(data, split)
            learned = TrainingSet.from_dataset(judged)
            if dev_data is None and dev_split in judged.splits:
                dev_data = data
        dev = None if dev_data is None else Dataset.from_beir(dev_data, dev_split)
        if test_split is not None and dev_data is None:
            raise ArgumentError(f"--test-split {test_split} is a split of --dev-data, and there is none")
        if test_split == dev_split:
            raise ArgumentError(f"--test-split and --dev-split are both {dev_split!r}: test is what chose nothing")
        test = None if test_split is None or dev_data is None else Dataset.from_beir(dev_data, test_split)
        return cls(learned, dev, test)

    def require_unseen(self) -> None:
        """Raise `GateError` where queries that judge a model are among those that it is trained on."""
        learned = set(self.examples.rows["query"].to_pylist())
        for dataset in (self.dev, self.test):
            seen = [] if dataset is None else [text for text in dataset.queries.values() if text in learned]
            if dataset is not None and seen:
                raise GateError(
                    f"{len(seen)} of the {len(dataset.queries)} queries of the split {dataset.split!r} are trained on, "
                    f"{seen[0]!r} the first: they cannot show what was learned. Leave them out of the examples, or all "
                    "the same: --force"
                )


@dataclass(frozen=True, slots=True)
class FirstStage:
    """What finds the candidates that a cross-encoder is to rerank."""

    retriever: Retriever
    dev: Dataset
    column: str

    def found(self, progress: Report) -> dict[str, list[tuple[str, str]]]:
        """Return ids and texts of the candidates of each dev query."""
        ids, texts = list(self.dev.queries), list(self.dev.queries.values())
        for text in texts[:1]:
            ask_once(self.retriever, text)
        found = {}
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            many = self.retriever.retrieve_many(texts[block], self.retriever.candidates)
            for query_id, hits in zip(ids[block], many, strict=True):
                found[query_id] = [(hit.doc_id, hit.row[self.column]) for hit in hits if hit.row[self.column]]
            progress(min(start + _BLOCK, len(ids)), len(ids), "search")
        return found

    def serving(self, blend: bool) -> Serving:
        """Return the search as the gate repeats it."""
        from lance_rerank.training.serving import Serving

        return Serving.of(self.retriever, text_column=self.column, blend=blend)


@dataclass(frozen=True, slots=True)
class Run:
    """A model to train, and how."""

    kind: Kind
    model: str
    output: Path
    seed: int
    resume: bool
    force: bool
    judged: bool
    max_loss: float
    as_json: bool

    def require_possible(self, material: Material, patience: int | None) -> None:
        """Raise, before any model is loaded, where training or the gate would come to nothing.

        Raises
        ------
        ArgumentError
            There is no dev set, or something is where the model is to be.
        GateError
            What judges is trained on.
        """
        if material.dev is None and self.judged:
            raise ArgumentError(
                "the gate asks judged queries: name them, --dev-data FOLDER; or leave it out, --no-gate"
            )
        if material.dev is None and patience is not None:
            raise ArgumentError("--patience waits for a better measurement: name what to measure on, --dev-data FOLDER")
        self._require_room()
        if not self.force:
            material.require_unseen()

    def _require_room(self) -> None:
        """Raise `ArgumentError` where something is in the way of the model, or of a mixture with its base."""
        require_folder(self.output)
        if self._is_finished() and not self.resume:
            raise ArgumentError(
                f"{self.output} holds a trained model: choose another --output, or --resume to judge it"
            )
        if not self._is_finished() and _is_occupied(self.output):
            raise ArgumentError(f"{self.output} is not empty: choose another --output, or delete it")
        if self._is_begun() and not self.resume:
            raise ArgumentError(f"{self.output}.training holds a run that did not end: --resume, or delete that folder")
        mixture = Path(f"{self.output}-interpolated")
        if self.judged and _is_occupied(mixture):
            raise ArgumentError(
                f"{mixture}, where the gate puts a mixture of the model and its base, is not empty: delete it, choose "
                "another --output, or leave the gate out, --no-gate"
            )

    def _is_finished(self) -> bool:
        from lance_rerank.training.result import FILE

        return (self.output / FILE).exists()

    def _is_begun(self) -> bool:
        from lance_rerank.training.result import FILE

        return (Path(f"{self.output}.training") / FILE).exists()

    def go(
        self, material: Material, train: Callable[[Report], TrainedModel], serving: Callable[[], Serving | None]
    ) -> None:
        """Train, unless that is in vain, judge and print; `serving` is asked before, and with the gate alone.

        Raises
        ------
        GateError
            There is nothing to learn.
        typer.Exit
            The gate says not to ship: the exit code is 3.
        """
        searched = serving() if self.judged else None
        had_ended = self._is_finished()
        with bar("ask the model first") as progress:
            if not (self.force or had_ended or self._is_begun()):
                self._require_something_to_learn(material.examples)
            trained = self._trained(train, progress)
        if had_ended:
            talk(f"{self.output} was trained already")
        verdict = self._verdict(material, trained, searched) if self.judged else None
        self._print(trained, verdict)
        if verdict is not None and verdict.decision == "do not ship":
            raise typer.Exit(gate.EXIT_CODE)

    def _require_something_to_learn(self, examples: TrainingSet) -> None:
        from lance_rerank.training.refusal import require_something_to_learn

        require_something_to_learn(self.model, examples, kind=self.kind, seed=self.seed)

    def _trained(self, train: Callable[[Report], TrainedModel], progress: Report) -> TrainedModel:
        try:
            return train(progress)
        except KeyboardInterrupt:
            talk("stopped; the same command with --resume goes on from the last checkpoint")
            raise

    def _verdict(self, material: Material, trained: TrainedModel, serving: Serving | None) -> Verdict:
        from lance_rerank.training.gate import judge_training

        assert material.dev is not None  # `require_possible` has seen to it
        with bar("judge") as progress:
            return judge_training(
                self.model,
                str(trained.path),
                kind=self.kind,
                dev=material.dev,
                test=material.test,
                serving=serving,
                examples=material.examples,
                max_loss=self.max_loss,
                seed=self.seed,
                progress=lambda name, done, total: progress(done, total, f"judge {name}"),
            )

    def _print(self, trained: TrainedModel, verdict: Verdict | None) -> None:
        if self.as_json:
            model = {"path": str(trained.path), **trained.to_dict()}
            print(json.dumps({"trained": model, "verdict": None if verdict is None else verdict.to_dict()}))
            return
        print(trained)
        if verdict is not None:
            print(f"\n{verdict}")


def _is_occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


@contextmanager
def told_as_options() -> Iterator[None]:
    """Write what the trainers raise with their arguments as options.

    Examples
    --------
    >>> with told_as_options():
    ...     raise ArgumentError("max_tokens is 900, and the model takes 64; or all the same: force=True")
    Traceback (most recent call last):
    lance_rerank.errors.ArgumentError: --max-tokens is 900, and the model takes 64; or all the same: --force
    """
    try:
        yield
    except LanceRerankError as error:
        told = _FLAG.sub(r"--\1", str(error))
        raise type(error)(_ARGUMENT.sub(lambda name: f"--{name[0].replace('_', '-')}", told)) from error


def chosen(option: str, value: str, known: Sequence[str]) -> Any:
    """Return an option's value, where it is one of those known; ArgumentError where it is not."""
    if value not in known:
        raise ArgumentError(f"{option} is one of {', '.join(known)}; got {value!r}")
    return value
