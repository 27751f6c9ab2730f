"""Left singular vectors by rotations of pairs of rows, in products and sums alone.

One-sided Jacobi: rotate two rows of m so that they become orthogonal, all pairs in turn, again and again until all
were nearly so. The product of all rotations then holds the left singular vectors of m. Half of all rows meet the other
half at a time, and change partners as in a round-robin tournament.

Why not XLA's own decomposition: in jaxlib 0.10 its batches hang on several CPU devices at once, on GPUs it takes one
matrix after another, and it mixes rows of padding with directions of value 0. Here a row of zeros turns with no other.

Source: Demmel and Veselic, "Jacobi's method is more accurate than QR", 1992; Brent and Luk, "The solution of
singular-value and symmetric eigenvalue problems on multiprocessor arrays", 1985 (the tournament).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

MOST_SWEEPS = 30  # of which eight are enough for 500 rows


def left_singular_vectors(m: Float[jax.Array, "k m"]) -> Float[jax.Array, "k k"]:
    """Return the left singular vectors as rows, in no order; the rows of this times m are orthogonal. Pure JAX.

    About 8 sweeps of 3 k^2 (k + m) multiplications, each in k - 1 steps; memory for 4 k (k + m) numbers.
    """
    k, width = m.shape
    even = k + k % 2
    rows = jnp.pad(m, ((0, even - k), (0, 0)))
    rows = jnp.concatenate([rows, jnp.eye(even, dtype=m.dtype)], axis=1)

    def step(_: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        upper, lower, far = _rotated(carry[0], carry[1], width)
        return *_next_partners(upper, lower), carry[2] | far

    def sweep(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> tuple:
        upper, lower, far = jax.lax.fori_loop(0, even - 1, step, (*carry[:2], jnp.zeros((), bool)))
        return upper, lower, far, carry[3] + 1

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return carry[2] & (carry[3] < MOST_SWEEPS)

    start = rows[: even // 2], rows[even // 2 :], jnp.ones((), bool), jnp.zeros((), jnp.int32)
    upper, lower, _, _ = jax.lax.while_loop(unfinished, sweep, start)
    vectors = jnp.concatenate([upper, lower])[:k, width : width + k]
    # Thousands of rotations leave lengths and angles off by some 1e-6; a step of Newton and Schulz mends them.
    return 1.5 * vectors - 0.5 * _product(_product(vectors, vectors.T), vectors)


def _rotated(upper: jax.Array, lower: jax.Array, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotate each row of one half with its partner, so that their first `width` columns become orthogonal.

    Returns:
        Both halves, and whether any pair was far from orthogonal.
    """
    u, v = upper[:, :width], lower[:, :width]
    a, b, g = jnp.sum(u * u, axis=1), jnp.sum(v * v, axis=1), jnp.sum(u * v, axis=1)
    epsilon = jnp.finfo(u.dtype).eps
    turn = jnp.abs(g) > epsilon**2
    ratio = (b - a) / (2 * jnp.where(turn, g, 1))
    tangent = jnp.where(turn, jnp.copysign(1 / (jnp.abs(ratio) + jnp.sqrt(1 + ratio**2)), ratio), 0)
    cosine = 1 / jnp.sqrt(1 + tangent**2)[:, None]
    sine = cosine * tangent[:, None]
    far = jnp.any(turn & (jnp.abs(g) > 16 * epsilon * jnp.sqrt(a * b)))
    return cosine * upper - sine * lower, sine * upper + cosine * lower, far


def _next_partners(upper: jax.Array, lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move all rows but the first one place round the table; with one row on each side nobody moves."""
    if len(upper) == 1:
        return upper, lower
    return jnp.concatenate([upper[:1], lower[:1], upper[1:-1]]), jnp.concatenate([lower[1:], upper[-1:]])


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # The highest precision, because the default on an accelerator is TF32 or bfloat16.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
