"""One training step: loss, gradient, Adam, unit decoder rows, dead counters.

It is pure and jitted, its shapes are static, and it never asks the host.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float
from saejax_kernels import largest_of_rows, product, zero_after

from saejax.sae.aux_k import add_aux_gradient
from saejax.sae.execution import DATA, Execution
from saejax.sae.losses import reconstruction_loss
from saejax.sae.placement import NOWHERE, state_places, workspace_places
from saejax.sae.state import ADAM, Recipe, TrainState, Workspace
from saejax.sae.weights import Weights
from saejax.types import AnyArray, Array

PARTS = 16
"""Parts of the dictionary whose norms are taken in turn, at most."""


def take_step(
    state: TrainState, space: Workspace, x: Float[AnyArray, "rows d_model"], recipe: Recipe, mesh: Mesh | None = None
) -> tuple[TrainState, Workspace, dict[str, Array]]:
    """Take one step on one batch.

    Memory beyond state and workspace: some arrays of a sixteenth of `W_dec`, and what AuxK states.

    Args:
        state: state before the step; its buffers are donated.
        space: the run's workspace, donated too.
        x: activations in the model's units.
        recipe: recipe of the run.
        mesh: devices over whose axes `data` and `latent` the step is spread; state and workspace are to be
            there already (`saejax.sae.placement`).

    Returns:
        The state after, the workspace, and metrics of the batch before the step: `fvu` (in normalised units, against
        the variance of the initial sample; in the model's units it is another, unless the normalisation is none or
        scalar), `aux` (AuxK loss; 0 where it is off), `l0`, `dead` (latents), `learning_rate`; with a weight of L1 also
        `l1` (mean over rows of the sum of codes) and `capped` (share of the rows that have all k).
    """
    del space  # its buffers become those of the one that is returned
    x = jnp.asarray(x)
    if mesh is None:
        return _step(state, x, recipe, Execution(recipe.precision, recipe.impl, recipe.recall))
    step = partial(_step, recipe=recipe, how=Execution(recipe.precision, recipe.impl, recipe.recall, sharded=True))
    of_state = state_places(state)
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(of_state, PartitionSpec(DATA)),
        out_specs=(of_state, workspace_places(recipe.impl), NOWHERE),
        check_vma=False,
    )(state, x)


_STEP: dict[str, Any] = {
    "static_argnames": ("recipe", "mesh"), "donate_argnames": ("state", "space"), "keep_unused": True,
}  # fmt: skip
train_step = jax.jit(take_step, **_STEP)
"""`take_step`, compiled."""
repeatable_step = jax.jit(take_step, **_STEP, compiler_options={"xla_gpu_deterministic_ops": True})
"""The same without any operation of XLA on GPUs whose result may vary from run to run, and without autotuning."""


def _step(
    state: TrainState, x: Float[Array, "rows d_model"], recipe: Recipe, how: Execution
) -> tuple[TrainState, Workspace, dict[str, Array]]:
    weights, z = state.weights, state.normalisation.apply(x)
    fvu, forward, gradient = reconstruction_loss(weights, z, state.config.k, how, state.variance, recipe.l1_coefficient)
    dead = state.silent >= recipe.dead_window
    aux = jnp.zeros(())
    if recipe.aux_coefficient:
        aux, gradient = add_aux_gradient(
            gradient, weights, dead, z, forward, turn=state.step,
            aux_k=recipe.aux_k, capacity=recipe.aux_capacity, coefficient=recipe.aux_coefficient, how=how,
        )  # fmt: skip
    gradient = how.over_rows(gradient)
    # The gradient of b_dec needs all that reads the weights; they are then overwritten in place.
    rate = recipe.rate(state.step) + zero_after(gradient.b_dec)
    stepped, optimiser = updated(weights, gradient, state.optimiser, rate)
    rows, active = how.all_rows(len(x)), forward.values > 0
    firings = jnp.zeros(dead.shape, jnp.int32).at[forward.indices].add(active.astype(jnp.int32))
    fired = how.over_rows(firings) > 0
    silent = jnp.where(fired, 0, jnp.minimum(state.silent + rows, recipe.dead_window))
    metrics = {
        "fvu": fvu,
        "aux": aux,
        "l0": how.over_rows(how.over_latents(jnp.sum(active, dtype=jnp.float32))) / rows,
        "dead": how.over_latents(jnp.sum(dead)),
        "learning_rate": recipe.rate(state.step),
    }
    if recipe.l1_coefficient:
        metrics["l1"] = how.over_rows(how.over_latents(jnp.sum(forward.values))) / rows
        of_row = how.over_latents(jnp.sum(active, axis=1))
        metrics["capped"] = how.over_rows(jnp.sum(of_row == state.config.k, dtype=jnp.float32)) / rows
    after = dataclasses.replace(state, weights=stepped, optimiser=optimiser, silent=silent, step=state.step + 1)
    return after, Workspace(forward.product, gradient), metrics


def updated(weights: Weights, gradient: Weights, moments: Any, rate: Float[Array, ""]) -> tuple[Weights, Any]:
    """Take Adam's step on the product of spheres that decoder rows of unit norm lie on.

    A row's gradient loses its component along the row, which renormalising would undo, and the row is brought back to
    unit norm after.

    Args:
        weights: weights before the step.
        gradient: of the loss, to them.
        moments: Adam's moments and count, an `optax.ScaleByAdamState`.
        rate: learning rate.

    Returns:
        Weights and moments after it.
    """
    rows = weights.W_dec
    tangent = gradient.W_dec - row_products(gradient.W_dec, rows)[:, None] * rows
    towards: Any = dataclasses.replace(gradient, W_dec=tangent)
    direction, moments = ADAM.update(towards, moments)
    stepped = jax.tree.map(lambda w, d: w - rate * d, weights, direction)
    return dataclasses.replace(stepped, W_dec=unit_rows(stepped.W_dec)), moments


@partial(jax.jit, static_argnames=("recipe", "mesh"))
def found_share(
    state: TrainState, x: Float[AnyArray, "rows d_model"], recipe: Recipe, mesh: Mesh | None = None
) -> Float[Array, ""]:
    """Measure the recall of an approximate search: the share of the k largest latents of each row that it finds.

    Memory: the encoder's product.

    Args:
        state: where training is.
        x: activations in the model's units.
        recipe: recipe of the run, with a `recall`.
        mesh: devices that the step is spread over, of which each searches its own latents.
    """
    how = Execution(recipe.precision, recipe.impl, recipe.recall, sharded=mesh is not None)
    share, x = partial(_found_share, how=how), jnp.asarray(x)
    if mesh is None:
        return share(state, x)
    specs = (state_places(state), PartitionSpec(DATA))
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=NOWHERE, check_vma=False)(state, x)


def _found_share(state: TrainState, x: Float[Array, "rows d_model"], how: Execution) -> Float[Array, ""]:
    weights, z = state.weights, state.normalisation.apply(x)
    whole = product(z - weights.b_dec, weights.encoder, how.precision)
    k = min(state.config.k, len(weights.encoder))
    (values, exact), (_, found) = (largest_of_rows(whole, weights.b_enc, k, recall) for recall in (None, how.recall))
    sought = how.only_largest_of_all(values, state.config.k) != 0
    hits = sought & jnp.any(exact[:, :, None] == found[:, None, :], axis=2)
    of_all = (how.over_rows(how.over_latents(jnp.sum(them, dtype=jnp.float32))) for them in (hits, sought))
    return jnp.divide(*of_all)


def row_products(a: Float[Array, "rows d"], b: Float[Array, "rows d"]) -> Float[Array, "rows"]:
    """Take the inner product of each row of a matrix with that of another.

    In parts, because XLA on CPU would pull the making of both matrices into one whole sum, and keep each of its steps
    as an array of that size.
    """
    pairs = [matrix.reshape(parts_of(len(a)), -1, matrix.shape[1]) for matrix in (a, b)]
    return lax.map(lambda pair: jnp.sum(pair[0] * pair[1], axis=1), pairs).reshape(-1)


def unit_rows(rows: Float[Array, "rows d"]) -> Float[Array, "rows d"]:
    """Bring rows to unit norm, in place and in parts: else a second array of that size would stand until all norms are
    known.
    """
    size = len(rows) // parts_of(len(rows))

    def bring(part: Array, rows: Array) -> Array:
        own = lax.dynamic_slice_in_dim(rows, part * size, size)
        own /= jnp.linalg.norm(own, axis=1, keepdims=True)
        return lax.dynamic_update_slice_in_dim(rows, own, part * size, axis=0)

    return lax.fori_loop(0, parts_of(len(rows)), bring, rows)


def parts_of(rows: int) -> int:
    """Return how many equal parts rows are worked on in."""
    return max(count for count in range(1, PARTS + 1) if rows % count == 0)
