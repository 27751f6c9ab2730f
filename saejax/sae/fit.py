"""The loop of a training run: steps, logs, checkpoints, and the reasons to end before the last step."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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

LOG = logging.getLogger(__name__)
LOG_EVERY = 50
DIVERGED = 10.0
"""Times the lowest FVU so far, at least 1, from which on a run has diverged."""


class Diverged(InputError):
    """A loss is not finite any more, or has grown to ten times what it was."""


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
    """FVU of each step since the last line of the log or checkpoint, perhaps still on its way."""
    since: list[float] = dataclasses.field(default_factory=list)
    """FVU of the steps before those, since the last checkpoint."""
    lowest: float = math.inf
    """Lowest FVU so far: of the untrained SAE, or logged."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of its last step, perhaps still on their way."""
    failure: Diverged | None = None
    """Why it trains no more, where others go on."""

    def note(self, step: int) -> None:
        """Log the metrics of a step, unless the run has diverged."""
        self._fetch()
        numbers = {name: float(value) for name, value in self.metrics.items()}
        self._require_sound(numbers["fvu"], step)
        self.lowest = min(self.lowest, numbers["fvu"])
        self.log(step=step, **numbers)

    def save(self, step: int) -> None:
        """Begin to write the state if it was stepped since, unless the run has diverged."""
        self._fetch()
        if not self.since:
            return
        fvu = math.fsum(self.since) / len(self.since)
        self._require_sound(fvu if all_finite(self.state) else math.nan, step)
        self.checkpoints.save(self.state, fvu, self.lowest)
        self.since = []

    def _fetch(self) -> None:
        self.since += map(float, jax.device_get(self.fvus))
        self.fvus = []
        if self.since and self.lowest == math.inf:
            self.lowest = self.since[0]

    def _require_sound(self, fvu: float, step: int) -> None:
        if math.isfinite(fvu) and fvu <= DIVERGED * max(self.lowest, 1.0):
            return
        last = self.checkpoints.last
        kept = "no checkpoint was saved yet" if last is None else f"the last good checkpoint is {last}"
        rate = self.recipe.learning_rate
        raise Diverged(f"FVU is {fvu} at step {step}; {kept}; train into another out, learning_rate below {rate}")


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
    in memory is its state. One that diverges trains no more, and the others go on.

    Args:
        members: where to begin, all of them after the same step of as many.
        batches: activations in the model's units, from the batch of that step on; of each the `own_rows` of this
            process (`saejax.sae.placement`), which nobody changes after.
        batch: rows in each.
        checkpoint_every: steps between checkpoints; one more comes after the last, and when the run is to end.
        mesh: devices that the steps are spread over; the states are there already.
        preemption: whether the run is to end before its last step; never when None.

    Raises:
        InputError: of all of them a loss is not finite any more, or has grown to ten times what it was.
        Preempted: the run was to end, if only while it waited for a batch; its states are saved.
        ValueError: the batches end before the steps do.
    """
    step = start = int(members[0].state.step)
    steps = members[0].recipe.steps
    space, since = placed_workspace(members[0].state, batch, members[0].recipe.impl, mesh), time.perf_counter()
    # Steps in flight together take the threads that the collectives of processes on CPUs wait for.
    in_lockstep = jax.process_count() > 1 and jax.default_backend() == "cpu"
    going, preemption = list(members), Preemption() if preemption is None else preemption
    with progress("train SAE", steps, done=start) as advance:
        placed = _until_told(placed_batches(batches, batch, mesh), preemption)
        for step, rows in zip(range(start + 1, steps + 1), placed, strict=False):
            before = [member.metrics for member in going]
            for member in going:
                take = repeatable_step if member.recipe.deterministic else train_step
                member.state, space, member.metrics = take(member.state, space, rows, member.recipe, mesh)
                member.fvus.append(member.metrics["fvu"])
            # A step waits for the device while the one before runs there, and no more do: each holds its batch.
            jax.block_until_ready([member.metrics for member in going] if in_lockstep else before)
            last, ending = step == steps, preemption.due()
            if step % LOG_EVERY == 0 or last:
                for member in going:
                    if member.recipe.recall is not None:
                        member.metrics["recall"] = found_share(member.state, rows, member.recipe, mesh)
                going = _sound(going, lambda member, step=step: member.note(step))
                done = step - max(start, (step - 1) // LOG_EVERY * LOG_EVERY)
                seconds, since = time.perf_counter() - since, time.perf_counter()
                advance(done, _told(going, done * batch / seconds))
            if step % checkpoint_every == 0 or last or ending:
                going = _sound(going, lambda member, step=step: member.save(step))
            if ending and not last:
                raise Preempted(_ended(step, steps))
        if step < steps and preemption.asked:
            _sound(going, lambda member: member.save(step))
            raise Preempted(_ended(step, steps))
    if step < steps:
        raise ValueError(f"the batches ended after step {step} of {steps}")


def _until_told(batches: Iterator[Array], preemption: Preemption) -> Iterator[Array]:
    """Yield batches until the run is to end, also while one is waited for: a window of a live source takes minutes."""
    while True:
        try:
            with preemption.ends("told to end"):
                x = next(batches, None)
        except Preempted:
            return
        if x is None:
            return
        yield x


def _ended(step: int, steps: int) -> str:
    done = f"step {step} of {steps} is saved" if step else "no step was taken yet"
    return f"told to end; {done}, and the same command goes on"


def _sound(members: Sequence[Member], act: Callable[[Member], None]) -> list[Member]:
    """Do something for each SAE, and return those that have not diverged; if that is none, say of one why."""
    sound, failed = [], []
    for member in members:
        try:
            act(member)
            sound.append(member)
        except Diverged as error:
            member.failure = error
            failed.append((member, error))
    if not sound:
        raise failed[-1][1]
    for member, error in failed:
        LOG.warning("%s: %s; the other SAEs go on", member.checkpoints.folder.parent, error)
    return sound


@jax.jit
def all_finite(tree: Any) -> Array:
    """Tell whether no number of a tree is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _told(members: Sequence[Member], tokens_per_second: float) -> str:
    """Say how the SAEs do, in the mean over them."""
    mean = {
        name: sum(float(member.metrics[name]) for member in members) / len(members) for name in ("fvu", "l0", "dead")
    }
    health = f"FVU {mean['fvu']:.3f}  L0 {mean['l0']:.1f}  dead {mean['dead']:.0f}"
    return f"{tokens_per_second:,.0f} tokens/s  {health}"
