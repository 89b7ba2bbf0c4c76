from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lance_rerank.errors import MissingExtra, ModelError
from lance_rerank.multivector import ColBERTEncoder
from lance_rerank.multivector import encoder as encoder_module
from lance_rerank.multivector.encoder import is_colbert
from lance_rerank.types import TokenEncoder

TEXTS = ["rotate the api keys", "bread", "", "the cat and the dog read a file and write", "key key", "the cat"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return ColBERTEncoder(tiny_encoder, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def colbert(tiny_encoder, tmp_path_factory):
    """A ColBERT checkpoint of 16 dimensions, saved by PyLate."""
    import torch

    pylate = pytest.importorskip("pylate.models")
    torch.manual_seed(1)
    base = str(Path(tiny_encoder).parent / "base")
    model = pylate.ColBERT(base, embedding_size=16, device="cpu", query_length=12, document_length=40)
    folder = str(tmp_path_factory.mktemp("colbert"))
    model.save(folder)
    return folder


def states_by_hand(folder, text):
    """The unit last hidden states of one text, [CLS] and [SEP] left out, in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1].numpy()
    return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)


class TestPlainModel:
    def test_it_is_a_token_encoder(self, encoder):
        assert isinstance(encoder, TokenEncoder)
        assert encoder.dim == 32

    def test_vectors_are_the_last_hidden_states_as_unit_vectors(self, encoder, tiny_encoder):
        for text, vectors in zip(TEXTS, encoder.encode_documents(TEXTS), strict=True):
            np.testing.assert_allclose(vectors, states_by_hand(tiny_encoder, text), atol=1e-6)

    def test_one_float32_vector_a_token_and_none_for_special_tokens(self, encoder):
        documents = encoder.encode_documents(TEXTS)
        assert [document.shape for document in documents] == [(4, 32), (1, 32), (0, 32), (10, 32), (2, 32), (2, 32)]
        assert all(document.dtype == np.float32 for document in documents)
        for document in documents:
            np.testing.assert_allclose(np.linalg.norm(document, axis=1), 1, atol=1e-6)

    @pytest.mark.parametrize(("limit", "value"), [("batch_size", 1), ("batch_size", 2), ("token_budget", 1)])
    def test_batches_change_neither_order_nor_vectors(self, encoder, limit, value, monkeypatch):
        together = encoder.encode_documents(TEXTS)
        monkeypatch.setattr(encoder, limit, value)
        for one, other in zip(together, encoder.encode_documents(TEXTS), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_a_query_is_encoded_as_a_document_is(self, encoder):
        for query, document in zip(encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS), strict=True):
            np.testing.assert_array_equal(query, document)

    def test_texts_are_cut_off_at_max_tokens(self, encoder, tiny_encoder):
        short = ColBERTEncoder(tiny_encoder, device="cpu", precision="float32", max_tokens=6)
        assert short.encode_documents(["the cat and the dog"])[0].shape == (4, 32)  # 6 less [CLS] and [SEP]
        assert encoder.encode_documents(["cat " * 10_000])[0].shape == (62, 32), "the model's own limit is 64"

    def test_no_texts(self, encoder):
        assert encoder.encode_documents([]) == []
        assert encoder.encode_queries([]) == []

    def test_a_tokenizer_that_pads_on_the_left_gives_the_same_vectors(self, encoder, tiny_encoder, tmp_path):
        folder = tmp_path / "left"
        shutil.copytree(tiny_encoder, folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
        left = ColBERTEncoder(folder, device="cpu", precision="float32")
        for one, other in zip(encoder.encode_documents(TEXTS), left.encode_documents(TEXTS), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_bfloat16_is_close_and_normalised_in_float32(self, encoder, tiny_encoder):
        rough = ColBERTEncoder(tiny_encoder, device="cpu", precision="bfloat16").encode_documents(TEXTS)
        for one, other in zip(encoder.encode_documents(TEXTS), rough, strict=True):
            assert other.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-6)
            assert ((one * other).sum(axis=1) > 0.99).all()

    def test_threads_share_one_encoder(self, encoder):
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: encoder.encode_documents(TEXTS), range(8)))
        for answer in answers:
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(answer, answers[0], strict=True))

    def test_it_prints_as_its_model(self):
        assert repr(ColBERTEncoder("org/model")) == "ColBERTEncoder('org/model')"


class TestLoading:
    def test_nothing_is_loaded_before_the_first_use(self):
        encoder = ColBERTEncoder("/no/such/folder")
        with pytest.raises(ModelError, match="no model folder"):
            encoder.encode_queries(["keys"])

    def test_a_folder_that_is_no_model_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
        with pytest.raises(ModelError, match="could not be loaded") as caught:
            _ = ColBERTEncoder(tmp_path).dim
        assert str(tmp_path) in str(caught.value)

    def test_a_configuration_that_is_no_json_is_an_error_that_names_the_file(self, tmp_path):
        (tmp_path / "config_sentence_transformers.json").write_text("{")
        with pytest.raises(ModelError, match=r"config_sentence_transformers\.json is no JSON"):
            _ = ColBERTEncoder(tmp_path).dim


class TestCheckpointDetection:
    @pytest.mark.parametrize(
        ("file", "content", "expected"),
        [
            ("config_sentence_transformers.json", {"model_type": "ColBERT"}, True),
            ("config_sentence_transformers.json", {"model_type": "MultiVectorEncoder"}, True),
            ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, False),
            ("config_sentence_transformers.json", {"prompts": {}}, False),
            ("config_sentence_transformers.json", ["ColBERT"], False),
            ("config.json", {"architectures": ["HF_ColBERT"]}, True),  # Stanford's own: colbert-ir/colbertv2.0
            ("config.json", {"architectures": ["BertModel"]}, False),
            ("config.json", {"architectures": None}, False),
        ],
    )
    def test_by_what_the_library_that_saved_it_wrote(self, tmp_path, file, content, expected):
        (tmp_path / file).write_text(json.dumps(content))
        assert is_colbert(str(tmp_path)) is expected

    def test_an_empty_folder_is_none(self, tmp_path):
        assert not is_colbert(str(tmp_path))

    def test_pylates_own_checkpoint_is_one_and_a_sentence_transformer_is_none(self, colbert, tiny_encoder):
        assert is_colbert(colbert)
        assert not is_colbert(tiny_encoder)

    def test_a_checkpoint_without_pylate_says_what_to_install(self, tmp_path, monkeypatch):
        (tmp_path / "config.json").write_text('{"architectures": ["HF_ColBERT"]}')
        monkeypatch.setitem(sys.modules, "pylate.models", None)
        monkeypatch.setattr(encoder_module, "multi_vector_encoder", lambda: None)
        with pytest.raises(MissingExtra, match=r"lance-rerank\[pylate\]"):
            _ = ColBERTEncoder(tmp_path).dim


class TestPylateCheckpoint:
    TEXTS = ("rotate the api keys, please!", "bread", "the cat and the dog read a file")

    @pytest.fixture(scope="class")
    def ours(self, colbert):
        return ColBERTEncoder(colbert, device="cpu", precision="float32")

    @pytest.fixture(scope="class")
    def pylates(self, colbert):
        from pylate.models import ColBERT

        return ColBERT(colbert, device="cpu")

    def test_the_projections_dimension(self, ours):
        assert ours.dim == 16

    def test_documents_are_encoded_as_pylate_encodes_them(self, ours, pylates):
        expected = pylates.encode(list(self.TEXTS), is_query=False, show_progress_bar=False)
        for one, other in zip(ours.encode_documents(self.TEXTS), expected, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=1e-5)

    def test_queries_are_encoded_as_pylate_encodes_them_expansion_included(self, ours, pylates):
        expected = pylates.encode(list(self.TEXTS), is_query=True, show_progress_bar=False)
        for one, other in zip(ours.encode_queries(self.TEXTS), expected, strict=True):
            assert one.shape == (12, 16)
            np.testing.assert_allclose(one, other, atol=1e-5)

    def test_no_texts(self, ours):
        assert ours.encode_documents([]) == []
        assert ours.encode_queries([]) == []

    def test_bfloat16_vectors_are_float32_of_unit_length(self, colbert):
        rough = ColBERTEncoder(colbert, device="cpu", precision="bfloat16").encode_documents(self.TEXTS)
        for document in rough:
            assert document.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(document, axis=1), 1, atol=1e-6)
