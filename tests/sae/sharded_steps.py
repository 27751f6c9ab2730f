"""Train on meshes of eight devices and on one device, and print how far they are apart: run by test_sharding.py."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
from jax.sharding import Mesh, PartitionSpec
from saejax_kernels import largest_of_rows

from saejax.sae import step
from saejax.sae.execution import DATA, LATENT, Execution
from saejax.sae.initial import initial_sae, normalised_variance
from saejax.sae.normalisation import Kind
from saejax.sae.params import SAEConfig
from saejax.sae.placement import placed_batches, placed_initial_state, placed_workspace, step_mesh
from saejax.sae.state import Recipe, TrainState
from saejax.sae.step import found_share, train_step

KINDS: tuple[Kind, ...] = ("layer_norm", "zca")
"""A normalisation without an array, and the one with the most."""
SHAPE, ROWS, STEPS, NEVER = SAEConfig(d_model=16, d_sae=320, k=6), 64, 12, 90
RECIPE = Recipe(
    steps=100, learning_rate=3e-3, warmup_steps=3, decay_steps=20, aux_k=8, aux_capacity=48, aux_coefficient=1 / 4,
    dead_window=3 * ROWS, precision="float32", impl="jax", l1_coefficient=0.2,
)  # fmt: skip


def started(batches: np.ndarray, kind: Kind, mesh: Mesh | None) -> TrainState:
    """Return a state of which some latents never fire, scattered over all devices, more than AuxK takes at once."""
    key, sample = jax.random.key(0), batches.reshape(-1, SHAPE.d_model)
    sae = initial_sae(SHAPE, sample, key, kind)
    silenced = np.random.default_rng(0).permutation(SHAPE.d_sae)[:NEVER]
    sae = dataclasses.replace(sae, b_enc=sae.b_enc.at[silenced].set(-1e3))
    return placed_initial_state(sae, RECIPE, key, normalised_variance(sae.normalisation, sample), mesh)


def trained(batches: np.ndarray, mesh: Mesh | None, kind: Kind = "scalar") -> tuple[TrainState, list[dict[str, float]]]:
    """Return the state after a step on each batch, and the metrics of all."""
    state = started(batches, kind, mesh)
    assert apart(state, started(batches, kind, None)) == 0
    space, metrics = placed_workspace(state, ROWS, "jax", mesh), []
    for x in placed_batches(batches, ROWS, mesh):
        state, space, found = train_step(state, space, x, RECIPE, mesh)
        metrics.append({name: float(value) for name, value in found.items()})
    if mesh is not None:
        data, latent = mesh.devices.shape
        assert state.weights.encoder.addressable_shards[0].data.shape == (SHAPE.d_sae // latent, SHAPE.d_model)
        assert space.product.addressable_shards[0].data.shape == (ROWS // data, SHAPE.d_sae // latent)
    return state, metrics


def apart(ours: TrainState, theirs: TrainState) -> float:
    """Return by what share of its largest entry any array is off."""
    worst = 0.0
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        worst = max(worst, float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30)))
    return worst


def ties_agree(mesh: Mesh) -> bool:
    """Tell whether the k largest on all devices are those on one, where nearly all entries are tied."""
    matrix = np.random.default_rng(1).integers(-1, 3, (ROWS, SHAPE.d_sae)).astype(np.float32)
    zero = jnp.zeros(SHAPE.d_sae)

    def codes(matrix: jax.Array, bias: jax.Array, k: int, how: Execution) -> jax.Array:
        values, indices = largest_of_rows(matrix, bias, min(k, matrix.shape[1]))
        values = jax.nn.relu(how.only_largest_of_all(values, k))
        return jnp.zeros_like(matrix).at[jnp.arange(len(matrix))[:, None], indices].set(values)

    agree = True
    for k in (1, 6, 50, SHAPE.d_sae):
        one = codes(jnp.asarray(matrix), zero, k, Execution("float32", "jax"))
        spread = jax.shard_map(
            partial(codes, k=k, how=Execution("float32", "jax", sharded=True)), mesh=mesh,
            in_specs=(PartitionSpec(DATA, LATENT), PartitionSpec(LATENT)), out_specs=PartitionSpec(DATA, LATENT),
            check_vma=False,
        )  # fmt: skip
        many = jax.jit(spread)(jnp.asarray(matrix), zero)
        agree &= bool(np.array_equal(one, many))
    return agree


def recall_is_off(batches: np.ndarray, mesh: Mesh) -> float:
    """Let the search of each device miss its largest latent, and return how far the recall is from what that makes."""
    original, recipe = step.largest_of_rows, dataclasses.replace(RECIPE, recall=0.5)

    def missing(z: jax.Array, bias: jax.Array, k: int, recall: float | None) -> tuple[jax.Array, jax.Array]:
        values, indices = original(z, bias, k, None)
        return values, indices if recall is None else indices.at[:, 0].set(-1)

    state, own = started(batches, "scalar", mesh), SHAPE.d_sae // mesh.devices.shape[1]
    (x,) = placed_batches(batches[:1], ROWS, mesh)
    step.largest_of_rows = missing
    found = float(found_share(state, x, recipe, mesh))
    step.largest_of_rows = original
    weights = jax.tree.map(np.asarray, state.weights)
    z = np.asarray(state.normalisation.apply(batches[0])) - weights.b_dec
    rows = z @ weights.encoder.T + weights.b_enc
    missed = rows.reshape(ROWS, -1, own).argmax(axis=2) + own * np.arange(SHAPE.d_sae // own)
    largest = np.argsort(-rows, axis=1)[:, : SHAPE.k]
    hits = ~(largest[:, :, None] == missed[:, None, :]).any(axis=2)
    return abs(found - float(hits.mean()))


def main() -> None:
    """Print a line of JSON."""
    batches = planted.activations(STEPS * ROWS, planted.atoms(SHAPE.d_model, 64), active=3)
    batches = batches.reshape(STEPS, ROWS, SHAPE.d_model)
    alone, metrics = trained(batches, None)
    report = {}
    for data, latent in ((1, 8), (2, 4), (8, 1)):
        mesh = step_mesh(data, latent)
        assert mesh is not None
        spread, found = trained(batches, mesh)
        of_metrics = max(
            abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-30)
            for ours, theirs in zip(found, metrics, strict=True)
            for name in theirs
        )
        report[f"{data}x{latent}"] = {"worst": apart(spread, alone), "metrics": of_metrics, "ties": ties_agree(mesh)}
        report[f"{data}x{latent}"]["recall"] = recall_is_off(batches, mesh)
    mesh = step_mesh(2, 4)
    for kind in KINDS:
        ends = [trained(batches[:4], where, kind)[0] for where in (mesh, None)]
        report[kind] = apart(*ends)
    report["dead"] = [step["dead"] for step in metrics]
    report["aux"] = [step["aux"] for step in metrics]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
