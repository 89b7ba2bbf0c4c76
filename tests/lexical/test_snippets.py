from __future__ import annotations

import time

import pytest
import tantivy
from hypothesis import given, settings
from hypothesis import strategies as st
from tantivy import Filter, Occur, Query, TextAnalyzerBuilder, Tokenizer

from lance_rerank.errors import ArgumentError
from lance_rerank.lexical.snippets import Contribution, LexicalExplanation, Snippet, explanation, snippet

ROWS = [("Schlüssel", "drehe die Schlüssel der Straße 日本語 😀"), ("keys", "rotated keys, and how to sort arrays")]


def make_index():
    stemmed = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.lowercase()).filter(Filter.ascii_fold())
    stemmed = stemmed.filter(Filter.stopword("english")).filter(Filter.stemmer("english")).build()
    builder = tantivy.SchemaBuilder()
    for name, tokenizer in (("title", "words"), ("text", "words"), ("grams", "trigrams"), ("tag", "raw")):
        builder.add_text_field(name, tokenizer_name=tokenizer)
    builder.add_integer_field("id", indexed=True)
    index = tantivy.Index(builder.build())
    index.register_tokenizer("words", stemmed)
    index.register_tokenizer("trigrams", TextAnalyzerBuilder(Tokenizer.ngram(3, 3)).build())
    writer = index.writer(15_000_000, 1)
    for i, (title, text) in enumerate(ROWS):
        writer.add_document(tantivy.Document(title=title, text=text, grams=text, tag=title, id=i))
    writer.commit()
    index.reload()
    return index


INDEX = make_index()
SCHEMA = INDEX.schema
SEARCHER = INDEX.searcher()


def ask(text):
    return INDEX.parse_query(text, ["title", "text"], {"title": 2.0})


def cut(query, text, max_chars=150, field="text"):
    part = snippet(SEARCHER, ask(query) if isinstance(query, str) else query, SCHEMA, field, text, max_chars)
    assert text[part.start : part.start + len(part.text)] == part.text
    assert len(part.text) <= max_chars
    return part


def highlighted(part):
    return [part.text[start:end] for start, end in part.highlights]


# --- which words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "text", "found"),
    [
        ("rotate key", "Rotating KEYS is key", ["Rotating", "KEYS", "key"]),
        ("schlussel strasse", "für Schlüssel, 日本語, 😀 und Straße", ["Schlüssel", "Straße"]),
        ("日本語", "😀😀 das ist 日本語!", ["日本語"]),
        ('"sort arrays"', "how to sort arrays", ["sort", "arrays"]),
        ("key", "e\u0301tude: keys", ["keys"]),
        ("key", "\ud800 keys \udfff", ["keys"]),
        ("key", "\0keys\0", ["keys"]),
        ("key", "keys<b>keys</b>", ["keys", "keys"]),
    ],
)
def test_words_are_highlighted_in_whatever_inflection(query, text, found):
    assert highlighted(cut(query, text)) == found


def test_the_offsets_are_characters():
    assert cut("key", "äöü 日本 😀 keys").highlights == ((9, 13),)


def test_n_grams_that_overlap_are_one_highlight():
    query = INDEX.parse_query("rotated", ["grams"])
    assert highlighted(cut(query, "was rotated twice", field="grams")) == ["rotated"]


def test_boosted_combined_and_constant_queries_highlight_as_their_parts():
    query = Query.boolean_query(
        [
            (Occur.Must, Query.boost_query(ask("rotate"), 3.0)),
            (Occur.Should, Query.const_score_query(ask("sort"), 1.0)),
            (Occur.Should, Query.fuzzy_term_query(SCHEMA, "text", "arry", 1)),
        ]
    )
    assert highlighted(cut(query, "rotate and sort the array")) == ["rotate", "sort"]  # what is near is not known


@pytest.mark.parametrize("query", [ask("bread"), ask("id:1"), Query.all_query(), Query.empty_query()])
def test_without_a_match_it_is_the_beginning(query):
    assert cut(query, "rotated keys and arrays", 12) == Snippet("rotated keys", (), 0)


def test_no_text_gives_no_snippet():
    for text in (None, ""):
        assert snippet(SEARCHER, ask("key"), SCHEMA, "text", text) == Snippet("", (), 0)


# --- which part -----------------------------------------------------------------------------------------------------


def test_the_part_with_most_different_words_is_chosen():
    text = "keys keys keys " + "filler " * 40 + "the keys of sorted arrays " + "filler " * 40
    part = cut("key sort array", text, 60)
    assert highlighted(part) == ["keys", "sorted", "arrays"]
    assert part.start > 100


def test_words_are_not_cut_and_the_matches_stand_inside():
    part = cut("key", "alpha beta gamma delta keys epsilon zeta eta", 25)
    assert str(part) == "delta **keys** epsilon zeta"
    assert cut("key", "alpha beta gamma delta keys", 12).text == "delta keys"
    assert cut("key", "keys alpha", 6).text == "keys"


def test_scripts_without_spaces_get_as_many_characters_as_others():
    part = cut("key", "日" * 300 + " keys " + "本" * 300, 100)
    assert highlighted(part) == ["keys"]
    assert len(part.text) > 60


def test_a_word_longer_than_the_part_is_cut():
    part = cut("key", "a keys", 2)
    assert str(part) == "**ke**"


def test_at_least_one_character_is_asked_for():
    with pytest.raises(ArgumentError, match="at least 1"):
        cut("key", "keys", 0)


def test_a_book_takes_no_longer_than_a_moment():
    started = time.perf_counter()
    part = cut("key sort", "all keys are äquivalent and sorted " * 30_000)
    assert time.perf_counter() - started < 5  # 0.2 s alone on a machine
    assert len(highlighted(part)) > 4


alphabet = st.sampled_from([*"aé日😀 .\n", "keys", "sort ", "\ud800", "\0", "İ", "ß"])


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=80), st.lists(alphabet, max_size=60).map("".join)), n=st.integers(1, 40))
def test_any_text_is_cut_so_that_offsets_hold(text, n):
    part = cut("key sort", text, n) if text else snippet(SEARCHER, ask("key"), SCHEMA, "text", text, n)
    ends = [place for span in part.highlights for place in span]
    assert ends == sorted(ends)
    assert all(0 <= start < end <= len(part.text) for start, end in part.highlights)
    assert str(part).replace("**", "") == part.text.replace("**", "")
    if len(text) <= n:
        assert part.text == text


# --- how it is shown ------------------------------------------------------------------------------------------------


def test_html_is_escaped_inside_and_outside_of_highlights():
    part = Snippet("<i> & <k>", ((6, 9),), 0)
    assert part.to_html() == "&lt;i&gt; &amp; <b>&lt;k&gt;</b>"
    assert part.to_html("mark") == "&lt;i&gt; &amp; <mark>&lt;k&gt;</mark>"
    assert str(part) == "<i> & **<k>**"
    with pytest.raises(ArgumentError, match="name of an HTML element"):
        part.to_html("b onclick=x")


# --- how a score came about -----------------------------------------------------------------------------------------


def explain(query, schema=SCHEMA):
    (score, address), *_ = SEARCHER.search(query, 1).hits
    found = explanation(query, SEARCHER, address, schema)
    assert found.score == pytest.approx(score)
    assert sum(each.score for each in found.contributions) == pytest.approx(score, rel=1e-5)
    return found


def test_each_term_in_each_field_is_told_with_its_boosts():
    found = explain(ask("keys^3 rotate"))
    told = {(each.field, each.term): each.score for each in found.contributions}
    assert set(told) == {("title", "key"), ("text", "key"), ("text", "rotat")}
    alone = explain(ask("title:keys")).score
    assert told["title", "key"] == pytest.approx(3 * alone)
    assert [each.score for each in found.contributions] == sorted(told.values(), reverse=True)
    assert str(found).splitlines()[1].endswith("title:key")
    assert found.details["details"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (ask('text:"rotated keys"'), Contribution(None, "(phrase)", 1.0)),
        (Query.fuzzy_term_query(SCHEMA, "text", "arry", 1), Contribution(None, "(another spelling)", 1.0)),
        (Query.const_score_query(ask("text:keys"), 0.5), Contribution(None, "(constant)", 0.5)),
        (Query.all_query(), Contribution(None, "(every document)", 1.0)),
        (ask("id:1"), Contribution("id", "1", 1.0)),
        (ask("id: IN [1 7]"), Contribution(None, "(BooleanQuery with no scoring)", 1.0)),
    ],
)
def test_what_tantivy_does_not_name_is_told_by_its_kind(query, told):
    (only,) = explain(query).contributions
    assert (only.field, only.term) == (told.field, told.term)


def test_without_a_schema_fields_go_by_their_numbers():
    assert explain(ask("title:keys"), None).contributions[0].field == "0"


def test_a_document_that_is_not_found_scores_nothing():
    address = SEARCHER.search(ask("title:keys"), 1).hits[0][1]
    found = explanation(ask("strasse"), SEARCHER, address, SCHEMA)
    assert found == LexicalExplanation(0.0, {})
    assert str(found) == "score 0.0000"
