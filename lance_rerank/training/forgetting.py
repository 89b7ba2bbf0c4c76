"""What a model could do before: pairs that any corpus has of itself, none of them trained on."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from lance_rerank.datasets import Dataset
from lance_rerank.types import Document, Qrel, Query

FEWEST = 20  # of fewer no loss can be told from luck
_DISTRACTORS = 2000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_QUERY_WORDS = range(3, 65)
_REST_WORDS = 8


def held_pairs(
    documents: Iterable[Document], *, without: Container[str] = (), queries: int = 200, seed: int = 0
) -> Dataset | None:
    """Return queries made of documents, each to find its own; None where the documents do not lend themselves to it.

    A query is a title that no other document has, or else a first sentence. The document is searched without it, among
    the others of the sample and up to 2,000 whole ones. What training touched is left out by `without`. How well a
    model does is no measure of quality; that it does worse than before is a sign of what it forgot.

    Parameters
    ----------
    documents : iterable of Document
        The corpus.
    without : container of str, optional
        Ids of documents that no query is made of, such as those that training had as positives.
    queries : int, default 200
        How many at most.
    seed : int, default 0
        Of the sample, which depends on nothing else but the documents' ids.

    Examples
    --------
    >>> rest = "It is here to be read by all of them again."
    >>> held_pairs([Document(str(i), f"Rule {i} is short. {rest}") for i in range(50)], queries=30)
    Dataset('first sentences', split='held from the corpus', queries=30, judgements=30)
    """
    corpus = heapq.nsmallest(queries * 20 + _DISTRACTORS, documents, key=lambda document: _place(document, seed))
    usable = [document for document in corpus if document.doc_id not in without]
    pairs = _of_titles(usable)[:queries]
    name = "titles"
    if len(pairs) < min(queries, max(FEWEST, len(usable) // 2)):
        pairs, name = _of_sentences(usable)[:queries], "first sentences"
    if len(pairs) < FEWEST:
        return None
    used = {pair.doc_id for pair in pairs}
    others = [document for document in corpus if document.doc_id not in used][:_DISTRACTORS]
    return Dataset.from_memory(
        [Query(pair.doc_id, pair.query) for pair in pairs],
        [Qrel(pair.doc_id, pair.doc_id, 1) for pair in pairs],
        [*(Document(pair.doc_id, pair.rest) for pair in pairs), *others],
        name=name,
        split="held from the corpus",
    )


class _Pair(NamedTuple):
    doc_id: str
    query: str
    rest: str


def _place(document: Document, seed: int) -> bytes:
    return blake2b(f"{seed} {document.doc_id}".encode(errors="surrogatepass"), digest_size=8).digest()


def _of_titles(documents: Sequence[Document]) -> list[_Pair]:
    titles = Counter(document.title.strip() for document in documents)
    return [
        _Pair(document.doc_id, document.title.strip(), document.text)
        for document in documents
        if document.title.strip() and titles[document.title.strip()] == 1 and document.text.strip()
    ]


def _of_sentences(documents: Sequence[Document]) -> list[_Pair]:
    pairs = []
    for document in documents:
        first, *rest = _SENTENCE_END.split(document.text.strip(), maxsplit=1)
        if rest and len(first.split()) in _QUERY_WORDS and len(rest[0].split()) >= _REST_WORDS:
            pairs.append(_Pair(document.doc_id, first, rest[0]))
    firsts = Counter(pair.query for pair in pairs)
    return [pair for pair in pairs if firsts[pair.query] == 1]  # a sentence that opens several tells none of them
