"""Tantivy's query language, read the way people write it.

Tantivy's own parser is not asked for the whole query, because what it does with some texts is not what they mean:
``a AND NOT b`` finds nothing, a query of negations is an error, a stray ``)`` drops the rest, ``title:*`` fails only
when it is searched, ten thousand brackets overflow its stack and end the process. Here it reads the text into a tree
(`tantivy.parse_query_lenient`) and the tree is turned into queries node by node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import tantivy
from tantivy import Occur, Query

from lance_rerank.lexical.clauses import (
    MAX_FUZZY_TERMS,
    MAX_TERMS,
    ONLY_FIRST_FUZZY,
    Expand,
    ParsedQuery,
    TextField,
    any_of,
    check_fuzzy,
    encodable,
    expansions,
    fuzzy_names,
    fuzzy_query,
    nothing,
    short,
    together,
    typed_words,
)
from lance_rerank.lexical.query import plain_query

MAX_BRACKETS = 100
"""How many brackets and NOTs a query may have. The parser recurses on each; from about 1,000 on it ends the process."""

_MAX_REPAIRS = 20  # misplaced characters that are taken out of a query before it is searched as plain words
_MAX_MESSAGES = 10  # of `ignored`: a page of pasted code can have thousands of open quotation marks
_MAX_BOOST = 1e6  # scores are 32-bit floats; beyond, sums of scores become infinite and every order is lost

_Node: TypeAlias = dict[str, Any]
_Clause: TypeAlias = tuple[Occur, Query]


def syntax_query(
    index: tantivy.Index,
    schema: tantivy.Schema,
    fields: Sequence[TextField],
    text: str,
    *,
    fuzzy: int = 0,
    expand: Expand | None = None,
) -> ParsedQuery:
    """Return the query that a text in Tantivy's query language asks for; mistakes in it are reported, never raised.

    ``title:word``, ``"a phrase"~2``, ``+word``, ``-word``, ``word^2``, ``a AND (b OR c)``, ``id:[1 TO 5]``, ``id:>3``,
    ``id: IN [1 2 3]``, ``wor*``, ``*``. ``NOT word`` and ``AND NOT word`` mean ``-word``; a query, or a bracket, of
    negations only means all but those. A misplaced character is left out and the rest is read. A query with more than
    `MAX_BRACKETS` brackets or `MAX_TERMS` words is searched as plain words.

    Parameters
    ----------
    index : tantivy.Index
        Reads values of fields that are not in `fields`: numbers, dates, facets, JSON.
    schema, fields, text, fuzzy, expand
        As in `plain_query`. Unquoted words match at an edit distance, phrases, prefixes and negated words do not.
        Words that may stand for each other (``a b``) are handed to `expand` together, required ones (``+a``,
        ``a AND b``) one at a time, so that what it returns can stand for that word; words of one field
        (``title:a``) and negated ones are not handed to it.

    Raises
    ------
    ArgumentError
        As in `plain_query`.
    """
    check_fuzzy(fuzzy)
    text = encodable(text)
    read = _read(text)
    if isinstance(read, str):
        plain = plain_query(schema, fields, text, fuzzy=fuzzy, expand=expand)
        return ParsedQuery(plain.query, (f"{read}: searched as plain words", *plain.ignored))
    tree, errors = read
    translation = _Translation(index, schema, fields, fuzzy, expand)
    root = tree if tree["type"] == "bool" else {"type": "bool", "clauses": [(None, tree)]}
    query = translation.translate(root, positive=True)
    ignored = list(dict.fromkeys([*errors, *translation.ignored]))
    if query is None and not ignored:
        ignored.append(nothing(text))
    if len(ignored) > _MAX_MESSAGES:
        ignored[_MAX_MESSAGES:] = [f"and {len(ignored) - _MAX_MESSAGES:,} more like these"]
    return ParsedQuery(Query.empty_query() if query is None else query, tuple(ignored))


class _Translation:
    """Turns the tree of a query into Tantivy's queries, and keeps what it had to leave out.

    None stands for a part that asks for nothing: a stop word, punctuation, a field that is not there.
    """

    def __init__(
        self,
        index: tantivy.Index,
        schema: tantivy.Schema,
        fields: Sequence[TextField],
        fuzzy: int,
        expand: Expand | None,
    ) -> None:
        self.ignored: list[str] = []
        self._index = index
        self._schema = schema
        self._fields = {field.name: field for field in fields}
        # a Schema tells its fields only to pickle
        self._names = [field["name"] for field in schema.__reduce__()[1][0]["inner"]]
        self._fuzzy = fuzzy
        self._fuzzy_left = MAX_FUZZY_TERMS
        self._expand = expand

    def translate(self, node: _Node, *, positive: bool) -> Query | None:
        """Return the query of a node; `positive` says that documents with it are wanted."""
        match node["type"]:
            case "bool":
                return self._bool(node, positive)
            case "literal" if node["field_name"] is None or node["field_name"] in self._fields:
                return self._literal(node, positive)
            case "boost":
                return self._boost(node, positive)
            case "set" if node["field"] is None or node["field"] in self._fields:
                return any_of([self._literal(_word(word, node["field"]), False) for word in node["elements"]])
            case "regex":
                self.ignored.append(f"/{node['pattern']}/ is searched as words, not as a regular expression")
                return self.translate(_word(node["pattern"], node["field"]), positive=positive)
            case "all":
                return Query.all_query()
            case _:
                return self._value(node)

    def _bool(self, node: _Node, positive: bool) -> Query | None:
        clauses: list[_Clause] = []
        words: list[str] = []
        for occur, child in _normal(node["clauses"]):
            wanted = positive and occur != Occur.MustNot
            query = self.translate(child, positive=wanted)
            if wanted and occur == Occur.Should:
                words += self._default_words(child)
            elif wanted:
                query = any_of([query, *self._expanded(self._default_words(child))])
            if query is not None:
                clauses.append((occur, query))
        clauses += [(Occur.Should, query) for query in self._expanded(words)]
        present = {occur for occur, _ in clauses}
        if not present:
            return None
        if present == {Occur.MustNot}:
            # the score of 0 keeps "a OR NOT b" in the order of a
            return Query.boolean_query([(Occur.Must, Query.const_score_query(Query.all_query(), 0.0)), *clauses])
        return Query.boolean_query(clauses, minimum_number_should_match=0 if Occur.Must in present else 1)

    def _boost(self, node: _Node, positive: bool) -> Query | None:
        query = self.translate(node["underlying"], positive=positive)
        if query is not None and node["boost"] > _MAX_BOOST:
            self.ignored.append(f"the boost ^{node['boost']:g} is left out: it is above {_MAX_BOOST:g}")
            return query
        return query and Query.boost_query(query, node["boost"])

    def _literal(self, node: _Node, positive: bool) -> Query | None:
        """Words in the searched fields: a term, or a phrase where the analyzer makes several tokens of them."""
        name, text, bare = node["field_name"], node["phrase"], node["delimiter"] == "none"
        fields = list(self._fields.values()) if name is None else [self._fields[name]]
        prefix = node["prefix"] or (bare and text.endswith("*"))
        found = [together(self._schema, field, text, node["slop"], prefix) for field in fields]
        if self._fuzzy and positive and bare and not prefix:
            found += self._near(fields, text)
        return any_of(found)

    def _near(self, fields: Sequence[TextField], word: str) -> Iterator[Query]:
        spelt = [(field, terms[0]) for field in fields if len(terms := field.analyzer.analyze(word)) == 1]
        for term, names in fuzzy_names(spelt).items():
            if self._fuzzy_left:
                self._fuzzy_left -= 1
                yield fuzzy_query(self._schema, term, names, self._fuzzy)
            else:
                self.ignored.append(ONLY_FIRST_FUZZY)

    def _value(self, node: _Node) -> Query | None:
        """A range, or anything about a field that is not one of the searched ones: Tantivy reads the value."""
        written = _written(node)
        query, why = self._asked(node, written)
        if why is None:
            return query
        self.ignored.append(f"{short(written)} is left out: {why}")
        return None

    def _asked(self, node: _Node, written: str) -> tuple[Query | None, str | None]:
        name = node.get("field", node.get("field_name"))
        if name is None:
            return None, "a range needs a field, as in id:[1 TO 5]"
        path = name.partition(".")[0]  # "meta.lang" reaches into a JSON field
        if name not in self._names and path not in self._names:
            known = ", ".join(repr(known) for known in self._names if not known.startswith("_"))
            return None, f"there is no field {name!r}, only {known}"
        if not _same(node, tantivy.parse_query_lenient(written)[0]):
            return None, "its characters cannot be read as a value"
        query, errors = self._index.parse_query_lenient(written, list(self._fields))
        reason = str(errors[0]) if errors else _refusal(self._index, query)
        return query, None if reason is None else _in_words(reason)

    def _default_words(self, node: _Node) -> list[str]:
        while node["type"] == "boost":
            node = node["underlying"]
        return typed_words(node["phrase"]) if node["type"] == "literal" and node["field_name"] is None else []

    def _expanded(self, words: Sequence[str]) -> list[Query]:
        return expansions(self._schema, list(self._fields.values()), self._expand, words)


# --- the language ---------------------------------------------------------------------------------------------------


def _read(text: str) -> tuple[_Node, list[str]] | str:
    """Return the tree of a query and what is wrong with it, or why it cannot be read as one."""
    if text.count("(") + text.count("NOT") > MAX_BRACKETS:
        return f"the query has more than {MAX_BRACKETS} brackets and NOTs"
    said: list[str] = []
    for _ in range(_MAX_REPAIRS):
        tree, errors = tantivy.parse_query_lenient(text)
        stop = next((error["pos"] for error in errors if error["message"] == "unparsed end of query"), None)
        if stop is None:
            if _size(tree) > MAX_TERMS:
                return f"the query has more than {MAX_TERMS:,} words"
            return tree, said + [_in_words(error["message"]) for error in errors if error["message"] in _MISTAKES]
        text, character = _without(text, stop)
        said.append(f"{character!r} is left out: it has no meaning where it stands")
    return "the query has too many brackets without a partner"


_MISTAKES = {
    'missing delimiter \\"': 'a quotation mark " is not closed',
    "missing delimiter \\'": "a quotation mark ' is not closed",
    "expected ')'": "a bracket ( is not closed",
    "missing range delimiter": "a range is not closed by ] or }",
    "missing keyword TO": "a range has no TO, as in id:[1 TO 5]",
    "expected word": "a word is missing after + - : ( AND or OR",
    "parsed keyword NOT as term. It should be quoted": "NOT stands before nothing",
}
"""The parser's errors that lose something of a query, in words. Others, as a second colon in a time, lose nothing."""


# the kind of an error, and values as a debugger shows them
_RUST = re.compile(r"""^(Syntax Error|Invalid query|Unsupported query|Schema error): |: '\w+ {.*|: ".*""", re.DOTALL)


def _in_words(message: str) -> str:
    return _MISTAKES.get(message) or _RUST.sub("", message).strip("'.")


def _without(text: str, position: int) -> tuple[str, str]:
    """Return the text without the character the parser stopped at (a byte offset), and what was taken out."""
    start = len(text.encode()[:position].decode())
    # a ^ goes with its number: from "a^-1" would else be left "a -1"
    found = re.compile(r"\^[^\s()]*|.", re.DOTALL).match(text, start)
    if found is None:
        return "", text
    return text[:start] + " " + text[found.end() :], found.group()


def _size(node: _Node) -> int:
    """How many words are searched; 16 characters count as one, for scripts that put no spaces."""
    match node["type"]:
        case "bool":
            return sum(_size(child) for _, child in node["clauses"])
        case "boost":
            return _size(node["underlying"])
        case "literal":
            return max(1, len(node["phrase"].split()), len(node["phrase"]) // 16)
        case _:
            return 1


_OCCUR = {None: Occur.Should, "should": Occur.Should, "must": Occur.Must, "must_not": Occur.MustNot}


def _normal(clauses: Sequence[tuple[str | None, _Node]]) -> Iterator[tuple[Occur, _Node]]:
    """Clauses without repeated words, where ``AND NOT x`` is ``-x``: it comes as a required bracket of negations."""
    seen = set()
    for occur, node in clauses:
        if occur == "must" and node["type"] == "bool" and {inner for inner, _ in node["clauses"]} == {"must_not"}:
            yield from _normal(node["clauses"])
        elif node["type"] != "literal":
            yield _OCCUR[occur], node
        elif (_OCCUR[occur], *node.values()) not in seen:
            seen.add((_OCCUR[occur], *node.values()))
            yield _OCCUR[occur], node


def _word(text: str, field: str | None) -> _Node:
    return {
        "type": "literal",
        "field_name": field,
        "phrase": text,
        "delimiter": "double_quotes",
        "slop": 0,
        "prefix": False,
    }


def _written(node: _Node) -> str:
    """A leaf as it is typed."""
    name = node.get("field", node.get("field_name"))
    field = "" if name is None else re.sub(r"([^\w.-])", r"\\\1", name) + ":"
    match node["type"]:
        case "literal":
            after = (f"~{node['slop']}" if node["slop"] else "") + ("*" if node["prefix"] else "")
            return field + (_quoted(node["phrase"]) + after if after else _typed(node["phrase"]))
        case "range":
            lower, upper = node["lower"], node["upper"]
            opening = "{" if lower["type"] == "exclusive" else "["
            closing = "}" if upper["type"] == "exclusive" else "]"
            return f"{field}{opening}{lower.get('value', '*')} TO {upper.get('value', '*')}{closing}"
        case "set":
            return f"{field} IN [{' '.join(map(_typed, node['elements']))}]"
        case _:
            return f"{field}*"


def _typed(text: str) -> str:
    return text if text.isalnum() and not text.isupper() else _quoted(text)  # NOT is a word only in quotes


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _same(one: _Node, other: _Node) -> bool:
    return {**one, "delimiter": None} == {**other, "delimiter": None}


def _refusal(index: tantivy.Index, query: Query) -> str | None:
    """Why Tantivy will not search a query, which it says only when asked to; nothing is searched to find out."""
    nothing = Query.boolean_query([(Occur.Must, query), (Occur.Must, Query.empty_query())])
    try:
        index.searcher().search(nothing, limit=1, count=False)
    except ValueError as error:
        return str(error)
    return None
