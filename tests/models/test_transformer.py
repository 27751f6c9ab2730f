"""The stack itself: segments, runs of layers, stopping early, edits, impossible shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saejax.errors import InputError
from saejax.models.attention import attention_mask
from saejax.models.config import TransformerConfig
from saejax.models.forward import activations, forward
from saejax.models.transformer import Block, Transformer

CONFIG = TransformerConfig(
    vocab_size=50, d_model=24, n_layers=5, n_heads=4, n_kv_heads=2, d_head=6, d_mlp=32, max_positions=64
)

EVERY_POST = tuple(f"resid_post.{layer}" for layer in range(CONFIG.n_layers))


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    segment = np.array([[1] * 7 + [2] * 5, [1] * 3 + [2] * 6 + [0] * 3], np.int32)
    position = np.array([[*range(7), *range(5)], [*range(3), *range(6), *range(3)]], np.int32)
    return np.random.default_rng(0).integers(0, 50, (2, 12), np.int32), segment, position


@functools.cache
def model() -> Transformer:
    return Transformer(CONFIG, nnx.Rngs(params=1))


def whole(hooks: tuple[str, ...]) -> dict[str, jax.Array]:
    ids, segment, position = map(jnp.asarray, packed())
    return forward(model(), ids, segment, position, hooks)[1]


@functools.cache
def every() -> dict[str, jax.Array]:
    return whole(CONFIG.hooks)


@pytest.mark.parametrize(
    "hooks", [("resid_post.2",), ("mlp_hidden.0", "attn_z.3"), ("resid_pre.4", "embed"), EVERY_POST]
)
def test_layers_under_scan_give_what_tapped_layers_give(hooks: tuple[str, ...]) -> None:
    few = whole((*hooks, "final_norm"))
    assert set(few) == {*hooks, "final_norm"}
    for hook, value in few.items():
        np.testing.assert_allclose(value, every()[hook], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hook", ["embed", "resid_pre.0", "attn_out.2", "resid_post.4", "final_norm"])
def test_stopping_early_changes_nothing(hook: str) -> None:
    ids, segment, position = map(jnp.asarray, packed())
    (early,) = activations(model(), ids, segment, position, (hook,)).values()
    np.testing.assert_allclose(early, every()[hook], rtol=1e-5, atol=1e-6)


def halve(value: jax.Array, edited: jax.Array) -> jax.Array:
    return jnp.where(edited[..., None], value / 2, value)


def test_edits_of_one_layer_after_the_other_share_their_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 3 alone, and the two before layer 2 and after it, are compiled by the passes that edit layers 0 to 2."""
    deep = Transformer(dataclasses.replace(CONFIG, d_model=16), nnx.Rngs(params=0))
    ids, segment, position = map(jnp.asarray, packed())
    traced, block = [], Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda *given: (traced.append(1), block(*given))[1])

    def edit(layer: int) -> int:
        before = len(traced)
        forward(deep, ids, segment, position, edits={f"attn_out.{layer}": halve})
        return len(traced) - before

    assert [edit(layer) for layer in range(5)] == [2, 2, 1, 0, 0]


def test_a_token_sees_only_earlier_tokens_of_its_own_segment() -> None:
    mask = np.asarray(attention_mask(jnp.array([[1, 1, 2, 2, 0]])))[0, 0]
    wanted = np.zeros((5, 5), bool)
    for query, key in [(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3), (4, 4)]:
        wanted[query, key] = True
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_bounds_how_far_a_token_sees(causal: bool) -> None:
    mask = np.asarray(attention_mask(jnp.ones((1, 9), jnp.int32), causal=causal, window=3))[0, 0]
    ahead = np.subtract.outer(np.arange(9), np.arange(9))
    np.testing.assert_array_equal(mask, (np.abs(ahead) < 3) & ((ahead >= 0) | (not causal)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ({"d_head": 5}, "d_head 5 turns 5 entries, which must be even"),
        ({"n_layers": 0}, "n_layers 0 must be positive"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    with pytest.raises(InputError, match=message):
        TransformerConfig(**{**fields, **change})
