"""Statistics of the activations of a store, as numbers and as a page: what an SAE will meet before it is trained.

OUT/statistics.json   numbers of each hook, and its outlier dimensions
OUT/HOOK.npz          mean, variance, kurtosis and part of the mean cosine of each dimension; spectrum; norms
OUT/report.html       the same as tables and figures
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from saejax import artifacts
from saejax.activations.filters import RowFilter
from saejax.activations.outliers import outlier_dimensions
from saejax.activations.reader import blocks
from saejax.activations.statistics import RowStatistics, RunningStatistics
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.progress import progress
from saejax.report.statistics import KIND, NUMBERS, draw
from saejax.report.table import text_table
from saejax.storage import Place, reference

ROWS_PER_BLOCK = 4096
QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
SHARES = (50, 90, 99)
"""Percent of the variance of which components are counted."""
NAMED = 8
"""Outlier dimensions of a hook that are named on a terminal."""


@dataclasses.dataclass(frozen=True)
class StatsConfig:
    """Measure the activations of a store: norms, spreads, anisotropy, spectrum, outlier dimensions."""

    store: Place
    """Activation store."""
    out: Path
    """Directory for the numbers and the page; hooks that an interrupted run has finished are not measured again."""
    hooks: tuple[str, ...] = ()
    """Hooks to measure, one after the other; all of the store when not given. Width d takes 16 d^2 bytes of memory."""
    rows: RowFilter = RowFilter()
    """Rows to leave out."""

    def __post_init__(self) -> None:
        """Refuse to measure one hook twice."""
        if len(set(self.hooks)) < len(self.hooks):
            raise InputError(f"hooks {', '.join(self.hooks)} names one twice; name each once")


def stats(config: StatsConfig) -> list[str]:
    """Measure the activations of a store, or what is left of it.

    Memory: as `RunningStatistics`, of one hook at a time.

    Args:
        config: the store, its hooks and which rows count.

    Returns:
        A table with a line for each hook, the outlier dimensions, and where the page is.

    Raises:
        InputError: the store is absent, unfinished or damaged, lacks a hook or has no row left.
    """
    store = Store.open(config.store)
    hooks = config.hooks or store.hooks
    for hook in hooks:
        store.require(hook=hook)
    # `max_norm` leaves the median row of those that the rest leaves, so that it need not be asked here.
    dataclasses.replace(config.rows, max_norm=None).kept(store, hooks[0])
    run = artifacts.begin(config.out, KIND, config, {"store": artifacts.run_fingerprint(config.store)})
    file = run.path / NUMBERS
    records: dict[str, dict[str, Any]] = artifacts.read_json(file) if file.exists() else {}
    for hook in hooks[len(records) :]:
        statistics = measure(store, hook, config.rows)
        artifacts.write_npz(run.path / f"{hook}.npz", _arrays(statistics))
        records[hook] = _record(statistics)
        artifacts.write_json(file, records)
    if not run.complete:
        run.finish(
            store=reference(config.store, run.path), hooks=list(hooks),
            model=store.manifest["facts"].get("model"), statistics_sha256=artifacts.fingerprint(records),
        )  # fmt: skip
    page = draw(run.path, run.path / "report.html")
    return [*_table(records), str(page)]


def measure(store: Store, hook: str, rows: RowFilter) -> RowStatistics:
    """Take the statistics of the rows of a hook, in one pass.

    Args:
        store: the store.
        hook: whose activations.
        rows: which rows are read; `max_norm` reads all rows once more, before.

    Returns:
        The statistics.

    Raises:
        InputError: the store lacks the hook, has no row left, or is damaged.
    """
    store.require(hook=hook)
    kept = rows.kept(store, hook)
    count = int(kept.sum())
    running = RunningStatistics(store.width(hook), count)
    with progress(f"statistics of {hook}", count) as advance:
        for _, x in blocks(store, hook, ROWS_PER_BLOCK, kept=kept):
            running.add(x)
            advance(len(x))
    return running.result()


def _arrays(statistics: RowStatistics) -> dict[str, np.ndarray]:
    """Return what `HOOK.npz` holds: arrays by dimension, the spectrum, and counts of norms between edges."""
    names = ("mean", "variance", "kurtosis", "cosine", "spectrum")
    counts, edges = statistics.norm_histogram()
    return {**{name: getattr(statistics, name) for name in names}, "norm_counts": counts, "norm_edges": edges}


def _record(statistics: RowStatistics) -> dict[str, Any]:
    """Return what `statistics.json` says of a hook; None where a number does not exist."""
    norms, sd = statistics.norms, statistics.sd
    quantiles = np.quantile(norms, list(QUANTILES.values())).tolist()
    median, largest = quantiles[list(QUANTILES).index("p50")], float(norms[-1])
    return {
        "rows": len(norms),
        "d_model": len(sd),
        "zero_rows": int(np.count_nonzero(norms == 0)),
        "rms": statistics.rms,
        "mean_norm": float(norms.mean(dtype=np.float64)),
        **{f"norm_{name}": value for name, value in zip(QUANTILES, quantiles, strict=True)},
        "norm_max": largest,
        "norm_max_over_median": largest / median if median else None,
        "norm_of_mean": float(np.linalg.norm(statistics.mean)),
        "mean_share": _number(statistics.mean_share),
        "mean_cosine": _number(statistics.mean_cosine),
        "total_variance": float(statistics.variance.sum()),
        "sd_min": float(sd.min()),
        "sd_median": float(np.median(sd)),
        "sd_max": float(sd.max()),
        "kurtosis_median": _median(statistics.kurtosis),
        "participation_ratio": _number(statistics.participation_ratio),
        **{f"components_{share}": statistics.components(share / 100) for share in SHARES},
        "outlier_dimensions": _outliers(statistics),
    }


def _outliers(statistics: RowStatistics) -> list[dict[str, Any]]:
    found = outlier_dimensions(statistics)
    return [
        {
            "dimension": int(dimension), "mean": float(statistics.mean[dimension]), "mean_z": float(mean_z),
            "sd": float(statistics.sd[dimension]), "sd_z": float(sd_z),
            "kurtosis": _number(float(statistics.kurtosis[dimension])),
            "cosine": _number(float(statistics.cosine[dimension])),
        }
        for dimension, mean_z, sd_z in zip(found.dimension, found.mean_z, found.sd_z, strict=True)
    ]  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _median(values: np.ndarray) -> float | None:
    """Return the median of those that are numbers."""
    numbers = values[np.isfinite(values)]
    return float(np.median(numbers)) if len(numbers) else None


def _table(records: dict[str, dict[str, Any]]) -> list[str]:
    columns = {
        "rows": "rows", "d_model": "d_model", "rms": "RMS", "norm_p50": "median norm",
        "norm_max_over_median": "largest / median", "mean_cosine": "mean cosine",
        "participation_ratio": "participation ratio", "components_90": "components of 90 %",
    }  # fmt: skip
    rows = [
        {"hook": hook, **{title: record[name] for name, title in columns.items()}, "outlier dimensions": _named(record)}
        for hook, record in records.items()
    ]
    return text_table(rows)


def _named(record: dict[str, Any]) -> str:
    """Name the furthest outlier dimensions of a hook."""
    found = [str(outlier["dimension"]) for outlier in record["outlier_dimensions"]]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{' '.join(found[:NAMED])}{more}" if found else "none"
