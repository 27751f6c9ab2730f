"""Normalisations: what is done to activations before an SAE encodes them, and undone to what it decodes.

They are parameters of an SAE, fixed by the sample that it starts from. With m the sample's mean and S its covariance
(both divide by the number of rows), and mean_r and sd_r those of one row over its dimensions:

    none          z = x
    scalar        z = x sqrt(d_model / tr S)
    layer_norm    z = (x - mean_r) / (sd_r + 1e-5), sd_r dividing by d_model - 1
    standardise   z = (x - m) / sqrt(diag S)
    zca           z = (x - m) S^(-1/2)

Of all but `none`, the variance of z, summed over dimensions, is about d_model (of layer_norm less, as far as rows have
one direction in common). layer_norm is that of OpenAI's SAEs (Gao et al. 2024), but for its inverse, which multiplies
by sd_r + 1e-5 as the inverse must, and theirs by sd_r. Of all whitenings ZCA is the one that moves rows least (Bell and
Sejnowski 1997; Kessy, Lewin and Strimmer 2018).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.types import AnyArray, Array

Kind = Literal["none", "scalar", "layer_norm", "standardise", "zca"]
ARRAYS: dict[Kind, tuple[str, ...]] = {
    "none": (), "scalar": ("scale",), "layer_norm": (), "standardise": ("mean", "sd"), "zca": ("mean", "sd", "basis"),
}  # fmt: skip
"""Arrays that each kind holds."""
LAYER_NORM_EPSILON = 1e-5
FLOOR = 1e-5
"""Share of the mean eigenvalue that zca raises smaller ones to, so that an inverse exists; what lies below is noise, as
bfloat16 rounds off 2e-6 of a square."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalisation:
    """A normalisation, as a pytree of the arrays that its kind needs; the others are None."""

    kind: Kind = dataclasses.field(metadata={"static": True})
    """Which of those above."""
    scale: Any = None
    """Factor `[]` from the model's units, of scalar."""
    mean: Any = None
    """Mean of the sample, `[d_model]`, of standardise and zca."""
    sd: Any = None
    """SD of the sample, `[d_model]`, along each dimension (standardise) or each column of `basis` (zca)."""
    basis: Any = None
    """Eigenvectors of the sample's covariance as columns, `[d_model, d_model]`, of zca."""

    @classmethod
    def fit(cls, kind: Kind, sample: Float[AnyArray, "rows d_model"]) -> "Normalisation":
        """Make the normalisation for the data that a sample stands for.

        A dimension that does not vary in the sample has no SD to be divided by: standardise takes the root of the mean
        variance. Computed in float64; memory is three arrays like the sample, and of zca two of `[d_model, d_model]`.

        Args:
            kind: which.
            sample: activations in the model's units, a few thousand rows.

        Returns:
            The normalisation, float32.

        Raises:
            InputError: the sample does not vary, is not finite, or is too small for the kind.
        """
        exact = np.asarray(sample, np.float64)
        if not np.isfinite(exact).all():
            raise InputError("activations hold NaN or infinity; extract them again, in float32 if bfloat16 overflowed")
        require_sample(kind, *exact.shape)
        centred = exact - (mean := exact.mean(axis=0))
        rms = np.sqrt(np.mean(np.sum(centred**2, axis=1)))
        if rms == 0:
            raise InputError(f"all {len(exact)} sampled activations are equal; name a hook whose activations vary")
        if kind == "scalar":
            return cls(kind, scale=jnp.asarray(np.float32(np.sqrt(exact.shape[1]) / rms)))
        if kind == "standardise":
            variance = np.mean(centred**2, axis=0)
            variance = np.where(variance > 0, variance, variance.mean())
            return cls(kind, mean=_float32(mean), sd=_float32(np.sqrt(variance)))
        if kind == "zca":
            variance, basis = np.linalg.eigh(centred.T @ centred / len(exact))
            variance = np.maximum(variance, FLOOR * variance.mean())
            return cls(kind, mean=_float32(mean), sd=_float32(np.sqrt(variance)), basis=_float32(basis))
        return cls(kind)

    @property
    def unit(self) -> float:
        """Length that `differences` leaves to be divided by, once, where many are summed up: of scalar its factor."""
        return float(self.scale) if self.kind == "scalar" else 1.0

    def apply(self, x: Float[AnyArray, "rows d_model"]) -> Float[Array, "rows d_model"]:
        """Normalise activations, zca at a cost of 4 d_model^2 operations per row.

        Args:
            x: activations in the model's units.

        Returns:
            z, in normalised units, float32.
        """
        x = jnp.asarray(x, jnp.float32)
        if self.kind == "none":
            return x
        if self.kind == "scalar":
            return x * self.scale
        if self.kind == "layer_norm":
            mean, sd = _of_rows(x)
            return (x - mean) / sd
        return self._stretched(x - self.mean, 1 / self.sd)

    def invert(
        self, z: Float[AnyArray, "rows d_model"], like: Float[AnyArray, "rows d_model"] | None = None
    ) -> Float[Array, "rows d_model"]:
        """Bring normalised activations back to the model's units: `invert(apply(x), x)` is x, but for rounding.

        Args:
            z: activations in normalised units.
            like: the activations in whose place the result stands, in the model's units; layer_norm takes each row's
                mean and SD from them, and the other kinds need none.

        Returns:
            Activations in the model's units.

        Raises:
            InputError: layer_norm is given none to take them from.
        """
        if self.kind == "none":
            return jnp.asarray(z)
        if self.kind == "scalar":
            return jnp.asarray(z) / self.scale
        return self.differences(z, like) + (_of_rows(like)[0] if self.kind == "layer_norm" else self.mean)

    def differences(
        self, dz: Float[AnyArray, "rows d_model"], like: Float[AnyArray, "rows d_model"] | None = None
    ) -> Float[Array, "rows d_model"]:
        """Bring differences of normalised activations to the model's units, times `unit`.

        Args:
            dz: differences in normalised units; errors, or directions.
            like: as `invert`.

        Returns:
            Differences in the model's units, times `unit`.

        Raises:
            InputError: as `invert`.
        """
        if self.kind in ("none", "scalar"):
            return jnp.asarray(dz)
        if self.kind == "layer_norm":
            return jnp.asarray(dz) * _of_rows(like)[1]
        return self._stretched(dz, self.sd)

    def _stretched(
        self, rows: Float[AnyArray, "rows d_model"], factors: Float[Array, "d_model"]
    ) -> Float[Array, "rows d_model"]:
        """Multiply by a factor along each dimension, or along each eigenvector.

        Not by S^(-1/2) and S^(1/2) themselves: they are of one matrix product instead of two, but their rounding errors
        are larger by the ratio of the largest SD to the smallest.
        """
        if self.basis is None:
            return jnp.asarray(rows) * factors
        along = jnp.matmul(rows, self.basis, precision="highest")
        return jnp.matmul(along * factors, self.basis.T, precision="highest")


def require_sample(kind: Kind, rows: int, d_model: int) -> None:
    """Make sure that a kind can be fitted to so many rows of so many dimensions.

    Raises:
        InputError: zca has no more rows than dimensions, or layer_norm a single dimension.
    """
    if kind == "zca" and rows <= d_model:
        raise InputError(
            f"zca needs more sampled rows than the {d_model} dimensions, and has {rows}; "
            "raise initial_rows, or extract more text"
        )
    if kind == "layer_norm" and d_model == 1:
        raise InputError("layer_norm leaves nothing of activations of 1 dimension; name another normalisation")


def _of_rows(x: Float[AnyArray, "rows d_model"] | None) -> tuple[Float[Array, "rows 1"], Float[Array, "rows 1"]]:
    """Return the mean of each row, and the SD that layer_norm divides by."""
    if x is None:
        raise InputError("layer_norm takes the mean and SD of each row from the activations; give them as like=x")
    x = jnp.asarray(x, jnp.float32)
    sd = jnp.std(x, axis=1, ddof=1, keepdims=True)
    return jnp.mean(x, axis=1, keepdims=True), sd + LAYER_NORM_EPSILON


def _float32(exact: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(exact, jnp.float32)
