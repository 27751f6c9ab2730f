"""One training step: loss, gradient, Adam, unit decoder rows, dead counters.

It is pure and jitted, its shapes are static, and it never asks the host.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from saejax.sae.losses import add_aux_gradient, reconstruction_loss
from saejax.sae.params import SAE
from saejax.types import AnyArray, Array


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
    aux_coefficient: float
    """Weight of the AuxK loss."""
    dead_window: int
    """Tokens without firing after which a latent counts as dead."""

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

    def optimiser(self) -> Any:
        """Build optax's Adam, betas .9 and .999, under this schedule."""
        return optax.adam(self.rate)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on as if it had never stopped.

    Batches are a function of (seed, step), so `step` is also the data cursor.
    """

    sae: Any
    """The SAE."""
    optimiser: Any
    """Adam's moments and count."""
    silent: Any
    """Tokens since each latent last fired, int32 `[d_sae]`, counted no further than the dead window."""
    step: Any
    """Steps done, int32 `[]`."""
    key: Any
    """Words of the PRNG key that the run started from, uint32; a TopK step draws nothing."""


def initial_state(sae: SAE, recipe: Recipe, key: Array) -> TrainState:
    """Make the state before the first step.

    Args:
        sae: the untrained SAE; the first step takes its buffers.
        recipe: recipe of the run.
        key: PRNG key that the SAE was made with.

    Returns:
        The state.
    """
    return TrainState(
        sae=sae,
        optimiser=recipe.optimiser().init(sae),
        silent=jnp.zeros(sae.config.d_sae, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(jax.random.key_data(key)),  # a copy: steps donate the state, and the key is the caller's
    )


@partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def train_step(
    state: TrainState, x: Float[AnyArray, "rows d_model"], recipe: Recipe
) -> tuple[TrainState, dict[str, Array]]:
    """Take one step on one batch.

    The gradient of `W_dec` loses its component along each row before Adam sees it, and rows are brought back
    to unit norm after; `scale` gets no gradient, so Adam leaves it alone.

    Args:
        state: state before the step; its buffers are donated.
        x: activations in the model's units.
        recipe: recipe of the run.

    Returns:
        The state after, and metrics of the batch before the step: `fvu` (against the variance of the initial
        sample), `aux` (AuxK loss), `l0`, `dead` (latents), `learning_rate`.
    """
    sae = state.sae
    scaled = x * sae.scale
    (fvu, (residual, values, indices)), gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)(sae, scaled)
    dead = state.silent >= recipe.dead_window
    aux, gradient = add_aux_gradient(
        gradient, sae, dead, scaled - sae.b_dec, residual, recipe.aux_k, recipe.aux_coefficient
    )
    gradient = dataclasses.replace(gradient, W_dec=tangent(gradient.W_dec, sae.W_dec))
    updates, optimiser = recipe.optimiser().update(gradient, state.optimiser, sae)
    stepped = jax.tree.map(jnp.add, sae, updates)
    stepped = dataclasses.replace(stepped, W_dec=stepped.W_dec / jnp.linalg.norm(stepped.W_dec, axis=1, keepdims=True))
    fired = jnp.zeros(sae.config.d_sae, bool).at[indices].max(values > 0)
    silent = jnp.where(fired, 0, jnp.minimum(state.silent + x.shape[0], recipe.dead_window))
    metrics = {
        "fvu": fvu,
        "aux": aux,
        "l0": jnp.mean(jnp.sum(values > 0, axis=1, dtype=jnp.float32)),
        "dead": jnp.sum(dead),
        "learning_rate": recipe.rate(state.step),
    }
    return TrainState(stepped, optimiser, silent, state.step + 1, state.key), metrics


def tangent(
    gradient: Float[Array, "d_sae d_model"], unit_rows: Float[Array, "d_sae d_model"]
) -> Float[Array, "d_sae d_model"]:
    """Remove from each row of a gradient its component along a unit row, which renormalising would undo.

    Args:
        gradient: gradient of a loss to the rows.
        unit_rows: rows of unit norm.

    Returns:
        The gradient on the product of spheres.
    """
    return gradient - jnp.sum(gradient * unit_rows, axis=1, keepdims=True) * unit_rows
