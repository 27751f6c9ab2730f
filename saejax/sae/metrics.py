"""What a trained SAE is like, summed exactly over a pass of rows.

Every ratio is a ratio of sums over the whole pass, never a mean of per-batch ratios, and variances are merged
about block means (Chan, Golub and LeVeque 1983) in float64: activations with a mean a thousand times their
spread are measured as well as centred ones.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from saejax_kernels import sparse_decode

from saejax.mesh import gather
from saejax.sae.encoders import top_k_codes
from saejax.sae.params import SAE
from saejax.types import AnyArray, Array

COSINE_BINS = 1 << 14
PADDED_ROWS = 1024


@dataclasses.dataclass
class Moments:
    """Count, mean and summed squared deviation of rows, merged block by block."""

    count: int = 0
    """Rows seen."""
    mean: Float[np.ndarray, "..."] = dataclasses.field(default_factory=lambda: np.zeros(()))
    """Mean of each dimension, float64."""
    deviation: float = 0.0
    """Sum over rows and dimensions of (x - mean)^2."""

    def add(self, x: Float[np.ndarray, "rows d_model"]) -> None:
        """Merge a block of rows.

        Args:
            x: the block.
        """
        exact = x.astype(np.float64)
        mean = exact.mean(axis=0)
        self.merge(len(x), mean, float(np.sum((exact - mean) ** 2)))

    def merge(self, count: int, mean: Float[np.ndarray, "d_model"], deviation: float) -> None:
        """Merge the moments of other rows, of at least one."""
        total = self.count + count
        shift = mean - self.mean
        self.deviation += float(deviation + np.sum(shift**2) * self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


@dataclasses.dataclass(frozen=True)
class Measured:
    """An SAE's behaviour over one pass of rows. A ratio whose denominator is zero is NaN."""

    rows: int
    """Rows of the pass: the token window of every firing statistic."""
    mse: float
    """Mean squared error per row and dimension, in squared units of the model."""
    fvu: float
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2."""
    l0: float
    """Mean number of codes above zero per row."""
    capped: float
    """Share of rows with as many codes above zero as there is room for, k."""
    mean_active: float
    """Mean of the codes above zero, in normalised units."""
    firing_rate: Float[np.ndarray, "d_sae"]
    """Share of the rows on which each latent's code is above zero."""
    mean: Float[np.ndarray, "d_model"]
    """Mean of the rows, in the model's units."""

    @property
    def density(self) -> float:
        """Mean firing rate of all latents, dead ones included: L0 / d_sae."""
        return self.l0 / len(self.firing_rate)

    @property
    def dead_rate(self) -> float:
        """Share of latents that fired on none of the rows."""
        return float(np.mean(self.firing_rate == 0))


@jax.jit
def _explain(sae: SAE, x: Array) -> tuple[Array, Array, Array]:
    """Return values and latents of codes, and the squared errors of rows, in the model's units times `unit`."""
    z = sae.normalisation.apply(x)
    values, indices = top_k_codes(z, sae.W_enc, sae.b_enc, sae.b_dec, sae.config.k, sae.threshold)
    error = z - (sparse_decode(values, indices, sae.W_dec, "jax") + sae.b_dec)
    return values, indices, jnp.sum(sae.normalisation.differences(error, x) ** 2, axis=1)


def measure(sae: SAE, blocks: Iterable[Float[np.ndarray, "_ d_model"]], *, together: bool = False) -> Measured:
    """Run an SAE over blocks of rows and sum up what it does.

    Args:
        sae: the SAE.
        blocks: activations in the model's units; memory is one block's codes.
        together: add up the blocks that all processes of a job were given, each its own; all of them call.

    Returns:
        The sums, as ratios.

    Raises:
        ValueError: there is no block.
        InputError: a row has more codes than a relu or jump_relu SAE has room for.
    """
    moments = Moments()
    error = active = capped = 0.0
    fired = np.zeros(sae.config.d_sae, np.int64)
    for x in filter(len, blocks):
        # Blocks differ in length by the special tokens left out; padded lengths are few, and so are
        # compilations.
        padded = np.pad(x, ((0, -len(x) % PADDED_ROWS), (0, 0)))
        values, indices, squared = (np.asarray(array)[: len(x)] for array in _explain(sae, padded))
        sae.require_room(values)
        moments.add(x)
        error += float(squared.sum(dtype=np.float64))
        active += float(values.sum(dtype=np.float64))
        capped += float((values > 0).all(axis=1).sum())
        fired += np.bincount(indices[values > 0], minlength=sae.config.d_sae)
    if together:
        sums = np.array([error, active, capped])
        moments, (error, active, capped), fired = _of_all_processes(moments, sums, fired, sae.config.d_model)
    if moments.count == 0:
        raise ValueError("there is no row to measure the SAE on")
    error /= sae.normalisation.unit**2
    return Measured(
        rows=moments.count,
        mse=error / (moments.count * sae.config.d_model),
        fvu=error / moments.deviation if moments.deviation else float("nan"),
        l0=float(fired.sum()) / moments.count,
        capped=capped / moments.count,
        mean_active=active / int(fired.sum()) if fired.any() else float("nan"),
        firing_rate=fired / moments.count,
        mean=moments.mean,
    )


def _of_all_processes(
    moments: Moments, sums: Float[np.ndarray, "sums"], fired: Int[np.ndarray, "d_sae"], d_model: int
) -> tuple[Moments, list[float], Int[np.ndarray, "d_sae"]]:
    """Add up what all processes found, in their order."""
    parts = [[moments.count, moments.deviation], np.broadcast_to(moments.mean, d_model), sums, fired]
    whole, total = Moments(), np.zeros(len(sums) + len(fired))
    for held in gather(np.concatenate(parts).astype(np.float64)[:, None]).T:
        count, deviation = held[:2].tolist()
        if count:
            whole.merge(int(count), held[2 : 2 + d_model], deviation)
        total += held[2 + d_model :]
    return whole, total[: len(sums)].tolist(), total[len(sums) :].astype(np.int64)


def gini(rates: Float[np.ndarray, "d_sae"]) -> float:
    """Compute the Gini coefficient of firing rates: 0 when all are equal, near 1 when one latent does it all.

    G = sum_i (2 i - n - 1) r_i / (n sum_i r_i), r sorted upwards, i from 1.

    Args:
        rates: firing rates, dead latents included.

    Returns:
        The coefficient; NaN when nothing fires.
    """
    if not rates.any():
        return float("nan")
    ordered = np.sort(rates.astype(np.float64))
    n = len(ordered)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * ordered) / (n * ordered.sum()))


@dataclasses.dataclass(frozen=True)
class DecoderCosines:
    """How alike decoder rows are: |cos| over all pairs of different latents."""

    mean: float
    """Mean |cos|."""
    p95: float
    """95th percentile of |cos|, within 1 / 16,384."""
    max: float
    """Largest |cos|."""


@jax.jit
def _pair_cosines(rows: Array, start: Array, others: Array) -> tuple[Array, Array, Array]:
    """Sum, maximum and histogram bins of |cos| of rows numbered from `start` with the rows after each."""
    cosine = jnp.minimum(jnp.abs(jnp.matmul(rows, others.T, precision="highest")), 1)
    later = jnp.arange(len(others))[None, :] > start + jnp.arange(len(rows))[:, None]
    cosine = jnp.where(later, cosine, 0)
    bins = jnp.minimum((cosine * COSINE_BINS).astype(jnp.int32), COSINE_BINS - 1)
    return jnp.sum(cosine, axis=1), jnp.max(cosine), jnp.where(later, bins, COSINE_BINS)


def decoder_cosines(W_dec: Float[AnyArray, "d_sae d_model"], block: int = 512) -> DecoderCosines:
    """Measure the absolute cosines between different decoder rows.

    Absolute, because a pair of opposite rows spends two latents on one line as much as a pair of equal rows
    does.
    Memory: block x d_sae cosines at a time and a histogram of 16,384 bins; d_sae x d_sae never exists.

    Args:
        W_dec: decoder rows, at least two.
        block: rows handled together.

    Returns:
        Mean, 95th percentile and maximum.
    """
    rows = jnp.asarray(W_dec, jnp.float32)
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    histogram = np.zeros(COSINE_BINS, np.int64)
    total, largest = 0.0, 0.0
    for start in range(0, len(rows), block):
        sums, maximum, bins = _pair_cosines(rows[start : start + block], jnp.asarray(start), rows)
        total += float(np.asarray(sums).sum(dtype=np.float64))
        largest = max(largest, float(maximum))
        histogram += np.bincount(np.asarray(bins).ravel(), minlength=COSINE_BINS + 1)[:COSINE_BINS]
    pairs = len(rows) * (len(rows) - 1) // 2
    reached = np.searchsorted(np.cumsum(histogram), 0.95 * pairs)
    return DecoderCosines(total / pairs, (float(reached) + 0.5) / COSINE_BINS, largest)
