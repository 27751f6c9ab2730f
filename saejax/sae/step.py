"""One training step: loss, gradient, Adam, unit decoder rows, dead counters.

It is pure and jitted, its shapes are static, and it never asks the host.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from saejax_kernels import Impl, Precision, zero_after

from saejax.sae.aux_k import add_aux_gradient
from saejax.sae.execution import DATA, LATENT, Execution
from saejax.sae.losses import reconstruction_loss
from saejax.sae.params import SAE, SAEConfig
from saejax.sae.weights import Weights
from saejax.types import AnyArray, Array

ADAM = optax.scale_by_adam(b1=0.9, b2=0.999)
PARTS = 16
"""Parts of the dictionary whose norms are taken in turn."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train; hashable, so that SAEs of one shape and recipe share one compilation."""

    steps: int
    """Steps of the whole run."""
    learning_rate: float
    """Adam's peak learning rate."""
    warmup_steps: int
    """Steps of linear warm-up from 0."""
    decay_steps: int
    """Last steps, over which the learning rate falls linearly to 0."""
    aux_k: int
    """Dead latents that AuxK uses per row."""
    aux_capacity: int
    """Dead latents that AuxK considers in one step; where more are dead, they take turns."""
    aux_coefficient: float
    """Weight of the AuxK loss."""
    dead_window: int
    """Tokens without firing after which a latent counts as dead."""
    precision: Precision
    """Inputs of matrix products: float32, or bfloat16; everything else is float32."""
    impl: Impl
    """What sums over codes: jax, on any device; pallas, on NVIDIA GPUs from Hopper on."""

    def rate(self, step: Any) -> Float[Array, ""]:
        """Give the learning rate of a step: linear up from 0, constant, linear down to 0.

        Args:
            step: number of the step, from 0; a traced integer.

        Returns:
            learning_rate * min(1, (step + 1) / warmup_steps, (steps - step) / decay_steps).
        """
        up = (step + 1) / max(self.warmup_steps, 1)
        down = (self.steps - step) / max(self.decay_steps, 1)
        return self.learning_rate * jnp.minimum(1.0, jnp.minimum(up, down))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Batches are a function of (seed, step), so `step` is also the data cursor.
    """

    weights: Any
    """What is trained."""
    scale: Any
    """Factor `[]` from the model's units to scaled ones."""
    optimiser: Any
    """Adam's moments and count, an `optax.ScaleByAdamState`."""
    silent: Any
    """Tokens since each latent last fired, int32 `[d_sae]`, counted no further than the dead window."""
    step: Any
    """Steps done, int32 `[]`."""
    key: Any
    """Words of the PRNG key that the run started from, uint32; a TopK step draws nothing."""
    config: SAEConfig = dataclasses.field(metadata={"static": True})
    """Shape of the SAE."""

    @property
    def sae(self) -> SAE:
        """The SAE as it is now."""
        return self.weights.sae(self.scale, self.config)


def initial_state(sae: SAE, recipe: Recipe, key: Array) -> TrainState:
    """Make the state before the first step.

    Args:
        sae: the untrained SAE.
        recipe: recipe of the run.
        key: PRNG key that the SAE was made with.

    Returns:
        The state.
    """
    weights = jax.tree.map(jnp.array, Weights.of(sae))  # copies: steps donate the state, and the SAE is the caller's
    return TrainState(
        weights=weights,
        scale=jnp.array(sae.scale),
        optimiser=ADAM.init(weights),
        silent=jnp.zeros(sae.config.d_sae, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(jax.random.key_data(key)),
        config=sae.config,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where a step puts its large arrays, step after step; what they hold between steps is of no meaning.

    A program's own temporary arrays are made anew each time it runs, which on a CPU means that the system clears every
    page of them: a third of a step.
    """

    product: Any
    """`[rows, d_sae]`, of the encoder."""
    gradient: Weights
    """Of the loss."""


def workspace(state: TrainState, rows: int) -> Workspace:
    """Make the workspace of a run.

    Args:
        state: its state.
        rows: of a batch.
    """
    return Workspace(jnp.zeros((rows, state.config.d_sae)), jax.tree.map(jnp.zeros_like, state.weights))


def state_places(state: TrainState) -> TrainState:
    """Say over which mesh axis the first axis of each array of a state is spread: latents, or none."""
    weights = Weights(*[PartitionSpec(LATENT)] * 3, b_dec=PartitionSpec())
    nowhere = PartitionSpec()
    return TrainState(
        weights=weights,
        scale=nowhere,
        optimiser=state.optimiser._replace(count=nowhere, mu=weights, nu=weights),
        silent=PartitionSpec(LATENT),
        step=nowhere,
        key=nowhere,
        config=state.config,
    )


def workspace_places() -> Workspace:
    """Say the same of a workspace."""
    return Workspace(PartitionSpec(DATA, LATENT), Weights(*[PartitionSpec(LATENT)] * 3, b_dec=PartitionSpec()))


def placed(tree: Any, places: Any, mesh: Mesh) -> Any:
    """Put the arrays of a state or a workspace where a mesh has them.

    Args:
        tree: the arrays.
        places: what `state_places` or `workspace_places` say.
        mesh: with axes `data` and `latent`.
    """
    return jax.tree.map(lambda leaf, place: jax.device_put(leaf, NamedSharding(mesh, place)), tree, places)


@partial(jax.jit, static_argnames=("recipe", "mesh"), donate_argnames=("state", "space"), keep_unused=True)
def train_step(
    state: TrainState, space: Workspace, x: Float[AnyArray, "rows d_model"], recipe: Recipe, mesh: Mesh | None = None
) -> tuple[TrainState, Workspace, dict[str, Array]]:
    """Take one step on one batch.

    Memory beyond state and workspace: one array like `W_dec`, and what AuxK states.

    Args:
        state: state before the step; its buffers are donated.
        space: the run's workspace, donated too.
        x: activations in the model's units.
        recipe: recipe of the run.
        mesh: devices over whose axes `data` and `latent` the step is spread; state and workspace are to be
            `placed` there.

    Returns:
        The state after, the workspace, and metrics of the batch before the step: `fvu` (against the variance of the
        initial sample), `aux` (AuxK loss), `l0`, `dead` (latents), `learning_rate`.
    """
    del space  # its buffers become those of the one that is returned
    x = jnp.asarray(x)
    if mesh is None:
        return _step(state, x, recipe, Execution(recipe.precision, recipe.impl))
    step = partial(_step, recipe=recipe, how=Execution(recipe.precision, recipe.impl, sharded=True))
    of_state = state_places(state)
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(of_state, PartitionSpec(DATA)),
        out_specs=(of_state, workspace_places(), PartitionSpec()),
        check_vma=False,
    )(state, x)


def _step(
    state: TrainState, x: Float[Array, "rows d_model"], recipe: Recipe, how: Execution
) -> tuple[TrainState, Workspace, dict[str, Array]]:
    weights, scaled = state.weights, x * state.scale
    fvu, forward, gradient = reconstruction_loss(weights, scaled, state.config.k, how)
    dead = state.silent >= recipe.dead_window
    aux, gradient = add_aux_gradient(
        gradient, weights, dead, scaled, forward,
        turn=state.step, aux_k=recipe.aux_k, capacity=recipe.aux_capacity, coefficient=recipe.aux_coefficient, how=how,
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
    after = dataclasses.replace(state, weights=stepped, optimiser=optimiser, silent=silent, step=state.step + 1)
    return after, Workspace(forward.product, gradient), metrics


def updated(
    weights: Weights, gradient: Weights, moments: optax.ScaleByAdamState, rate: Float[Array, ""]
) -> tuple[Weights, optax.ScaleByAdamState]:
    """Take Adam's step on the product of spheres that decoder rows of unit norm lie on.

    A row's gradient loses its component along the row, which renormalising would undo, and the row is brought back to
    unit norm after.

    Args:
        weights: weights before the step.
        gradient: of the loss, to them.
        moments: Adam's moments and count.
        rate: learning rate.

    Returns:
        Weights and moments after it.
    """
    rows = weights.W_dec
    tangent = gradient.W_dec - row_products(gradient.W_dec, rows)[:, None] * rows
    direction, moments = ADAM.update(dataclasses.replace(gradient, W_dec=tangent), moments)
    stepped = jax.tree.map(lambda w, towards: w - rate * towards, weights, direction)
    norms = jnp.sqrt(row_products(stepped.W_dec, stepped.W_dec))
    return dataclasses.replace(stepped, W_dec=stepped.W_dec / norms[:, None]), moments


def row_products(a: Float[Array, "rows d"], b: Float[Array, "rows d"]) -> Float[Array, "rows"]:
    """Take the inner product of each row of a matrix with that of another.

    In parts, because XLA on CPU would pull the making of both matrices into one whole sum, and keep each of its steps
    as an array of that size.
    """
    parts = max(count for count in range(1, PARTS + 1) if len(a) % count == 0)
    pairs = [matrix.reshape(parts, -1, matrix.shape[1]) for matrix in (a, b)]
    return lax.map(lambda pair: jnp.sum(pair[0] * pair[1], axis=1), pairs).reshape(-1)
