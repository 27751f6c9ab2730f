"""Outlier dimensions: the few entries of a row that are far from the others in nearly all rows.

A dimension is one where its mean is more than three standard deviations, over dimensions, from the mean of the means
(after the outlier neurons of Luo, Kulmizev and Mao 2021), or its standard deviation as far above the mean of those.
They make much of the cosine of two rows (Timkey and van Schijndel 2021): each says how much. Of fewer than 11
dimensions none can be so far from the others.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from saejax.activations.statistics import RowStatistics

THRESHOLD = 3.0
"""Standard deviations over dimensions."""


@dataclasses.dataclass(frozen=True)
class OutlierDimensions:
    """Outlier dimensions of a hook, the furthest first."""

    dimension: Int[np.ndarray, "outliers"]
    """Their numbers, from 0."""
    mean_z: Float[np.ndarray, "outliers"]
    """How far their means are from those of all dimensions, in standard deviations over dimensions."""
    sd_z: Float[np.ndarray, "outliers"]
    """How far their standard deviations are from those of all dimensions, in standard deviations over dimensions."""


def outlier_dimensions(statistics: RowStatistics) -> OutlierDimensions:
    """Find the outlier dimensions of a hook.

    Args:
        statistics: of its rows.

    Returns:
        The outlier dimensions.
    """
    mean_z, sd_z = _standardised(statistics.mean), _standardised(statistics.sd)
    distance = np.maximum(np.abs(mean_z), sd_z)
    furthest = np.argsort(-distance, kind="stable")[: np.count_nonzero(distance > THRESHOLD)]
    return OutlierDimensions(furthest, mean_z[furthest], sd_z[furthest])


def _standardised(values: Float[np.ndarray, "d_model"]) -> Float[np.ndarray, "d_model"]:
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)
