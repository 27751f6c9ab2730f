"""What a training run is: its recipe, its state between steps, and the workspace of a step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float
from saejax_kernels import Impl, Precision

from saejax.sae.normalisation import Normalisation
from saejax.sae.params import SAE, SAEConfig
from saejax.sae.weights import Weights
from saejax.types import AnyArray, Array

ADAM = optax.scale_by_adam(b1=0.9, b2=0.999)


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
    """Kernels: jax, gpu or tpu."""
    l1_coefficient: float = 0.0
    """Weight of the L1 norm of codes."""
    recall: float | None = None
    """Share of a row's k largest latents that a step is to find; all when None."""
    deterministic: bool = False
    """Whether steps on a GPU give the same bits every time."""

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
    normalisation: Normalisation
    """Of the SAE."""
    optimiser: Any
    """Adam's moments and count, an `optax.ScaleByAdamState`."""
    silent: Any
    """Tokens since each latent last fired, int32 `[d_sae]`, counted no further than the dead window."""
    step: Any
    """Steps done, int32 `[]`."""
    key: Any
    """Words of the PRNG key that the run started from, uint32; a TopK step draws nothing."""
    variance: Any
    """Variance of a normalised dimension of the initial sample, `[]`, that the loss is divided by; None for 1."""
    config: SAEConfig = dataclasses.field(metadata={"static": True})
    """Shape of the SAE."""

    @property
    def sae(self) -> SAE:
        """The SAE as it is now."""
        return self.weights.sae(self.normalisation, self.config)


def initial_state(sae: SAE, recipe: Recipe, key: Array, variance: Float[AnyArray, ""] | None = None) -> TrainState:
    """Make the state before the first step.

    Args:
        sae: the untrained SAE.
        recipe: recipe of the run.
        key: PRNG key that the SAE was made with.
        variance: as `saejax.sae.initial.normalised_variance` finds it.

    Returns:
        The state.
    """
    weights = jax.tree.map(jnp.array, Weights.of(sae))  # copies: steps donate the state, and the SAE is the caller's
    return TrainState(
        weights=weights,
        normalisation=jax.tree.map(jnp.array, sae.normalisation),
        optimiser=ADAM.init(weights),
        silent=jnp.zeros(sae.config.d_sae, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        key=jnp.array(jax.random.key_data(key)),
        variance=variance if variance is None else jnp.array(variance),
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
    """`[rows, d_sae]`, of the encoder; None where that is never held."""
    gradient: Weights
    """Of the loss."""


def workspace(state: TrainState, rows: int, impl: Impl) -> Workspace:
    """Make the workspace of a run.

    Args:
        state: its state.
        rows: of a batch.
        impl: kernels of its recipe.
    """
    product = None if impl == "tpu" else jnp.zeros((rows, state.config.d_sae))
    return Workspace(product, jax.tree.map(jnp.zeros_like, state.weights))
