"""Edits change what they are of, where they are asked to, and all that follows from it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from made_models import VOCAB, Pair, edited_by_torch, error, saved_model, torch_forward

import saejax.models
from saejax.errors import InputError
from saejax.models import LanguageModel
from saejax.models.edits import Add, Clamp, ProjectOut, Replace

CASES = ("llama-grouped-tied", "pythia", "gemma2", "bert")
IDS = np.random.default_rng(0).integers(0, VOCAB, (3, 10))
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    theirs = saved_model(request.param, folder)
    return Pair(theirs, saejax.models.load(folder), folder)


def logits_of_torch(pair: Pair, hook: str, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """Edit the same place by a hook of torch."""
    with edited_by_torch(pair.theirs, pair.ours.module_path(hook), change):
        return torch_forward(pair.theirs, IDS).logits.numpy()


@pytest.mark.parametrize("hook", ["attn_z.1", "attn_out.0", "mlp_hidden.2", "mlp_out.2", "resid_post.1"])
def test_an_edit_is_that_of_a_torch_hook_at_the_place_of_the_table(pair: Pair, hook: str) -> None:
    vector = RNG.normal(size=pair.ours.width(hook)).astype(np.float32)
    ours = pair.ours.run(IDS, edits={hook: Add(jnp.asarray(vector))}).logits
    theirs = logits_of_torch(pair, hook, lambda x: x + torch.tensor(vector))
    assert error(ours, theirs) < 1e-4
    assert error(pair.ours.run(IDS).logits, theirs) > 1e-2


def test_every_hook_point_can_be_edited(pair: Pair) -> None:
    """All at once, each to a value of its own, which is what its hook then shows."""
    values = {hook: jnp.float32(place) for place, hook in enumerate(pair.ours.hooks)}
    edits = {hook: Replace(value) for hook, value in values.items()}
    for hook, found in pair.ours.run(IDS, hooks=pair.ours.hooks, edits=edits).activations.items():
        assert np.all(np.asarray(found) == values[hook]), hook


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("llama")
    saved_model("llama-grouped-tied", folder)
    return saejax.models.load(folder)


HOOK = "resid_post.1"


def edited(model: LanguageModel, edit: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the activation before and after an edit of it."""
    before = model.run(IDS, hooks=(HOOK,))
    after = model.run(IDS, hooks=(HOOK,), edits={HOOK: edit}, **options)
    return np.asarray(before.activations[HOOK]), np.asarray(after.activations[HOOK])


def test_each_edit_is_its_formula(model: LanguageModel) -> None:
    vector, directions = RNG.normal(size=48), RNG.normal(size=(3, 48))
    before, after = edited(model, Replace(jnp.asarray(vector)))
    np.testing.assert_allclose(after, np.broadcast_to(vector, before.shape), rtol=1e-6)
    before, after = edited(model, Clamp(-0.5, jnp.float32(0.25)))
    np.testing.assert_allclose(after, np.clip(before, -0.5, 0.25))
    before, after = edited(model, ProjectOut.of(jnp.asarray(directions)))
    projector = np.eye(48) - directions.T @ np.linalg.inv(directions @ directions.T) @ directions
    np.testing.assert_allclose(after, before @ projector, atol=1e-4)


def test_only_the_positions_asked_for_are_edited(model: LanguageModel) -> None:
    mask = RNG.integers(0, 2, IDS.shape)
    for edit in (Replace(jnp.zeros(48)), Add(jnp.ones(48)), Clamp(0.0, 0.1), ProjectOut.of(jnp.eye(48)[:2])):
        before, after = edited(model, edit, edit_mask=mask)
        np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
        assert np.all(np.any(after[mask == 1] != before[mask == 1], axis=-1))


def test_padding_is_not_edited_unasked(model: LanguageModel) -> None:
    seen: dict[str, np.ndarray] = {}

    def watch(activation: jax.Array, positions: jax.Array) -> jax.Array:
        jax.debug.callback(lambda value: seen.update(positions=np.asarray(value)), positions)
        return activation

    mask = np.ones_like(IDS)
    mask[1, :4] = 0
    model.run(IDS, mask, edits={HOOK: watch})
    jax.effects_barrier()
    np.testing.assert_array_equal(seen["positions"], mask.astype(bool))


def test_a_function_of_jax_is_an_edit(model: LanguageModel) -> None:
    before, after = edited(model, lambda x, positions: jnp.flip(x, axis=-1))
    np.testing.assert_allclose(after, before[..., ::-1])


def test_edits_of_other_values_are_not_compiled_anew(model: LanguageModel) -> None:
    traced = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Scale:
        factor: jax.Array

        def __call__(self, activation: jax.Array, positions: jax.Array) -> jax.Array:
            traced.append(activation.shape)
            return self.factor * activation

    for factor in (1.0, 2.0, 3.0):
        before, after = edited(model, Scale(jnp.float32(factor)))
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)
    assert len(traced) == 1


def test_replacing_a_block_by_nothing_is_leaving_it_out(model: LanguageModel) -> None:
    zero = {"attn_out.2": Replace(jnp.zeros(48)), "mlp_out.2": Replace(jnp.zeros(48))}
    found = model.run(IDS, hooks=("resid_pre.2", "resid_post.2"), edits=zero).activations
    np.testing.assert_allclose(found["resid_post.2"], found["resid_pre.2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edits": {"resid_post.9": Clamp(0.0, 1.0)}}, r"^hook resid_post\.9 is not in this model"),
        (
            {"edits": {}, "edit_mask": np.ones((3, 9), np.int64)},
            r"^edit_mask \[3, 9\] must have the shape of input_ids",
        ),
        ({"edits": {}, "edit_mask": 3 * np.ones_like(IDS)}, r"^edit_mask holds 3; it may hold 0 and 1 only"),
        ({"position_ids": np.zeros((3, 9), np.int64)}, r"^position_ids \[3, 9\] must be \[3, 10\], each at least 0"),
        ({"position_ids": np.full(IDS.shape, 5000)}, r"^a row holds 5001 tokens of one text"),
    ],
)
def test_bad_edits_are_refused(model: LanguageModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.run(IDS, **options)


def test_directions_that_depend_on_each_other_are_refused() -> None:
    for directions in (np.ones((2, 5)), np.zeros((1, 5)), np.eye(3)[[0, 1, 2, 0]]):
        with pytest.raises(InputError, match="^directions .* depend on each other, or one is 0; give a basis"):
            ProjectOut.of(jnp.asarray(directions, jnp.float32))


def test_positions_can_be_given(model: LanguageModel, tmp_path: Path) -> None:
    """Rotations are relative: shifting all positions changes nothing; stretching them does."""
    positions = np.broadcast_to(np.arange(IDS.shape[1]), IDS.shape)
    plain = model.run(IDS).logits
    np.testing.assert_allclose(model.run(IDS, position_ids=positions + 100).logits, plain, atol=1e-3)
    assert error(model.run(IDS, position_ids=positions * 7).logits, plain) > 1e-2
