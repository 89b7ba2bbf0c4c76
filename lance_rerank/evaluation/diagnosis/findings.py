"""What a diagnosis finds in the evidence: each cause with its count, example queries, and what it means."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lance_rerank.evaluation.diagnosis.evidence import Evidence, Seen
from lance_rerank.evaluation.diagnosis.losses import CAUSES, WHY_UNSCORED, Place, Qrels, top
from lance_rerank.evaluation.diagnosis.numbers import UNJUDGED, Numbers, counted
from lance_rerank.evaluation.diagnosis.reading import Reading

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a retriever, or with what it is judged by.

    Attributes
    ----------
    retriever : str
        Its name.
    cause : str
        In a few words, the same for every retriever.
    count, of : int
        How often, of how many: relevant documents, queries or ranks, as `meaning` says.
    examples : tuple of str
        Ids of queries, five at most.
    meaning, advice : str
        What it means, and what to do about it.

    Examples
    --------
    >>> print(Finding("hybrid", "too shallow", 3, 40, ("q7", "q9"), "not among 100 candidates a leg", "more of them"))
    too shallow, 3 of 40: not among 100 candidates a leg (q7, q9)
    """

    retriever: str
    cause: str
    count: int
    of: int
    examples: tuple[str, ...]
    meaning: str
    advice: str

    def __str__(self) -> str:
        examples = f" ({', '.join(self.examples)})" if self.examples else ""
        return f"{self.cause}, {self.count:,} of {self.of:,}: {self.meaning}{examples}"


def findings(
    evidence: Evidence, reading: Reading, lost: Mapping[str, Sequence[Place]], numbers: Numbers, qrels: Qrels
) -> tuple[Finding, ...]:
    """Return what is wrong: what is broken, the causes of lost documents, the rest.

    Parameters
    ----------
    evidence, reading : Evidence, Reading
        What is known of one retriever and of its models.
    lost : Mapping
        Its lost documents by cause.
    numbers : Numbers
        What was counted of them.
    qrels : Mapping
        Grades by query id and document id.
    """
    found = itertools.chain(
        _failed(evidence),
        _unscored(evidence, numbers),
        _alike(evidence),
        _losses(evidence, lost, numbers),
        _truncated(evidence, reading),
        _foreign(evidence, reading),
        _disagreeing(evidence, numbers),
        _unjudged(evidence, numbers, qrels),
        _tied(evidence, numbers, qrels),
    )
    return tuple(found)


def _some(query_ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(itertools.islice(dict.fromkeys(query_ids), EXAMPLES))


def _failed(evidence: Evidence) -> Iterator[Finding]:
    failed = evidence.failures
    if failed:
        of = len(failed) + len(evidence.seen)
        meaning = f"queries that raised an error and are left out here, the first {next(iter(failed.values()))}"
        advice = "make them run: a failed query counts as finding nothing"
        yield Finding(evidence.retriever, "failed", len(failed), of, _some(failed), meaning, advice)


def _unscored(evidence: Evidence, numbers: Numbers) -> Iterator[Finding]:
    without = {query_id: seen.unscored for query_id, seen in evidence.seen.items()} if evidence.scored else {}
    count = sum(map(len, without.values()))
    if not count:
        return
    depth = numbers.depth
    reach = [query_id for query_id, some in without.items() if {*some} & {*list(evidence.seen[query_id].final)[:depth]}]
    where = (
        f"in the top {depth} of {counted(len(reach), 'query', 'queries')}" if reach else f"all below the top {depth}"
    )
    meaning = f"candidates without a score, {where}"
    of = sum(len(seen.final) for seen in evidence.seen.values())
    most = sorted((query_id for query_id in without if without[query_id]), key=lambda query_id: -len(without[query_id]))
    advice = f"find out why it scores nothing: {WHY_UNSCORED}"
    yield Finding(evidence.retriever, "not scored", count, of, _some(most), meaning, advice)


def _alike(evidence: Evidence) -> Iterator[Finding]:
    alike = [query_id for query_id, seen in evidence.seen.items() if seen.alike]
    if alike:
        meaning = "queries in which all scores are equal, so that the order is the one that the rows came in"
        advice = "find out why: does it read the column that tells the documents apart?"
        cause, of = "tells nothing apart", len(evidence.seen)
        yield Finding(evidence.retriever, cause, len(alike), of, _some(alike), meaning, advice)


def _losses(evidence: Evidence, lost: Mapping[str, Sequence[Place]], numbers: Numbers) -> Iterator[Finding]:
    for cause, some in sorted(lost.items(), key=lambda item: -len(item[1])):
        meaning, advice = CAUSES[cause].meaning(numbers), CAUSES[cause].advice(numbers)
        examples = _some(place.query_id for place in some)
        yield Finding(evidence.retriever, cause, len(some), numbers.n_relevant, examples, meaning, advice)


def _truncated(evidence: Evidence, reading: Reading) -> Iterator[Finding]:
    for one in reading.truncation:
        if one.relevant:
            tokens = "" if one.limit is None else f" the {one.limit:,} tokens"
            meaning = (
                f"relevant documents longer than{tokens} the {one.reader} reads (by column {one.columns}), and "
                f"{one.candidates:,} of {one.n_candidates:,} others at the top"
            )
            advice = "shorten the texts, split them into passages, or take a model that reads more"
            examples = _some(query_id for query_id, _ in sorted(one.relevant))
            count, of = len(one.relevant), one.n_relevant
            yield Finding(evidence.retriever, "truncated text", count, of, examples, meaning, advice)


def _foreign(evidence: Evidence, reading: Reading) -> Iterator[Finding]:
    for words in reading.words:
        if not words.suits:
            models = " and ".join(f"the {reader}" for reader in words.readers)
            meaning = f"queries with words, their own or their documents', foreign to {models}: {words} (prose has 1.1)"
            advice = "fine-tune on texts of this kind, or take a model that was trained on them"
            count, of = len(words.foreign), len(evidence.seen)
            yield Finding(evidence.retriever, "domain mismatch", count, of, _some(words.foreign), meaning, advice)


def _disagreeing(evidence: Evidence, numbers: Numbers) -> Iterator[Finding]:
    if numbers.gain is None or not numbers.disagrees or numbers.helps:
        return
    legs = ", ".join(f"{value:+.2f} with {leg}" for leg, value in numbers.agreement.items())
    meaning = (
        "queries on which the reranker is worse than the first stage; its order has nothing to do with the legs' "
        f"(Spearman {legs})"
    )
    advice = "change the reranker, or fine-tune it on this data"
    cause, of = "reranker disagrees with the legs", len(evidence.seen)
    yield Finding(evidence.retriever, cause, len(numbers.harmed), of, _some(numbers.harmed), meaning, advice)


def _unjudged(evidence: Evidence, numbers: Numbers, qrels: Qrels) -> Iterator[Finding]:
    tops = {query_id: top(seen, numbers.depth) for query_id, seen in evidence.seen.items()}
    unjudged = {query_id: sum(doc_id not in qrels[query_id] for doc_id in best) for query_id, best in tops.items()}
    count = sum(unjudged.values())
    if not count:
        return
    meaning = f"documents in the top {numbers.depth} that nobody judged"
    if numbers.unjudged >= UNJUDGED:
        meaning += ": the measures are a lower bound"
    if not numbers.irrelevant_judged:
        meaning += ", as only relevant documents are judged here"
    advice = "judge them where retrievers are compared: the one that finds new documents is at a disadvantage"
    of = sum(map(len, tops.values()))
    most = sorted((query_id for query_id in unjudged if unjudged[query_id]), key=lambda query_id: -unjudged[query_id])
    yield Finding(evidence.retriever, "unjudged", count, of, _some(most), meaning, advice)


def _tied(evidence: Evidence, numbers: Numbers, qrels: Qrels) -> Iterator[Finding]:
    groups = {query_id: _ties(seen, numbers.depth) for query_id, seen in evidence.seen.items() if not seen.alike}
    tied = [query_id for query_id, some in groups.items() if some]
    if not tied:
        return
    unequal = [
        query_id
        for query_id in tied
        if any(len({max(0, qrels[query_id].get(doc_id, 0)) for doc_id in group}) > 1 for group in groups[query_id])
    ]
    matters = f"in {len(unequal):,} of them" if unequal else "in none of them"
    meaning = f"queries with equal scores in the top {numbers.depth}, {matters} between documents of different grades"
    advice = "where it matters, take scores that tell documents apart: a reranker's, or float32"
    yield Finding(
        evidence.retriever, "score ties", len(tied), len(evidence.seen), _some([*unequal, *tied]), meaning, advice
    )


def _ties(seen: Seen, depth: int) -> list[list[str]]:
    """Return the documents of equal scores, in groups that reach into the top."""
    ranked = enumerate((doc_id, seen.final[doc_id]) for doc_id in seen.returned if seen.final[doc_id] is not None)
    groups = [list(group) for _, group in itertools.groupby(ranked, key=lambda item: item[1][1])]
    return [[doc_id for _, (doc_id, _) in group] for group in groups if len(group) > 1 and group[0][0] < depth]
