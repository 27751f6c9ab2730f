"""Every hook point and the logits agree with transformers in torch, float32, to 1e-4 of the largest entry."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from made_llamas import Pair, error, torch_forward, watched

import saejax.models
from saejax.errors import InputError
from saejax.models.transformer import Transformer, TransformerConfig, attention_mask

TOLERANCE = 1e-4
CONFIG = TransformerConfig(
    vocab_size=50, d_model=24, n_layers=5, n_heads=4, n_kv_heads=2, d_head=6, d_mlp=32, max_positions=64
)


def some_ids(rows: int, length: int, vocab: int = 97) -> np.ndarray:
    return np.random.default_rng(rows * 1000 + length).integers(0, vocab, (rows, length))


def padded(lengths: list[int], length: int, side: str) -> np.ndarray:
    mask = np.zeros((len(lengths), length), np.int64)
    for row, count in zip(mask, lengths, strict=True):
        row[slice(None, count) if side == "right" else slice(length - count, None)] = 1
    return mask


def compare_hidden_states(pair: Pair, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
    theirs = torch_forward(pair.theirs, ids, mask)
    ours = pair.ours.run(ids, mask, hooks=pair.ours.hooks)
    real = np.ones_like(ids, bool) if mask is None else mask.astype(bool)
    layers = pair.ours.config.n_layers
    named = ["embed", *(f"resid_post.{layer}" for layer in range(layers - 1)), "final_norm"]
    for hook, hidden in zip(named, theirs.hidden_states, strict=True):
        assert error(np.asarray(ours.activations[hook])[real], hidden.numpy()[real]) < TOLERANCE, hook
    assert error(np.asarray(ours.logits)[real], theirs.logits.numpy()[real]) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 3])
def test_every_hook_point_and_the_logits_are_what_torch_sees(pair: Pair, rows: int) -> None:
    ids = some_ids(rows, 12)
    with watched(pair.theirs, pair.ours.config.n_layers) as seen:
        theirs = torch_forward(pair.theirs, ids)
    ours = pair.ours.run(ids, hooks=pair.ours.hooks)
    assert set(seen) == set(ours.activations) == set(pair.ours.hooks)
    for hook, value in seen.items():
        assert error(ours.activations[hook], value) < TOLERANCE, hook
        assert value.shape[-1] == pair.ours.width(hook)
    assert error(ours.logits, theirs.logits) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_of_padded_rows_agree(pair: Pair, side: str) -> None:
    compare_hidden_states(pair, some_ids(3, 12), padded([12, 5, 1], 12, side))


def test_positions_count_tokens_only(pair: Pair) -> None:
    """Rotations are relative, so only padding between tokens can show where positions are counted."""
    mask = np.ones((3, 12), np.int64)
    mask[0, 4:7] = mask[2, 10] = 0
    compare_hidden_states(pair, some_ids(3, 12), mask)


def test_late_positions_agree(pair: Pair) -> None:
    ids = some_ids(1, 700)
    assert error(pair.ours.run(ids).logits, torch_forward(pair.theirs, ids).logits) < TOLERANCE


@pytest.mark.slow
def test_smollm2_agrees_at_every_layer(smollm2: Path) -> None:
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    encoded = tokenizer(
        ["The capital of France is", "In 1984 there were 12 clocks,\n\nand all of them struck thirteen: “naïve” 東京"],
        padding=True, padding_side="left", return_tensors="np",
    )  # fmt: skip
    ours = saejax.models.load(smollm2)
    assert len(ours.hooks) == 2 + 9 * 30
    compare_hidden_states(Pair(theirs, ours, smollm2), encoded["input_ids"], encoded["attention_mask"])
    next_id = int(ours.run(encoded["input_ids"], encoded["attention_mask"]).logits[0, -1].argmax())
    assert tokenizer.decode([next_id]) == " Paris"


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    segment = np.array([[1] * 7 + [2] * 5, [1] * 3 + [2] * 6 + [0] * 3], np.int32)
    position = np.array([[*range(7), *range(5)], [*range(3), *range(6), *range(3)]], np.int32)
    return some_ids(2, 12, 50).astype(np.int32), segment, position


@functools.cache
def model() -> Transformer:
    return Transformer(CONFIG, nnx.Rngs(params=1))


@functools.cache
def hidden(hooks: tuple[str, ...], stop: str = "final_norm") -> dict[str, jax.Array]:
    graph, weights = nnx.split(model())
    ids, segment, position = (jnp.asarray(column) for column in packed())
    return jax.jit(lambda weights: nnx.merge(graph, weights).hidden(ids, segment, position, hooks, stop)[1])(weights)


@pytest.mark.parametrize("hooks", [("resid_post.2",), ("mlp_hidden.0", "attn_z.3"), ("resid_pre.4", "embed")])
def test_layers_under_scan_give_what_tapped_layers_give(hooks: tuple[str, ...]) -> None:
    every = hidden(CONFIG.hooks)
    few = hidden((*hooks, "final_norm"))
    assert set(few) == {*hooks, "final_norm"}
    for hook, value in few.items():
        np.testing.assert_allclose(value, every[hook], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hook", ["embed", "resid_pre.0", "attn_out.2", "resid_post.4", "final_norm"])
def test_stopping_early_changes_nothing(hook: str) -> None:
    (early,) = hidden((hook,), stop=hook).values()
    np.testing.assert_allclose(early, hidden(CONFIG.hooks)[hook], rtol=1e-5, atol=1e-6)


def test_a_token_sees_only_earlier_tokens_of_its_own_segment() -> None:
    mask = np.asarray(attention_mask(jnp.array([[1, 1, 2, 2, 0]])))[0, 0]
    wanted = np.zeros((5, 5), bool)
    for query, key in [(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (3, 3), (4, 4)]:
        wanted[query, key] = True
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ({"d_head": 5}, "d_head 5 must be even"),
        ({"n_layers": 0}, "n_layers 0 must be positive"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    with pytest.raises(InputError, match=message):
        TransformerConfig(**{**fields, **change})
