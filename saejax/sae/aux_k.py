"""AuxK: latents that have died are trained on what the live ones leave over (Gao et al. 2024, appendix A.2).

It differs from several published implementations on purpose: its target is the detached residual, `b_dec` is left out
of its decode, and its gradient reaches the encoder of dead latents (and nothing but dead latents).

The dead latents are gathered into a compact set of static capacity and worked on in blocks, of which only as many run
as hold a dead latent: shapes stay static, the host is never asked, and nothing is computed while none is dead.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int
from saejax_kernels import product

from saejax.sae.execution import Execution
from saejax.sae.losses import Forward
from saejax.sae.weights import Weights
from saejax.types import Array

BLOCK = 128
"""Dead latents that one round of the loops takes."""


def add_aux_gradient(
    gradient: Weights,
    weights: Weights,
    dead: Bool[Array, "d_sae"],
    x: Float[Array, "rows d_model"],
    forward: Forward,
    *,
    turn: Int[Array, ""],
    aux_k: int,
    capacity: int,
    coefficient: float,
    how: Execution,
) -> tuple[Float[Array, ""], Weights]:
    """Compute the AuxK loss and add its gradient, at a cost that follows the number of dead latents.

    loss = mean_r |r_r - e_r|^2 / mean_r |r_r - mean r|^2, with r the residual and e the decode, without `b_dec`, of
    each row's `aux_k` largest positive codes among dead latents. Memory: three arrays of rows x capacity.

    Args:
        gradient: gradient of the reconstruction loss; where it is sharded, the part of this device's rows.
        weights: the SAE's.
        dead: which latents are dead.
        x: activations in normalised units.
        forward: what the forward pass found; a constant here, as `x` is.
        turn: number of the step; where more latents are dead than fit, they take turns by it.
        aux_k: dead latents used per row, all of them where fewer are dead.
        capacity: dead latents considered in one step.
        coefficient: weight of the loss.
        how: how to compute.

    Returns:
        The loss before the coefficient, 0 while none is dead or the residual does not vary; the summed gradient.
    """
    d_sae, rows = len(dead), how.all_rows(len(x))
    width = -(-min(capacity, d_sae) // BLOCK) * BLOCK

    def learn(held: tuple[Array, ...]) -> tuple[Array, ...]:
        _, *sums = held
        taken = in_turn(dead, turn, capacity, how)
        own_count = jnp.sum(taken)
        count, blocks = how.over_latents(own_count), -(-own_count // BLOCK)
        latents = jnp.nonzero(taken, size=width, fill_value=d_sae)[0]
        centred, residual = x - weights.b_dec, forward.residual

        def chosen(at: Array) -> Array:
            return lax.dynamic_slice_in_dim(latents, at * BLOCK, BLOCK)

        def block(at: Array, table: Array) -> Array:
            return table.at[chosen(at)].get(mode="fill", fill_value=0)

        def encode(at: Array, codes: Array) -> Array:
            if forward.product is None:
                z = product(centred, block(at, weights.encoder), how.precision)
            else:
                z = forward.product.at[:, chosen(at)].get(mode="fill", fill_value=0)
            z += block(at, weights.b_enc)
            return lax.dynamic_update_slice_in_dim(codes, jnp.maximum(z, 0), at * BLOCK, axis=1)

        codes = lax.fori_loop(0, blocks, encode, jnp.zeros((len(x), width), jnp.float32))
        codes = lax.cond(count > aux_k, lambda codes: only_largest(codes, aux_k, how), lambda codes: codes, codes)

        def decode(at: Array, total: Array) -> Array:
            part = lax.dynamic_slice_in_dim(codes, at * BLOCK, BLOCK, axis=1)
            return total + product(part, block(at, weights.W_dec).T, how.precision)

        error = how.over_latents(lax.fori_loop(0, blocks, decode, jnp.zeros_like(residual))) - residual
        mean = how.over_rows(jnp.sum(residual, axis=0)) / rows
        variance = how.over_rows(jnp.sum((residual - mean) ** 2)) / rows
        per_variance = jnp.where(variance > 0, 1 / jnp.where(variance > 0, variance, 1), 0)
        slope = 2 * coefficient / rows * per_variance * error
        of_latents = codes.T  # at once: XLA on CPU multiplies by a block that is yet to be transposed at half the speed

        def backward(at: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            own = lax.dynamic_slice_in_dim(of_latents, at * BLOCK, BLOCK)
            to_codes = jnp.where(own > 0, product(block(at, weights.W_dec), slope, how.precision), 0)
            found = (
                product(to_codes, centred.T, how.precision),
                jnp.sum(to_codes, axis=1),
                product(own, slope.T, how.precision),
            )
            return tuple(whole.at[chosen(at)].add(one, mode="drop") for whole, one in zip(sums, found, strict=True))

        loss = per_variance * how.over_rows(jnp.sum(error**2)) / rows
        return loss, *lax.fori_loop(0, blocks, backward, tuple(sums))

    # A branch, because XLA takes out of loops of no round whatever does not change in them.
    held = (jnp.zeros(()), gradient.encoder, gradient.b_enc, gradient.W_dec)
    loss, encoder, b_enc, W_dec = lax.cond(how.over_latents(jnp.sum(dead)) > 0, learn, lambda held: held, held)
    return loss, dataclasses.replace(gradient, encoder=encoder, b_enc=b_enc, W_dec=W_dec)


def in_turn(dead: Bool[Array, "d_sae"], turn: Int[Array, ""], capacity: int, how: Execution) -> Bool[Array, "d_sae"]:
    """Choose dead latents, all of them where they fit, else the next `capacity` of them in a round.

    Args:
        dead: which latents are dead.
        turn: number of the step, from 0.
        capacity: latents to choose at most, on all devices together.
        how: how to compute.

    Returns:
        Which are chosen. As long as the same n are dead, each is chosen once in any ceil(n / capacity) turns at least.
    """
    own = jnp.sum(dead)
    count = jnp.maximum(how.over_latents(own), 1).astype(jnp.uint32)
    first = turn.astype(jnp.uint32) % count * capacity % count
    rank = (how.before(own) + jnp.cumsum(dead)).astype(jnp.uint32) - 1
    place = (rank + count - first) % count
    return dead & (place < capacity)


def only_largest(codes: Float[Array, "rows latents"], k: int, how: Execution) -> Float[Array, "rows latents"]:
    """Set all but the k largest entries of each row to zero; entries equal to the k-th stay.

    Args:
        codes: not negative, finite.
        k: entries to keep, on all devices together; at most as many as there are latents.
        how: how to compute.
    """
    return jnp.where(codes >= threshold(codes, k, how)[:, None], codes, 0)


def threshold(values: Float[Array, "rows latents"], k: int, how: Execution) -> Float[Array, "rows"]:
    """Find for each row a number that its k largest entries reach and no others, unless they equal the k-th.

    By bisection: the bits of floats that are not negative, read as integers, are in the order of the floats. It ends
    when every row is parted, or after 31 halvings at the k-th entry itself. On a CPU that takes an eighth of the time
    of `top_k` at the k of hundreds that AuxK uses.

    Args:
        values: not negative, finite.
        k: rank from the top, from 1, on all devices together.
        how: how to compute.
    """
    bits = lax.bitcast_convert_type(values, jnp.int32)

    def halve(bounds: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, above = bounds
        middle = low + (high - low) // 2
        count = how.over_latents(jnp.sum(bits >= middle[:, None], axis=1))
        enough = count >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), jnp.where(enough, count, above)

    def unfinished(bounds: tuple[Array, Array, Array]) -> Array:
        low, high, above = bounds
        return jnp.any((above > k) & (high - low > 1))

    rows, latents = values.shape
    everything = how.over_latents(jnp.full(rows, latents))
    start = (jnp.zeros(rows, jnp.int32), jnp.full(rows, 0x7F800000, jnp.int32), everything)
    return lax.bitcast_convert_type(lax.while_loop(unfinished, halve, start)[0], jnp.float32)
