"""The experiment: is the geometry of paired SAE features more alike than chance, and more than raw neurons'?

Two arms, paired the same way: the features of two SAEs with their decoder rows, and the raw neurons of the two
models with the rows of the matrix that they write through. Each arm is held against random pairings of its own
pairs. Arms have different numbers of pairs, and z grows with that number, so z is never compared between them as
they stand: the larger arm is cut to random subsets of the smaller one's size, each with a null of its own; and how much
more one arm matches than the other is said by calibrated scores, with intervals (`saejax.universality.differences`).

Where a feature of x may have several partners, each feature of x is held against the mean of its partners (scheme
`collapse`), and it is features of x that are counted and cut.
"""

import csv
import dataclasses
import io
import os
from typing import Any

import jax
import numpy as np

from saejax import artifacts
from saejax.features.pairing import pairing_cost
from saejax.nulls import NullResult, permutation_test
from saejax.nulls.results import extrapolated_words
from saejax.rng import named_key, named_seed
from saejax.universality.arms import Arm, open_arms, paired_arm
from saejax.universality.config import CompareConfig
from saejax.universality.differences import arm_differences, difference_lines

KIND = "comparison"


def compare(config: CompareConfig) -> list[str]:
    """Pair both arms, score them against random pairings, and compare them at one number of pairs.

    Args:
        config: the two features runs, their raw hooks, and the nulls' sizes.

    Returns:
        The lines of the result tables and the path of the directory with `result.json`, `result.csv`, `draws.npz`,
        `difference.json` and the pairs of each arm.

    Raises:
        InputError: the runs do not fit together, or an arm has too few pairs.
    """
    sources = open_arms(config)
    inputs = {"x": artifacts.run_fingerprint(config.x), "y": artifacts.run_fingerprint(config.y)}
    run = artifacts.begin(config.out, KIND, config, inputs)
    if not run.complete:
        arms = [paired_arm(name, x, y, config) for name, (x, y) in sources.items()]
        differences = arm_differences(arms, sources, config)
        rows, draws = score_arms(arms, config)
        for arm in arms:
            arrays = dataclasses.asdict(arm.pairing)
            artifacts.write_npz(run.path / f"pairs_{arm.name}.npz", arrays)
        artifacts.write_npz(run.path / "draws.npz", draws)
        artifacts.write_json(run.path / "result.json", rows)
        artifacts.write_json(run.path / "difference.json", differences)
        artifacts.write_bytes(run.path / "result.csv", to_csv(rows).encode())
        run.finish(
            x=os.path.relpath(config.x, run.path), y=os.path.relpath(config.y, run.path),
            pairs={arm.name: len(arm.pairing.x_ids) for arm in arms}, result_sha256=artifacts.fingerprint(rows),
        )  # fmt: skip
    rows, differences = (artifacts.read_json(run.path / name) for name in ("result.json", "difference.json"))
    return [*table(rows), *difference_lines(differences), str(run.path)]


def score_arms(arms: list[Arm], config: CompareConfig) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Hold every arm against random pairings: all its pairs, then the larger arms at the smallest one's size.

    Args:
        arms: the arms, each with its pairs.
        config: measures, sizes and seed.

    Returns:
        One row per arm, number of pairs and measure, as `result.json` keeps them; and the null draws by
        `<arm>/<measure>`, with `<arm>/<measure>/subset_z` for the subsets.
    """
    rows, draws = [], {}
    for arm in arms:
        seed = named_seed(config.seed, f"universality.{arm.name}")
        for result in _null(arm, arm.features, config, config.permutations, seed):
            record = result.record()
            rows.append({"arm": arm.name, "pairs": "all", **record, "extrapolated": extrapolated_words(record)})
            draws[f"{arm.name}/{result.measure}"] = result.draws
    smallest = min(len(arm.features) for arm in arms)
    for arm in arms:
        if len(arm.features) == smallest:
            continue
        subsets = [_subset_null(arm, smallest, index, config) for index in range(config.subsamples)]
        for results in zip(*subsets, strict=True):
            rows.append(_summary(arm, list(results)))
            draws[f"{arm.name}/{results[0].measure}/subset_z"] = np.array([result.z for result in results], float)
    return rows, draws


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the small result table."""
    header = ("arm", "pairs", "n", "measure", "paired", "null mean", "null SD", "z", "calibrated", "p")
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows of a result as CSV, one column per key."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plan(config: CompareConfig) -> dict[str, str]:
    """Say what a comparison would cost; nothing is written.

    Args:
        config: the comparison that is planned.

    Returns:
        The cost of pairing each arm, the number of random pairings (what one costs depends on how many pairs are
        found) and the smallest p, in words.

    Raises:
        InputError: the runs do not fit together.
    """
    pairing = {
        f"{name} {key}": value
        for name, (x, y) in open_arms(config).items()
        for key, value in pairing_cost(x, y, config.memory_gib).items()
    }
    scored = 2 * config.permutations + config.subsamples * config.subsample_permutations
    again = {"documents drawn anew": f"{config.document_replicates} times the minutes of both arms"}
    smallest = [1 / (permutations + 1) for permutations in (config.permutations, config.subsample_permutations)]
    return {
        **pairing,
        **(again if config.document_replicates else {}),
        "random pairings": f"{scored * len(config.measures):,} over {len(config.measures)} measures",
        "smallest p": f"{smallest[0]:.2g} for all pairs, {smallest[1]:.2g} in a subset",
    }


def _null(arm: Arm, features: np.ndarray, config: CompareConfig, permutations: int, seed: int) -> list[NullResult]:
    """Hold all pairs of some features of x against random pairings."""
    x_ids, y_ids = arm.pairing.x_ids, arm.pairing.y_ids
    kept = np.isin(x_ids, features)
    return permutation_test(
        arm.x_rows[kept], arm.y_rows[kept], measures=list(config.measures),
        scheme=arm.scheme, permutations=permutations, seed=seed,
        x_ids=x_ids[kept], y_ids=y_ids[kept], memory_gib=config.memory_gib,
    )  # fmt: skip


def _subset_null(arm: Arm, size: int, index: int, config: CompareConfig) -> list[NullResult]:
    name = f"universality.{arm.name}.subset.{index}"
    chosen = np.asarray(jax.random.choice(named_key(config.seed, name), len(arm.features), (size,), replace=False))
    seed = named_seed(config.seed, name)
    return _null(arm, arm.features[chosen], config, config.subsample_permutations, seed)


def _summary(arm: Arm, results: list[NullResult]) -> dict[str, Any]:
    """Return one row for all subsets of an arm: means over subsets, the median p, and the spread of z."""

    def mean(field: str) -> float:
        return float(np.mean([getattr(result, field) for result in results]))

    first = results[0]
    z = [result.z for result in results if result.z is not None]
    spread = {"z": None, "z_low": None, "z_high": None, "calibrated": None}
    if len(z) == len(results):
        low, high = np.percentile(z, [5, 95])
        spread = {"z": mean("z"), "z_low": float(low), "z_high": float(high), "calibrated": mean("calibrated")}
    return {
        "arm": arm.name, "pairs": f"{len(results)} subsets", "measure": first.measure, "n": first.n,
        "observed": mean("observed"), "null_mean": mean("null_mean"), "null_sd": mean("null_sd"), **spread,
        "p_value": float(np.median([result.p_value for result in results])),
        "permutations": first.permutations, "scheme": first.scheme, "tail": first.tail, "method": first.method,
    }  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (f"{row[key]:.4f}" for key in ("observed", "null_mean", "null_sd"))
    z = "none" if row["z"] is None else f"{row['z']:.1f}"
    calibrated = "none" if row["calibrated"] is None else f"{row['calibrated']:.4f}"
    return row["arm"], row["pairs"], str(row["n"]), row["measure"], *numbers, z, calibrated, f"{row['p_value']:.2g}"
