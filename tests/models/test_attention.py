"""Attention in runs of queries against its formula in float64, on rows longer than a run."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.models.attention import PIECES, SHORTEST_PIECE, attend, attention_mask, soft_capped


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


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 2e-7), ("bfloat16", 2**-8)])
def test_capped_scores_are_those_of_tanh(dtype: str, digits: float) -> None:
    scores = jnp.concatenate([jnp.linspace(-200, 200, 1001), jnp.array([1e-3, 1e30, -1e30, jnp.inf])]).astype(dtype)
    found = soft_capped(scores, 30.0)
    assert found.dtype == scores.dtype
    expected = 30 * np.tanh(np.asarray(scores, np.float64) / 30)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=30 * digits)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_capped_scores_have_the_gradient_of_tanh(size: float) -> None:
    """Also where tanh has long been 1."""
    keys = jax.random.split(jax.random.key(1), 3)
    query, key, value = (jax.random.normal(each, (1, 6, 2, 4)) for each in keys)
    mask = attention_mask(jnp.ones((1, 6), jnp.int32))

    def by_tanh(query: jax.Array) -> jax.Array:
        scores = 2.0 * jnp.tanh(jnp.einsum("bthd,bshd->bhts", query, key) * 0.5 / 2.0)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhts,bshd->bthd", weights, value)

    def ours(query: jax.Array) -> jax.Array:
        return attend(query, key, value, mask, causal=True, scale=0.5, softcap=2.0)

    found, expected = (jax.grad(lambda q, f=f: jnp.sum(f(q) ** 2))(size * query) for f in (ours, by_tanh))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_long_row_is_cut_into_few_runs() -> None:
    length = 2 * PIECES * SHORTEST_PIECE
    shapes = [jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)] * 3
    mask = jax.ShapeDtypeStruct((1, 1, length, length), jnp.bool_)
    made = jax.make_jaxpr(lambda *given: attend(*given, causal=True, scale=None, softcap=1.0))(*shapes, mask)
    assert str(made).count("= exp") == 2 * PIECES  # that of the cap, and that of the softmax


@pytest.mark.parametrize(
    ("capability", "dtype", "length", "width", "taken"),
    [
        ("9.0", "bfloat16", 64, 64, True),
        ("8.0", "float16", 62, 8, True),
        ("10.3", "bfloat16", 64, 128, True),
        ("7.5", "bfloat16", 64, 64, False),
        ("gfx942", "bfloat16", 64, 64, False),
        (None, "bfloat16", 64, 64, False),
        ("9.0", "float32", 64, 64, False),
        ("9.0", "bfloat16", 63, 64, False),
        ("9.0", "bfloat16", 64, 60, False),
        ("9.0", "bfloat16", 64, 256, False),
    ],
)
def test_flash_attention_runs_where_cudnn_has_it(
    capability: str | None, dtype: str, length: int, width: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call over all queries, with the mask; elsewhere XLA runs, in pieces."""
    device = SimpleNamespace(compute_capability=capability) if capability else object()
    asked = []

    def kernel(query: jax.Array, *_: jax.Array, mask: jax.Array, implementation: str, **__: object) -> jax.Array:
        asked.append((implementation, mask.shape))
        return query

    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    heads, mask = jnp.ones((1, length, 2, width), dtype), attention_mask(jnp.ones((1, length), jnp.int32))
    attend(heads, heads, heads, mask, causal=True, scale=None, softcap=None)
    assert asked == [("cudnn" if taken else "xla", (1, 1, length, length))]
