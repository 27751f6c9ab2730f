"""The loop of a training run: steps, logs, checkpoints, and the reasons to end before the last step."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from saejax.errors import InputError, Preempted
from saejax.preemption import Preemption
from saejax.progress import progress
from saejax.sae.checkpoint import Checkpoints
from saejax.sae.placement import placed_batches, placed_workspace
from saejax.sae.state import Recipe, TrainState
from saejax.sae.step import found_share, repeatable_step, train_step
from saejax.types import Array

LOG_EVERY = 50
DIVERGED = 10.0
"""Times the lowest FVU that was logged, at least 1, from which on a run has diverged."""


@dataclasses.dataclass
class Member:
    """One of the SAEs that train on a stream of batches."""

    state: TrainState
    """Where it is; its buffers are donated to the next step."""
    recipe: Recipe
    """Its recipe."""
    log: Callable[..., None]
    """Called with `step` and the metrics of that step's batch, every 50 steps and after the last."""
    checkpoints: Checkpoints
    """Where its states go."""
    fvus: list[Array] = dataclasses.field(default_factory=list)
    """FVU of each step since the last checkpoint."""
    lowest: float = math.inf
    """Lowest FVU that was logged."""

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the metrics of a step, unless the run has diverged."""
        self._require_sound(numbers["fvu"], step)
        self.lowest = min(self.lowest, numbers["fvu"])
        self.log(step=step, **numbers)

    def save(self, step: int) -> None:
        """Begin to write the state, unless the run has diverged."""
        fvu = float(jnp.mean(jnp.stack(self.fvus)))
        self._require_sound(fvu if all_finite(self.state) else math.nan, step)
        self.checkpoints.save(self.state, fvu)
        self.fvus = []

    def _require_sound(self, fvu: float, step: int) -> None:
        if math.isfinite(fvu) and fvu <= DIVERGED * max(self.lowest, 1.0):
            return
        best = self.checkpoints.best
        kept = "no checkpoint was saved yet" if best is None else f"the best checkpoint is {best}"
        raise InputError(f"FVU is {fvu} at step {step}; {kept}; lower learning_rate {self.recipe.learning_rate}")


def fit(
    members: Sequence[Member],
    batches: Iterable[Float[np.ndarray, "_ d_model"]],
    *,
    batch: int,
    checkpoint_every: int,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
) -> None:
    """Step some SAEs of one size to the end of their recipes, each on every batch, in place.

    Each takes the steps that it would take alone, one after the other: so each pays AuxK for its own dead latents,
    where under `vmap` all would pay for whichever has most. They share one workspace, so that what a further one costs
    in memory is its state.

    Args:
        members: where to begin, all of them after the same step of as many.
        batches: activations in the model's units, from the batch of that step on; of each the `own_rows` of this
            process (`saejax.sae.placement`), which nobody changes after.
        batch: rows in each.
        checkpoint_every: steps between checkpoints; one more comes after the last, and when the run is to end.
        mesh: devices that the steps are spread over; the states are there already.
        preemption: whether the run is to end before its last step; never when None.

    Raises:
        InputError: a loss is not finite any more, or has grown to ten times what it was.
        Preempted: the run was to end; its states are saved.
        ValueError: the batches end before the steps do.
    """
    step = start = int(members[0].state.step)
    steps = members[0].recipe.steps
    space, since = placed_workspace(members[0].state, batch, members[0].recipe.impl, mesh), time.perf_counter()
    # Steps in flight together take the threads that the collectives of processes on CPUs wait for.
    in_lockstep = jax.process_count() > 1 and jax.default_backend() == "cpu"
    found = []
    with progress("train SAE", steps, done=start) as advance:
        for step, rows in zip(range(start + 1, steps + 1), placed_batches(batches, batch, mesh), strict=False):
            before, found = found, []
            for member in members:
                take = repeatable_step if member.recipe.deterministic else train_step
                member.state, space, metrics = take(member.state, space, rows, member.recipe, mesh)
                member.fvus.append(metrics["fvu"])
                found.append(metrics)
            # A step waits for the device while the one before runs there, and no more do: each holds its batch.
            jax.block_until_ready(found if in_lockstep else before)
            last, ending = step == steps, preemption is not None and preemption.at(step)
            if step % LOG_EVERY == 0 or last:
                for member, metrics in zip(members, found, strict=True):
                    if member.recipe.recall is not None:
                        metrics["recall"] = found_share(member.state, rows, member.recipe)
                numbers = [{name: float(value) for name, value in metrics.items()} for metrics in found]
                for member, of_member in zip(members, numbers, strict=True):
                    member.note(step, of_member)
                done = step - max(start, (step - 1) // LOG_EVERY * LOG_EVERY)
                seconds, since = time.perf_counter() - since, time.perf_counter()
                advance(done, _told(numbers, done * batch / seconds))
            if step % checkpoint_every == 0 or last or ending:
                for member in members:
                    member.save(step)
            if ending and not last:
                raise Preempted(f"told to end; step {step} of {steps} is saved, and the same command goes on")
    if step < steps:
        raise ValueError(f"the batches ended after step {step} of {steps}")


@jax.jit
def all_finite(tree: Any) -> Array:
    """Tell whether no number of a tree is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _told(numbers: Sequence[Mapping[str, float]], tokens_per_second: float) -> str:
    """Say how the SAEs do, in the mean over them."""
    mean = {name: sum(of[name] for of in numbers) / len(numbers) for name in ("fvu", "l0", "dead")}
    health = f"FVU {mean['fvu']:.3f}  L0 {mean['l0']:.1f}  dead {mean['dead']:.0f}"
    return f"{tokens_per_second:,.0f} tokens/s  {health}"
