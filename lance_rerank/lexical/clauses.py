"""What queries are made of: the terms of a text in a field, phrases, other spellings, further words.

Both readings of a query, as plain words and as query language, build theirs from these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

import tantivy
from tantivy import Occur, Query

from lance_rerank.errors import ArgumentError

MAX_TERMS = 1024
"""How many distinct terms of a query are searched in each field; Lucene's limit on clauses as well."""

MAX_FUZZY_TERMS = 64
"""How many terms of a query may match at an edit distance.

Each walks the index's dictionary: 2 ms at distance 2 over 100,000 words, where an exact term takes 4 microseconds.
"""

_FUZZY_LENGTHS = range(3, 65)  # shorter terms are near to everything, longer ones are no misspelt words

# Small against a match as spelt, whose BM25 is above it unless three documents of four have the word.
_FUZZY_SCORE = 0.25
ONLY_FIRST_FUZZY = f"only the first {MAX_FUZZY_TERMS} terms are searched in other spellings"

Expand: TypeAlias = Callable[[Sequence[str]], Mapping[str, float]]
"""A hook for synonyms and boosts: from a query's words to further words or phrases with their weights.

The words come lower-cased, as typed, before stemming. What is returned is analysed like the query and added as optional
clauses with that boost; several words are searched as a phrase. Weights are finite and positive.
"""


@dataclass(frozen=True, slots=True)
class TextField:
    """A text field of the index that queries are searched in.

    Attributes
    ----------
    name : str
        The field in the schema.
    boost : float
        What its scores are multiplied by.
    analyzer : tantivy.TextAnalyzer
        The one the field was indexed with.
    tokenizer : str
        The name under which that analyzer is registered at the index.
    """

    name: str
    boost: float
    analyzer: tantivy.TextAnalyzer
    tokenizer: str


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """A query to search, and what of the user's text is not in it.

    Attributes
    ----------
    query : tantivy.Query
        Finds nothing where the text has nothing to search for.
    ignored : tuple of str
        What was left out or not understood, in words for users; empty for a clean query.
    """

    query: tantivy.Query
    ignored: tuple[str, ...] = ()


def encodable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 and so Tantivy cannot take; a "?" separates words as they do."""
    return text.encode("utf-8", "replace").decode("utf-8")


_EDGES = "\"'`()[]{}<>,;:!?…“”‘’«»*"


def typed_words(text: str) -> list[str]:
    """Lower-cased words as typed; "c++", ".net" and "wi-fi" stay whole."""
    words = (word.lstrip(_EDGES).rstrip(_EDGES + ".") for word in text.lower().split())
    return [word for word in words if word]


def field_terms(field: TextField, text: str) -> Counter[str]:
    """The terms of a text, in its order, and in how many spellings each is there: "key keys" has "key" twice."""
    encoded = text.encode()
    tokens = field.analyzer.pre_tokenize(text).tokens
    spellings = dict.fromkeys((token.text, encoded[token.char_offset_from : token.char_offset_to]) for token in tokens)
    return Counter(term for term, _ in spellings)


def together(schema: tantivy.Schema, field: TextField, text: str, slop: int = 0, prefix: bool = False) -> Query | None:
    """A text's tokens side by side: a term, or a phrase."""
    tokens = [(token.position, token.text) for token in field.analyzer.pre_tokenize(text).tokens]
    if not tokens:
        return None
    if prefix:
        query = Query.phrase_prefix_query(schema, field.name, tokens)
    elif len(tokens) > 1:
        query = Query.phrase_query(schema, field.name, tokens, slop)
    else:
        query = Query.term_query(schema, field.name, tokens[0][1])
    return boosted(query, field.boost)


def any_of(queries: Sequence[Query | None]) -> Query | None:
    """Return a query for documents that match any of these, None where there is none to match."""
    there = [query for query in queries if query is not None]
    if len(there) < 2:
        return there[0] if there else None
    return Query.boolean_query([(Occur.Should, query) for query in there])


def boosted(query: Query, boost: float) -> Query:
    """Return a query whose scores are multiplied by a boost."""
    return query if boost == 1 else Query.boost_query(query, boost)


def fuzzy_names(spelt: Sequence[tuple[TextField, str]]) -> dict[str, list[str]]:
    """From each term that may be misspelt to the fields it is searched in."""
    n_grams = {field.name for field in {field.name: field for field, _ in spelt}.values() if _makes_n_grams(field)}
    names: dict[str, list[str]] = {}
    for field, term in spelt:
        if len(term) in _FUZZY_LENGTHS and field.name not in n_grams:
            names.setdefault(term, []).append(field.name)
    return names


def _makes_n_grams(field: TextField) -> bool:
    tokens = field.analyzer.pre_tokenize("abcdefghijklmnopqrstuvwxyz").tokens
    return len({token.position for token in tokens}) < len(tokens)


def fuzzy_query(schema: tantivy.Schema, term: str, names: Sequence[str], distance: int) -> Query:
    """Return a query for a term's other spellings in some fields, for one small constant score."""
    # One constant for all fields: a document with the word as spelt has it too, so it always comes before one that
    # has only a near word, be that in a field with a higher boost.
    near = [Query.fuzzy_term_query(schema, name, term, distance) for name in names]
    return Query.const_score_query(any_of(near), _FUZZY_SCORE)


def expansions(
    schema: tantivy.Schema, fields: Sequence[TextField], expand: Expand | None, words: Sequence[str]
) -> list[Query]:
    """Return queries for what a hook makes of the words of a query."""
    queries = []
    for text, weight in expand(words).items() if expand and words else ():
        check_weight(f"the weight that expand gives {text!r}", weight)
        found = [together(schema, field, encodable(text)) for field in fields]
        queries += [boosted(query, weight) for query in found if query is not None]
    return queries


def check_weight(name: str, weight: object) -> None:
    """Raise `ArgumentError` unless a weight is finite and positive."""
    if not (isinstance(weight, Real) and math.isfinite(weight) and float(weight) > 0):
        raise ArgumentError(f"{name} must be finite and above 0, got {weight!r}; to leave a text out, do not name it")


def check_fuzzy(fuzzy: int) -> None:
    """Raise `ArgumentError` unless an edit distance is one that Tantivy has."""
    if fuzzy not in (0, 1, 2):
        raise ArgumentError(f"fuzzy must be 0, 1 or 2 (the edits between a word and its match), got {fuzzy!r}")


def nothing(text: str) -> str:
    """Return, in words, that a text has nothing to search for."""
    if not text.strip():
        return "the query is empty"
    return f"{short(text)} has no word to search for, only stop words or punctuation"


def short(text: str) -> str:
    """Return a text in quotes, cut off where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
