"""Batches are on the devices before they are used, a bounded number of them."""

import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from saejax.sae import placement
from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig
from saejax.sae.placement import AHEAD, placed_batches, placed_state, placed_workspace
from saejax.sae.state import Recipe, initial_state
from saejax.sae.step import train_step


@pytest.fixture
def batches() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(7, 4, 3)).astype(np.float32))


@pytest.mark.parametrize("count", [0, 1, AHEAD, AHEAD + 1, 7])
@pytest.mark.parametrize("spread", [False, True])
def test_placed_batches_are_the_batches_in_their_order(batches: list[np.ndarray], count: int, spread: bool) -> None:
    mesh = jax.make_mesh((1, 1), (placement.DATA, placement.LATENT)) if spread else None
    placed = list(placed_batches(batches[:count], len(batches[0]), mesh))
    assert len(placed) == count
    for ours, given in zip(placed, batches, strict=False):
        assert isinstance(ours, jax.Array)
        np.testing.assert_array_equal(ours, given)
        assert ours.devices() == {jax.local_devices()[0]}
        if mesh is not None:
            assert ours.sharding == NamedSharding(mesh, PartitionSpec(placement.DATA))


def test_two_more_than_the_one_in_use_are_put_by_the_thread_that_uses_them(
    batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread might put them in another order than those of other processes do."""
    put: list[threading.Thread] = []
    original = placement._put_rows

    def noted(*given: Any) -> jax.Array:
        put.append(threading.current_thread())
        return original(*given)

    monkeypatch.setattr(placement, "_put_rows", noted)
    for used, _ in enumerate(placed_batches(batches, len(batches[0]), None), 1):
        assert len(put) == min(used + 2, len(batches))
    assert set(put) == {threading.current_thread()}


def test_an_error_in_a_source_is_raised_where_batches_are_used(batches: list[np.ndarray]) -> None:
    def damaged() -> Iterator[np.ndarray]:
        yield from batches
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(placed_batches(damaged(), 4, None))


def test_a_step_is_compiled_once(batches: list[np.ndarray]) -> None:
    """What a step returns is placed as what it was given, or the second would be compiled for another placement."""
    recipe = Recipe(7, 3e-3, 2, 2, 1, 48, 1 / 32, dead_window=500, precision="float32", impl="jax")
    sae = initial_sae(SAEConfig(batches[0].shape[1], 48, 4), batches[0], jax.random.key(0))
    state = placed_state(initial_state(sae, recipe, jax.random.key(0)), None)
    space, before = placed_workspace(state, len(batches[0]), "jax", None), train_step._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    for x in placed_batches(batches, len(batches[0]), None):
        state, space, _ = train_step(state, space, x, recipe)
    assert train_step._cache_size() == before + 1  # pyright: ignore[reportAttributeAccessIssue]
