"""Pair the features of two models by the correlation of their activations over the same tokens.

Neither special tokens nor padding enter, features that never vary are left out before anything is matched,
and the minimum correlation is applied after: a cut never changes who goes with whom.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saejax import artifacts
from saejax.errors import InputError
from saejax.features.correlation import (
    BYTES_PER_CELL,
    correlation_minutes,
    correlation_slabs,
    moments,
    slab_height,
)
from saejax.features.matching import Method, match
from saejax.features.sources import ROWS_PER_BLOCK, FeatureCodes, RawHook, RowSource
from saejax.storage import Place

KIND = "pairs"


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Paired features, sorted by x, then y.

    Attributes:
        x_ids: feature of x in every pair; it repeats only in a many-to-one pairing.
        y_ids: feature of y in every pair, each at most once.
        correlation: Pearson correlation of their activations, in [-1, 1].
    """

    x_ids: Int[np.ndarray, "n"]
    y_ids: Int[np.ndarray, "n"]
    correlation: Float[np.ndarray, "n"]

    def at_least(self, minimum_correlation: float) -> "Pairing":
        """Return the pairs whose correlation reaches a minimum."""
        kept = self.correlation >= minimum_correlation
        return Pairing(self.x_ids[kept], self.y_ids[kept], self.correlation[kept])


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """What `saejax pair` pairs."""

    x: Place
    """Features run of `saejax encode`, or an activation store when x_hook names its hook."""
    y: Place
    """The same for the other side, over the same tokens."""
    out: Path
    """Directory for the pairs."""
    method: Method = "mutual_best"
    """many_to_one gives every y feature its best x feature, mutual_best keeps pairs that are each other's
    best, one_to_one is the assignment with the largest sum of correlations."""
    minimum_correlation: float = 0.1
    """Smallest correlation that a pair may have, applied after matching."""
    memory_gib: float = 2.0
    """Memory for the correlations held at a time, in GiB; smaller means more passes over the codes."""
    x_hook: str | None = None
    """Hook whose coordinates are the features, for example mlp_hidden.0, when x is a store."""
    y_hook: str | None = None
    """The same when y is a store."""

    def __post_init__(self) -> None:
        """Refuse numbers that admit no pair."""
        problems = []
        if not -1 <= self.minimum_correlation < 1:
            problems.append(f"minimum_correlation {self.minimum_correlation} must be at least -1 and below 1")
        if not 0 < self.memory_gib < math.inf:
            problems.append(f"memory_gib {self.memory_gib} must be above 0")
        if problems:
            raise InputError("; ".join(problems))


def pair(config: PairConfig) -> Path:
    """Pair two sides and write `pairs.npz`, with the paired decoder rows when both sides have such.

    Args:
        config: the sides and how to pair them.

    Returns:
        The directory with `pairs.npz` (`x_ids`, `y_ids`, `correlation`) and, where both sides are codes of an SAE
        or neurons (`mlp_hidden`), `x_rows.npy` and `y_rows.npy` `[n, d_model]`, which `saejax null` takes.

    Raises:
        InputError: a side is absent or unfinished, the sides hold different tokens, or the memory is too
            small.
    """
    x, y = _open(config.x, config.x_hook), _open(config.y, config.y_hook)
    _require_same_rows(x, y)
    inputs = {"x": artifacts.run_fingerprint(config.x), "y": artifacts.run_fingerprint(config.y)}
    run = artifacts.begin(config.out, KIND, config, inputs)
    if run.complete:
        return run.path
    matched, alive = _matched(x, y, config.method, config.memory_gib, ROWS_PER_BLOCK)
    pairing = matched.at_least(config.minimum_correlation)
    artifacts.write_npz(run.path / "pairs.npz", dataclasses.asdict(pairing))
    if x.has_decoder_rows and y.has_decoder_rows:
        artifacts.write_npy(run.path / "x_rows.npy", x.decoder_rows()[pairing.x_ids])
        artifacts.write_npy(run.path / "y_rows.npy", y.decoder_rows()[pairing.y_ids])
    run.finish(ledger_sha256=x.ledger_sha256, **_facts(matched, pairing, alive))
    return run.path


def plan(config: PairConfig) -> dict[str, str]:
    """Say what a pairing would cost; nothing is written.

    Args:
        config: the pairing that is planned.

    Returns:
        What `pairing_cost` tells, in words.

    Raises:
        InputError: a side is absent or unfinished, the sides hold different tokens, or the memory holds no slab.
    """
    x, y = _open(config.x, config.x_hook), _open(config.y, config.y_hook)
    return pairing_cost(x, y, config.memory_gib)


def pairing_cost(x: RowSource, y: RowSource, memory_gib: float) -> dict[str, str]:
    """Estimate what pairing two sources costs if every feature varies, from their first block of rows.

    Args:
        x: one side.
        y: the other side, over the same rows.
        memory_gib: memory for correlations, in GiB.

    Returns:
        Rows, features, minutes (to correlate: an optimal assignment comes on top) and memory, in words.

    Raises:
        InputError: the sides hold different rows, or the memory holds no slab.
    """
    _require_same_rows(x, y)
    height = slab_height(x.d, y.d, memory_gib)
    passes = math.ceil(x.d / height)
    dense = sum(2 * 8 * ROWS_PER_BLOCK * side.d for side in (x, y) if isinstance(side, RawHook))
    return {
        "rows": f"{x.rows:,}",
        "features": f"{x.d:,} x {y.d:,}, in {passes} pass{'es' if passes > 1 else ''} over the rows",
        "minutes": f"{correlation_minutes(x, y, passes, ROWS_PER_BLOCK):.1f} to correlate",
        "memory": f"{(BYTES_PER_CELL * height * y.d + dense) / 2**30:.2f} GiB of arrays",
    }


def correlation_pairs(
    x: RowSource,
    y: RowSource,
    *,
    method: Method,
    minimum_correlation: float,
    memory_gib: float,
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Pairing:
    """Pair the features of two sources by the Pearson correlation of their values over all rows.

    Memory is bounded whatever the number of rows: the correlations of one slab of x features with all y
    features take at most `memory_gib`, and two blocks `[rows_per_block, d]` in float64 come on top where a
    side is dense. `many_to_one` and `mutual_best` make one pass per slab; `one_to_one` needs all alive
    features in one slab, 16 bytes per pair of features, and time up to the cube of their number.

    Args:
        x: one side.
        y: the other side, over the same rows.
        method: see `saejax.features.matching.match`; columns are y features.
        minimum_correlation: smallest correlation of a pair, applied after matching.
        memory_gib: memory for correlations, in GiB.
        rows_per_block: store rows held at a time; it changes no result beyond rounding.

    Returns:
        The pairs; there may be none.

    Raises:
        InputError: the sides hold different rows, a side has no feature that varies, or the memory is too
            small.
    """
    _require_same_rows(x, y)
    matched, _ = _matched(x, y, method, memory_gib, rows_per_block)
    return matched.at_least(minimum_correlation)


def _matched(
    x: RowSource, y: RowSource, method: Method, memory_gib: float, rows_per_block: int
) -> tuple[Pairing, dict[str, int]]:
    """Match the features that vary; return the pairs before any cut, and how many vary on each side."""
    x_moments, y_moments = moments(x, rows_per_block), moments(y, rows_per_block)
    x_alive, y_alive = np.flatnonzero(x_moments.alive), np.flatnonzero(y_moments.alive)
    height = slab_height(len(x_alive), len(y_alive), memory_gib)
    if method == "one_to_one" and height < len(x_alive):
        needed = BYTES_PER_CELL * len(x_alive) * len(y_alive) / 2**30
        raise InputError(
            f"memory_gib {memory_gib} is below the {needed:.2g} that one_to_one needs for {len(x_alive)} x "
            f"{len(y_alive)} features that vary; raise it or choose mutual_best"
        )
    matches = match(correlation_slabs(x, y, x_moments, y_moments, height, rows_per_block), method)
    x_ids, y_ids = x_alive[matches.rows], y_alive[matches.columns]
    order = np.lexsort((y_ids, x_ids))
    pairing = Pairing(x_ids[order], y_ids[order], matches.correlation[order])
    return pairing, {"x_alive": len(x_alive), "y_alive": len(y_alive)}


def _open(path: Place, hook: str | None) -> FeatureCodes | RawHook:
    return FeatureCodes.open(Path(path)) if hook is None else RawHook.open(path, hook)


def _require_same_rows(x: RowSource, y: RowSource) -> None:
    if x.ledger_sha256 != y.ledger_sha256:
        raise InputError(
            f"{x.name} and {y.name} hold different tokens (ledgers {x.ledger_sha256[:8]} and "
            f"{y.ledger_sha256[:8]}); extract both models on the same corpus with the same tokenizer"
        )


def _facts(matched: Pairing, pairing: Pairing, alive: dict[str, int]) -> dict[str, Any]:
    """Return what the manifest says of a pairing; the mean correlation of no pair is none."""
    pairs = len(pairing.x_ids)
    return {
        **alive,
        "matched": len(matched.x_ids),
        "pairs": pairs,
        "mean_correlation": float(pairing.correlation.mean()) if pairs else None,
        "largest_hub": int(np.bincount(pairing.x_ids).max()) if pairs else 0,
    }
