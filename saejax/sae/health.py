"""The health table of an SAE: each number, the range that studies call healthy, and what to change outside.

The ranges were made on dictionaries of 2,560 latents. They move with the size (density is L0 / d_sae, cosines
shrink as d_model grows), so a verdict is given only within a factor of 2 of that size, and the bare number
elsewhere.
"""

import dataclasses
import math
from typing import Any

from saejax.sae.metrics import DecoderCosines, Measured, decoder_cosines, gini
from saejax.sae.params import SAE

RANGES_MADE_AT = 2560
RANGES_HOLD_WITHIN = 2


@dataclasses.dataclass(frozen=True)
class Range:
    """A healthy range."""

    low: float | None
    """Least healthy value; None for no bound."""
    high: float | None
    """Largest healthy value; None for no bound."""
    if_low: str
    """What to change below it."""
    if_high: str
    """What to change above it."""


RANGES = {
    "density": Range(
        0.02, 0.1, "raise k, lower l1_coefficient, or lower d_sae", "lower k, raise l1_coefficient, or raise d_sae"
    ),
    "dead_rate": Range(
        0.05,
        0.2,
        "the dictionary is full: raise d_sae if FVU is to fall",
        "lower dead_window so that AuxK acts sooner, raise aux_coefficient, or lower d_sae",
    ),
    "gini": Range(
        0.2,
        0.6,
        "latents fire too evenly to be specific: lower k, or train for more steps",
        "few latents do most of the firing: lower learning_rate, or train for more steps",
    ),
    "decoder_cosine_mean": Range(None, 0.3, "", "latents share directions: lower d_sae, or train on more rows"),
    "decoder_cosine_p95": Range(None, 0.6, "", "latents repeat each other: lower d_sae, or train on more rows"),
}


def health_table(sae: SAE, measured: Measured) -> list[dict[str, Any]]:
    """Lay out an SAE's health.

    Decoder cosines are those of `W_dec`, in normalised units, where the latents compete.

    Args:
        sae: the SAE.
        measured: its behaviour over a pass of rows.

    Returns:
        Rows `metric, value, unit, low, high, verdict, advice`, of JSON values. `value` is None where it is
        undefined; `verdict` is "healthy", "low", "high", or None where no range applies; `advice` is None
        unless the verdict is "low" or "high".
    """
    two_latents = sae.config.d_sae >= 2
    cosines = decoder_cosines(sae.W_dec) if two_latents else DecoderCosines(math.nan, math.nan, math.nan)
    window = f"{measured.rows:,} tokens"
    norm = "are as they are" if sae.normalisation.kind == "none" else "have RMS norm sqrt(d_model)"
    numbers = [
        ("mse", measured.mse, "squared activation units, per row and dimension"),
        ("fvu", measured.fvu, "share of the variance left unexplained"),
        ("r2", 1 - measured.fvu, "1 - FVU"),
        ("l0", measured.l0, "latents above zero per row"),
        ("capped", measured.capped, "share of rows with all k latents above zero; to be 0 where L1 is to set L0"),
        ("density", measured.density, "L0 / d_sae: mean firing rate of all latents"),
        ("dead_rate", measured.dead_rate, f"share of latents silent over {window}"),
        (
            "gini",
            gini(measured.firing_rate),
            f"Gini coefficient of firing rates over {window}, dead latents included",
        ),
        ("decoder_cosine_mean", cosines.mean, "mean |cos| of pairs of decoder rows"),
        ("decoder_cosine_p95", cosines.p95, "95th percentile of |cos| of pairs of decoder rows"),
        ("decoder_cosine_max", cosines.max, "largest |cos| of a pair of decoder rows"),
        (
            "mean_active",
            measured.mean_active,
            f"mean code above zero; activations {norm}",
        ),
    ]
    return [_row(metric, value, unit, sae.config.d_sae) for metric, value, unit in numbers]


def _row(metric: str, value: float, unit: str, d_sae: int) -> dict[str, Any]:
    comparable = RANGES_MADE_AT / RANGES_HOLD_WITHIN <= d_sae <= RANGES_MADE_AT * RANGES_HOLD_WITHIN
    healthy = RANGES.get(metric)
    row = {"metric": metric, "value": value if math.isfinite(value) else None, "unit": unit}
    verdict = advice = None
    if healthy and comparable and math.isfinite(value):
        verdict = "healthy"
        if healthy.low is not None and value < healthy.low:
            verdict, advice = "low", healthy.if_low
        elif healthy.high is not None and value > healthy.high:
            verdict, advice = "high", healthy.if_high
    bounds = {"low": healthy.low if healthy else None, "high": healthy.high if healthy else None}
    return {**row, **bounds, "verdict": verdict, "advice": advice}
