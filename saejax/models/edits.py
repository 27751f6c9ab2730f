"""Ready-made edits of an activation: replace it, add to it, project directions out of it, clamp it.

An edit is a function of an activation, `[batch, position, width]`, and of the positions that are edited, `[batch,
position]`; it gives the activation to go on with. Any function of JAX will do. These hold their arrays as leaves of a
pytree, so that a model is compiled once for all their values.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.errors import InputError

Activation = Float[Array, "batch position width"]
Positions = Bool[Array, "batch position"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replace:
    """Put other values in the place of an activation.

    Attributes:
        values: `[width]`, `[position, width]` or `[batch, position, width]`.
    """

    values: jax.Array

    def __call__(self, activation: Activation, positions: Positions) -> Activation:
        """Return the values at the positions."""
        return _where(positions, jnp.broadcast_to(self.values, activation.shape), activation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Add:
    """Add a vector: steering (Turner et al., "Activation addition", 2023).

    Attributes:
        vector: `[width]`, `[position, width]` or `[batch, position, width]`.
    """

    vector: jax.Array

    def __call__(self, activation: Activation, positions: Positions) -> Activation:
        """Return the sum at the positions."""
        return _where(positions, activation + self.vector, activation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProjectOut:
    """Remove all components along some directions: x - Q Q^T x, Q an orthonormal basis of what they span.

    Attributes:
        basis: `[width, directions]`, orthonormal columns; `ProjectOut.of` makes it.
    """

    basis: jax.Array

    @classmethod
    def of(cls, directions: Float[Array, "directions width"]) -> "ProjectOut":
        """Make the edit from directions of any length, that need not be orthogonal.

        Raises:
            InputError: they depend on each other, or one is 0.
        """
        count, width = directions.shape
        basis, triangle = jnp.linalg.qr(jnp.asarray(directions, jnp.float32).T)
        new, whole = jnp.abs(jnp.diagonal(triangle)), jnp.linalg.norm(directions, axis=1)
        if count > width or not bool(jnp.all(new > 1e-5 * whole)):
            raise InputError(f"directions {[count, width]} depend on each other, or one is 0; give a basis")
        return cls(basis)

    def __call__(self, activation: Activation, positions: Positions) -> Activation:
        """Return what is left at the positions."""
        along = jnp.matmul(activation, self.basis.astype(activation.dtype), precision="highest")
        left = activation - jnp.matmul(along, self.basis.T.astype(activation.dtype), precision="highest")
        return _where(positions, left, activation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clamp:
    """Keep entries between two bounds.

    Attributes:
        low: lower bound, a number or `[width]`.
        high: upper bound.
    """

    low: jax.Array | float
    high: jax.Array | float

    def __call__(self, activation: Activation, positions: Positions) -> Activation:
        """Return the bounded entries at the positions."""
        return _where(positions, jnp.clip(activation, self.low, self.high), activation)


def _where(positions: Positions, edited: Activation, activation: Activation) -> Activation:
    return jnp.where(positions[..., None], edited, activation)
