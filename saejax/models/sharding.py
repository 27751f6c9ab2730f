"""Which device holds which part of a language model: heads and MLP columns over the mesh axis `model`.

Rows of text go over `data`. What a head or a column writes to the residual stream is summed over devices (Shoeybi et
al., "Megatron-LM", 2019). A parameter whose heads, columns or words do not divide evenly is held whole by every device.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from saejax.errors import InputError
from saejax.models.config import TransformerConfig

DATA, MODEL = "data", "model"


def model_mesh(data: int, model: int) -> Mesh:
    """Return a mesh of all devices for a language model.

    Args:
        data: devices over which rows of text are spread.
        model: devices over which each row's heads and MLP columns are spread.

    Raises:
        InputError: there are fewer devices, or more.
    """
    devices = jax.devices()
    if data < 1 or model < 1 or data * model != len(devices):
        raise InputError(f"a mesh of data {data} x model {model} needs as many devices; there are {len(devices)}")
    return Mesh(np.array(devices).reshape(data, model), (DATA, MODEL))


def partition(path: tuple[Any, ...], config: TransformerConfig, mesh: Mesh) -> PartitionSpec:
    """Return how a parameter is spread.

    Args:
        path: where it lies in `Transformer`.
        config: the model's.
        mesh: has an axis `model`.
    """
    size = mesh.shape[MODEL]
    stacked = (None,) if path[0] == "blocks" else ()
    name, kind = (path[1], path[-1]) if path[0] == "blocks" else (path[0], path[-1])
    counts = {"w_q": config.n_heads, "w_o": config.n_heads, "w_k": config.n_kv_heads, "w_v": config.n_kv_heads,
              "w_gate": config.d_mlp, "w_up": config.d_mlp, "w_down": config.d_mlp, "embed": config.vocab_size,
              "unembed": config.vocab_size}  # fmt: skip
    if counts.get(name, 1) % size:
        return PartitionSpec()
    if name == "embed":
        return PartitionSpec(MODEL, None)
    if name == "unembed":
        return PartitionSpec(None, MODEL)
    if name in ("w_o", "w_down"):
        return PartitionSpec(*stacked, MODEL, None) if kind == "kernel" else PartitionSpec()
    if name in counts:
        return PartitionSpec(*stacked, *((None,) if kind == "kernel" else ()), MODEL)
    return PartitionSpec()


def rows(mesh: Mesh | None) -> NamedSharding | None:
    """Return the placement of rows of text, or None where there is one device."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(DATA))
