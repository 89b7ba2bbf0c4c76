"""Which part of a document to show for a query, and how its score came about.

The texts live in the LanceDB table, not in Tantivy: `snippet` takes the text and lets Tantivy find the words in it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import tantivy

from lance_rerank.errors import ArgumentError

_Span: TypeAlias = tuple[int, int]

_MAX_STARTS = 1000  # matches in a text that a snippet may begin at: the first of a book are as good as any
_MAX_INSIDE = 200  # matches that are looked at from there on
_NEAR = 20  # characters that a part is shortened by at most to end with a word: some scripts put no spaces


@dataclass(frozen=True, slots=True)
class Snippet:
    """A part of a text, with the places of a query's words. Print it to see them between ``**``.

    Attributes
    ----------
    text : str
        As it stands in the whole text.
    highlights : tuple of (int, int)
        From where to where each word goes, as indices into `text`, in its order and without overlaps.
    start : int
        Where in the whole text the part begins.

    Examples
    --------
    >>> part = Snippet("rotate the API keys <now>", ((0, 6), (15, 19)), 0)
    >>> print(part)
    **rotate** the API **keys** <now>
    >>> part.to_html("mark")
    '<mark>rotate</mark> the API <mark>keys</mark> &lt;now&gt;'
    """

    text: str
    highlights: tuple[_Span, ...]
    start: int

    def __str__(self) -> str:
        return "".join(f"**{part}**" if marked else part for part, marked in self._parts())

    def to_html(self, tag: str = "b") -> str:
        """Return the part with its words in HTML elements, the text itself escaped.

        Parameters
        ----------
        tag : str
            The elements' name.

        Raises
        ------
        ArgumentError
            The tag is not the name of an element.
        """
        if not re.fullmatch(r"[A-Za-z][\w-]*", tag, re.ASCII):
            raise ArgumentError(f"tag must be the name of an HTML element such as 'b' or 'mark', got {tag!r}")
        parts = ((html.escape(part), marked) for part, marked in self._parts())
        return "".join(f"<{tag}>{part}</{tag}>" if marked else part for part, marked in parts)

    def _parts(self) -> Iterator[tuple[str, bool]]:
        end = 0
        for start, stop in self.highlights:
            yield self.text[end:start], False
            yield self.text[start:stop], True
            end = stop
        yield self.text[end:], False


def snippet(
    searcher: tantivy.Searcher,
    query: tantivy.Query,
    schema: tantivy.Schema,
    field: str,
    text: str | None,
    max_chars: int = 150,
) -> Snippet:
    """Return the part of a text with most of a query's words, each of them highlighted; else the text's beginning.

    Words are those the query's terms and phrases are made of, in whatever inflection. What it finds by another
    spelling, by a prefix or by a range is not highlighted: Tantivy's snippets do not know of it.

    Parameters
    ----------
    searcher : tantivy.Searcher
        Of the index: words that no document has are not looked for.
    query : tantivy.Query
        What was searched.
    schema : tantivy.Schema
        The index's schema.
    field : str
        The text field that the text is of.
    text : str or None
        The whole text of a document.
    max_chars : int
        Most characters of the part.

    Raises
    ------
    ArgumentError
        `max_chars` is below 1.
    """
    if max_chars < 1:
        raise ArgumentError(f"max_chars must be at least 1, got {max_chars!r}")
    if not text:
        return Snippet("", (), 0)
    spans = _matches(searcher, query, schema, field, text)
    start, end = _window(text, spans, max_chars)
    inside = ((max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start)
    return Snippet(text[start:end], tuple(inside), start)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one term added to a score.

    Attributes
    ----------
    field : str or None
        Where it was found; None where Tantivy does not say, as for phrases.
    term : str
        As it is in the index, stemmed; or the kind of match where Tantivy does not say: ``(phrase)``, ``(constant)``.
    score : float
        With all boosts.
    """

    field: str | None
    term: str
    score: float


@dataclass(frozen=True, slots=True)
class LexicalExplanation:
    """How a document's score came about. Print it for a small table.

    Attributes
    ----------
    score : float
        0 for a document that the query does not find.
    contributions : tuple of Contribution
        What makes up the score, most first.
    details : Mapping
        All that Tantivy says: a tree of ``value``, ``description`` and ``details``, with counts and lengths.

    Examples
    --------
    >>> print(LexicalExplanation(2.5, {}, (Contribution("title", "key", 2.0), Contribution("text", "key", 0.5))))
    score 2.5000
      2.0000  title:key
      0.5000  text:key
    """

    score: float
    details: Mapping[str, Any]
    contributions: tuple[Contribution, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"  {each.score:.4f}  {f'{each.field}:' if each.field else ''}{each.term}" for each in self.contributions
        ]
        return "\n".join([f"score {self.score:.4f}", *lines])


def explanation(
    query: tantivy.Query,
    searcher: tantivy.Searcher,
    address: tantivy.DocAddress,
    schema: tantivy.Schema | None = None,
) -> LexicalExplanation:
    """Return how the score of a document came about: what each term in each field added, and Tantivy's arithmetic.

    Parameters
    ----------
    query : tantivy.Query
        What was searched.
    searcher : tantivy.Searcher
        Of the same state of the index that the address is from.
    address : tantivy.DocAddress
        The document, as in the hits of a search.
    schema : tantivy.Schema, optional
        Names the fields; Tantivy only numbers them.
    """
    try:
        details = json.loads(query.explain(searcher, address).to_json())
    except ValueError as error:
        if "does not match" in str(error):
            return LexicalExplanation(0.0, {})
        raise
    # a Schema tells its fields only to pickle
    names = [field["name"] for field in schema.__reduce__()[1][0]["inner"]] if schema is not None else []
    found = sorted(_contributions(details, 1.0, names), key=lambda each: -each.score)
    return LexicalExplanation(details["value"], details, tuple(found))


# --- where the words are --------------------------------------------------------------------------------------------


def _matches(
    searcher: tantivy.Searcher, query: tantivy.Query, schema: tantivy.Schema, field: str, text: str
) -> list[_Span]:
    """Where the query's words are, in characters; n-grams that overlap are one."""
    encoded = text.encode("utf-8", "replace")  # a lone surrogate becomes one "?", so that offsets hold
    generator = tantivy.SnippetGenerator.create(searcher, query, schema, field)
    generator.set_max_num_chars(len(encoded) + 1)  # the whole text: its own fragments count in bytes, not characters
    document = tantivy.Document()
    document.add_text(field, encoded.decode())
    whole = generator.snippet_from_doc(document)
    offset = whole.fragment_range().start
    merged: list[_Span] = []
    for start, end in sorted((offset + found.start, offset + found.end) for found in whole.highlighted()):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged if text.isascii() else list(_in_characters(merged, encoded))


def _in_characters(spans: Sequence[_Span], encoded: bytes) -> Iterator[_Span]:
    n_bytes = n_characters = 0
    for start, end in spans:
        first = n_characters + len(encoded[n_bytes:start].decode())
        n_bytes, n_characters = end, first + len(encoded[start:end].decode())
        yield first, n_characters


def _window(text: str, spans: Sequence[_Span], max_chars: int) -> _Span:
    """From where to where the part goes: whole words where there are spaces, the matches not at its very edge."""
    first, last = _densest(text, spans, max_chars)
    spare = max(0, max_chars - (last - first))
    start = max(0, min(first - spare // 3, len(text) - max_chars))
    if start:
        start = next((i + 1 for i in range(start - 1, min(first, start + _NEAR)) if text[i].isspace()), start)
    end = min(len(text), start + max_chars)
    if end < len(text) and not text[end].isspace():
        end = next((i for i in range(end - 1, max(last - 1, start, end - _NEAR), -1) if text[i].isspace()), end)
    return start, end


def _densest(text: str, spans: Sequence[_Span], max_chars: int) -> _Span:
    """The stretch of at most `max_chars` with most different words of the query, of these with most; the first such."""
    best, stretch = (0, 0), (0, 0)
    for i, (start, _) in enumerate(spans[:_MAX_STARTS]):
        inside = [span for span in spans[i : i + _MAX_INSIDE] if span[1] <= start + max_chars] or [spans[i]]
        richness = (len({text[a:b].lower() for a, b in inside}), len(inside))
        if richness > best:
            best, stretch = richness, (start, min(inside[-1][1], start + max_chars))
    return stretch


# --- what the score is made of --------------------------------------------------------------------------------------

_KINDS = {
    "Phrase Scorer": "(phrase)",
    "Phrase Prefix Scorer": "(prefix)",
    "AutomatonScorer": "(another spelling)",
    "Const": "(constant)",
    "AllQuery": "(every document)",
}
_TERM = re.compile(r'Term=Term\(field=(\d+), type=\w+, "?(.*?)"?\)', re.DOTALL)


def _contributions(node: Mapping[str, Any], boost: float, names: Sequence[str]) -> Iterator[Contribution]:
    kind, inner = node["description"], node.get("details", [])
    if kind.startswith("BooleanClause"):
        for child in inner:
            yield from _contributions(child, boost, names)
    elif kind.startswith("Boost x") and inner:
        # the value tells the boost to more digits than the description
        own = inner[0]["value"]
        yield from _contributions(inner[0], boost * node["value"] / own if own else 0.0, names)
    else:
        found = _TERM.fullmatch("".join(node.get("context", [])))
        number = int(found[1]) if found else len(names)
        name = names[number] if number < len(names) else (str(number) if found else None)
        term = re.sub(r"\\([\"'\\])", r"\1", found[2]) if found else _KINDS.get(kind, f"({kind})")
        yield Contribution(name, term, boost * node["value"])
