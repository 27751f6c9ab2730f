"""Checkpoints of a training run, by Orbax: parameters, Adam's state, dead counters, data cursor, PRNG key.

Saving is synchronous: the next step donates the buffers that a background write would still be reading.
A step's folder appears under its name only when it is whole, so a run killed while saving resumes one
checkpoint earlier.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from saejax.sae.step import TrainState

KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; the last two are kept."""

    manager: ocp.CheckpointManager
    """Orbax's manager of the folder."""

    def save(self, state: TrainState) -> None:
        """Write a state under its step number; a step that is there already is left as it is.

        Args:
            state: state between two steps.
        """
        step = int(state.step)
        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState | None:
        """Read the last state, to the bit.

        Args:
            like: a state, or its shapes from `jax.eval_shape`, of the same SAE and recipe.

        Returns:
            The state; None when nothing was saved yet.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        restored: Any = self.manager.restore(step, args=ocp.args.StandardRestore(shapes))
        return restored


@contextlib.contextmanager
def open_checkpoints(folder: Path) -> Iterator[Checkpoints]:
    """Open a run's checkpoints, clearing away what an interrupted save left.

    Args:
        folder: made when absent.

    Yields:
        The checkpoints.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        yield Checkpoints(manager)
