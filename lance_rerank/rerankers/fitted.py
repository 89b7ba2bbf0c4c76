"""A blend of first stage and reranker whose weights were learned from judged queries: `lance_rerank.fit_blend`."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lance_rerank import arrow
from lance_rerank.errors import ArgumentError, FittedForError
from lance_rerank.fingerprint import close
from lance_rerank.rerankers.base import BaseReranker, Scores
from lance_rerank.rerankers.blend import WrappingReranker
from lance_rerank.rerankers.features import Features, Floats, describe
from lance_rerank.rerankers.fusion import ReturnScore

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class BlendModel:
    """A weighted sum of features, and how likely a document with such a sum is relevant.

    Attributes
    ----------
    form : str
        "first stage": the order of the legs' rank fusion is kept. "legs": they are weighed anew. "reranker": it has a
        weight, too. With "by query" at the end, weights depend on the query.
    weights : dict of str to float
        By term, as in `Features.term`. The sum decides the order.
    slope, intercept : float
        The log odds of relevance are slope * sum + intercept + the sum over `offsets`; the slope is positive.
    offsets : dict of str to float
        Weights of what is known of the query: they make scores of several queries comparable.
    """

    form: str
    weights: dict[str, float]
    slope: float = 1.0
    intercept: float = 0.0
    offsets: dict[str, float] | None = None

    @property
    def needs_reranker(self) -> bool:
        """Whether any feature of the reranker is used; if not, it need not run."""
        return any("reranker" in name or "agreement" in name or "kept" in name for name in self.weights)

    def sums(self, features: Features) -> Floats:
        """Return ``(n_candidates,)``: what decides the order."""
        return sum((weight * features.term(name) for name, weight in self.weights.items()), np.zeros(1))

    def probabilities(self, features: Features) -> Floats:
        """Return ``(n_candidates,)``: the probability of relevance, in the same order."""
        offset = sum(weight * features.query[name] for name, weight in (self.offsets or {}).items())
        return 1 / (1 + np.exp(-(self.slope * self.sums(features) + self.intercept + offset)))


@dataclass(frozen=True, slots=True)
class FittedFor:
    """What a blend was fitted for.

    Attributes
    ----------
    legs : tuple of str
        "vector" or "fts" each.
    searches : tuple of str
        What each searches, as `Retriever.legs` says it.
    candidates : int
        Most rows that a leg found.
    embedder : tuple of float
        What the models that embed queries make of a few texts; empty where no leg is a vector leg.
    reranker : str
        The class.
    scores : tuple of float or None
        What the reranker says of a few texts; None for one that cannot be known that way.
    """

    legs: tuple[str, ...]
    searches: tuple[str, ...]
    candidates: int
    embedder: tuple[float, ...]
    reranker: str
    scores: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """How good a fitted blend is on queries that it was not fitted on, by cross-validation of the whole fitting.

    Attributes
    ----------
    measure : str
        As ir-measures prints it.
    n_queries, n_folds : int
        Queries that share a relevant document are never on both sides.
    means : dict of str to float
        Of "first stage", "reranker", "blend" (`BlendReranker`) and "fitted".
    gains : dict of str to tuple
        Difference of "fitted" to the others, with its 95 % interval: ``(difference, low, high)``.
    calibration_error : float
        By how much the probabilities of the first ten are off on average, against the share that is relevant.
    """

    measure: str
    n_queries: int
    n_folds: int
    means: dict[str, float]
    gains: dict[str, tuple[float, float, float]]
    calibration_error: float

    def __str__(self) -> str:
        lines = [f"{self.measure}, {self.n_queries:,} queries, {self.n_folds}-fold cross-validation"]
        for name, mean in self.means.items():
            gain = self.gains.get(name)
            against = "" if gain is None else f"   fitted is {gain[0]:+.4f} ({gain[1]:+.4f} to {gain[2]:+.4f})"
            lines.append(f"{name:<12} {mean:.4f}{against}")
        lines.append(f"probabilities of the first ten are off by {self.calibration_error:.3f} on average")
        return "\n".join(lines)


class Served(Protocol):
    """The retriever that a reranker is about to serve."""

    @property
    def legs(self) -> tuple[str, ...]:
        """What each leg searches."""
        ...

    def probe(self) -> list[float]:
        """Return what the models that embed queries make of a few texts."""
        ...


class FittedBlendReranker(WrappingReranker):
    """A reranker that weighs the legs of a search and another reranker as `lance_rerank.fit_blend` learned to.

    Its scores are probabilities of relevance, for queries like those it was fitted on, so that ``min_score=0.5``
    returns what is more likely relevant than not, and possibly nothing. They are calibrated for `lance_rerank.hybrid`
    and `Retriever`, where legs come with their own scores, and for as many candidates as it was fitted on.

    Where the judged queries gave no reason to believe the inner reranker, `model` does without it, and it is not run.

    Parameters
    ----------
    inner : BaseReranker
        The one it was fitted with, or one with the same model.
    model : BlendModel
        What was learned.
    fitted_for : FittedFor
        What it was learned with.
    estimate : Estimate, optional
        How good it is.
    top_n, min_score, return_score
        As in `BaseReranker`.

    Raises
    ------
    FittedForError
        At once where the inner reranker is another, if it is needed; from a `Retriever` when its embedding model or
        what its legs search is another; on any search with another number or kind of legs.
    """

    def __init__(
        self,
        inner: BaseReranker,
        *,
        model: BlendModel,
        fitted_for: FittedFor,
        estimate: Estimate | None = None,
        top_n: int | None = None,
        min_score: float | None = None,
        return_score: ReturnScore = "relevance",
    ) -> None:
        super().__init__(inner, top_n=top_n, min_score=min_score, return_score=return_score)
        self.model = model
        self.fitted_for = fitted_for
        self.estimate = estimate
        self._said = False
        if model.needs_reranker:
            self._require_same_reranker()
        else:
            self.needs_row_id = False

    def __str__(self) -> str:
        return f"FittedBlendReranker({self.inner}, {self.model.form})"

    @property
    def reads(self) -> tuple[str, ...]:
        """What the inner reranker reads, if it is run."""
        return super().reads if self.model.needs_reranker else ()

    def cache_key(self) -> str | None:
        """Return a text that is the same as long as the scores are; None where the inner reranker cannot tell."""
        inner = self.inner.cache_key() if self.model.needs_reranker else ""
        return None if inner is None else f"{type(self).__module__}.{self.model} of {inner}"

    def check(self, retriever: Served) -> None:
        """Raise `FittedForError` unless a retriever embeds its queries as the one that this was fitted for."""
        super().check(retriever)
        there = self.fitted_for
        if there.searches != retriever.legs:
            raise FittedForError(
                f"{self} was fitted on the legs {', '.join(there.searches)}, and {retriever} searches "
                f"{', '.join(retriever.legs)}. Search as it was fitted, or fit it again"
            )
        if not close(there.embedder, retriever.probe()):
            raise FittedForError(
                f"{self} was fitted for another embedding model than {retriever} searches with: what it learned of "
                "that model's scores does not hold. Fit it again: lance_rerank.fit_blend(retriever, dataset)"
            )

    def score_candidates(self, query: str | None, candidates: arrow.Candidates) -> Scores:
        """Return probabilities of relevance."""
        if candidates.kinds != self.fitted_for.legs:
            raise FittedForError(
                f"{self} was fitted on the legs {' + '.join(self.fitted_for.legs)}, and this search has "
                f"{' + '.join(candidates.kinds)}. Search as it was fitted, or fit it again"
            )
        self._say_if_others(int(candidates.ranks.max()))
        return self.model.probabilities(self.features(query, candidates))

    def _say_if_others(self, candidates: int) -> None:
        """Warn, once, where a leg found far more or fewer rows than those that this was fitted on."""
        fitted = self.fitted_for.candidates
        if self._said or 0.8 <= candidates / fitted <= 1.25:
            return
        self._said = True
        logger.warning(
            "%s was fitted on %d candidates a leg, and this search has %d: its order holds, its probabilities may not",
            self,
            fitted,
            candidates,
        )

    def features(self, query: str | None, candidates: arrow.Candidates) -> Features:
        """Return what the legs, and the inner reranker if it is needed, say of the candidates."""
        if self.model.needs_reranker:
            return describe(candidates, self.inner.relevance(query, candidates))
        return describe(candidates, arrow.unscored(candidates.n_rows))

    # --- on disk -----------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to a file, as JSON; the models are not in it.

        Raises
        ------
        ArgumentError
            The path is a folder, or in none that is there.
        """
        content = {
            "format": _FORMAT,
            "model": asdict(self.model),
            "fitted_for": asdict(self.fitted_for),
            "estimate": None if self.estimate is None else asdict(self.estimate),
        }
        file = Path(path)
        if file.is_dir() or not file.parent.is_dir():
            raise ArgumentError(f"a blend is saved to a file, in a folder that is there; got {os.fspath(path)!r}")
        beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        inner: BaseReranker,
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        return_score: ReturnScore = "relevance",
    ) -> FittedBlendReranker:
        """Return what `save` wrote, around a reranker with the model that it was fitted with.

        Raises
        ------
        ArgumentError
            The file is none that `save` wrote.
        FittedForError
            The reranker is another.
        """
        model, fitted_for, estimate = _read(path)
        return cls(
            inner,
            model=model,
            fitted_for=fitted_for,
            estimate=estimate,
            top_n=top_n,
            min_score=min_score,
            return_score=return_score,
        )

    # --- inside ------------------------------------------------------------------------------------------------

    def _require_same_reranker(self) -> None:
        there = self.fitted_for
        known = type(self.inner).__name__
        if known == there.reranker:
            scores = None if there.scores is None else self.inner.probe()
            if scores is None or close(there.scores or (), scores):
                return
            known = f"{known} with another model"
        raise FittedForError(
            f"this blend was fitted with {there.reranker}, and is given {known}: {self.inner}. Give it the one it was "
            "fitted with, or fit it again: lance_rerank.fit_blend(retriever, dataset)"
        )


def fitted_for(inner: BaseReranker, retriever: Served, legs: tuple[str, ...], candidates: int) -> FittedFor:
    """Return what a blend that is fitted now, on so many candidates a leg, is fitted for."""
    scores = inner.probe()
    return FittedFor(
        legs=legs,
        searches=retriever.legs,
        candidates=candidates,
        embedder=tuple(retriever.probe()),
        reranker=type(inner).__name__,
        scores=None if scores is None else tuple(scores),
    )


def _read(path: str | os.PathLike[str]) -> tuple[BlendModel, FittedFor, Estimate | None]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{os.fspath(path)!r} is no blend that FittedBlendReranker.save wrote: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ArgumentError(
            f"{os.fspath(path)!r} is no blend of this version: expected what FittedBlendReranker.save wrote, of format "
            f"{_FORMAT}. Fit it again: lance_rerank.fit_blend(retriever, dataset)"
        )
    try:
        known = _fitted_for(content["fitted_for"])
        estimate = content["estimate"]
        return (
            _model(content["model"], len(known.legs)),
            known,
            None if estimate is None else Estimate(**(estimate | {"gains": _gains(estimate["gains"])})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"{os.fspath(path)!r} is a damaged blend: {error!r}. Fit it again") from error


def _model(values: Mapping[str, Any], n_legs: int) -> BlendModel:
    model = BlendModel(**values)
    offsets = model.offsets or {}
    _require_numbers([model.slope, model.intercept, *model.weights.values(), *offsets.values()])
    unknown = [name for name in model.weights if not Features.is_term(name, n_legs)]
    unknown += [name for name in offsets if not Features.is_factor(name, n_legs)]
    if unknown or not model.weights or model.slope <= 0:
        raise ValueError(f"unknown terms {unknown}" if unknown else "no weights, or a slope that is not positive")
    return model


def _fitted_for(values: Mapping[str, Any]) -> FittedFor:
    known = FittedFor(**{name: _tuples(value) for name, value in values.items()})
    _require_numbers([known.candidates, *known.embedder, *(known.scores or ())])
    return known


def _require_numbers(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{value!r} is no number")


def _gains(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in values.items()}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
