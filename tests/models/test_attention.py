"""Attention in runs of queries against its formula in float64, on rows longer than a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.models.attention import PIECES, SHORTEST_PIECE, attend, attention_mask


def by_formula(query, key, value, mask, scale: float, softcap: float | None) -> np.ndarray:
    query, key, value = (np.asarray(each, np.float64) for each in (query, key, value))
    key, value = (np.repeat(each, query.shape[2] // each.shape[2], axis=2) for each in (key, value))
    scores = scale * np.einsum("bthd,bshd->bhts", query, key)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    weights = np.where(mask, np.exp(scores), 0)
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("length", "causal", "window"), [(150, True, None), (150, True, 40), (150, False, None)])
def test_each_query_weighs_the_keys_it_may_look_at(
    length: int, causal: bool, window: int | None, softcap: float | None
) -> None:
    assert length > 2 * SHORTEST_PIECE
    assert length % SHORTEST_PIECE
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, length, 6, 8))
    key, value = (jax.random.normal(each, (2, length, 2, 8)) for each in keys[1:])
    segment = jnp.array([[1] * 70 + [2] * (length - 70), [1] * length])
    mask = attention_mask(segment, causal=causal, window=window)
    found = attend(query, key, value, mask, causal=causal, scale=0.5, softcap=softcap)
    expected = by_formula(query, key, value, np.asarray(mask), 0.5, softcap)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_long_row_is_cut_into_few_runs() -> None:
    length = 2 * PIECES * SHORTEST_PIECE
    shapes = [jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)] * 3
    mask = jax.ShapeDtypeStruct((1, 1, length, length), jnp.bool_)
    made = jax.make_jaxpr(lambda *given: attend(*given, causal=True, scale=None, softcap=1.0))(*shapes, mask)
    assert str(made).count("= tanh") == PIECES
