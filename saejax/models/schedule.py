"""The optimiser of a language model, and how its learning rate rises and falls."""

import dataclasses
import math
from typing import Literal, get_args

import jax
import optax
from flax import nnx

from saejax.errors import InputError

Decay = Literal["cosine", "wsd"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up and a decay to a tenth of the peak rate r.

    `cosine` falls all the way from the warm-up, of W steps, to the end, S:
    r (0.1 + 0.9 (1 + cos(pi (s - W) / (S - W))) / 2).

    `wsd`, warm-up, stable, decay (Hu et al., "MiniCPM", 2024), stays at r until the last share of the steps, from T on:
    r 10^(-(s - T) / (S - T)).

    Attributes:
        steps: optimiser steps in all.
        warmup_steps: steps over which the learning rate grows from 0.
        learning_rate: peak learning rate.
        weight_decay: decoupled decay of the matrices; norms are not decayed.
        clip: largest global norm of a gradient.
        checkpoint_every: steps between checkpoints that a killed run resumes from.
        decay: how the learning rate falls.
        decay_share: share of the steps over which it falls; of `wsd`.
    """

    steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    clip: float = 1.0
    checkpoint_every: int = 500
    decay: Decay = "cosine"
    decay_share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse a schedule that has no steps left after its warm-up, or before its decay."""
        if not 0 <= self.warmup_steps < self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} must be below the {self.steps} steps of the run")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate {self.learning_rate} must be positive")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every {self.checkpoint_every} must be at least 1 step")
        if self.decay not in get_args(Decay):
            raise InputError(f"decay {self.decay!r} must be one of {', '.join(get_args(Decay))}")
        if not 0 < self.decay_share <= 1:
            raise InputError(f"decay_share {self.decay_share} must lie above 0, at most 1")
        if self.decay == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} and the {self.decay_steps} of decay_share "
                             f"{self.decay_share} exceed the {self.steps} steps of the run")  # fmt: skip

    @property
    def decay_steps(self) -> int:
        """Steps over which `wsd` lets the learning rate fall."""
        return math.ceil(self.decay_share * self.steps)

    def rate(self) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        peak, stable = self.learning_rate, self.steps - self.warmup_steps - self.decay_steps
        if self.decay == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, peak, self.warmup_steps, self.steps, end_value=peak / 10)
        return optax.warmup_exponential_decay_schedule(
            0.0, peak, self.warmup_steps, self.decay_steps, decay_rate=0.1, transition_begin=stable
        )

    def optimizer(self) -> optax.GradientTransformation:
        """Return gradient clipping followed by AdamW with betas (0.9, 0.95)."""
        adamw = optax.adamw(self.rate(), b2=0.95, weight_decay=self.weight_decay, mask=is_matrix)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


def is_matrix(weights: nnx.State) -> nnx.State:
    """Tell for each parameter whether it is part of a product, and not of a norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), weights)
