"""What the rows of a hook are like: means, spreads, norms, cosines and the spectrum of their covariance, in one pass.

Blocks are merged about their means in float64 (Chan, Golub and LeVeque 1983; Pébay 2008 for third and fourth moments):
rows with a mean a thousand times their spread are measured as well as centred ones. Every number is of the rows
themselves, divided by their number and not by one less. The mean cosine after the mean is taken off is left out: it
needs a second pass, and deviations from a mean sum to zero, so it is about zero whatever the rows are.
"""

import dataclasses
import math

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float32, Int

BINS = 60
"""Bins of the histogram of norms, equal in their logarithm."""
(_syrk,) = scipy.linalg.get_blas_funcs(("syrk",), dtype=np.float64)  # in place, and half the work of a product


@dataclasses.dataclass(frozen=True)
class RowStatistics:
    """Statistics of the rows of a hook. A number that does not exist is NaN."""

    mean: Float[np.ndarray, "d_model"]
    """Mean of each dimension."""
    variance: Float[np.ndarray, "d_model"]
    """Variance of each dimension."""
    kurtosis: Float[np.ndarray, "d_model"]
    """Excess kurtosis of each dimension, 0 for a normal one; NaN where the variance is 0."""
    cosine: Float[np.ndarray, "d_model"]
    """What each dimension adds to the mean cosine, which is their sum."""
    spectrum: Float[np.ndarray, "d_model"]
    """Eigenvalues of the covariance, the largest first."""
    norms: Float32[np.ndarray, "rows"]
    """Norms of the rows, the smallest first; 4 bytes a row."""

    @property
    def sd(self) -> Float[np.ndarray, "d_model"]:
        """Standard deviation of each dimension."""
        return np.sqrt(self.variance)

    @property
    def mean_square(self) -> float:
        """Mean of |x|^2: |mean|^2 and the variances of all dimensions."""
        return float(self.mean @ self.mean + self.variance.sum())

    @property
    def rms(self) -> float:
        """Root mean square of all entries: sqrt(mean |x|^2 / d_model)."""
        return math.sqrt(self.mean_square / len(self.mean))

    @property
    def mean_share(self) -> float:
        """Share of the mean of |x|^2 that lies in the mean: |mean|^2 / mean |x|^2."""
        return float(self.mean @ self.mean) / self.mean_square if self.mean_square else math.nan

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of two different rows, exact over all pairs: anisotropy (Ethayarajh 2019).

        (|sum_i u_i|^2 - n) / (n (n - 1)) with u = x / |x|, over the n rows whose norm is not 0.
        """
        return float(self.cosine.sum())

    @property
    def participation_ratio(self) -> float:
        """Number of dimensions that the variance fills: (sum lambda)^2 / sum lambda^2 (Gao et al. 2017).

        Independent rows, n of them, bring it down to about 1 / (1 / ratio + 1 / n).
        """
        total = self.spectrum.sum()
        return float(total / ((self.spectrum / total) @ self.spectrum)) if total else math.nan

    def components(self, share: float) -> int | None:
        """Return how many principal components hold a share of the variance.

        Args:
            share: from 0 to 1.

        Returns:
            The fewest that hold it; None where nothing varies.
        """
        held = np.cumsum(self.spectrum)
        return int(np.searchsorted(held, share * held[-1])) + 1 if held[-1] else None

    def norm_histogram(self) -> tuple[Int[np.ndarray, "bins"], Float[np.ndarray, "edges"]]:
        """Return counts of norms above 0 in `BINS` bins, and the bins' edges."""
        counts, edges = np.histogram(np.log10(self.norms[self.norms > 0]), BINS)
        return counts, 10**edges


class RunningStatistics:
    """Statistics of rows that come in blocks.

    Memory: a d_model x d_model matrix of float64, two of them while the spectrum is found; the norms, 4 bytes a row,
    three times that at the end; three copies of a block in float64.
    """

    def __init__(self, d_model: int, rows: int) -> None:
        """Start without a row.

        Args:
            d_model: entries of a row.
            rows: how many there will be.
        """
        self.rows = 0
        """Rows so far."""
        self._norms = np.empty(rows, np.float32)
        self._mean = np.zeros(d_model)
        self._scatter = np.zeros((d_model, d_model), order="F")  # about the mean; its upper triangle
        self._third, self._fourth = np.zeros(d_model), np.zeros(d_model)
        self._directions, self._squared_directions = np.zeros(d_model), np.zeros(d_model)

    def add(self, x: Float[np.ndarray, "rows d_model"]) -> None:
        """Take in a block of rows, which may be empty.

        Args:
            x: the rows.
        """
        if not len(x):
            return
        exact = x.astype(np.float64)
        norms = np.linalg.norm(exact, axis=1)
        self._norms[self.rows : self.rows + len(x)] = norms
        directions = exact[norms > 0] / norms[norms > 0, None]
        self._directions += directions.sum(axis=0)
        self._squared_directions += np.square(directions, out=directions).sum(axis=0)
        self._merge(exact)

    def _merge(self, x: Float[np.ndarray, "rows d_model"]) -> None:
        """Merge the moments of a block b into those of all rows a before it."""
        a, b = self.rows, len(x)
        n = a + b
        mean = x.mean(axis=0)
        shift = mean - self._mean
        # One row more, so that a single product adds the scatter within the block and that between a and b.
        deviations = np.empty((b + 1, len(mean)))
        within = np.subtract(x, mean, out=deviations[:-1])
        deviations[-1] = shift * math.sqrt(a * b / n)
        squares = np.square(within, out=x)
        second, of_b = np.diagonal(self._scatter).copy(), squares.sum(axis=0)
        third = np.einsum("rd,rd->d", squares, within)
        self._fourth += (
            np.einsum("rd,rd->d", squares, squares)
            + shift**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * shift**2 * (a * a * of_b + b * b * second) / n**2
            + 4 * shift * (a * third - b * self._third) / n
        )
        self._third += third + shift**3 * (a * b * (a - b) / n**2) + 3 * shift * (a * of_b - b * second) / n
        self._scatter = _syrk(1.0, deviations.T, beta=1.0, c=self._scatter, overwrite_c=True)
        self._mean += shift * (b / n)
        self.rows = n

    def result(self) -> RowStatistics:
        """Return the statistics of all rows so far; the spectrum takes about d_model^3 operations.

        Raises:
            ValueError: there was no row.
        """
        if not self.rows:
            raise ValueError("there is no row to take statistics of")
        covariance = self._scatter / self.rows
        variance = np.diagonal(covariance).copy()
        kurtosis = np.full_like(variance, math.nan)
        np.divide(self._fourth / self.rows, variance**2, out=kurtosis, where=variance > 0)
        norms = np.sort(self._norms[: self.rows])
        n = int(np.count_nonzero(norms))
        pairs = n * (n - 1) if n > 1 else math.nan
        spectrum = scipy.linalg.eigh(covariance, lower=False, eigvals_only=True, overwrite_a=True)
        return RowStatistics(
            mean=self._mean.copy(),
            variance=variance,
            kurtosis=kurtosis - 3,
            cosine=(self._directions**2 - self._squared_directions) / pairs,
            spectrum=np.maximum(spectrum[::-1], 0),  # those of rank-deficient rows are below 0 by rounding
            norms=norms,
        )
