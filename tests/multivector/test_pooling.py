from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lance_rerank.errors import ArgumentError
from lance_rerank.multivector import pool_tokens, token_clusters


def unit(rows):
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_tokens_that_say_nearly_the_same_share_a_vector():
    pooled = pool_tokens(unit([[1, 0.1], [0.1, 1], [1, -0.1], [-0.1, 1]]), 2)
    np.testing.assert_allclose(sorted(pooled.tolist()), [[0, 1], [1, 0]], atol=1e-6)


def test_a_factor_of_one_changes_nothing():
    vectors = unit([[1, 2], [3, 4]])
    assert pool_tokens(vectors, 1) is vectors


def test_a_document_without_tokens_stays_without():
    assert pool_tokens(np.empty((0, 4), np.float32), 3).shape == (0, 4)


def test_a_factor_below_one_is_refused():
    with pytest.raises(ArgumentError, match="at least 1"):
        pool_tokens(unit([[1, 2]]), 0)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), factor=st.integers(2, 5), distinct=st.integers(1, 60), seed=st.integers(0, 99))
def test_there_are_as_many_unit_vectors_as_asked_for_whatever_ties(n, factor, distinct, seed):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((distinct, 6)))[rng.integers(0, distinct, n)]
    pooled = pool_tokens(vectors, factor)
    assert pooled.shape == (max(1, n // factor), 6)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)


def test_clusters_say_which_tokens_a_vector_is_the_mean_of():
    vectors = unit([[1, 0.1], [0.1, 1], [1, -0.1], [-0.1, 1]])
    clusters = token_clusters(vectors, 2)
    assert clusters[0] == clusters[2]
    assert clusters[1] == clusters[3]
    np.testing.assert_allclose(pool_tokens(vectors, 2)[clusters[0]], [1, 0], atol=1e-6)
    assert token_clusters(vectors, 1).tolist() == [0, 1, 2, 3]
    assert token_clusters(np.empty((0, 4), np.float32), 3).tolist() == []
    with pytest.raises(ArgumentError, match="at least 1"):
        token_clusters(vectors, 0)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_means_of_the_clusters_are_the_pooled_vectors(n, factor, seed):
    vectors = unit(np.random.default_rng(seed).standard_normal((n, 6)))
    clusters = token_clusters(vectors, factor)
    means = unit([vectors[clusters == i].mean(axis=0) for i in range(clusters.max() + 1)])
    np.testing.assert_allclose(pool_tokens(vectors, factor), means, atol=1e-5)
