"""The two arms of a comparison: the features of two SAEs, and the raw neurons of the two models."""

import dataclasses

import numpy as np
from jaxtyping import Int

from saejax.errors import InputError
from saejax.features.pairing import Pairing, correlation_pairs
from saejax.features.resampled import ResampledDocuments
from saejax.features.sources import CodeSource, FeatureCodes, RawHook
from saejax.nulls.subsampling import FEWEST as FEWEST_PAIRS
from saejax.universality.config import CompareConfig


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of reading the two models.

    Attributes:
        name: `sae` or `raw`.
        pairing: which feature of x goes with which of y, and how well.
        x_rows: decoder rows of the paired features of x, `[n, d_model]`.
        y_rows: those of y, `[n, d_model of y]`.
    """

    name: str
    pairing: Pairing
    x_rows: np.ndarray
    y_rows: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """The paired features of x, each once, in the order of the pairs: as many units as a null has."""
        ids, first = np.unique(self.pairing.x_ids, return_index=True)
        return ids[np.argsort(first)]

    @property
    def scheme(self) -> str:
        """Who may be re-paired: single features, or those of x with the mean of their partners."""
        return "uniform" if len(self.features) == len(self.pairing.x_ids) else "collapse"


def open_arms(config: CompareConfig) -> dict[str, tuple[CodeSource, CodeSource]]:
    """Open both sides of each arm, by the arm's name.

    Raises:
        InputError: a features run or its store is absent or unfinished, or a store lacks its raw hook.
    """
    x, y = FeatureCodes.open(config.x), FeatureCodes.open(config.y)
    return {"sae": (x, y), "raw": (RawHook.open(x.store, config.x_raw), RawHook.open(y.store, config.y_raw))}


def paired_arm(
    name: str, x: CodeSource, y: CodeSource, config: CompareConfig, times: Int[np.ndarray, "documents"] | None = None
) -> Arm:
    """Pair the features of two sources and gather their decoder rows.

    Args:
        name: `sae` or `raw`.
        x: one side.
        y: the other.
        config: how they are paired.
        times: how often each document was drawn, for a pairing on documents drawn anew; each once when None.

    Raises:
        InputError: fewer than `FEWEST_PAIRS` pairs reach the minimum correlation.
    """
    sides = (x, y) if times is None else (ResampledDocuments(x, times), ResampledDocuments(y, times))
    pairing = correlation_pairs(
        *sides, method=config.method, minimum_correlation=config.minimum_correlation, memory_gib=config.memory_gib
    )
    arm = Arm(name, pairing, x.decoder_rows()[pairing.x_ids], y.decoder_rows()[pairing.y_ids])
    if len(arm.features) < FEWEST_PAIRS:
        raise InputError(
            f"the {name} arm has {len(arm.features)} pairs with correlation {config.minimum_correlation} or more; "
            f"lower minimum_correlation or read more tokens, {FEWEST_PAIRS} pairs are needed"
        )
    return arm
