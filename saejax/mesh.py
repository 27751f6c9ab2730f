"""Where arrays lie when one process has several devices: a mesh with one named axis."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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
