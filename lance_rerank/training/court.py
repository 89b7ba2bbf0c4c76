"""Models compared on the same queries through the same search, and the rules by which one passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from lance_rerank.datasets import Dataset, TrainingSet
from lance_rerank.evaluation.evaluate import evaluate
from lance_rerank.evaluation.searching import Progress
from lance_rerank.evaluation.significance import FEWEST_QUERIES, Comparison, compare
from lance_rerank.rerankers.base import BaseReranker
from lance_rerank.training.candidates import Model, as_encoder, as_reranker, scores_pairs
from lance_rerank.training.forgetting import FEWEST, held_pairs
from lance_rerank.training.serving import Bench
from lance_rerank.training.verdict import Judgement
from lance_rerank.types import Document, Encoder

BASE, TUNED, NO_RERANKER = "base", "tuned", "no reranker"
BARE = " without reranker"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides whether a model passes.

    Attributes
    ----------
    measure : str
        What models are compared by.
    max_loss : float
        How far a model may be below what it is compared with.
    max_forgetting : float
        How far on the general set.

    Examples
    --------
    >>> rules = Rules("nDCG@10", 0.005, 0.01)
    >>> print(rules.against_dev(compare("base", "tuned", "nDCG@10", [0.25, -0.25] * 20)))
    tuned is not better than base on dev (nDCG@10 +0.0000, 95 % interval -0.0750 to +0.0750, 40 queries)
    """

    measure: str
    max_loss: float
    max_forgetting: float

    def against_dev(self, found: Comparison) -> str | None:
        """Return why a model does not pass dev, None where it does."""
        if found.n_queries < FEWEST_QUERIES:
            return f"dev has {found.n_queries} queries, too few to show anything; {FEWEST_QUERIES} are the fewest"
        if found.difference <= _ROUNDING:
            return f"{found.b} is not better than {found.a} on dev ({figures(found)})"
        if found.low < -self.max_loss:
            return (
                f"dev cannot rule out that {found.b} is worse than {found.a} by more than {self.max_loss} "
                f"({figures(found)})"
            )
        return None

    def below(self, found: Comparison, on: str) -> str | None:
        """Return why a model is too far below another one, None where it is not."""
        if found.difference >= -self.max_loss - _ROUNDING:
            return None
        return f"{found.b} is worse than {found.a} on {on} by more than {self.max_loss} ({figures(found)})"

    def forgotten(self, found: Comparison) -> bool:
        """Return whether a model has forgotten something."""
        return found.difference < -self.max_forgetting - _ROUNDING and found.high < 0


def figures(found: Comparison) -> str:
    """Return a difference with its interval, in words."""
    return (
        f"{found.measure} {found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, "
        f"{found.n_queries} queries"
    )


@dataclass
class Court:
    """Compares models on dev, on the general set and on test, and keeps what it measured.

    Attributes
    ----------
    bench : Bench
        Makes the searches.
    rules : Rules
        What decides.
    dev, general : Dataset
        What is asked; without the second, forgetting is not looked for.
    documents, general_documents : list of Document
        What is searched.
    progress : callable or None
        Told of each block of queries.
    models : dict
        By name, the one that others have to be better than first; None is a search without a reranker.
    judgements, notes : list
        For the verdict.
    """

    bench: Bench
    rules: Rules
    dev: Dataset
    documents: list[Document]
    progress: Progress | None
    general: Dataset | None = None
    general_documents: list[Document] = field(default_factory=list)
    models: dict[str, Encoder | BaseReranker | None] = field(default_factory=dict)
    judgements: list[Judgement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    # --- what is compared ---------------------------------------------------------------------------------------

    def use_general(self, general: Dataset | None, examples: TrainingSet | None, seed: int) -> None:
        """Take a general set, or hold one from the corpus."""
        trained = set() if examples is None else {one.doc_id for query in examples for one in query.positives}
        self.general = general or held_pairs(self.documents, without=trained, seed=seed)
        if self.general is None:
            self.notes.append(
                f"forgetting was not checked: the corpus has fewer than {FEWEST} documents with a title of their own "
                "or a first sentence to tell it by. Give a general set"
            )
            return
        self.general_documents = list(self.general.corpus())
        if general is None:
            self.notes.append(f"general: {len(self.general.queries)} {self.general.name} held from the corpus")

    def add_base(self, base: Model) -> None:
        """Take what training began with and, for a reranker, what the search is without one."""
        if self.bench.kind == "cross-encoder" and not scores_pairs(base):
            self.notes.append("the base has no head to rank with: compared is with the search without a reranker")
        else:
            self.models[BASE] = self.ready(base)
        if self.bench.kind != "embedder":
            self.models[NO_RERANKER] = None

    def ready(self, model: Model) -> Encoder | BaseReranker:
        """Return a model, to be loaded once."""
        if self.bench.kind == "embedder":
            return as_encoder(model)
        return as_reranker(model, self.bench.kind, self.bench.serving.text_column)

    @property
    def reference(self) -> str:
        """What a model has to be better than."""
        return next(iter(self.models))

    # --- measuring ----------------------------------------------------------------------------------------------

    def values(self, on: str, name: str, dataset: Dataset, *, bare: bool = False) -> list[float]:
        """Return the measure by query, measured once."""
        shown = f"{name}{BARE}" if bare else name
        if (on, shown) not in self._values:
            documents = self.general_documents if on == "general" else self.documents
            retriever = self.bench.retriever(self.models[name], documents, live=on != "general", bare=bare)
            result = evaluate({shown: retriever}, dataset, [self.rules.measure], progress=self.progress)
            self._values[on, shown] = [found[result.measures[0]] for found in result.per_query[shown].values()]
        return self._values[on, shown]

    def gain(self, name: str) -> float:
        """Return by how much a model is better than the reference on dev."""
        before, after = (self.values("dev", one, self.dev) for one in (self.reference, name))
        return (sum(after) - sum(before)) / len(after)

    def compared(self, on: str, a: str, b: str, dataset: Dataset) -> Comparison:
        """Return how much better b is than a."""
        return self.judged(on, a, b, self.values(on, a, dataset), self.values(on, b, dataset))

    def judged(self, on: str, a: str, b: str, before: list[float], after: list[float]) -> Comparison:
        """Return how much better b is than a by values at hand, and note it."""
        found = compare(a, b, self.rules.measure, [two - one for one, two in zip(before, after, strict=True)])
        self.judgements.append(Judgement(on, found, sum(before) / len(before), sum(after) / len(after)))
        return found

    # --- judging ------------------------------------------------------------------------------------------------

    @property
    def _baselines(self) -> list[str]:
        return [name for name in (BASE, NO_RERANKER) if name in self.models]

    def on_dev(self, name: str) -> str | None:
        """Return why a model does not pass dev, None where it does."""
        first, *others = self._baselines
        refused = self.rules.against_dev(self.compared("dev", first, name, self.dev))
        for other in others:
            refused = self.rules.below(self.compared("dev", other, name, self.dev), "dev") or refused
        return refused

    def on_general(self, name: str) -> Comparison | None:
        """Return how far a model has fallen on the general set, None where it has not."""
        if self.general is None:
            return None
        found = self.compared("general", self.reference, name, self.general)
        if self.rules.forgotten(found):
            return found
        if found.low < -self.rules.max_forgetting:
            self.notes.append(
                f"{found.n_queries} general queries cannot rule out that {name} has lost more than "
                f"{self.rules.max_forgetting} there ({figures(found)})"
            )
        return None

    def on_test(self, name: str, test: Dataset | None) -> str | None:
        """Return why a model does not pass test, None where it does. Asked once, at the end."""
        if test is None:
            self.notes.append("there was no test set: the figures on dev are those by which the model was chosen")
            return None
        refused = [self.rules.below(self.compared("test", one, name, test), "test") for one in self._baselines]
        return next((reason for reason in refused if reason), None)

    def note_on_reranker(self) -> None:
        """Say what the reranker that an embedder is to serve with makes of the new candidates."""
        if self.bench.kind != "embedder" or self.bench.serving.reranker is None:
            return
        bare = self.values("dev", TUNED, self.dev, bare=True)
        found = self.judged("dev", f"{TUNED}{BARE}", TUNED, bare, self.values("dev", TUNED, self.dev))
        self.judged("dev", f"{BASE}{BARE}", f"{TUNED}{BARE}", self.values("dev", BASE, self.dev, bare=True), bare)
        effect = {"better": "helps it", "worse": "harms it"}.get(
            found.verdict, "does to it what these queries cannot show"
        )
        then = (
            ". Train it again on the tuned model's candidates, blend it, or leave it out"
            if found.difference < 0
            else ""
        )
        self.notes.append(f"the reranker, which was not trained for the tuned model, {effect}: {figures(found)}{then}")
