"""Forms of combining first stage and reranker: fitted, chosen and judged by cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lance_rerank.evaluation.measures import score
from lance_rerank.evaluation.significance import compare
from lance_rerank.evaluation.thresholds import calibration
from lance_rerank.rerankers.features import Features
from lance_rerank.rerankers.fitted import BlendModel, Estimate

if TYPE_CHECKING:
    from ir_measures import Evaluator, Measure

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_STRENGTHS = (0.01, 0.1, 1.0)  # of scikit-learn's C: the smaller, the more are weights held back
_NEAR_MISSES = 15  # by each order: what a relevant document is compared with
_OTHERS = 10
_WORTH = 1.0  # standard errors that a costlier form has to be ahead by: the best of several tries is ahead by luck
_TOP = 10
_FLATTEST = 1e-6  # of calibration: the order is the model's, also where its sums say nothing of relevance


@dataclass(frozen=True)
class JudgedQuery:
    """What was found for one query.

    Attributes
    ----------
    query_id : str
    doc_ids : list of str
        Of the candidates, one at least.
    grades : ndarray
        ``(n_candidates,)``, 0 for what is not relevant or not judged.
    features : Features
        What is learned from.
    reranker, blend : ndarray
        ``(n_candidates,)``: what the reranker says, and `BlendReranker` with it.
    """

    query_id: str
    doc_ids: list[str]
    grades: Floats
    features: Features
    reranker: Floats
    blend: Floats


@dataclass(frozen=True)
class _Form:
    """One way to combine: which terms have a weight, and how freely."""

    name: str
    terms: tuple[str, ...]
    strength: float | None = None  # None: nothing is learned, the one term has weight 1


def _forms(n_legs: int) -> list[list[_Form]]:
    """Return the forms in rising order of cost; those of one cost together."""
    legs = [f"leg{number}" for number in range(n_legs)]
    of_legs = ["fused", *(f"{leg}_{what}" for leg in legs for what in ("score", "rank"))]
    of_reranker = ["reranker_score", "reranker_rank"]
    about_legs = [*(f"{leg}_margin" for leg in legs), *(["overlap"] if n_legs > 1 else [])]
    about_both = ["kept", "reranker_margin", *(f"{leg}_agreement" for leg in legs)]
    legs_by_query = of_legs + _crossed(["fused"], about_legs)
    both_by_query = legs_by_query + of_reranker
    both_by_query += _crossed(of_reranker, about_legs + about_both) + _crossed(["fused"], about_both)
    return [
        [_Form("first stage", ("fused",))],
        *([_tried("legs", of_legs) + _tried("legs by query", legs_by_query)] if n_legs > 1 else []),
        _tried("reranker", of_legs + of_reranker) + _tried("reranker by query", both_by_query),
    ]


def _crossed(terms: Sequence[str], factors: Sequence[str]) -> list[str]:
    return [f"{term}*{factor}" for term in terms for factor in factors]


def _tried(name: str, terms: Sequence[str]) -> list[_Form]:
    return [_Form(name, tuple(terms), strength) for strength in _STRENGTHS]


class BlendLab:
    """Fits forms to judged queries, chooses one, and says how good that is.

    Parameters
    ----------
    queries : sequence of JudgedQuery
        Some with a relevant document among their candidates: only those teach anything about order.
    computed : mapping of Measure to Evaluator
        The one measure to choose by.
    folds, seed : int
        Of the cross-validations.
    """

    def __init__(
        self, queries: Sequence[JudgedQuery], computed: Mapping[Measure, Evaluator], *, folds: int, seed: int
    ) -> None:
        self.queries = queries
        self.computed = computed
        self.all: Places = np.arange(len(queries))
        self.fold = _folds(queries, folds, seed)
        self.forms = _forms(queries[0].features.n_legs)
        self.pairs = [_pairs(one, np.random.default_rng([seed, place])) for place, one in enumerate(queries)]

    @property
    def n_folds(self) -> int:
        """How many folds have queries in them."""
        return len(np.unique(self.fold))

    def fit(self, some: Places | None = None) -> BlendModel:
        """Return the form that suits the queries, or some of them, fitted to those and calibrated."""
        some = self.all if some is None else some
        form = self._chosen(some)
        unseen = {place: model for held, model in self._splits(form, some) for place in held}
        return self._calibrated(self._fitted(form, some), unseen)

    def estimate(self) -> Estimate:
        """Return how good that is on queries of which no part of it saw anything, beside what it is made of."""
        found: dict[int, Floats] = {}
        for fold in np.unique(self.fold):
            model = self.fit(self.all[self.fold != fold])
            found |= {place: model.probabilities(self.queries[place].features) for place in self.all[self.fold == fold]}
        orders = {
            "first stage": [one.features.term("fused") for one in self.queries],
            "reranker": [one.reranker for one in self.queries],
            "blend": [one.blend for one in self.queries],
            "fitted": [found[place] for place in self.all],
        }
        values = {name: self._values(self.all, order) for name, order in orders.items()}
        measure = str(next(iter(self.computed)))
        against = {
            name: compare(name, "fitted", measure, list(values["fitted"] - values[name]))
            for name in orders
            if name != "fitted"
        }
        return Estimate(
            measure=measure,
            n_queries=len(self.queries),
            n_folds=self.n_folds,
            means={name: float(value.mean()) for name, value in values.items()},
            gains={name: (one.difference, one.low, one.high) for name, one in against.items()},
            calibration_error=_calibration_error(orders["fitted"], [one.grades > 0 for one in self.queries]),
        )

    # --- choosing ----------------------------------------------------------------------------------------------

    def _chosen(self, some: Places) -> _Form:
        """Return the cheapest form that no costlier one is ahead of by more than its worth."""
        chosen = self.forms[0][0]
        values = self._unseen_values(chosen, some)
        for forms in self.forms[1:]:
            tried = [(form, self._unseen_values(form, some)) for form in forms]
            form, better = max(tried, key=lambda one: float(one[1].mean()))
            gain = better - values
            if gain.mean() > _WORTH * gain.std() / np.sqrt(len(gain)):
                chosen, values = form, better
        return chosen

    def _unseen_values(self, form: _Form, some: Places) -> Floats:
        """Return the measure of each query as models order it that did not see the query."""
        sums = {
            place: model.sums(self.queries[place].features)
            for held, model in self._splits(form, some)
            for place in held
        }
        return self._values(some, [sums[place] for place in some])

    def _splits(self, form: _Form, some: Places) -> Iterator[tuple[Places, BlendModel]]:
        """Yield the queries of each fold with a model fitted to the others."""
        for fold in np.unique(self.fold[some]):
            held = self.fold[some] == fold
            yield some[held], self._fitted(form, some[~held])

    def _values(self, some: Places, decides: Sequence[Floats]) -> Floats:
        """Return the measure of each of some queries, whose candidates are ordered by what decides."""
        run = {}
        for place, order in zip(some, decides, strict=True):
            one = self.queries[place]
            best_first = np.argsort(-order, kind="stable")
            run[one.query_id] = list(dict.fromkeys(one.doc_ids[row] for row in best_first))
        _, per_query = score(self.computed, run)
        return np.array([next(iter(per_query[query_id].values())) for query_id in run])

    # --- fitting -----------------------------------------------------------------------------------------------

    def _fitted(self, form: _Form, some: Places) -> BlendModel:
        useful = [place for place in some if len(self.pairs[place][0])]
        if form.strength is None or not useful:  # the queries with anything to learn may all be held out
            return BlendModel(form.name, dict.fromkeys(form.terms, 1.0))
        from sklearn.linear_model import LogisticRegression

        differences = np.concatenate([self._differences(form.terms, place) for place in useful])
        weights = np.concatenate([np.full(n, 1 / n) for n in (len(self.pairs[place][0]) for place in useful)])
        spread = _spread(differences)
        # half the pairs the other way round, so that there are two classes; the loss is the same
        sign = np.where(np.arange(len(differences)) % 2, 1.0, -1.0)
        regression = LogisticRegression(C=form.strength, fit_intercept=False, max_iter=500)
        regression.fit(differences / spread * sign[:, np.newaxis], sign, sample_weight=weights)
        return BlendModel(form.name, dict(zip(form.terms, map(float, regression.coef_[0] / spread), strict=True)))

    @cache  # noqa: B019 (a lab lives as long as one fit_blend)
    def _differences(self, terms: tuple[str, ...], place: int) -> Floats:
        better, worse = self.pairs[place]
        values = np.stack([self.queries[place].features.term(name) for name in terms], axis=1)
        return values[better] - values[worse]

    def _calibrated(self, model: BlendModel, unseen: Mapping[int, BlendModel]) -> BlendModel:
        """Return the model with a slope, an intercept and offsets, by models that did not see each query."""
        from sklearn.linear_model import LogisticRegression

        offsets = _offsets(model, self.queries[0].features)
        rows, relevant = [], []
        for place, other in unseen.items():
            one = self.queries[place]
            sums = other.sums(one.features)
            known = np.tile([one.features.query[name] for name in offsets], (len(sums), 1))
            rows.append(np.column_stack([sums, known]))
            relevant.append(one.grades > 0)
        values = np.concatenate(rows)
        centre, spread = values.mean(axis=0), _spread(values)
        regression = LogisticRegression(max_iter=500).fit((values - centre) / spread, np.concatenate(relevant))
        weights = regression.coef_[0] / spread
        return replace(
            model,
            slope=max(float(weights[0]), _FLATTEST),
            intercept=float(regression.intercept_[0] - weights @ centre),
            offsets=dict(zip(offsets, map(float, weights[1:]), strict=True)),
        )


def _offsets(model: BlendModel, features: Features) -> list[str]:
    """Return what is known of a query that may say how likely it has an answer at all."""
    reranker = ("reranker_top", "reranker_margin", "kept") if model.needs_reranker else ()
    return [name for name in features.query if name in reranker or name in ("overlap", "leg0_margin", "leg1_margin")]


def _calibration_error(probabilities: Sequence[Floats], relevant: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Return the expected calibration error of the first ten of each query."""
    first = [np.argsort(-one, kind="stable")[:_TOP] for one in probabilities]
    said = np.concatenate([one[best] for one, best in zip(probabilities, first, strict=True)])
    true = np.concatenate([one[best] for one, best in zip(relevant, first, strict=True)])
    found = calibration(said, true)
    assert found is not None  # they are probabilities
    return found.expected_error


def _spread(values: Floats) -> Floats:
    spread: Floats = values.std(axis=0)
    spread[spread == 0] = 1.0
    return spread


def _pairs(one: JudgedQuery, rng: np.random.Generator) -> tuple[Places, Places]:
    """Return places of pairs, the better and the worse of each: relevant documents against those that stand high."""
    relevant, others = np.flatnonzero(one.grades > 0), np.flatnonzero(one.grades <= 0)
    near = [
        others[np.argsort(-one.features.term(name)[others], kind="stable")[:_NEAR_MISSES]]
        for name in ("fused", "reranker_score")
    ]
    chance = rng.choice(others, min(_OTHERS, len(others)), replace=False)
    compared = np.unique(np.concatenate([relevant, *near, chance]))
    better, worse = np.meshgrid(relevant, compared, indexing="ij")
    ahead = one.grades[better] > one.grades[worse]
    return better[ahead], worse[ahead]


def _folds(queries: Sequence[JudgedQuery], folds: int, seed: int) -> Places:
    """Return each query's fold, as even as may be; queries with a relevant document in common are in the same."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    relevant = [
        (place, one.doc_ids[row]) for place, one in enumerate(queries) for row in np.flatnonzero(one.grades > 0)
    ]
    nodes = {doc_id: len(queries) + number for number, doc_id in enumerate(dict.fromkeys(d for _, d in relevant))}
    edges = ([place for place, _ in relevant], [nodes[doc_id] for _, doc_id in relevant])
    size = len(queries) + len(nodes)
    _, component = connected_components(coo_matrix((np.ones(len(relevant)), edges), (size, size)), directed=False)
    groups, group, counts = np.unique(component[: len(queries)], return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    fold_of, sizes = np.zeros(len(groups), np.int64), np.zeros(folds, np.int64)
    for one in shuffled[np.argsort(-counts[shuffled], kind="stable")]:  # the largest first
        fold_of[one] = sizes.argmin()
        sizes[fold_of[one]] += counts[one]
    found: Places = fold_of[group]
    return found
