"""Checkpoints of a training run, by Orbax: parameters, Adam's state, dead counters, normalisation, data cursor, key.

A step's folder appears under its name only when it is whole, so a run killed while saving resumes one checkpoint
earlier. Writing goes on in the background: Orbax has the state on the host before the next step may overwrite it, and
on a CPU, where that is the state's own memory, JAX leaves alone what is still being read.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from saejax.errors import InputError
from saejax.sae.state import TrainState


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    manager: ocp.CheckpointManager
    """Orbax's manager of the folder."""

    def save(self, state: TrainState, fvu: float) -> None:
        """Begin to write a state under its step number; a step that is there already is left as it is.

        Args:
            state: state between two steps.
            fvu: mean FVU of the steps since the last checkpoint, by which the best is told.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        self.manager.save(step, args=ocp.args.StandardSave(state), metrics={"fvu": fvu})

    def restore(self, like: TrainState) -> TrainState | None:
        """Read the last state, to the bit.

        Args:
            like: shapes from `jax.eval_shape` of a state of the same SAE and recipe, with the shardings that its
                arrays are to have, whatever those were that it was saved with.

        Returns:
            The state; None when nothing was saved yet.

        Raises:
            InputError: the checkpoint is damaged, or of another SAE.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        try:
            restored: Any = self.manager.restore(step, args=ocp.args.StandardRestore(like))
        except (OSError, ValueError, KeyError) as error:
            path, reason = self.manager.directory / str(step), str(error).partition("\n")[0]
            raise InputError(
                f"checkpoint {path} cannot be read ({reason}); delete it to go on from the one before"
            ) from error
        return restored

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints behind a step."""
        for later in self.steps:
            if later > step:
                self.manager.delete(later)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint before which FVU was lowest."""
        return self.manager.best_step()


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """Open a run's checkpoints, clearing away what an interrupted save left; wait for the last save at the end.

    Args:
        folder: made when absent.
        keep: last checkpoints to keep; the best is kept too.

    Yields:
        The checkpoints.
    """

    def fvu(metrics: Any) -> float:
        return metrics["fvu"]

    options = ocp.CheckpointManagerOptions(
        best_fn=fvu,
        best_mode="min",
        preservation_policy=AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=fvu, reverse=True, n=1)]),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        yield Checkpoints(manager)
