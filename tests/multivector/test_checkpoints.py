"""ColBERT checkpoints, as their authors save them, give what their files say: by whichever library is installed.

Each of the two test environments has one of them, and both are held to the same vectors, computed here by hand.
"""

from __future__ import annotations

import string

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

import lance_rerank as lr
from lance_rerank import testing
from lance_rerank.errors import ModelError
from lance_rerank.multivector import encoder as encoder_module

HAS_MULTI_VECTOR_ENCODER = encoder_module.multi_vector_encoder() is not None
TEXTS = ["rotate the api keys, please!", "what is a key?", "a cat " * 12]
QUERY_TOKENS, DOCUMENT_TOKENS = 12, 20


class ByHand:
    """The forward pass of a checkpoint that `save_tiny_colbert` wrote, step by step."""

    def __init__(self, folder, query_marker, document_marker):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.bert = BertModel.from_pretrained(folder).eval()
        dense = f"{folder}/1_Dense/model.safetensors" if query_marker == "[Q] " else f"{folder}/model.safetensors"
        self.projection = load_file(dense)["linear.weight"]
        self.query_marker, self.document_marker = query_marker, document_marker

    def _ids(self, text, marker, length):
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"][: length - 3]
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [cls, self.tokenizer.convert_tokens_to_ids(marker), *words, sep]

    def _vectors(self, ids, attended):
        mask = torch.tensor([[1] * attended + [0] * (len(ids) - attended)])
        with torch.inference_mode():
            hidden = self.bert(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden @ self.projection.T, dim=-1).numpy()

    def query(self, text):
        ids = self._ids(text, self.query_marker, QUERY_TOKENS)
        filled = ids + [self.tokenizer.mask_token_id] * (QUERY_TOKENS - len(ids))
        return self._vectors(filled, len(ids))

    def document(self, text):
        ids = self._ids(text, self.document_marker, DOCUMENT_TOKENS)
        skipped = set(self.tokenizer.convert_tokens_to_ids(list(string.punctuation)))
        return self._vectors(ids, len(ids))[[i for i, token in enumerate(ids) if token not in skipped]]


@pytest.fixture(scope="module", params=["pylate", "stanford"])
def checkpoint(request, tmp_path_factory):
    folder = testing.save_tiny_colbert(tmp_path_factory.mktemp(request.param), request.param)
    markers = ("[Q] ", "[D] ") if request.param == "pylate" else ("[unused0]", "[unused1]")
    return lr.ColBERTEncoder(folder, device="cpu", precision="float32"), ByHand(folder, *markers)


def assert_same(vectors, expected):
    assert vectors.shape == expected.shape
    assert (vectors * expected).sum(axis=1).min() >= 0.9999


class TestColBERTCheckpoints:
    def test_documents_are_marked_cut_and_rid_of_punctuation(self, checkpoint):
        encoder, by_hand = checkpoint
        for vectors, text in zip(encoder.encode_documents(TEXTS), TEXTS, strict=True):
            assert_same(vectors, by_hand.document(text))

    def test_queries_are_marked_and_filled_up_with_mask_tokens(self, checkpoint):
        encoder, by_hand = checkpoint
        for vectors, text in zip(encoder.encode_queries(TEXTS), TEXTS, strict=True):
            assert_same(vectors, by_hand.query(text))

    def test_the_dimension_is_that_of_the_projection(self, checkpoint):
        assert checkpoint[0].dim == 16

    def test_bfloat16_is_close(self, checkpoint):
        encoder, by_hand = checkpoint
        coarse = lr.ColBERTEncoder(encoder.model_name, device="cpu", precision="bfloat16")
        for vectors, text in zip(coarse.encode_documents(TEXTS), TEXTS, strict=True):
            assert (vectors * by_hand.document(text)).sum(axis=1).min() >= 0.99


class TestSentenceTransformersCheckpoint:
    """What `MultiVectorEncoder.save` writes."""

    @pytest.mark.skipif(not HAS_MULTI_VECTOR_ENCODER, reason="sentence-transformers 6 writes them")
    def test_gives_the_vectors_of_the_library_itself(self, tmp_path):
        from sentence_transformers import MultiVectorEncoder

        theirs = MultiVectorEncoder(testing.save_tiny_colbert(tmp_path / "source"), device="cpu")
        theirs.save(str(tmp_path / "saved"))
        ours = lr.ColBERTEncoder(tmp_path / "saved", device="cpu", precision="float32")
        for vectors, expected in zip(ours.encode_documents(TEXTS), theirs.encode_document(TEXTS), strict=True):
            assert_same(vectors, np.asarray(expected))

    @pytest.mark.skipif(HAS_MULTI_VECTOR_ENCODER, reason="sentence-transformers 6 reads them")
    def test_is_refused_by_an_older_library_in_words(self, tmp_path):
        folder = testing.save_tiny_encoder(tmp_path)
        testing._write_json(
            tmp_path / "encoder" / "config_sentence_transformers.json", {"model_type": "MultiVectorEncoder"}
        )
        with pytest.raises(ModelError, match="sentence-transformers>=6"):
            lr.ColBERTEncoder(folder).encode_documents(TEXTS)


@pytest.fixture(scope="module", params=["plain", "pylate", "stanford", "sentence-transformers"])
def any_encoder(request, tiny_encoder, tmp_path_factory):
    """One of each kind of model, whichever library runs it here."""
    folder = tmp_path_factory.mktemp("tokens")
    if request.param == "plain":
        model = tiny_encoder
    elif request.param != "sentence-transformers":
        model = testing.save_tiny_colbert(folder, request.param)
    elif HAS_MULTI_VECTOR_ENCODER:
        from sentence_transformers import MultiVectorEncoder

        MultiVectorEncoder(testing.save_tiny_colbert(folder / "source"), device="cpu").save(str(folder / "saved"))
        model = folder / "saved"
    else:
        pytest.skip("sentence-transformers 6 writes them")
    return lr.ColBERTEncoder(model, device="cpu", precision="float32")


class TestTokens:
    """Each vector has a name."""

    HARD = (
        *TEXTS,
        "",
        "  ",
        "!?.,",
        "key. api! (user)",
        "the cat " * 200,
        "Schlüssel für 日本語 😀\n\tkey",
        "\u200b a",
    )

    @pytest.mark.parametrize("text", HARD)
    def test_there_are_as_many_as_vectors(self, any_encoder, text):
        assert len(any_encoder.query_tokens(text)) == len(any_encoder.encode_queries([text])[0])
        assert len(any_encoder.document_tokens(text)) == len(any_encoder.encode_documents([text])[0])

    def test_a_batch_of_texts_changes_nothing(self, any_encoder):
        together = any_encoder.encode_documents(self.HARD)
        assert [len(vectors) for vectors in together] == [len(any_encoder.document_tokens(text)) for text in self.HARD]

    def test_they_are_what_the_text_says(self, checkpoint):
        encoder, by_hand = checkpoint
        marker = by_hand.document_marker.strip()
        assert encoder.document_tokens("rotate, the keys!") == ["[CLS]", marker, "rotate", "the", "keys", "[SEP]"]
        marker = by_hand.query_marker.strip()
        expected = ["[CLS]", marker, "rotate", ",", "keys", "[SEP]", *["[MASK]"] * 6]
        assert encoder.query_tokens("rotate, keys") == expected

    def test_a_plain_model_has_those_of_the_text_alone(self, tiny_encoder):
        encoder = lr.ColBERTEncoder(tiny_encoder, device="cpu", precision="float32", max_tokens=6)
        assert encoder.document_tokens("Rotate keys.") == ["rotate", "keys", "."]
        assert encoder.query_tokens("apis") == ["api", "##s"]
        assert encoder.query_tokens("the cat and the dog") == ["the", "cat", "and", "the"]

    @pytest.mark.skipif(not HAS_MULTI_VECTOR_ENCODER, reason="sentence-transformers 6 has them")
    def test_a_checkpoint_that_pools_its_tokens_itself_has_positions(self, tmp_path):
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

        model = MultiVectorEncoder(testing.save_tiny_colbert(tmp_path / "source"), device="cpu")
        model.append(HierarchicalTokenPooling(2))
        model.save(str(tmp_path / "saved"))
        encoder = lr.ColBERTEncoder(tmp_path / "saved", device="cpu", precision="float32")
        vectors = encoder.encode_documents(["the cat and the dog"])[0]
        assert encoder.document_tokens("the cat and the dog") == [f"token {i}" for i in range(len(vectors))]


def test_a_plain_model_says_that_it_is_no_colbert(tiny_encoder, caplog):
    with caplog.at_level("WARNING", logger="lance_rerank"):
        lr.ColBERTEncoder(tiny_encoder, device="cpu").encode_documents(["a cat"])
    assert "is no ColBERT checkpoint" in caplog.text
