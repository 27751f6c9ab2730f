"""How a step is computed: with which rounding, by which kernels, and over which axes of a device mesh."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Int
from saejax_kernels import Impl, Precision, top_k

from saejax.types import Array

DATA, LATENT = "data", "latent"
"""Mesh axes: rows of a batch, and latents of the dictionary, each in equal runs."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How to compute a step; where it is sharded, functions see the rows and latents of one device."""

    precision: Precision
    """Inputs of matrix products."""
    impl: Impl
    """What sums over codes."""
    recall: float | None = None
    """Share of a row's largest latents that is to be found; all when None."""
    sharded: bool = False
    """Whether the axes `DATA` and `LATENT` of a mesh are there to sum over."""

    def over_rows(self, tree: Any) -> Any:
        """Add up what the devices found on their rows."""
        return lax.psum(tree, DATA) if self.sharded else tree

    def over_latents(self, tree: Any) -> Any:
        """Add up what the devices found on their latents."""
        return lax.psum(tree, LATENT) if self.sharded else tree

    def all_rows(self, rows: int) -> int:
        """Return the rows of the whole batch, of which a device has `rows`."""
        return rows * lax.axis_size(DATA) if self.sharded else rows

    def before(self, count: Int[Array, ""]) -> Int[Array, ""]:
        """Add up a count over the devices whose latents come before those of this one."""
        if not self.sharded:
            return jnp.zeros_like(count)
        everyone = lax.all_gather(count, LATENT)
        return jnp.sum(jnp.where(jnp.arange(len(everyone)) < lax.axis_index(LATENT), everyone, 0))

    def only_largest_of_all(self, values: Array, k: int) -> Array:
        """Set to zero what is not among the k largest of a row on all devices, ties to the lowest latent.

        Args:
            values: this device's largest of each row, `[rows, k or all of its latents]`, in order.
            k: entries of a row that stay, on all devices together.

        Returns:
            `values`, of which a first part of each row stays.
        """
        if not self.sharded:
            return values
        own = values.shape[1]
        # Devices are in the order of their latents, so that of equal entries the first has the lowest latent.
        everyone = lax.all_gather(values, LATENT, axis=1, tiled=True)
        _, places = top_k(everyone, k)
        mine = jnp.sum(places // own == lax.axis_index(LATENT), axis=1)
        return jnp.where(jnp.arange(own) < mine[:, None], values, 0)
