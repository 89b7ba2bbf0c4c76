"""The gate that a trained model passes before it is used: better on dev, no worse on test, and nothing forgotten."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.errors import ArgumentError, ModelError
from lance_rerank.evaluation.searching import Progress
from lance_rerank.training.candidates import Kind, Model
from lance_rerank.training.court import TUNED, Court, Rules, figures
from lance_rerank.training.interpolation import interpolate
from lance_rerank.training.serving import Bench, Serving
from lance_rerank.training.verdict import Decision, Verdict

_KEPT_GAIN = 0.5  # of what tuning gained, the least that an interpolated model has to keep


def judge_training(
    base: Model,
    tuned: Model,
    *,
    kind: Kind,
    dev: Dataset,
    test: Dataset | None = None,
    general: Dataset | None = None,
    serving: Serving | None = None,
    examples: TrainingSet | None = None,
    measure: str = "nDCG@10",
    max_loss: float = 0.005,
    max_forgetting: float = 0.01,
    alphas: Sequence[float] = (0.25, 0.5, 0.75),
    output: str | Path | None = None,
    mix: Callable[[float], Model] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verdict:
    """Return whether to use a trained model, one between it and its base, or neither.

    All are asked the same queries through the same search. A model passes dev where its mean is above the base's, the
    95 % interval of the difference rules out that it is worse by more than `max_loss`, and a reranker is no more than
    that below the search without one. It has forgotten where on the general set its mean is more than `max_forgetting`
    below the base's, by more than luck: the interval of the difference is below 0.

    A model that passes dev and has forgotten is mixed with its base; of the mixtures that pass dev, keep half of the
    gain and have not forgotten, the best on dev goes on. The test set is asked once, of the model that dev has chosen,
    and refuses it where its mean is more than `max_loss` below the base's.

    Parameters
    ----------
    base : str, path or model
        What training began with: a folder or a name; or an `Encoder`, `TokenEncoder` or reranker, by `kind`. A
        cross-encoder whose base is an encoder without a head is compared with the search without a reranker alone.
    tuned : str, path or model
        What came out.
    kind : {"embedder", "cross-encoder", "colbert"}
        What they are.
    dev : Dataset
        What decides; was not trained on.
    test : Dataset, optional
        Has the last word.
    general : Dataset, optional
        What the model is not to forget, with a corpus of its own. By default pairs held from the corpus that is
        searched, see `held_pairs`; where it has none, forgetting is not looked for, and the verdict notes it.
    serving : Serving, optional
        The search they are to serve in; by default by vector, of dev's corpus.
    examples : TrainingSet, optional
        What was trained on, to be left out of the pairs held from the corpus.
    measure : str, default "nDCG@10"
        What all are compared by.
    max_loss, max_forgetting : float
        In the unit of the measure: 0.005 is half a point.
    alphas : sequence of float, default (0.25, 0.5, 0.75)
        How much of the tuned model the mixtures have; none for no interpolation.
    output : str or path, optional
        The folder for a mixture that is to ship; by default that of the tuned model with ``-interpolated`` behind it.
    mix : callable, optional
        Returns the mixture of an alpha, for models that are no folders; by default they are made by `interpolate`.
    seed : int, default 0
        Of the held pairs.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each block of queries.

    Raises
    ------
    ArgumentError
        An argument is out of range, or the search is not one that the models can serve in.
    DatasetError
        There is no corpus.
    ModelError
        A model cannot be loaded.

    Examples
    --------
    >>> verdict = judge_training("all-MiniLM-L6-v2", "models/embedder", kind="embedder", dev=data.dev, test=data.test)
    ... # doctest: +SKIP
    >>> verdict.raise_if_not_ship()  # doctest: +SKIP
    """
    for name, value in (("max_loss", max_loss), ("max_forgetting", max_forgetting)):
        if not value >= 0:
            raise ArgumentError(f"{name} is 0 or more, got {value!r}")
    if not all(0 < alpha < 1 for alpha in alphas):
        raise ArgumentError(f"alphas lie between 0, the base, and 1, the tuned model; got {list(alphas)}")
    serving = serving or Serving()
    mixtures = _Mixtures(base, tuned, tuple(alphas), mix, output)
    mixtures.require_room()
    with Bench(kind, serving) as bench, tempfile.TemporaryDirectory(prefix="lance_rerank_mixtures") as folder:
        rules = Rules(measure, max_loss, max_forgetting)
        court = Court(bench, rules, dev, serving.documents(dev), progress, notes=bench.notes)
        court.use_general(general, examples, seed)
        court.add_base(base)
        court.models[TUNED] = court.ready(tuned)
        return _verdict(court, mixtures, test, Path(folder))


@dataclass(frozen=True)
class _Mixtures:
    """What lies between two models."""

    base: Model
    tuned: Model
    alphas: tuple[float, ...]
    mix: Callable[[float], Model] | None
    output: str | Path | None

    @property
    def folder(self) -> Path | None:
        """Where one that is to ship goes; None for models that are no folders."""
        if self.mix is not None or not isinstance(self.base, str | Path) or not isinstance(self.tuned, str | Path):
            return None
        return Path(self.output or f"{self.tuned}-interpolated")

    def require_room(self) -> None:
        """Raise `ArgumentError`, before anything is measured, where something is in that folder."""
        if self.alphas and self.folder is not None and self.folder.exists() and any(self.folder.iterdir()):
            raise ArgumentError(
                f"{str(self.folder)!r}, where an interpolated model would go, is not empty: name another folder "
                "(output), delete it, or do without (alphas=())"
            )

    @property
    def unavailable(self) -> str | None:
        """Why there are none; None where there are."""
        if not self.alphas:
            return "interpolation was not asked for"
        if self.mix is None and self.folder is None:
            return "models that are no folders cannot be interpolated"
        return None

    def made(self, alpha: float, folder: Path) -> Model:
        """Return a mixture, where it is one of folders in that folder."""
        if self.mix is not None:
            return self.mix(alpha)
        assert isinstance(self.base, str | Path)
        assert isinstance(self.tuned, str | Path)
        return interpolate(self.base, self.tuned, alpha, folder)


def _verdict(court: Court, mixtures: _Mixtures, test: Dataset | None, folder: Path) -> Verdict:
    refused = court.on_dev(TUNED)
    court.note_on_reranker()
    if refused:
        return _ended(court, "do not ship", refused)
    forgotten = court.on_general(TUNED)
    if forgotten is None:
        refused = court.on_test(TUNED, test)
        if refused:
            return _ended(court, "do not ship", refused)
        path = str(mixtures.tuned) if isinstance(mixtures.tuned, str | Path) else None
        return _ended(court, "ship", _praise(court, TUNED), path)
    reason = f"tuned has forgotten: it is worse than {court.reference} on the general set ({figures(forgotten)})"
    if mixtures.unavailable:
        return _ended(court, "do not ship", f"{reason}, and {mixtures.unavailable}")
    return _between(court, mixtures, test, folder, reason)


def _between(court: Court, mixtures: _Mixtures, test: Dataset | None, folder: Path, reason: str) -> Verdict:
    """Return the verdict on the best mixture."""
    try:
        passed = _passing(court, mixtures, folder)
    except ModelError as error:  # the two do not fit
        return _ended(court, "do not ship", f"{reason}, and no mixture with its base can be made: {error}")
    if not passed:
        return _ended(
            court, "do not ship", f"{reason}, and no mixture with its base keeps half the gain and forgets less"
        )
    best = max(passed, key=lambda alpha: court.gain(_name(alpha)))
    refused = court.on_test(_name(best), test)
    if refused:
        return _ended(court, "do not ship", f"{reason}, and the best mixture with its base does not pass: {refused}")
    path = None if mixtures.folder is None else str(mixtures.made(best, mixtures.folder))
    return _ended(court, "ship interpolated", f"{reason}; {_praise(court, _name(best))}", path, best)


def _passing(court: Court, mixtures: _Mixtures, folder: Path) -> list[float]:
    """Return the alphas whose mixtures pass dev, keep enough of the gain, and have not forgotten."""
    least = _KEPT_GAIN * court.gain(TUNED)
    passed = []
    for alpha in mixtures.alphas:
        name = _name(alpha)
        court.models[name] = court.ready(mixtures.made(alpha, folder / str(alpha)))
        if court.on_dev(name) is None and court.gain(name) >= least and court.on_general(name) is None:
            passed.append(alpha)
    return passed


def _name(alpha: float) -> str:
    return f"interpolated {alpha:g}"


def _praise(court: Court, name: str) -> str:
    found = next(one.comparison for one in court.judgements if one.on == "dev" and one.comparison.b == name)
    kept = "" if court.general is None else " and has not forgotten"
    return f"{name} is better than {found.a} on dev ({figures(found)}){kept}"


def _ended(
    court: Court, decision: Decision, reason: str, model: str | None = None, alpha: float | None = None
) -> Verdict:
    return Verdict(decision, reason, model, alpha, tuple(court.judgements), tuple(court.notes))
