from typing import Any

import jax
import numpy as np
import pytest

from saejax.sae.encoders import dense_codes, top_k_codes

ROWS, D_MODEL, D_SAE, K = 9, 6, 20, 4


@pytest.fixture
def weights() -> Any:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(ROWS, D_MODEL), (D_MODEL, D_SAE), (D_SAE,), (D_MODEL,)]
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def definition(x, W_enc, b_enc, b_dec, k):
    """Codes as the formula says, in float64: top k of the pre-activations, then relu."""
    x, W_enc, b_enc, b_dec = (np.asarray(array, np.float64) for array in (x, W_enc, b_enc, b_dec))
    z = (x - b_dec) @ W_enc + b_enc
    kept = np.argsort(-z, axis=1)[:, :k]
    codes = np.zeros_like(z)
    np.put_along_axis(codes, kept, np.maximum(np.take_along_axis(z, kept, axis=1), 0), axis=1)
    return codes


def test_codes_are_those_of_the_definition(weights):
    x, W_enc, b_enc, b_dec = weights
    values, indices = top_k_codes(x, W_enc, b_enc, b_dec, K)
    codes = dense_codes(values, indices, D_SAE)
    np.testing.assert_allclose(codes, definition(x, W_enc, b_enc, b_dec, K), rtol=1e-5, atol=1e-5)
    assert (np.diff(values, axis=1) <= 0).all()


def test_relu_comes_after_top_k_so_that_fewer_than_k_may_be_active(weights):
    x, W_enc, b_enc, b_dec = weights
    low = b_enc - 4
    values, _ = top_k_codes(x, W_enc, low, b_dec, K)
    active = np.sum(np.asarray(values) > 0, axis=1)
    z = (np.asarray(x) - np.asarray(b_dec)) @ np.asarray(W_enc) + np.asarray(low)
    np.testing.assert_array_equal(active, np.minimum(np.sum(z > 0, axis=1), K))
    assert active.min() < K < np.sum(z > 0, axis=1).max()
