"""Who sees whom, and how much: masks of packed rows, rotary positions, and attention itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models.config import Rope, TransformerConfig

Rotary = tuple[Float[Array, "batch position 1 half"], Float[Array, "batch position 1 half"]]
Mask = Bool[Array, "batch 1 query key"]
PIECES, SHORTEST_PIECE = 8, 64
"""Most parts into which the queries of causal attention are cut, and the fewest queries of one."""


class Surroundings(NamedTuple):
    """What attention knows of a batch of rows.

    Attributes:
        mask: true where the query may look.
        rotary: cosines and sines of the angles of each position; None where positions are learned.
        local_mask: the mask of blocks with a window, where there are such.
        local_rotary: their angles, where these are others.
    """

    mask: Mask
    rotary: Rotary | None
    local_mask: Mask | None
    local_rotary: Rotary | None

    @classmethod
    def of(
        cls, segment: Int[Array, "batch position"], position: Int[Array, "batch position"], config: TransformerConfig
    ) -> "Surroundings":
        """Derive them from documents and positions.

        Args:
            segment: document number within the row, 0 for padding.
            position: position of each token.
            config: the model's.
        """
        local = any(config.has_window)
        rotary = config.positions == "rotary"
        other = config.rope_local if local else None
        return cls(
            attention_mask(segment, causal=config.causal),
            rotary_angles(position, config.rope, config.d_head) if rotary else None,
            attention_mask(segment, causal=config.causal, window=config.window) if local else None,
            rotary_angles(position, other, config.d_head) if rotary and other else None,
        )

    def of_block(self, windowed: Bool[Array, ""]) -> tuple[Mask, Rotary | None]:
        """Return the mask and the angles of a block that has the window, or has not."""
        mask, rotary = self.mask, self.rotary
        if self.local_mask is not None:
            mask = jnp.where(windowed, self.local_mask, mask)
        if self.local_rotary is not None:
            rotary = jax.tree.map(lambda local, full: jnp.where(windowed, local, full), self.local_rotary, rotary)
        return mask, rotary


def attention_mask(segment: Int[Array, "batch position"], *, causal: bool = True, window: int | None = None) -> Mask:
    """Return where a token may look: at tokens of its own segment, if asked none later, none `window` or more away."""
    place = jnp.arange(segment.shape[1])
    ahead = place[:, None] - place[None, :]
    seen = segment[:, :, None] == segment[:, None, :]
    if causal:
        seen &= ahead >= 0
    if window is not None:
        seen &= jnp.abs(ahead) < window
    return seen[:, None]


def rotary_angles(position: Int[Array, "batch position"], rope: Rope, d_head: int) -> Rotary:
    """Return the cosines and sines of each position's angles."""
    angle = position[:, :, None, None] * jnp.array(rope.frequencies(d_head), jnp.float32)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "batch position head d_head"], rotary: Rotary) -> Float[Array, "batch position head d_head"]:
    """Turn each pair (i, i + half) of the first 2 half entries of a head by its angle, in float32; the others stay."""
    cos, sin = rotary
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def attend(
    query: Float[Array, "batch position head d_head"],
    key: Float[Array, "batch position kv_head d_head"],
    value: Float[Array, "batch position kv_head d_head"],
    mask: Mask,
    *,
    causal: bool,
    scale: float | None,
    softcap: float | None,
) -> Float[Array, "batch position head d_head"]:
    """Return, for every query, the mean of the values weighed by the softmax of its scores with their keys.

    Where no query looks at later keys, runs of queries are taken in turn, each with the keys up to its last: that
    saves up to half of the products, and scores that fit a cache. On a CPU a row of 256 takes a third of the time.
    CUDA GPUs run cuDNN's flash attention instead where it takes the queries.

    Args:
        query: queries; with fewer key heads, each of those serves a run of query heads.
        key: keys.
        value: values.
        mask: where the query may look.
        causal: whether it looks at no later key.
        scale: factor of the scores; 1 / sqrt(d_head) when None.
        softcap: c of c tanh(score / c), which no fused kernel here knows; no bound when None.
    """
    length = query.shape[1]
    fused = softcap is None and flash_takes(query, jax.devices()[0])
    step = max(SHORTEST_PIECE, -(-length // PIECES)) if causal and not fused else length
    pieces = [
        _attend(
            query[:, start:stop], key[:, :stop], value[:, :stop], mask[:, :, start:stop, :stop], scale, softcap, fused
        )
        for start, stop in ((start, min(start + step, length)) for start in range(0, length, step))
    ]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=1)


def soft_capped(scores: Float[Array, "*axes"], cap: float) -> Float[Array, "*axes"]:
    """Bound scores that a softmax is to follow: cap tanh(score / cap), in float32.

    By exp, because XLA's tanh, fused into a softmax on a GPU, has three digits: on an H200 the heads of a Gemma 2 were
    3e-3 off.
    """
    # Clipped where tanh is 1 to the last digit, so that its gradient is a number.
    doubled = jnp.clip(scores.astype(jnp.float32) * (2 / cap), -40, 40)
    return (cap * (1 - 2 / (1 + jnp.exp(doubled)))).astype(scores.dtype)


def flash_takes(query: Float[Array, "batch position head d_head"], device: Any) -> bool:
    """Tell whether cuDNN's flash attention takes queries on a device.

    It takes entries of 16 bits, an even number of positions (for the gradient) and heads of up to 128 entries in steps
    of 8, on CUDA GPUs of compute capability 8 or more.
    """
    capability, length, width = str(getattr(device, "compute_capability", "")), query.shape[1], query.shape[3]
    able = capability[:1].isdigit() and float(capability) >= 8
    return able and query.dtype.itemsize == 2 and length % 2 == 0 and width % 8 == 0 and width <= 128


def _attend(
    query: Float[Array, "batch query head d_head"], key: Float[Array, "batch key kv_head d_head"],
    value: Float[Array, "batch key kv_head d_head"], mask: Mask, scale: float | None, softcap: float | None,
    fused: bool,
) -> Float[Array, "batch query head d_head"]:  # fmt: skip
    if softcap is None:
        kernel = "cudnn" if fused else "xla"
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation=kernel)
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, width)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = soft_capped(scores * (width**-0.5 if scale is None else scale), softcap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(batch, length, heads, width)
