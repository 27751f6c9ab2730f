"""What a store says of its activations without being read: count, mean and variance of every dimension, norms."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

BLOCK = 1024
"""Rows that are turned into float64 at a time."""


@dataclasses.dataclass
class Summary:
    """Sums over rows, merged block by block about block means, in float64 (Chan, Golub and LeVeque 1983).

    Equal rows in equal order give equal bits, whoever adds them.
    """

    rows: int
    """Rows seen."""
    norms: float
    """Sum of their norms."""
    mean: Float[np.ndarray, "width"]
    """Mean of each dimension."""
    deviation: Float[np.ndarray, "width"]
    """Sum of (x - mean)^2 of each dimension."""

    @classmethod
    def empty(cls, width: int) -> "Summary":
        """Return that of no row."""
        return cls(0, 0.0, np.zeros(width), np.zeros(width))

    @classmethod
    def of(cls, x: Shaped[np.ndarray, "rows width"], kept: Bool[np.ndarray, "rows"]) -> "Summary":
        """Return that of some rows.

        Args:
            x: the rows, of any type.
            kept: which of them count.
        """
        whole = cls.empty(x.shape[1])
        for start in range(0, len(x), BLOCK):
            exact = x[start : start + BLOCK][kept[start : start + BLOCK]].astype(np.float64)
            mean = exact.sum(axis=0) / max(len(exact), 1)
            norms = float(np.sqrt(np.einsum("rw,rw->r", exact, exact)).sum())
            exact -= mean
            whole.merge(cls(len(exact), norms, mean, np.einsum("rw,rw->w", exact, exact)))
        return whole

    def merge(self, other: "Summary") -> None:
        """Take in what another has seen, after what this one has."""
        if not other.rows:
            return
        rows, shift = self.rows + other.rows, other.mean - self.mean
        self.deviation = self.deviation + other.deviation + shift**2 * (self.rows * other.rows / rows)
        self.mean = self.mean + shift * (other.rows / rows)
        self.norms += other.norms
        self.rows = rows

    def record(self) -> dict[str, Any]:
        """Return it as JSON values, every bit kept."""
        return {**vars(self), "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Summary":
        """Take it up again."""
        return cls(
            record["rows"], record["norms"], np.array(record["mean"], float), np.array(record["deviation"], float)
        )

    def figures(self) -> dict[str, Any]:
        """Return what the manifest tells: means over the rows, None where there is none.

        `rms` is sqrt(mean |x|^2 / width), `centred_rms` the same about the mean.
        """
        if not self.rows:
            return {"rows": 0, "mean_norm": None, "rms": None, "centred_rms": None}
        variance = self.deviation / self.rows
        return {
            "rows": self.rows,
            "mean_norm": self.norms / self.rows,
            "rms": float(np.sqrt(np.mean(variance + self.mean**2))),
            "centred_rms": float(np.sqrt(np.mean(variance))),
        }
