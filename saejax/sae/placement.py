"""Where the arrays of a run lie on a mesh of devices: latents in equal runs over one axis, rows over the other."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Float
from saejax_kernels import Impl

from saejax.errors import InputError
from saejax.sae.execution import DATA, LATENT
from saejax.sae.params import SAE
from saejax.sae.state import Recipe, TrainState, Workspace, initial_state, workspace
from saejax.sae.weights import Weights
from saejax.types import AnyArray, Array

NOWHERE, BY_LATENT = PartitionSpec(), PartitionSpec(LATENT)
WEIGHTS = Weights(BY_LATENT, BY_LATENT, BY_LATENT, b_dec=NOWHERE)
AHEAD = 2
"""Batches that are put on the devices before they are used."""


def step_mesh(data: int, latent: int) -> Mesh | None:
    """Return the mesh of the first devices of all processes for a run; None for a run on one device.

    Args:
        data: devices that the rows of a batch are spread over.
        latent: devices that the latents are spread over.

    Raises:
        InputError: there are fewer devices, or a process has none of them.
    """
    devices = jax.devices()
    if data * latent > len(devices):
        raise InputError(f"data {data} x latent {latent} needs {data * latent} devices; there are {len(devices)}")
    idle = jax.process_count() - len({device.process_index for device in devices[: data * latent]})
    if idle:
        raise InputError(
            f"data {data} x latent {latent} leaves {idle} of {jax.process_count()} processes without a device; raise "
            f"them to the {len(devices)} devices there are, or start fewer processes"
        )
    if data * latent == 1:
        return None
    return Mesh(np.array(devices[: data * latent]).reshape(data, latent), (DATA, LATENT))


def state_places(state: TrainState) -> TrainState:
    """Say over which mesh axis the first axis of each array of a state is spread: latents, or none."""
    return TrainState(
        weights=WEIGHTS,
        normalisation=jax.tree.map(lambda _: NOWHERE, state.normalisation),
        optimiser=state.optimiser._replace(count=NOWHERE, mu=WEIGHTS, nu=WEIGHTS),
        silent=BY_LATENT,
        step=NOWHERE,
        key=NOWHERE,
        variance=jax.tree.map(lambda _: NOWHERE, state.variance),
        config=state.config,
    )


def sae_places(sae: SAE) -> SAE:
    """Say over which mesh axis each array of an SAE is spread: the axis of latents, or none."""
    places = {"W_enc": PartitionSpec(None, LATENT), "b_enc": BY_LATENT, "W_dec": BY_LATENT, "b_dec": NOWHERE}
    return dataclasses.replace(sae, **places, normalisation=jax.tree.map(lambda _: NOWHERE, sae.normalisation))


def workspace_places(impl: Impl) -> Workspace:
    """Say the same of a workspace, where rows are spread too."""
    return Workspace(None if impl == "tpu" else PartitionSpec(DATA, LATENT), WEIGHTS)


def placed_state(state: TrainState, mesh: Mesh | None) -> TrainState:
    """Put a state where a mesh has it; of shapes in place of arrays, say where it is.

    Args:
        state: arrays, or `jax.ShapeDtypeStruct`s.
        mesh: None for one device.
    """

    def put(leaf: Any, place: PartitionSpec) -> Any:
        there = _one_device() if mesh is None else NamedSharding(mesh, place)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)
        return _put(leaf, there)

    return jax.tree.map(put, state, state_places(state))


def placed_initial_state(
    sae: SAE, recipe: Recipe, key: Array, variance: Float[AnyArray, ""] | None, mesh: Mesh | None
) -> TrainState:
    """Make the state before the first step where a mesh has it; no device holds more of it than its part.

    Args:
        sae: the untrained SAE, whole.
        recipe: recipe of the run.
        key: PRNG key that the SAE was made with.
        variance: as `saejax.sae.initial.normalised_variance` finds it.
        mesh: None for one device.
    """
    if mesh is None:
        return jax.device_put(initial_state(sae, recipe, key, variance), _one_device())
    like = jax.eval_shape(lambda sae: initial_state(sae, recipe, key, variance), sae)
    there = jax.tree.map(lambda place: NamedSharding(mesh, place), state_places(like))
    make = jax.jit(lambda sae: initial_state(sae, recipe, key, variance), out_shardings=there)
    return make(jax.tree.map(lambda leaf, place: _put(leaf, NamedSharding(mesh, place)), sae, sae_places(sae)))


def own_rows(batch: int, mesh: Mesh | None) -> slice:
    """Return which rows of a batch the devices of this process have.

    Args:
        batch: rows in a batch.
        mesh: None for one device.
    """
    if mesh is None:
        return slice(0, batch)
    parts = NamedSharding(mesh, PartitionSpec(DATA)).addressable_devices_indices_map((batch,)).values()
    ranges = [part[0].indices(batch) for part in parts if part is not None]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def placed_batches(
    batches: Iterable[Float[np.ndarray, "_ d_model"]], batch: int, mesh: Mesh | None
) -> Iterator[Float[Array, "batch d_model"]]:
    """Put batches where a mesh has them, some ahead of the one that is used, so that their copy to a device overlaps
    with steps there.

    The calling thread puts them, in their order; each process of a job puts the rows of its own devices.

    Args:
        batches: the `own_rows` of each, which nobody changes.
        batch: rows in a batch.
        mesh: None for one device.

    Returns:
        An iterator; beside the batch that is used, `AHEAD` are on the devices.
    """
    there, own = _one_device() if mesh is None else NamedSharding(mesh, PartitionSpec(DATA)), own_rows(batch, mesh)
    ahead = collections.deque()
    for x in batches:
        ahead.append(_put_rows(x, own, batch, there))
        if len(ahead) > AHEAD:
            yield ahead.popleft()
    yield from ahead


def whole(tree: Any, mesh: Mesh | None) -> Any:
    """Gather arrays that a mesh has in parts onto one device of each process.

    Args:
        tree: arrays on the mesh.
        mesh: None for one device, where they are whole already.
    """
    if mesh is None:
        return tree
    everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, NOWHERE))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), everywhere)


def _one_device() -> Sharding:
    return SingleDeviceSharding(jax.local_devices()[0])


def _put(array: Any, there: Sharding) -> jax.Array:
    """Put an array that every process has whole; `device_put` would ask all whether it is the same in all."""
    held = np.asarray(array)
    return jax.make_array_from_callback(held.shape, there, lambda part: held[part])


def _put_rows(x: Float[np.ndarray, "_ d_model"], own: slice, batch: int, there: Sharding) -> jax.Array:
    """Put a batch of which each process has its own rows."""

    def rows(index: Any) -> Float[np.ndarray, "_ d_model"]:
        start, stop, _ = index[0].indices(batch)
        return x[start - own.start : stop - own.start]

    return jax.make_array_from_callback((batch, x.shape[1]), there, rows)


def placed_workspace(state: TrainState, rows: int, impl: Impl, mesh: Mesh | None) -> Workspace:
    """Make the workspace of a run where a mesh has it.

    Args:
        state: the run's.
        rows: of a batch.
        impl: kernels of its recipe.
        mesh: None for one device.
    """
    like = jax.eval_shape(lambda state: workspace(state, rows, impl), state)
    # Told for one device too: a step is compiled for where its arrays are said to be, and says so of what it returns.
    there = (
        _one_device()
        if mesh is None
        else jax.tree.map(lambda place: NamedSharding(mesh, place), workspace_places(impl))
    )
    make = jax.jit(lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like), out_shardings=there)
    return make()
