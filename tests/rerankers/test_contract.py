"""Every reranker of this package, held to the contract."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import lance_rerank as lr
from lance_rerank.testing import RerankerContract


class TestRRFReranker(RerankerContract):
    reads_text = False

    def make_reranker(self, **arguments):
        return lr.RRFReranker(**arguments)


class TestMRRReranker(RerankerContract):
    reads_text = False

    def make_reranker(self, **arguments):
        return lr.MRRReranker(**arguments)


class TestLinearCombinationReranker(RerankerContract):
    reads_text = False

    def make_reranker(self, **arguments):
        return lr.LinearCombinationReranker(**arguments)


class TestWeightedReranker(RerankerContract):
    reads_text = False

    def make_reranker(self, **arguments):
        return lr.WeightedReranker(**arguments)


class Shortest(lr.BaseReranker):
    def score_texts(self, query, texts):
        return [-len(text) for text in texts]


class TestBlendReranker(RerankerContract):
    reads_text = False  # what it cannot read, the legs have ranked

    def make_reranker(self, **arguments):
        return lr.BlendReranker(Shortest(), **arguments)


class TestCrossEncoderReranker(RerankerContract):
    @pytest.fixture(autouse=True)
    def _model(self, tiny_cross_encoder):
        self.folder = tiny_cross_encoder

    def make_reranker(self, **arguments):
        return lr.CrossEncoderReranker(self.folder, device="cpu", **arguments)


class TestLateInteractionReranker(RerankerContract):
    """With token vectors among the results; those stored in a table are test_late_interaction.py's."""

    @pytest.fixture(autouse=True)
    def _model(self, tiny_encoder):
        self.encoder = lr.ColBERTEncoder(tiny_encoder, device="cpu", precision="float32")

    def make_reranker(self, **arguments):
        return lr.LateInteractionReranker(self.encoder, **arguments)

    def prepare(self, rows):
        vectors = [
            self.encoder.encode_documents([text])[0].astype(np.float16).tolist() if text else None
            for text in rows["text"].to_pylist()
        ]
        return rows.append_column("colbert", pa.array(vectors, pa.list_(pa.list_(pa.float16(), 32))))
