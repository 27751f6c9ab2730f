"""`saejax null`: bare matrices in, p-values out.

The result is one JSON file, a list with one object per measure, so that any script can read it. Beside it lie the
null draws (`.npz`, one array per measure, in the order of the re-pairings) and a manifest (`.manifest.json`: the
configuration, the hashes of the matrices and how scores were computed), which is what makes a second run of the same
command cheap and a different command with the same `--out` an error.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.engine import MEMORY_GIB, batch_size, check_pairing, find_measures, permutation_test
from saejax.nulls.schemes import find_scheme
from saejax.nulls.scoring import Impl, Null, default_impl

TRIAL = 16  # re-pairings that a plan scores to see how long they take


@dataclasses.dataclass(frozen=True)
class NullConfig:
    """What `saejax null` holds against random re-pairings."""

    x: Path
    """Matrix as .npy, one row per feature; row i is paired with row i of y."""
    y: Path
    """Matrix as .npy with as many rows as x."""
    scheme: str
    """Which re-pairings are equally likely: uniform, any feature of y with any of x, for one-to-one pairings."""
    out: Path
    """Result file, .json; the null draws (.npz) and a manifest (.manifest.json) go beside it."""
    measures: tuple[str, ...] = ("svcca", "rsa")
    """Similarity measures by name."""
    permutations: int = 10_000
    """Random re-pairings; the smallest p is 1 / (permutations + 1)."""
    seed: int = 0
    """Seed of the re-pairings, 0 to 2^64 - 1."""
    impl: Impl | None = None
    """Where scores are computed: host (CPU), jax (its devices); by default host on CPU and jax on accelerators."""

    def __post_init__(self) -> None:
        """Refuse names that do not exist and counts that leave no null."""
        find_measures(self.measures)
        find_scheme(self.scheme)
        drawing.key_of(self.seed)
        if not 1 <= self.permutations <= drawing.MOST_PERMUTATIONS:
            raise InputError(f"permutations {self.permutations} must be at least 1 and at most 2^32")
        if self.out.suffix != ".json":
            raise InputError(f"out {self.out} must end in .json")

    @property
    def manifest(self) -> Path:
        """Where the manifest of the run lies."""
        return self.out.with_suffix(".manifest.json")

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
    x, y = _read_matrix(config.x, "x"), _read_matrix(config.y, "y")
    record = _record(config)
    if _is_complete(config, record):
        return [*_table(artifacts.read_json(config.out)), f"{config.out} is complete: nothing was left to do"]
    check_pairing(x, y, find_measures(config.measures), config.scheme, None, None)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    results = permutation_test(
        x, y, measures=config.measures, scheme=config.scheme, permutations=config.permutations, seed=config.seed,
        impl=record["impl"],
    )  # fmt: skip
    rows = [result.record() for result in results]
    artifacts.write_json(config.manifest, {**record, "status": "running"})
    artifacts.write_npz(config.draws, {result.measure: result.draws for result in results})
    artifacts.write_json(config.out, rows)
    artifacts.write_json(config.manifest, {**record, "status": "complete"})
    return [*_table(rows), str(config.out)]


def plan(config: NullConfig) -> dict[str, str]:
    """Return what a run would cost, from scoring a few re-pairings; nothing is written.

    Raises:
        InputError: as `null` does.
    """
    x, y = _read_matrix(config.x, "x"), _read_matrix(config.y, "y")
    record = _record(config)
    _is_complete(config, record)
    measures = find_measures(config.measures)
    pair = check_pairing(x, y, measures, config.scheme, None, None)
    started = time.perf_counter()
    memory = int(MEMORY_GIB * 2**30)
    trial = Null.prepare(pair, measures, drawing.key_of(config.seed), record["impl"], memory)
    size = batch_size(trial, TRIAL)
    trial.score_range(0, size)
    warm = time.perf_counter()
    trial.score_range(0, size)
    per_draw = (time.perf_counter() - warm) / size
    seconds = warm - started + per_draw * config.permutations
    held = trial.state_bytes() + trial.bytes_each() * trial.largest_batch() + x.nbytes + y.nbytes
    pairings = math.factorial(trial.n) if trial.n < 20 else math.inf
    return {
        "rows": f"{trial.n:,} pairs",
        "permutations": f"{config.permutations:,} for each of {', '.join(config.measures)}",
        "smallest p": f"{max(1 / (config.permutations + 1), 1 / pairings):.2g}",
        "bytes": f"{8 * config.permutations * len(measures):,} of null draws",
        "minutes": f"{seconds / 60:.1f} ({1000 * per_draw:.2f} ms per permutation)",
        "memory": f"{held / 2**30:.2f} GiB of arrays",
        "impl": record["impl"],
    }


def _read_matrix(path: Path, name: str) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{name} {path} does not exist; name a .npy file")
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError):
        raise InputError(f"{name} {path} is not a .npy file of numbers; write one with numpy.save") from None


def _record(config: NullConfig) -> dict[str, Any]:
    inputs = {"x": artifacts.file_sha256(config.x), "y": artifacts.file_sha256(config.y)}
    record = artifacts.config_record(config)
    return {"kind": "null", "config": record, "inputs": inputs, "impl": config.impl or default_impl()}


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


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [("measure", "n", "observed", "null mean", "null SD", "z", "p", "95 % interval of p"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    sd = "" if row["null_sd"] is None else f"{row['null_sd']:.5f}"
    z = "" if row["z"] is None else f"{row['z']:.2f}"
    interval = f"{row['p_low']:.2g} - {row['p_high']:.2g}"
    scores = (f"{row[key]:.5f}" for key in ("observed", "null_mean"))
    return (row["measure"], str(row["n"]), *scores, sd, z, f"{row['p_value']:.2g}", interval)
