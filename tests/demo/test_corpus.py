"""The demo's corpus and its questions."""

from __future__ import annotations

import builtins
import hashlib
import os
import pydoc
import subprocess
import sys

import pytest

from lance_rerank.demo import corpus as corpus_module
from lance_rerank.demo.corpus import build_corpus
from lance_rerank.demo.questions import answer_names, load_questions
from lance_rerank.errors import DatasetError
from lance_rerank.types import Document

PRINT_DIGEST = """
import hashlib, sys
from lance_rerank.demo.corpus import build_corpus
print(hashlib.sha256(repr(build_corpus()).encode()).hexdigest())
print(sorted({"antigravity", "this", "idlelib", "tkinter"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return build_corpus()


@pytest.fixture(scope="module")
def names(documents: list[Document]) -> set[str]:
    return {document.doc_id for document in documents}


def test_corpus_has_the_promised_size_and_unique_ids(documents: list[Document], names: set[str]) -> None:
    assert 2000 < len(documents) <= 3000
    assert len(names) == len(documents)


def test_names_are_public(names: set[str]) -> None:
    assert [name for name in names if any(part.startswith("_") for part in name.split("."))] == []


def test_texts_are_neither_empty_nor_long(documents: list[Document]) -> None:
    counts = [len(document.text.split()) for document in documents]
    assert min(counts) >= 7
    assert max(counts) <= 120 + 50  # the docstring's words and at most a line of signature


@pytest.mark.parametrize(
    "name",
    [
        "os.path.join",
        "asyncio.gather",
        "collections.Counter.most_common",
        "concurrent.futures.as_completed",
        "datetime.date.fromisoformat",
        "decimal.Decimal.quantize",
        "json.JSONEncoder",
        "pathlib.Path.mkdir",
        "random.shuffle",
        "re.Match.groupdict",
        "sorted",
        "str.removeprefix",
        "unittest.mock.patch",
    ],
)
def test_documents_have_the_name_users_import(name: str, names: set[str]) -> None:
    assert name in names


def test_implementing_modules_do_not_show(names: set[str]) -> None:
    hidden = (
        "posixpath.",
        "ntpath.",
        "genericpath.",
        "asyncio.tasks.",
        "json.encoder.JSON",
        "random.Random.",
        "builtins.",
    )
    assert [name for name in names if name.startswith(hidden)] == []


def test_text_is_signature_and_docstring(documents: list[Document]) -> None:
    dedent = next(document for document in documents if document.doc_id == "textwrap.dedent")
    assert dedent.title == "textwrap.dedent"
    assert dedent.text.startswith("dedent(text)\n\nRemove any common leading whitespace")


def test_every_process_builds_the_same_corpus_and_imports_nothing_with_side_effects(documents: list[Document]) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST], capture_output=True, text=True, check=True, env=environment
    )
    assert process.stdout.split("\n")[:2] == [hashlib.sha256(repr(documents).encode()).hexdigest(), "[]"]


def test_answers_come_first_then_siblings_and_copies_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    standard = [
        Document("zipapp.far", "far"),
        Document("shutil.copied", "delete"),
        Document("shutil.sibling", "near"),
        Document("shutil.rmtree", "delete"),
    ]
    monkeypatch.setattr(corpus_module, "standard_library_documents", lambda: iter(standard))
    monkeypatch.setattr(corpus_module, "_installed_documents", lambda: iter([Document("other.near", "near")]))
    assert [document.doc_id for document in build_corpus(1, 1)] == ["shutil.rmtree"]
    assert [document.doc_id for document in build_corpus(2, 2)] == ["shutil.rmtree", "shutil.sibling"]
    assert [document.doc_id for document in build_corpus(3, 9)] == ["shutil.rmtree", "shutil.sibling", "zipapp.far"]


def test_too_small_a_standard_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "standard_library_documents", lambda: iter([Document("a", "text", "a")]))
    monkeypatch.setattr(corpus_module, "_installed_documents", lambda: iter(()))
    with pytest.raises(DatasetError, match="expected at least 2000 docstrings"):
        build_corpus()


def test_questions_are_many_and_their_answers_are_in_the_corpus(names: set[str]) -> None:
    queries, qrels, missing = load_questions(names)
    assert len(queries) >= 200
    assert len({query.text for query in queries}) == len({query.query_id for query in queries}) == len(queries)
    assert {qrel.query_id for qrel in qrels} == {query.query_id for query in queries}
    assert {qrel.doc_id for qrel in qrels} <= names
    assert len(missing) <= 0.05 * len(answer_names())


def test_answers_are_objects_of_the_standard_library() -> None:
    wanted = answer_names()
    assert {name.split(".")[0] for name in wanted} <= sys.stdlib_module_names | set(dir(builtins))
    newer = {"copy.replace", "itertools.batched", "mimetypes.guess_file_type", "pathlib.Path.walk"}
    older = {"pathlib.Path.link_to"}
    assert {name for name in wanted if pydoc.locate(name) is None} <= newer | older


def test_a_question_has_one_to_four_answers(names: set[str]) -> None:
    _, qrels, _ = load_questions(answer_names())
    counts = [sum(qrel.query_id == query_id for qrel in qrels) for query_id in {qrel.query_id for qrel in qrels}]
    assert set(counts) <= {1, 2, 3, 4}


def test_missing_answers_are_named_and_questions_without_answers_dropped() -> None:
    complete, _, _ = load_questions(answer_names())
    queries, qrels, missing = load_questions({"shutil.rmtree", "os.makedirs"})
    assert [query.text for query in queries] == [
        "make a directory and all missing parents",
        "delete a folder and everything inside it",
    ]
    assert [(qrel.doc_id, qrel.relevance) for qrel in qrels] == [("os.makedirs", 1), ("shutil.rmtree", 1)]
    assert set(missing) == answer_names() - {"shutil.rmtree", "os.makedirs"}
    assert set(queries) <= set(complete)  # ids do not depend on what is available
