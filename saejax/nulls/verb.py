"""`saejax null`: bare matrices in, p-values out.

The result is one JSON file, a list with one object per measure, so that any script can read it. Beside it lie the
null draws (`.npz`, one array per measure, in the order of the re-pairings) and a manifest (`.manifest.json`: the
configuration, the hashes of the matrices and how scores were computed), which is what makes a second run of the same
command cheap and a different command with the same `--out` an error.
"""

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saejax import artifacts, mesh
from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Duplicates, Told
from saejax.nulls.budget import Budget, Impl, default_impl
from saejax.nulls.engine import MEMORY_GIB, batch_size, permutation_test
from saejax.nulls.matrices import read_array
from saejax.nulls.numbers import check_numbers, check_stop
from saejax.nulls.preparing import prepare_null
from saejax.nulls.results import table
from saejax.nulls.schemes import find_scheme
from saejax.nulls.selection import check_pairing, find_measures

PER_ROW = ("x_ids", "y_ids", "row_labels")
TRIAL = 16  # re-pairings that a plan scores to see how long they take


@dataclasses.dataclass(frozen=True)
class NullConfig:
    """What `saejax null` holds against random re-pairings."""

    x: Path
    """Matrix as .npy, .npz or .safetensors, one row per feature; row i is paired with row i of y."""
    y: Path
    """Matrix with as many rows as x."""
    scheme: str
    """Who may be re-paired: uniform (one-to-one); collapse, blocks, representative (many-to-one); strata; stimulus."""
    out: Path
    """Result file, .json; the null draws (.npz) and a manifest (.manifest.json) go beside it."""
    x_name: str | None = None
    """Which array of x, where the file holds several."""
    y_name: str | None = None
    """Which array of y, where the file holds several."""
    x_ids: Path | None = None
    """Which feature each row of x is, .npy with one number or word per row; without it, equal rows are one feature."""
    y_ids: Path | None = None
    """The same for y."""
    row_labels: Path | None = None
    """One number or word per row, .npy: the stratum of each pair (strata), the document of each stimulus (stimulus)."""
    duplicates: Duplicates = "refuse"
    """accept shuffles features in several pairs as if each pair had its own; p is then no valid one."""
    measures: tuple[str, ...] = ("svcca", "rsa")
    """Similarity measures by name, with options where they have such: svcca:components=20, knn_jaccard:k=5."""
    permutations: int = 10_000
    """Random re-pairings; the smallest p is 1 / (permutations + 1)."""
    stop_after: int | None = None
    """Sequential test: stop when so many re-pairings were at least as similar; 10 or 20 save time on high p."""
    first: int = 0
    """Number of the first re-pairing; jobs over adjacent ranges make parts that saejax.nulls.merge joins."""
    seed: int = 0
    """Seed of the re-pairings, 0 to 2^64 - 1."""
    impl: Impl | None = None
    """Where scores are computed: host (CPU), jax (its devices); by default host on CPU and jax on accelerators."""
    memory_gib: float = dataclasses.field(default=MEMORY_GIB, metadata=artifacts.EXECUTION)
    """Memory for all that is made of the matrices, while they are prepared and with a batch, in GiB."""
    rank_bits: int | None = None
    """Bits of the ranks that Spearman measures keep, 16 or 32; by default 32 (exact) up to 4,096 pairs, 16 above."""
    multiprocess: bool = dataclasses.field(default=False, metadata=artifacts.EXECUTION)
    """Join the other processes of a job that Slurm, Open MPI, Kubernetes or a TPU pod started; they share the work."""

    def __post_init__(self) -> None:
        """Refuse names that do not exist and counts that leave no null."""
        find_measures(self.measures, self.rank_bits)
        find_scheme(self.scheme)
        drawing.key_of(self.seed)
        check_numbers(self.permutations, self.first, None, self.memory_gib, self.impl)
        check_stop(self.stop_after, self.permutations)
        for name in PER_ROW:
            if (file := getattr(self, name)) is not None and file.suffix != ".npy":
                raise InputError(f"{name} {file} must end in .npy")
        if self.out.suffix != ".json":
            raise InputError(f"out {self.out} must end in .json")

    @property
    def manifest(self) -> Path:
        """Where the manifest of the run lies."""
        return self.out.with_suffix(".manifest.json")

    @property
    def checkpoint(self) -> Path:
        """Where draws lie while they are made."""
        return self.out.with_suffix(".partial")

    @property
    def draws(self) -> Path:
        """Where the null draws lie."""
        return self.out.with_suffix(".npz")


def null(config: NullConfig) -> list[str]:
    """Run a permutation test on two matrices and write its result, unless that was done before.

    Args:
        config: matrices, measures, scheme and number of re-pairings.

    Returns:
        The lines of a small table and of where the result is.

    Raises:
        InputError: something about the matrices or names is wrong, or `out` holds another result.
    """
    if config.multiprocess:
        mesh.join()
    x, y, told = _arrays(config)
    record = _record(config)
    if _is_complete(config, record):
        return [*table(artifacts.read_json(config.out)), f"{config.out} is complete: nothing was left to do"]
    results = permutation_test(
        x, y, measures=config.measures, scheme=config.scheme, permutations=config.permutations, seed=config.seed,
        first=config.first, **told, duplicates=config.duplicates, stop_after=config.stop_after,
        impl=record["impl"], memory_gib=config.memory_gib,
        rank_bits=config.rank_bits, checkpoint=config.checkpoint,
    )  # fmt: skip
    if jax.process_index() == 0:
        artifacts.write_json(config.manifest, {**record, "status": "running"})
        results.save(config.out)
        artifacts.write_json(config.manifest, {**record, "status": "complete"})
        shutil.rmtree(config.checkpoint)
    return [*str(results).splitlines(), str(config.out)]


def plan(config: NullConfig) -> dict[str, str]:
    """Return what a run would cost, from scoring a few re-pairings; nothing is written.

    Raises:
        InputError: as `null` does.
    """
    x, y, told = _arrays(config)
    record = _record(config)
    _is_complete(config, record)
    measures = find_measures(config.measures, config.rank_bits)
    budget = Budget(record["impl"], int(config.memory_gib * 2**30))
    arrangement = check_pairing(x, y, measures, config.scheme, Told(**told, duplicates=config.duplicates), budget)
    started = time.perf_counter()
    trial = prepare_null(arrangement, measures, drawing.key_of(config.seed), budget, listed=False)
    size = batch_size(trial, TRIAL)
    trial.score_range(0, size)
    warm = time.perf_counter()
    trial.score_range(0, size)
    per_draw = (time.perf_counter() - warm) / size
    seconds = warm - started + per_draw * config.permutations
    most = max(trial.held_bytes(), budget.preparing_bytes(arrangement, measures)) + x.nbytes + y.nbytes
    count = arrangement.shuffle.count or math.inf
    return {
        "rows": f"{trial.n:,} pairs",
        "permutations": f"{config.permutations:,} for each of {', '.join(config.measures)}",
        "smallest p": f"{max(1 / (config.permutations + 1), 1 / count):.2g}",
        "bytes": f"{8 * config.permutations * len(measures):,} of null draws",
        "minutes": f"{seconds / 60:.1f} ({1000 * per_draw:.2f} ms per permutation)",
        "memory": f"{most / 2**30:.2f} GiB of arrays",
        "impl": record["impl"],
    }


def _arrays(config: NullConfig) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return both matrices, and what is told of each row."""
    files = {name: getattr(config, name) for name in PER_ROW}
    told = {name: read_array(file, None, name) for name, file in files.items() if file is not None}
    return read_array(config.x, config.x_name, "x"), read_array(config.y, config.y_name, "y"), told


def _record(config: NullConfig) -> dict[str, Any]:
    files = {"x": config.x, "y": config.y, **{name: getattr(config, name) for name in PER_ROW}}
    inputs = {name: artifacts.file_sha256(file) for name, file in files.items() if file is not None}
    return {
        "kind": "null",
        "config": artifacts.config_record(config),
        "inputs": inputs,
        "impl": config.impl or default_impl(),
    }


def _is_complete(config: NullConfig, record: dict[str, Any]) -> bool:
    """Tell whether `out` already holds this result, and refuse to touch another one."""
    if not config.manifest.exists():
        for path in (config.out, config.draws):
            if path.exists():
                raise InputError(f"out {path} exists and has no {config.manifest.name}; name a new file")
        return False
    found = artifacts.read_json(config.manifest)
    differences = [
        f"{key} {found.get(part, {}).get(key)} there, {record[part].get(key)} now"
        for part in ("config", "inputs")
        for key in dict.fromkeys([*record[part], *found.get(part, {})])
        if found.get(part, {}).get(key) != record[part].get(key)
    ]
    if differences:
        raise InputError(f"out {config.out} holds another run ({'; '.join(differences)}); name a new file")
    return found.get("status") == "complete" and config.out.exists() and config.draws.exists()
