"""Where arrays and work lie: devices of one process along a named mesh axis, and processes along ranges of indices."""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from saejax.errors import InputError

T = TypeVar("T")


def device_mesh(axis: str) -> Mesh:
    """Return the mesh of all local devices along one axis.

    Args:
        axis: name of the array axis that is spread over devices, for example `"perm"`.
    """
    return Mesh(np.array(jax.local_devices()), (axis,))


def spread(mesh: Mesh) -> NamedSharding:
    """Return the placement of an array whose first axis is spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec(*mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the placement of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def join() -> None:
    """Join the other processes of a job that Slurm, Open MPI, Kubernetes or a TPU pod started.

    A process that is alone on its node takes all devices it sees; where Slurm or Open MPI starts several on one, each
    takes that of its number there. `JAX_LOCAL_DEVICE_IDS` names others. To be called before anything else uses JAX.
    Elsewhere `jax.distributed.initialize` does it with addresses.

    Raises:
        InputError: no such launcher is found.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(local_device_ids=_local_device_ids())
    except ValueError as error:
        raise InputError(
            f"no launcher of several processes is found ({str(error).rstrip('.')}); start the job by Slurm, Open MPI, "
            "Kubernetes or on a TPU pod, or leave multiprocess out"
        ) from None


def _local_device_ids() -> list[int] | None:
    """Return which devices JAX is to take: [] is all that this process sees, None what JAX does by itself.

    By itself it takes a single one under Slurm and Open MPI, also where no other process is there to take the rest.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return None
    # Open MPI first, as in JAX, because it starts its own daemons by Slurm.
    on_node, nodes = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"), os.environ.get("SLURM_STEP_NUM_NODES")
    alone = on_node == "1" if on_node else nodes is not None and os.environ.get("SLURM_NTASKS") == nodes
    return [] if alone else None


def share(first: int, stop: int) -> tuple[int, int]:
    """Return the range of indices that this process handles: equal parts, in the order of the processes."""
    count, process, processes = stop - first, jax.process_index(), jax.process_count()
    return first + count * process // processes, first + count * (process + 1) // processes


def gather(part: np.ndarray) -> np.ndarray:
    """Join the parts that the processes hold along the last axis, in their order; every process gets the whole.

    Args:
        part: an array of any dtype, of equal leading axes in all processes; the last axis may differ in length.
    """
    if jax.process_count() == 1:
        return part
    lengths = multihost_utils.process_allgather(np.array(part.shape[-1], np.int32))
    longest = int(np.max(lengths))
    padded = np.zeros((*part.shape[:-1], longest), part.dtype)
    padded[..., : part.shape[-1]] = part
    # As bytes, because JAX would turn float64 into float32 on the way.
    parts = multihost_utils.process_allgather(padded.view(np.uint8))
    whole = np.asarray(parts).view(part.dtype)
    return np.concatenate([one[..., :length] for one, length in zip(whole, lengths, strict=True)], axis=-1)


def in_turn(name: str, act: Callable[[], T]) -> T:
    """Do something in process 0 and then in all others, so that they find what it made and refuse what it refused.

    Args:
        name: what the others wait for, the same in all.
        act: what to do.

    Returns:
        What `act` returned in this process.
    """
    if jax.process_index() > 0:
        barrier(name)
        return act()
    try:
        return act()
    finally:
        barrier(name)


def is_first() -> bool:
    """Tell whether this process is the one that writes what a job has found."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here.

    Args:
        name: what they wait for, the same in all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
