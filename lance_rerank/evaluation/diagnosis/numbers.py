"""What a diagnosis counts, and what follows from the counts alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from lance_rerank.evaluation.diagnosis.evidence import Tuning
from lance_rerank.evaluation.significance import Comparison

# The rule of thumb says that a reranker which gains less than 3 % tells of a weak pool, a small model or a domain
# mismatch. The same share of the best that can be reached is here what is too little to work for, lost or to be won.
SMALL = 0.03
# Share of unjudged documents at the top from which a measure is called a lower bound, and from which judging them comes
# before changing anything: two and five of ten.
UNJUDGED, MOSTLY_UNJUDGED = 0.2, 0.5
# Spearman correlation, within the pool, of a reranker's order with that of the leg it agrees with most. Over a hundred
# candidates of questions about an encyclopedia and about a shell, orders by chance had 0.00 to 0.02, and late
# interaction, whether it helped or not, 0.57 to 0.64.
DISAGREES = 0.1
# Share of the candidates without a score, or of the queries whose documents all have the same, from which a reranker
# cannot be said to rank.
MOST = 0.5

POOL_CAUSES = ("absent", "filtered", "approximate index", "too shallow", "unreached", "not retrieved")


@dataclass(frozen=True)
class Numbers:
    """What a diagnosis counted for one retriever.

    Attributes
    ----------
    n_queries, n_relevant : int
        The queries of the sample that were answered, and their relevant documents.
    measure : str
        What the next four are of.
    best, ceiling, reached : float
        Means over the queries: of an order with every relevant document at the top; of the best order of this
        retriever's candidates, which no reranker can pass; and of its own order of all of them.
    returned : float or None
        Of what is left of that order by the reranker's ``min_score``; None for all of it.
    first_stage : float or None
        Of the order before the reranker; None without one.
    gain : Comparison or None
        The reranker against that.
    n_failed : int
        The queries of the sample that raised an error.
    harmed : tuple of str
        The queries on which the reranker is worse than that, the worst first.
    lost : dict of str to int
        Relevant documents that are not at the top, by cause.
    legs : dict of str to int
        The same by the legs whose candidates have them. Empty for a run alone.
    recall : dict of int to float
        The share of the relevant documents that are among that many candidates of a leg.
    candidates, deepest : int or None
        Candidates a leg, and those of the deeper search; None for a run alone.
    other_legs : dict of str to int
        Of the relevant documents that are not among the candidates, how many each leg that the retriever lacks has.
    tuning : Tuning or None
        What wins back most of what the approximate index lost.
    agreement : dict of str to float
        Mean Spearman correlation of the reranker's order with each leg's, within the candidates.
    unscored : float
        Share of the candidates without a score.
    alike : float
        Share of the queries in which all scores are equal.
    unjudged : float
        Share of the documents at the top that nobody judged.
    irrelevant_judged : bool
        Whether documents were judged not relevant, too: else one that nobody judged counts as if it were.
    cut, cut_lost : int
        Relevant documents that are longer than a model reads, and how many of them are not at the top.
    foreign : tuple of str
        The models, "embedder" and "reranker", whose vocabulary the texts do not suit.
    kinds : frozenset of str
        Its kinds of legs, "vector" and "fts".
    reranked, blended : bool
        Whether a reranker decides, and whether it adds to the first stage's evidence.
    depth : int
        How many documents are the top.
    """

    n_queries: int
    n_relevant: int
    measure: str
    best: float
    ceiling: float
    reached: float
    returned: float | None = None
    first_stage: float | None = None
    gain: Comparison | None = None
    n_failed: int = 0
    harmed: tuple[str, ...] = ()
    lost: dict[str, int] = field(default_factory=dict)
    legs: dict[str, int] = field(default_factory=dict)
    recall: dict[int, float] = field(default_factory=dict)
    candidates: int | None = None
    deepest: int | None = None
    other_legs: dict[str, int] = field(default_factory=dict)
    tuning: Tuning | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    unscored: float = 0.0
    alike: float = 0.0
    unjudged: float = 0.0
    irrelevant_judged: bool = False
    cut: int = 0
    cut_lost: int = 0
    foreign: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    reranked: bool = False
    blended: bool = False
    depth: int = 10

    @property
    def pool_loss(self) -> float:
        """What the measure lacks because documents are not among the candidates."""
        return self.best - self.ceiling

    @property
    def order_loss(self) -> float:
        """What it lacks because the candidates are not in the best order."""
        return self.ceiling - self.reached

    @property
    def now(self) -> float:
        """What a search has as it is, by its ``min_score``."""
        return self.reached if self.returned is None else self.returned

    @property
    def threshold_loss(self) -> float:
        """What it lacks because ``min_score`` leaves candidates out."""
        return self.reached - self.now

    @property
    def ranks(self) -> bool:
        """Whether the scores are enough to rank by: most candidates have one, and they tell them apart."""
        return self.unscored < MOST and self.alike < MOST

    @property
    def failing(self) -> float:
        """The share of the queries that raised an error."""
        return self.n_failed / max(1, self.n_failed + self.n_queries)

    @property
    def n_lost(self) -> int:
        """Relevant documents that are not at the top."""
        return sum(self.lost.values())

    @property
    def n_outside(self) -> int:
        """Those of them that are not among the candidates."""
        return sum(self.lost.get(cause, 0) for cause in POOL_CAUSES)

    @property
    def disagrees(self) -> bool:
        """Whether the reranker's order has nothing to do with that of any leg."""
        return self.ranks and bool(self.agreement) and max(self.agreement.values()) < DISAGREES

    @property
    def enough(self) -> float:
        """What is worth working for: three points where the best order has 1."""
        return SMALL * self.best

    @property
    def helps(self) -> bool:
        """Whether the reranker gains as much."""
        return self.gain is not None and self.gain.difference >= self.enough

    @property
    def headroom(self) -> float:
        """What the best order of the candidates gains over the first stage's."""
        return self.ceiling - (self.reached if self.first_stage is None else self.first_stage)

    @property
    def n_inside(self) -> int:
        """Those of them that are, and are lost in their order."""
        return self.n_lost - self.n_outside - self.lost.get("below min_score", 0)

    def of_order(self, documents: int) -> float:
        """Return the part of `order_loss` that so many of the lost documents inside the pool stand for."""
        return self.order_loss * documents / self.n_inside if self.n_inside else 0.0

    def of_pool(self, documents: int) -> float:
        """Return the part of `pool_loss` that so many of the documents outside the pool stand for."""
        return self.pool_loss * documents / self.n_outside if self.n_outside else 0.0


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number of things in words."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
