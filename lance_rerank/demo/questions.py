"""Questions people ask about Python's standard library, written by hand together with their right answers.

``questions.tsv`` has one a line: the question, a tab, and one to four names. New questions go to its end, since a
question's id is its line number. A module's overview is a right answer only where the module serves no other purpose:
``shelve`` answers how to keep a dictionary on disk; ``statistics`` does not answer how to take a median.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lance_rerank.types import Qrel, Query

_QUESTIONS = Path(__file__).with_name("questions.tsv")


def load_questions(available: Collection[str]) -> tuple[list[Query], list[Qrel], list[str]]:
    """Return the queries, their judgements, and the names of right answers that ``available`` lacks.

    Parameters
    ----------
    available : Collection of str
        The document ids of the corpus. Which functions exist depends on the Python version.

    Returns
    -------
    queries : list of Query
        The questions that keep at least one answer. A question has the same ``query_id`` on every Python.
    qrels : list of Qrel
        One for each pair of question and right answer, of relevance 1.
    missing : list of str
        The right answers that ``available`` does not have, sorted, each named once.
    """
    present = frozenset(available)
    queries: list[Query] = []
    qrels: list[Qrel] = []
    missing: set[str] = set()
    for query, answers in _questions():
        found = [answer for answer in answers if answer in present]
        missing.update(set(answers) - present)
        if found:
            queries.append(query)
            qrels.extend(Qrel(query.query_id, answer, 1) for answer in found)
    return queries, qrels, sorted(missing)


def answer_names() -> frozenset[str]:
    """Return the qualified names of all right answers, whichever Python has them."""
    return frozenset(answer for _, answers in _questions() for answer in answers)


def _questions() -> Iterator[tuple[Query, list[str]]]:
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        text, answers = line.split("\t")
        yield Query(f"q{number:03}", text), answers.split()
