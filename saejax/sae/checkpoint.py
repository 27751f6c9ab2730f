"""Checkpoints of a training run, by Orbax: parameters, Adam's state, dead counters, normalisation, data cursor, key.

A step's folder appears under its name only when it is whole, so a run killed while saving resumes one checkpoint
earlier. Writing goes on in the background: Orbax has the state on the host before the next step may overwrite it, and
on a CPU, where that is the state's own memory, JAX leaves alone what is still being read.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import lax
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from saejax.errors import InputError
from saejax.sae.state import TrainState
from saejax.storage import Folder
from saejax.types import Array

METRICS = "metrics/metrics"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    manager: ocp.CheckpointManager
    """Orbax's manager of the folder."""

    def save(self, state: TrainState, fvu: float, lowest: float) -> None:
        """Begin to write a state under its step number; a step that is there already is left as it is.

        Args:
            state: state between two steps.
            fvu: mean FVU of the steps since the last checkpoint, by which the best is told.
            lowest: the lowest FVU so far, against which a run diverges.

        Raises:
            InputError: it, or the one before, cannot be written.
        """
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        metrics = {"fvu": fvu, "lowest": lowest, "bits": int(sum_of_bits(state))}
        with written(self.folder):
            self.manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

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
        path = self.folder / str(step)
        try:
            restored: Any = self.manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:
            # Where an array is cut short, Orbax raises what has no class of its own.
            if not (isinstance(error, OSError | ValueError | KeyError) or type(error) is Exception):
                raise
            raise _unreadable(path, str(error).partition("\n")[0]) from error
        # No file of arrays has a checksum.
        if int(sum_of_bits(restored)) != _metrics(path)["bits"]:
            raise _unreadable(path, "its bits are not those that were saved")
        return restored

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return Path(self.manager.directory)

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
    def last(self) -> int | None:
        """Step of the last checkpoint."""
        return self.manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint before which FVU was lowest."""
        return self.manager.best_step()

    @property
    def lowest(self) -> float | None:
        """Lowest FVU until the last checkpoint."""
        return None if self.last is None else _metrics(self.folder / str(self.last))["lowest"]


@jax.jit
def sum_of_bits(tree: Any) -> Array:
    """Add up all numbers of a tree as if their bits were integers, modulo 2^32: no one of them can change unseen."""
    words = (lax.bitcast_convert_type(leaf, jnp.uint32) for leaf in jax.tree.leaves(tree))
    return sum((jnp.sum(word, dtype=jnp.uint32) for word in words), jnp.uint32(0))


def _metrics(path: Path) -> dict[str, Any]:
    """Read what was saved beside a state."""
    try:
        found = json.loads((path / METRICS).read_bytes())
        return {name: found[name] for name in ("fvu", "lowest", "bits")}
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, f"its {METRICS} is damaged") from error


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"checkpoint {path} cannot be read ({reason}); delete it to go on from the one before")


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """Say in a line why checkpoints cannot be written; Orbax tells of the one before when it is given the next."""
    try:
        with Folder(folder).explained("", "written"):
            yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}; free space and run the command again"
        ) from error


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending; none when it is absent."""
    return sorted(int(step.name) for step in folder.glob("*") if step.name.isdigit())


@contextlib.contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
    """Open a run's checkpoints, clearing away what an interrupted save left; wait for the last save at the end.

    Args:
        folder: made when absent.
        keep: last checkpoints to keep; the best is kept too.

    Yields:
        The checkpoints.

    Raises:
        InputError: one is damaged, or cannot be written.
    """
    steps = saved_steps(folder)
    for step in steps:
        # Of an earlier one a part may stand, where a kill came while it was being deleted.
        if step == steps[-1] or (folder / str(step) / METRICS).exists():
            _metrics(folder / str(step))

    def fvu(metrics: Any) -> float:
        return metrics["fvu"]

    options = ocp.CheckpointManagerOptions(
        best_fn=fvu,
        best_mode="min",
        preservation_policy=AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=fvu, reverse=True, n=1)]),
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield Checkpoints(manager)
    finally:
        with written(folder):
            manager.close()
