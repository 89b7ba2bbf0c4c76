"""From any text to a Tantivy query for its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import tantivy
from tantivy import Query

from lance_rerank.errors import ArgumentError
from lance_rerank.lexical.clauses import (
    MAX_FUZZY_TERMS,
    MAX_TERMS,
    ONLY_FIRST_FUZZY,
    Expand,
    ParsedQuery,
    TextField,
    any_of,
    boosted,
    check_fuzzy,
    check_weight,
    encodable,
    expansions,
    field_terms,
    fuzzy_names,
    fuzzy_query,
    nothing,
    typed_words,
)


def plain_query(
    schema: tantivy.Schema,
    fields: Sequence[TextField],
    text: str,
    *,
    fuzzy: int = 0,
    expand: Expand | None = None,
) -> ParsedQuery:
    """Return the query for documents with any of a text's words; no character of it is taken as syntax.

    Scores are those that Tantivy's parser gives the same words: the BM25 of every term in every field, times the
    field's boost; a repeated word counts once, another spelling of the same stem again.

    Parameters
    ----------
    schema : tantivy.Schema
        The index's schema.
    fields : sequence of TextField
        The fields to search.
    text : str
        Any text. Of its distinct terms the first `MAX_TERMS` are searched.
    fuzzy : int
        0, 1 or 2: a term also matches at that edit distance, for a small constant score, so that words as spelt come
        first. Holds for the first `MAX_FUZZY_TERMS` terms of 3 to 64 characters; fields of n-grams bear misspelling
        anyway and are left as they are.
    expand : callable, optional
        See `Expand`; what it raises is not caught.

    Raises
    ------
    ArgumentError
        `fuzzy` is another number, or a weight of `expand` is not finite and positive.
    """
    check_fuzzy(fuzzy)
    text = encodable(text)
    ignored: list[str] = []
    queries: list[Query] = []
    spelt: list[tuple[TextField, str]] = []
    for field in fields:
        terms = field_terms(field, text)
        if len(terms) > MAX_TERMS:
            ignored.append(f"in {field.name!r}, only the first {MAX_TERMS:,} of {len(terms):,} terms are searched")
        for term, count in islice(terms.items(), MAX_TERMS):
            queries.append(boosted(Query.term_query(schema, field.name, term), field.boost * count))
            spelt.append((field, term))
    if fuzzy:
        near = fuzzy_names(spelt)
        if len(near) > MAX_FUZZY_TERMS:
            ignored.append(ONLY_FIRST_FUZZY)
        queries += [fuzzy_query(schema, term, near[term], fuzzy) for term in islice(near, MAX_FUZZY_TERMS)]
    if expand:
        queries += expansions(schema, fields, expand, typed_words(text))
    if not queries:
        return ParsedQuery(Query.empty_query(), (nothing(text),))
    return ParsedQuery(any_of(queries), tuple(ignored))


def synonyms(groups: Mapping[str, Sequence[str]], weight: float = 0.5) -> Expand:
    """Return the hook that adds the synonyms of every word or phrase that a query has, in the direction given.

    Parameters
    ----------
    groups : mapping of str to sequence of str
        From a word or phrase, in any case, to what is searched as well.
    weight : float
        How much a synonym counts beside the word as typed.

    Raises
    ------
    ArgumentError
        The weight is not finite and positive, or a single text stands where a sequence of them is expected.

    Examples
    --------
    >>> expand = synonyms({"k8s": ["kubernetes"], "single sign on": ["SSO"]})
    >>> expand(["k8s", "single", "sign", "on"])
    {'kubernetes': 0.5, 'SSO': 0.5}
    """
    check_weight("weight", weight)
    known: dict[str, list[str]] = {}
    for name, others in groups.items():
        if isinstance(others, str):
            raise ArgumentError(f"synonyms of {name!r} must be a sequence of texts, got {others!r}: write [{others!r}]")
        known.setdefault(" ".join(typed_words(name)), []).extend(others)
    lengths = sorted({name.count(" ") + 1 for name in known})

    def expand(words: Sequence[str]) -> dict[str, float]:
        starts = range(len(words))
        runs = dict.fromkeys(" ".join(words[i : i + n]) for i in starts for n in lengths if i + n <= len(words))
        return {other: weight for run in runs for other in known.get(run, ())}

    return expand
