"""From counts to what they mean and what to do: tables of rules, a row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from lance_rerank.evaluation.diagnosis.losses import WHY_UNSCORED, another_leg, more_would_show, tuned
from lance_rerank.evaluation.diagnosis.numbers import MOST, MOSTLY_UNJUDGED, SMALL, Numbers, counted
from lance_rerank.evaluation.significance import FEWEST_QUERIES, Comparison

_FEWEST_LONG = 5
_TRAINED_ON_OTHERS = "the words of these texts are foreign to it, so it was trained on others"


# --- what the gain of a reranker means -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer to what a reranker's gain over its own first stage means."""

    holds: Callable[[Numbers, Comparison], bool]
    says: Callable[[Numbers], str]


# The first that holds decides.
VERDICTS = (
    Verdict(
        lambda n, _: n.unscored >= MOST, lambda n: f"it does not rank, {n.unscored:.0%} of the candidates have no score"
    ),
    Verdict(
        lambda n, _: n.alike >= MOST,
        lambda n: f"it does not rank, in {n.alike:.0%} of the queries all scores are equal",
    ),
    Verdict(lambda n, gain: n.helps and gain.verdict == "better", lambda _: "it helps"),
    Verdict(
        lambda n, gain: gain.verdict != "worse" and n.headroom < n.enough and n.pool_loss < n.enough,
        lambda _: "nothing to win, the first stage is at the ceiling of its candidates already",
    ),
    Verdict(
        lambda n, gain: gain.verdict != "worse" and n.headroom < n.enough,
        lambda n: f"a weak pool, the best order of these candidates would win {points(n.headroom)}",
    ),
    Verdict(
        lambda n, _: n.disagrees and not n.helps,
        lambda _: "domain mismatch, its order has nothing to do with what words or vectors say",
    ),
    Verdict(
        lambda n, _: bool(n.foreign) and not n.helps,
        lambda n: f"domain mismatch, the words of these texts are foreign to the {' and the '.join(n.foreign)}",
    ),
    Verdict(lambda _, gain: gain.verdict == "better", lambda _: "it helps a little"),
    Verdict(
        lambda n, gain: gain.verdict != "worse" and gain.high >= n.enough,
        lambda n: f"undecided, {counted(n.n_queries, 'query is', 'queries are')} too few to tell",
    ),
    Verdict(
        lambda _, gain: gain.verdict == "worse",
        lambda n: f"a weak model, worse than none where the best order would win {points(n.headroom)}",
    ),
    Verdict(
        lambda *_: True,
        lambda n: f"a weak model, no better than none where the best order would win {points(n.headroom)}",
    ),
)


def verdict(n: Numbers) -> str | None:
    """Return what the reranker's gain over its own first stage means, in words; None without a reranker."""
    gain = n.gain
    return None if gain is None else next(row.says(n) for row in VERDICTS if row.holds(n, gain))


# --- what to do ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to do, and why.

    Attributes
    ----------
    remedy : str
        In a few words.
    at_stake : callable
        How much of the measure it is about; 0 where it would not help.
    says : callable
        Why.
    mends : bool
        Whether it mends what is broken; else it betters what is weak.
    """

    remedy: str
    at_stake: Callable[[Numbers], float]
    says: Callable[[Numbers], str]
    mends: bool = False


def _outside(*causes: str) -> Callable[[Numbers], float]:
    """Return what tells the points that documents lost by these causes stand for."""
    return lambda n: n.of_pool(sum(n.lost.get(cause, 0) for cause in causes))


def _lost_by_index(n: Numbers) -> float:
    return _outside("approximate index")(n) + n.of_order(n.lost.get("approximate distances", 0))


def _too_far(n: Numbers) -> float:
    """Return what is lost because neither leg has documents near enough, by depth too where that shows at the top."""
    return _outside("unreached")(n) if more_would_show(n) else _outside("unreached", "too shallow")(n)


def _foreign_to_embedder(n: Numbers) -> float:
    """Return what an embedder could win that knows the words: a first stage with more documents, in better order."""
    foreign = "embedder" in n.foreign and not n.helps
    return n.headroom + _outside("unreached", "too shallow")(n) if foreign else 0.0


def _foreign_to_reranker(n: Numbers) -> float:
    return n.order_loss if n.reranked and not n.helps and (n.disagrees or "reranker" in n.foreign) else 0.0


def _long(n: Numbers) -> float:
    """Return all that is lost where long texts are most of it, and lost oftener than others by half: not by chance."""
    others, others_lost = n.n_relevant - n.cut, n.n_lost - n.cut_lost
    oftener = n.cut_lost * others > 1.5 * others_lost * n.cut
    mostly = n.cut_lost >= max(_FEWEST_LONG, n.n_lost / 2)
    return n.best - n.reached if mostly and oftener else 0.0


def _harmful(n: Numbers) -> float:
    harm = n.gain is not None and n.gain.difference < 0
    more_lost = n.lost.get("lost by the reranker", 0) > n.lost.get("ordered too low", 0)
    return n.order_loss if n.reranked and not n.blended and (harm or more_lost) else 0.0


# What is broken comes before what is weak, where it costs enough; then that with the most at stake; then the first.
RULES = (
    Rule(
        "find out why it scores nothing",
        lambda n: inf if n.unscored >= MOST else n.of_order(n.lost.get("lost without a score", 0)),
        lambda n: f"{n.unscored:.1%} of the candidates have no score; {WHY_UNSCORED}",
        mends=True,
    ),
    Rule(
        "leave it",
        lambda n: inf if n.n_relevant and n.best - n.now < n.enough and n.failing < SMALL else 0.0,
        lambda n: f"{points(n.best - n.now)} are all that is left to win",
    ),
    Rule(
        "find out why it fails",
        lambda n: n.failing * n.best if n.n_queries else inf,
        lambda n: f"{n.failing:.0%} of the queries raised an error",
        mends=True,
    ),
    Rule(
        "judge more",
        lambda n: 0.0 if n.n_relevant else inf,
        lambda _: "no document is judged relevant for these queries, so that nothing can be told",
    ),
    Rule(
        "find out why it tells nothing apart",
        lambda n: n.order_loss if n.alike >= MOST else 0.0,
        lambda n: (
            f"in {n.alike:.0%} of the queries all scores are equal; does it read the column that tells the documents "
            "apart?"
        ),
        mends=True,
    ),
    Rule("tune the index", _lost_by_index, tuned, mends=True),
    Rule(
        "add the documents",
        _outside("absent"),
        lambda n: f"{counted(n.lost['absent'], 'relevant one is', 'relevant ones are')} not in the table by these ids",
        mends=True,
    ),
    Rule(
        "check the filter",
        _outside("filtered"),
        lambda n: f"it keeps {counted(n.lost['filtered'], 'relevant document')} out",
        mends=True,
    ),
    Rule(
        "lower min_score",
        lambda n: n.threshold_loss,
        lambda n: f"it costs {points(n.threshold_loss)}; result.thresholds says what each score would return",
        mends=True,
    ),
    Rule("add a leg", lambda n: n.of_pool(max(n.other_legs.values(), default=0)), another_leg),
    Rule(
        "more candidates",
        lambda n: _outside("too shallow")(n) if more_would_show(n) else 0.0,
        lambda n: f"{counted(n.lost['too shallow'], 'document comes', 'documents come')} with {n.deepest:,} a leg",
    ),
    Rule(
        "more candidates",
        _outside("not retrieved"),
        lambda n: f"{counted(n.lost['not retrieved'], 'document is', 'documents are')} not in the run",
    ),
    Rule(
        "shorten or split the texts",
        _long,
        lambda n: f"{n.cut_lost:,} of the {n.n_lost:,} lost documents are longer than a model reads",
    ),
    Rule(
        "fine-tune the embedder",
        _foreign_to_embedder,
        lambda n: (
            f"{_TRAINED_ON_OTHERS}{'; until then lance_rerank.BlendReranker' if n.reranked and not n.blended else ''}"
        ),
    ),
    Rule(
        "fine-tune the embedder",
        lambda n: _too_far(n) if "vector" in n.kinds else 0.0,
        lambda _: "its vectors leave relevant documents too far from their queries",
    ),
    Rule(
        "add a leg",
        lambda n: 0.0 if "vector" in n.kinds else _too_far(n),
        lambda _: "the words alone do not find these documents; a vector leg may",
    ),
    Rule(
        "change or fine-tune the reranker",
        _foreign_to_reranker,
        lambda n: "its order has nothing to do with the legs', and is no better" if n.disagrees else _TRAINED_ON_OTHERS,
    ),
    Rule(
        "judge more",
        lambda n: n.order_loss if n.irrelevant_judged and n.unjudged >= MOSTLY_UNJUDGED else 0.0,
        lambda n: f"{n.unjudged:.0%} of the documents at the top are unjudged, and count as not relevant",
    ),
    Rule(
        "blend it",
        _harmful,
        lambda _: "lance_rerank.BlendReranker keeps what the legs knew; lance_rerank.fit_blend learns how much to",
    ),
    Rule(
        "rerank and blend",
        lambda n: 0.0 if n.reranked else n.order_loss,
        lambda n: f"a reranker within lance_rerank.BlendReranker; these candidates allow {n.ceiling:.3f}",
    ),
    Rule(
        "change or fine-tune the reranker",
        lambda n: n.order_loss if n.reranked else 0.0,
        lambda n: f"the best order of these candidates has {n.ceiling:.3f}, its order {n.reached:.3f}",
    ),
)


def advise(n: Numbers) -> str:
    """Return the one thing to do first, and why."""
    rule = max(RULES, key=lambda rule: _priority(rule, n))
    few = " (one query)" if n.n_queries == 1 else f" (of {n.n_queries} queries only)"
    return f"{rule.remedy}: {rule.says(n)}{few if 0 < n.n_queries < FEWEST_QUERIES else ''}"


def _priority(rule: Rule, n: Numbers) -> tuple[bool, bool, float]:
    at_stake = rule.at_stake(n)
    return at_stake == inf, rule.mends and at_stake >= n.enough, at_stake


def points(difference: float) -> str:
    """Return a difference of a measure in words."""
    return f"{100 * difference:.1f} points"
