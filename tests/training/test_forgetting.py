"""Queries that a corpus has of itself."""

from __future__ import annotations

import pytest

from lance_rerank.training.forgetting import held_pairs
from lance_rerank.types import Document

REST = "The rest of it follows in no fewer than nine plain words."


def manual(count, title=""):
    return [Document(f"d{i}", f"Part {i} begins here. {REST} {i}", title.format(i)) for i in range(count)]


def test_a_title_finds_the_text_below_it():
    held = held_pairs(manual(60, title="Chapter {}"), queries=25)
    assert held.name == "titles"
    texts = {document.doc_id: document for document in held.corpus()}
    assert len(held.queries) == 25
    assert len(texts) == 60
    for query_id, query in held.queries.items():
        [doc_id] = held.qrels[query_id]
        assert query == f"Chapter {doc_id[1:]}"
        assert texts[doc_id].title == "", "the query is not in the document it is to find"


@pytest.mark.parametrize("title", ["", "The manual"])
def test_without_titles_of_their_own_a_first_sentence_finds_the_rest(title):
    held = held_pairs(manual(60, title=title), queries=25)
    assert held.name == "first sentences"
    texts = {document.doc_id: document.text for document in held.corpus()}
    for query_id, query in held.queries.items():
        [doc_id] = held.qrels[query_id]
        assert query == f"Part {doc_id[1:]} begins here."
        assert texts[doc_id] == f"{REST} {doc_id[1:]}"


def test_what_was_trained_on_is_searched_and_not_asked():
    trained = {f"d{i}" for i in range(30)}
    held = held_pairs(manual(60), without=trained)
    assert len(held.queries) == 30
    assert trained.isdisjoint(held.queries)
    assert trained <= {document.doc_id for document in held.corpus()}


def test_the_sample_depends_on_the_seed_and_not_on_the_order():
    documents = manual(80)
    one, same, other = (
        held_pairs(d, queries=30, seed=s) for d, s in ((documents, 0), (documents[::-1], 0), (documents, 1))
    )
    assert one.queries == same.queries
    assert one.queries.keys() != other.queries.keys()


def test_a_sentence_that_opens_several_documents_is_no_query():
    documents = [Document(f"d{i}", f"All rights are reserved. {REST} {i}") for i in range(60)]
    assert held_pairs(documents) is None


def test_short_documents_make_none():
    assert held_pairs([Document(f"d{i}", f"ls -l {i}") for i in range(60)]) is None
    assert held_pairs(manual(10)) is None
