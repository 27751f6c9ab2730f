"""Turn an activation store into the sparse codes of an SAE, with statistics and top examples, in one pass.

A run of kind "features" holds `codes/` (see `saejax.features.codes`), `features.npz` (one row per feature)
and `decoder.npy` (the direction that each feature writes in the model's space). It needs neither the SAE nor the
language model any more. The pass is short beside the extraction before it, so an interrupted one starts again
instead of keeping partial sums.
"""

import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from saejax import artifacts
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.codes import NO_CODE, SHARD_ROWS, CodesWriter
from saejax.features.examples import TopExamples
from saejax.features.sources import KIND
from saejax.progress import progress
from saejax.sae.fold import feature_directions
from saejax.sae.params import SAE, load
from saejax.sae.provenance import require_store
from saejax.storage import Place, reference


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What `saejax encode` encodes."""

    store: Place
    """Activation store."""
    sae: Path
    """SAE run, trained on activations of the same model and hook."""
    out: Path
    """Directory for the codes."""
    block: int = 4096
    """Rows (tokens) encoded at a time; one block of pre-activations takes block * d_sae * 4 bytes."""
    examples: int = 16
    """Rows (tokens) kept per feature as its top examples."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        for name in ("block", "examples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")


class FeatureStatistics:
    """Running statistics of every feature; memory is O(d_sae * examples), whatever the corpus."""

    def __init__(self, d_sae: int, examples: int) -> None:
        """Start with no row.

        Args:
            d_sae: number of features.
            examples: examples kept per feature.
        """
        self.rows = 0
        self._firing_count = np.zeros(d_sae, np.int64)
        self._sum = np.zeros(d_sae)
        self._top = TopExamples(d_sae, examples)

    def add(
        self,
        rows: Int[np.ndarray, "rows"],
        values: Float[np.ndarray, "rows k"],
        indices: Int[np.ndarray, "rows k"],
    ) -> None:
        """Take in the codes of some rows.

        Args:
            rows: their numbers in the store, beyond those of earlier calls.
            values: their codes; zero where a latent is listed but does not fire.
            indices: the latent of each code.
        """
        self.rows += len(rows)
        row, column = np.nonzero(values)
        features, fired = indices[row, column], values[row, column]
        self._firing_count += np.bincount(features, minlength=len(self._sum))
        self._sum += np.bincount(features, fired, minlength=len(self._sum))
        self._top.add(features, rows[row], fired)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `features.npz` holds.

        Returns:
            Per feature: `firing_count` in tokens, `firing_rate` (fraction of tokens), `mean` over all tokens,
            `mean_active` over those it fires on, `max`, and the top examples' `top_rows` (row numbers in the
            store, best first, -1 where there are fewer) and `top_values`. Means and max are 0 where a feature
            never fired.
        """
        top = self._top.result()
        return {
            "firing_count": self._firing_count,
            "firing_rate": self._firing_count / self.rows,
            "mean": self._sum / self.rows,
            "mean_active": self._sum / np.maximum(self._firing_count, 1),
            "max": top.values[:, 0],
            "top_rows": top.rows,
            "top_values": top.values,
        }


def encode(config: EncodeConfig) -> Path:
    """Encode every row of a store that is no special token.

    Args:
        config: the store, the SAE and how much to keep.

    Returns:
        The directory of the codes.

    Raises:
        InputError: the SAE belongs to another model or hook than the store, an input is absent or unfinished,
            or the SAE gives codes that are no numbers, or more of a row than a relu or jump_relu SAE has room for.
    """
    store, sae, hook = _open(config)
    inputs = {name: artifacts.run_fingerprint(getattr(config, name)) for name in ("store", "sae")}
    run = artifacts.begin(config.out, KIND, config, inputs)
    if run.complete:
        return run.path
    statistics = _encode_rows(store, hook, sae, run.path / "codes", config)
    arrays = statistics.arrays()
    artifacts.write_npz(run.path / "features.npz", arrays)
    artifacts.write_npy(run.path / "decoder.npy", np.asarray(feature_directions(sae), np.float32))
    run.finish(
        store=reference(config.store, run.path), sae=reference(config.sae, run.path), hook=hook,
        ledger_sha256=store.manifest["facts"]["ledger_sha256"], rows=store.rows, kept_rows=statistics.rows,
        d_sae=sae.config.d_sae, k=sae.config.k, L0=float(arrays["firing_rate"].sum()),
        never_fired=int((arrays["firing_count"] == 0).sum()),
    )  # fmt: skip
    return run.path


def plan(config: EncodeConfig) -> dict[str, str]:
    """Say what an encoding would cost, from two timed blocks; nothing is written.

    Args:
        config: the encoding that is planned.

    Returns:
        Rows, bytes on disk, minutes and memory, in words.

    Raises:
        InputError: as `encode`.
    """
    store, sae, hook = _open(config)
    rows, d_sae, k = min(config.block, store.rows), sae.config.d_sae, sae.config.k
    trial = FeatureStatistics(d_sae, config.examples)
    kept = np.flatnonzero(store.kept[:rows])
    seconds = 0.0
    for start in (0, rows):
        began = time.perf_counter()
        trial.add(start + kept, *_codes_of(sae, store.read(hook, 0, rows), config.block, kept))
        seconds = time.perf_counter() - began
    per_feature = sum(array.nbytes for array in trial.arrays().values()) + sae.W_dec.nbytes
    held = per_feature + 8 * k * SHARD_ROWS + 8 * config.block * d_sae
    return {
        "rows": f"{store.rows:,}",
        "disk": f"{8 * k * store.rows + per_feature:,} bytes at most",
        "minutes": f"{seconds * store.rows / rows / 60:.1f}",
        "memory": f"{held / 2**30:.2f} GiB of arrays",
    }


def _open(config: EncodeConfig) -> tuple[Store, SAE, str]:
    """Open store and SAE and return them with the hook that the SAE reads."""
    store, sae = Store.open(config.store), load(config.sae)
    hook = require_store(config.sae, store)
    if not store.kept.any():
        raise InputError(f"{config.store} has no row but special tokens; extract more text")
    return store, sae, hook


def _encode_rows(store: Store, hook: str, sae: SAE, folder: Path, config: EncodeConfig) -> FeatureStatistics:
    """Write the codes of all rows, shard by shard, and return statistics of all but special tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    codes = CodesWriter(folder, sae.config.k)
    statistics = FeatureStatistics(sae.config.d_sae, config.examples)
    with progress("encoding", total=store.rows) as advance:
        for shard, first in enumerate(range(0, store.rows, SHARD_ROWS)):
            stop = min(first + SHARD_ROWS, store.rows)
            values = np.zeros((stop - first, sae.config.k), np.float32)
            indices = np.full(values.shape, NO_CODE, np.int32)
            for start in range(first, stop, config.block):
                end = min(start + config.block, stop)
                kept = np.flatnonzero(store.kept[start:end])
                here = start - first + kept
                values[here], indices[here] = _codes_of(sae, store.read(hook, start, end), config.block, kept)
                statistics.add(start + kept, values[here], indices[here])
                advance(end - start)
            codes.write(shard, values, indices)
    codes.seal(store.rows)
    return statistics


def _codes_of(
    sae: SAE, x: Float[np.ndarray, "rows d_model"], block: int, kept: Int[np.ndarray, "kept"]
) -> tuple[Float[np.ndarray, "kept k"], Int[np.ndarray, "kept k"]]:
    """Encode rows, padded to the one shape that is compiled, and return the codes of those to keep."""
    padded = np.zeros((block, x.shape[1]), np.float32)
    padded[: len(x)] = x
    values, indices = map(np.asarray, sae.encode_sparse(padded))
    if not np.isfinite(values[kept]).all():
        raise InputError("the SAE gives NaN or infinite codes; train it again with a smaller learning rate")
    sae.require_room(values[kept])
    return values[kept], indices[kept]
