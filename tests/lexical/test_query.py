from __future__ import annotations

import threading
import time

import pytest
import tantivy
from hypothesis import given, settings
from hypothesis import strategies as st
from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

from lance_rerank.errors import ArgumentError
from lance_rerank.lexical.clauses import MAX_FUZZY_TERMS, MAX_TERMS, TextField
from lance_rerank.lexical.language import MAX_BRACKETS, syntax_query
from lance_rerank.lexical.query import plain_query, synonyms

ROWS = [
    ("rotate api keys", "how to rotate the api keys of a user, keys keys", "how-to"),
    ("bread", "bake bread in the morning", "food"),
    ("Kubernetes", "kubernetes with a single sign on", "New York"),
    ("array", "an array and its return value", "code"),
    ("arrays", "sorting sorted arrays of beads", "code"),
]


def words():
    """The analyzer of most text columns: folded, without stop words, stemmed."""
    builder = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.remove_long(40)).filter(Filter.lowercase())
    builder = builder.filter(Filter.ascii_fold()).filter(Filter.stopword("english")).filter(Filter.stemmer("english"))
    return builder.build()


ANALYZERS = {
    "title": words(),
    "text": words(),
    "tag": TextAnalyzerBuilder(Tokenizer.raw()).build(),
    "grams": TextAnalyzerBuilder(Tokenizer.ngram(3, 3)).filter(Filter.lowercase()).build(),
}
FIELDS = [TextField("title", 2.0, ANALYZERS["title"], "t_title"), TextField("text", 1.0, ANALYZERS["text"], "t_text")]
EVERY_FIELD = [TextField(name, 1.0, analyzer, f"t_{name}") for name, analyzer in ANALYZERS.items()]


def make_index():
    builder = tantivy.SchemaBuilder()
    for name in ANALYZERS:
        builder.add_text_field(name, tokenizer_name=f"t_{name}")
    builder.add_integer_field("id", stored=True, indexed=True, fast=True)
    builder.add_boolean_field("open", indexed=True)
    builder.add_json_field("meta")
    index = tantivy.Index(builder.build())
    for name, analyzer in ANALYZERS.items():
        index.register_tokenizer(f"t_{name}", analyzer)
    writer = index.writer(15_000_000, 1)
    for i, (title, text, tag) in enumerate(ROWS):
        writer.add_document(
            tantivy.Document(
                title=title,
                text=text,
                tag=tag,
                grams=text,
                id=i,
                open=bool(i % 2),
                meta={"lang": "en", "year": 2020 + i},
            )
        )
    writer.commit()
    index.reload()
    return index


INDEX = make_index()
SCHEMA = INDEX.schema


def hits(query):
    """Ids with their scores, best first."""
    return {address.doc: score for score, address in INDEX.searcher().search(query, 10).hits}


def rows(parsed):
    """The ids found, ascending, of a query that left nothing out."""
    assert parsed.ignored == ()
    return sorted(hits(parsed.query))


def plain(text, fields=FIELDS, **options):
    return plain_query(SCHEMA, fields, text, **options)


def syntax(text, fields=FIELDS, **options):
    return syntax_query(INDEX, SCHEMA, fields, text, **options)


def by_tantivy(text):
    return pytest.approx(hits(INDEX.parse_query(text, ["title", "text"], {"title": 2.0})), rel=1e-5)


# --- plain words ----------------------------------------------------------------------------------------------------

CLEAN = [
    "rotate keys",
    "Rotating the KEY",
    "keys keys",
    "key keys Keys",
    "sorted array values",
    "kubernetes bread",
    "é",
]


@pytest.mark.parametrize("text", CLEAN)
@pytest.mark.parametrize("read", [plain, syntax])
def test_clean_words_score_as_tantivys_parser_scores_them(read, text):
    assert hits(read(text).query) == by_tantivy(text)


SYNTAX_LIKE = ["title:bread", "-bread", "NOT bread", '"bread', "bread^9", "(bread", "[bread TO", "+bread\\", "*bread~1"]


@pytest.mark.parametrize("text", SYNTAX_LIKE)
def test_no_character_of_plain_text_is_syntax(text):
    assert 1 in rows(plain(text))


def test_a_text_without_words_finds_nothing_and_says_so():
    for text, why in [("", "empty"), (" \n", "empty"), ("the", "stop words"), ("?!", "punctuation")]:
        parsed = plain(text)
        assert not hits(parsed.query)
        assert why in parsed.ignored[0]


def test_a_raw_field_is_found_by_its_whole_value_and_an_n_gram_field_by_parts_of_words():
    assert rows(plain("New York", [EVERY_FIELD[2]])) == [2]
    assert rows(plain("York", [EVERY_FIELD[2]])) == []
    assert rows(plain("bernet", [EVERY_FIELD[3]])) == [2]


def test_of_a_very_long_query_the_first_terms_are_searched_quickly():
    text = "bread " + " ".join(f"word{i}" for i in range(9_998)) + " kubernetes"
    for read in (plain, syntax):
        started = time.perf_counter()
        parsed = read(text)
        found = hits(parsed.query)
        assert time.perf_counter() - started < 5  # 0.03 and 0.1 s alone on a machine
        assert list(found) == [1]
        assert any(f"first {MAX_TERMS:,} of 10,000 terms" in said for said in parsed.ignored)


@pytest.mark.parametrize("read", [plain, syntax])
def test_a_misspelt_word_is_found_after_the_same_word_as_spelt(read):
    assert rows(read("arrau")) == []
    assert rows(read("arrau", fuzzy=1)) == [3, 4]
    assert rows(read("bred", fuzzy=1)) == [1]
    assert rows(read("kubrnets", fuzzy=2)) == [2]


@pytest.mark.parametrize("read", [plain, syntax])
def test_a_word_as_spelt_comes_before_a_near_one_in_a_field_of_higher_boost(read):
    fields = [TextField("title", 1000.0, words(), "t_title"), FIELDS[1]]
    assert list(hits(read("bead", fields, fuzzy=1).query)) == [4, 1]


@pytest.mark.parametrize("read", [plain, syntax])
def test_another_spelling_adds_the_same_to_every_document_that_has_it(read):
    exactly, nearly = hits(read("rotate", fuzzy=1).query), hits(read("rotata", fuzzy=1).query)
    assert exactly == {0: pytest.approx(hits(read("rotate").query)[0] + nearly[0])}
    assert nearly == {0: 0.25}


def test_short_words_and_n_grams_are_not_made_fuzzy():
    assert rows(plain("ap", fuzzy=2)) == []
    assert rows(plain("api", fuzzy=2)) != []
    assert rows(plain("zread", [EVERY_FIELD[3]], fuzzy=2)) == rows(plain("zread", [EVERY_FIELD[3]]))


def test_only_so_many_words_are_searched_in_other_spellings():
    many = " ".join(f"filler{i}" for i in range(MAX_FUZZY_TERMS))
    for read in (plain, syntax):
        assert rows(read(f"bred {many[:-9]}", fuzzy=1)) == [1]
        parsed = read(f"{many} bred", fuzzy=1)
        assert not hits(parsed.query)
        assert parsed.ignored == (f"only the first {MAX_FUZZY_TERMS} terms are searched in other spellings",)


@pytest.mark.parametrize("read", [plain, syntax])
def test_other_edit_distances_are_refused(read):
    for fuzzy in (3, -1, 0.5, "1", None):
        with pytest.raises(ArgumentError, match="0, 1 or 2"):
            read("bread", fuzzy=fuzzy)


# --- Tantivy's language ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("title:array", [3, 4]),
        ("text:array title:bread", [1, 3, 4]),
        ('"return value"', [3]),
        ('"value return"', []),
        ('"array value"~3', [3]),
        ("single-sign-on", [2]),
        ("+array +return", [3]),
        ("array AND return", [3]),
        ("array OR bread", [1, 3, 4]),
        ("array AND (bread OR sorted)", [4]),
        ("array -return", [4]),
        ('array -"return value"', [4]),
        ("*", [0, 1, 2, 3, 4]),
        ("kuber*", [2]),
        ('"kuber"*', [2]),
        ('"return val"*', [3]),
        ("id:1", [1]),
        ("id:[1 TO 3]", [1, 2, 3]),
        ("id:[1 TO 3}", [1, 2]),
        ("id:>2", [3, 4]),
        ("id: IN [1 2 9]", [1, 2]),
        ("id:*", [0, 1, 2, 3, 4]),
        ("title: IN [bread array]", [1, 3, 4]),
        ("title:[bread TO c]", [1]),
        ("open:true -bread", [3]),
        ('tag:"New York"', [2]),
        ("tag: IN [food 'New York']", [1, 2]),
        ("meta.year:2023", [3]),
        ("meta.lang:en -id:>1", [0, 1]),
    ],
)
def test_what_the_language_has(text, found):
    assert rows(syntax(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("array AND NOT return", [4]),
        ("array AND (NOT return)", [4]),
        ("array NOT return", [4]),
        ("NOT return AND array", [4]),
        ("NOT array", [0, 1, 2]),
        ("-array", [0, 1, 2]),
        ("-array -bread", [0, 2]),
        ("NOT (array OR bread)", [0, 2]),
        ("NOT NOT array", [3, 4]),
        ("bread OR NOT array", [0, 1, 2]),
        ("bread OR (NOT array AND NOT rotate)", [1, 2]),
        ('array AND "NOT return"', [3]),  # a phrase, of which "not" is a stop word
        ("array AND NOT (return AND sorted)", [3, 4]),
        ("id:>2 AND NOT id:4", [3]),
    ],
)
def test_negation_as_people_write_it(text, found):
    assert rows(syntax(text)) == found


def test_all_but_some_leaves_the_order_of_the_others_alone():
    assert hits(syntax("sorted array AND NOT bread").query) == by_tantivy("sorted array")


def test_boosts_multiply():
    plainly = hits(syntax("bread").query)[1]
    assert hits(syntax("bread^3").query)[1] == pytest.approx(3 * plainly)
    assert hits(syntax("(bread morning)^0").query)[1] == 0


@pytest.mark.parametrize(
    ("text", "found", "said"),
    [
        ("titel:bread array", [3, 4], "'titel:bread' is left out: there is no field 'titel', only 'title', 'text',"),
        ("bread +nope:x", [1], "no field 'nope'"),
        ("id:one bread", [1], "'id:one' is left out: Expected a valid integer"),
        ("id:[a TO 3] bread", [1], "'id:[a TO 3]' is left out: Expected a valid integer"),
        ("[a TO b] bread", [1], "needs a field"),
        (
            "title:[the TO b] bread",
            [1],
            "'title:[the TO b]' is left out: Range query boundary cannot have multiple tokens",
        ),
        ("title:* bread", [1], "'title:*' is left out: Field title is not a fast field"),
        ("meta.year:[1 TO 5] bread", [1], "only supported for fast fields"),
        ('bread "array', [1, 3, 4], 'a quotation mark " is not closed'),
        ("bread 'array", [1, 3, 4], "a quotation mark ' is not closed"),
        ("(bread array", [1, 3, 4], "a bracket ( is not closed"),
        ("bread ) array", [1, 3, 4], "')' is left out"),
        ("日本 ä ) bread", [1], "')' is left out"),
        ("bread ^ array", [1, 3, 4], "'^' is left out"),
        ("bread^-1 array", [1, 3, 4], "'^-1' is left out"),
        ("bread^99999999 array", [1, 3, 4], "is above 1e+06"),
        ("array NOT", [3, 4], "NOT stands before nothing"),
        ("/bread/", [1], "/bread/ is searched as words"),
        (")" * 50 + " bread", [1], "too many brackets without a partner: searched as plain words"),
        ("the", [], "no word to search for"),
        ("", [], "empty"),
        ("-the", [], "no word to search for"),
        ("nope:x", [], "no field 'nope'"),
    ],
)
def test_mistakes_are_said_and_the_rest_is_searched(text, found, said):
    parsed = syntax(text)
    assert sorted(hits(parsed.query)) == found
    assert any(said in each for each in parsed.ignored), parsed.ignored


def test_stop_words_and_fields_that_are_not_there_are_no_mistake_of_the_rest():
    assert rows(syntax("+the +array")) == [3, 4]


def test_a_thousand_mistakes_are_not_listed_one_by_one():
    parsed = syntax("bread " + " ".join(f"f{i}:x" for i in range(500)))
    assert len(parsed.ignored) == 11
    assert parsed.ignored[-1] == "and 490 more like these"


def test_phrases_prefixes_and_negated_words_are_not_made_fuzzy():
    assert rows(syntax('"bred"', fuzzy=1)) == []
    assert rows(syntax("arry*", fuzzy=1)) == []
    assert rows(syntax("array -retorn", fuzzy=1)) == [3, 4]
    assert rows(syntax("title:bred", fuzzy=1)) == [1]


def test_brackets_end_in_words_before_they_end_the_process():
    """Tantivy's parser overflows the stack of a thread from about 1,000 on; macOS gives threads 512 KB."""
    texts = [
        "(" * 100_000 + "bread",
        "NOT " * 100_000 + "bread",
        "-(" * MAX_BRACKETS + "bread",
        "(bread AND " * MAX_BRACKETS + "bread" + ")" * MAX_BRACKETS,
        "NOT " * MAX_BRACKETS + "bread",
        "(bread NOT " * (MAX_BRACKETS // 2) + "array" + ")^2" * (MAX_BRACKETS // 2),
    ]
    found = []
    threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: found.extend(hits(syntax(text).query) for text in texts))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(0)
    assert len(found) == len(texts)
    assert "more than 100 brackets" in syntax(texts[0]).ignored[0]


# --- what both must stand -------------------------------------------------------------------------------------------

HARD = [
    "\0",
    "a\0b",
    "\ud800",
    "bread\udfff",
    "שלום עולם",
    "\u202ebread",
    "👩‍👩‍👧‍👦",
    "日本語のテキスト",
    "ﬁ",
    "İ",
    "a" * 100_000,
    "日" * 100_000,
    '"' * 10_000,
    '"' + "word " * 10_000 + '"',
    "\\" * 1_001,
    "id:99999999999999999999",
    'tag:"\\"',
    'meta."x":1',
    "id:[* TO *]",
    "a\\ b:c",
    '"a b"~99999999999',
    "title:(NOT) AND",
    "open:maybe",
    "::",
    "id: IN []",
]


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("read", [plain, syntax])
def test_hard_texts(read, text):
    for fuzzy in (0, 2):
        hits(read(text, EVERY_FIELD, fuzzy=fuzzy).query)


words_of_queries = ["AND", "OR", "NOT", "TO", "IN", "bread", "array", "the", "é", "😀", "\ud800", "\0"]
fields_of_queries = ["title:", "id:", "meta.x:", "nope:", "open:", "tag:"]
signs = list(" \"'()[]{}:^~+-*\\/<>=!&|,.#15")
pieces = st.sampled_from(signs + words_of_queries + fields_of_queries)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(pieces, max_size=25).map("".join)), fuzzy=st.integers(0, 2))
def test_no_text_raises_when_it_is_read_or_searched(text, fuzzy):
    for read in (plain, syntax):
        hits(read(text, EVERY_FIELD, fuzzy=fuzzy, expand=synonyms({"bread": ["array value", "the"]})).query)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["bread", "array", "keys", "sorted", "value", "key", "the"]), min_size=1, max_size=8))
def test_words_in_any_order_and_number_score_as_tantivys_parser_scores_them(chosen):
    text = " ".join(["bread", *chosen])  # of stop words alone Tantivy makes an error
    assert hits(plain(text).query) == by_tantivy(text)
    assert hits(syntax(text).query) == by_tantivy(text)


# --- synonyms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [plain, syntax])
def test_synonyms_are_searched_as_well(read):
    expand = synonyms({"K8s": ["kubernetes"], "SSO": ["single sign on"], "my bakery": ["bread"]})
    assert rows(read("k8s?", expand=expand)) == [2]
    assert rows(read("k8s", expand=expand, fuzzy=1)) == [2]
    assert rows(read("(sso)", expand=expand)) == [2]
    assert rows(read("kubernetes", expand=synonyms({"k8s": ["bread"]}))) == [2]
    assert rows(read("so my bakery", expand=expand)) == [1]
    assert rows(read("bakery my", expand=expand, fuzzy=1)) == []


def test_a_synonym_of_several_words_is_a_phrase():
    assert rows(plain("sso", expand=lambda words: {"sign single": 1.0})) == []
    assert rows(plain("sso", expand=lambda words: {"single sign": 1.0})) == [2]


def test_a_synonym_scores_its_weight_of_what_the_word_does():
    halved = synonyms({"loaf": ["bread"]}, weight=0.5)
    assert hits(plain("loaf", expand=halved).query)[1] == pytest.approx(hits(plain("bread").query)[1] / 2)


def test_the_hook_sees_words_as_typed_and_lower_cased():
    seen = []

    def expand(given_words):
        seen.append(list(given_words))
        return {}

    plain('Sorting "C++", .NET (the Wi-Fi)...', expand=expand)
    assert seen.pop() == ["sorting", "c++", ".net", "the", "wi-fi"]
    syntax('Sorting arrays^2 "single sign" -bread title:x +Must', expand=expand)
    assert seen == [["must"], ["sorting", "arrays", "single", "sign"]]


def test_a_required_word_may_be_met_by_its_synonym():
    expand = synonyms({"k8s": ["kubernetes"], "login": ["sign"]})
    assert rows(syntax("k8s AND login", expand=expand)) == [2]
    assert rows(syntax("k8s AND bread", expand=expand)) == []
    assert rows(syntax("k8s -sign", expand=expand)) == []
    assert rows(syntax("bread -k8s", expand=synonyms({"k8s": ["bread"]}))) == [1]
    assert rows(syntax("title:k8s", expand=expand)) == []


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "1", None])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(ArgumentError, match="finite and above 0"):
        plain("bread", expand=lambda words: {"loaf": weight})
    with pytest.raises(ArgumentError, match="weight must be finite"):
        synonyms({"a": ["b"]}, weight)


def test_what_a_hook_raises_comes_out():
    def expand(words):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        plain("bread", expand=expand)
    with pytest.raises(KeyError, match="mine"):
        syntax("bread", expand=expand)


def test_one_text_for_a_list_of_synonyms_is_refused():
    with pytest.raises(ArgumentError, match=r"write \['kubernetes'\]"):
        synonyms({"k8s": "kubernetes"})
