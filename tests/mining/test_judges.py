"""Judges that need no model, by what can be told of words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lance_rerank.errors import ArgumentError
from lance_rerank.mining.judges import Bm25Judge, EncoderJudge, LatentEncoder, make_judge
from lance_rerank.types import Encoder

TEXTS = ["rotate the api keys", "the cat and the dog", "bake the bread", "keys of the user", "the dog of the user"]


def test_bm25_is_what_its_formula_says():
    [scores] = Bm25Judge([TEXTS[:3], TEXTS[3:]]).score(["Keys?"], [TEXTS])
    idf = math.log(1 + (5 - 2 + 0.5) / (2 + 0.5))
    mean = sum(len(text.split()) for text in TEXTS) / 5
    expected = idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 4 / mean))
    assert scores == pytest.approx([expected, 0, 0, expected, 0], rel=1e-5)


def test_a_word_that_the_sample_lacks_counts_as_rare():
    judge = Bm25Judge([TEXTS])
    [scores] = judge.score(["unseen keys"], [["unseen word", "keys word"]])
    assert scores[0] > scores[1] > 0


def test_the_latent_encoder_is_an_encoder_and_needs_known_words():
    encoder = LatentEncoder([TEXTS * 3])
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode_documents([*TEXTS, "unheard of", ""])
    assert vectors.shape == (7, encoder.dim)
    assert vectors.dtype == np.float32
    assert encoder.encode_queries([]).shape == (0, encoder.dim)
    assert not vectors[-1].any()
    [scores] = EncoderJudge(encoder, "tfidf").score(["user keys"], [[*TEXTS, "unheard"]])
    assert int(scores.argmax()) == 3
    assert scores[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("judge", ["tfidf", "bm25"])
def test_texts_are_scored_by_query_whatever_others_there_are(judge):
    made = make_judge(judge, lambda n: iter([TEXTS]))
    alone = made.score(["user keys"], [TEXTS[:2]])
    both = made.score(["cat", "user keys", "bread"], [TEXTS, TEXTS[:2], []])
    assert [len(scores) for scores in both] == [5, 2, 0]
    assert both[1] == pytest.approx(alone[0], abs=1e-6)


@pytest.mark.parametrize(
    ("judge", "texts"), [("tfidf", ["one", "two"]), ("tfidf", []), ("bm25", ["..."]), ("bm25", [])]
)
def test_a_sample_without_words_is_refused(judge, texts):
    with pytest.raises(ArgumentError, match=f"judge='{judge}' needs"):
        make_judge(judge, lambda n: iter([texts]))


def test_a_model_is_named_by_its_folder(tiny_encoder):
    judge = make_judge(tiny_encoder, lambda n: iter([]))
    assert judge.name == tiny_encoder
    [scores] = judge.score(["api keys"], [["api keys", "bread"]])
    assert scores[0] == pytest.approx(1.0, abs=1e-2)
