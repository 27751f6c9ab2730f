"""Statistics of a store's activations as one HTML file: hooks side by side, then the figures of each.

It reads what `saejax stats` has written and computes no statistic.
"""

from pathlib import Path
from typing import Any

import numpy as np

from saejax import artifacts
from saejax.report import figures
from saejax.report.render import write_page

KIND = "stats"
NUMBERS = "statistics.json"
OVER_LAYERS = {
    "participation_ratio": ("Participation ratio", "dimensions"),
    "mean_cosine": ("Mean cosine of two rows", "cosine"),
    "rms": ("Root mean square", "activation units"),
    "norm_max_over_median": ("Largest norm", "times the median"),
}
OUTLIERS_SHOWN = 20


def draw(folder: Path, out: Path) -> Path:
    """Write the page of some statistics.

    Args:
        folder: a finished run of kind "stats".
        out: the HTML file.

    Returns:
        The file.

    Raises:
        InputError: the run is absent or unfinished.
    """
    manifest = artifacts.read_finished(folder, KIND)
    records = artifacts.read_json(folder / NUMBERS)
    side_by_side = [
        figures.over_layers({hook: record[name] for hook, record in records.items()}, title, unit)
        for name, (title, unit) in OVER_LAYERS.items()
    ]
    return write_page(
        out, "statistics.jinja", title="Activations of a store", model=manifest["facts"]["model"], records=records,
        side_by_side=side_by_side if len(records) > 1 else [],
        figures={hook: _figures(folder, hook, record) for hook, record in records.items()},
        outliers_shown=OUTLIERS_SHOWN, facts=_provenance(manifest),
    )  # fmt: skip


def _figures(folder: Path, hook: str, record: dict[str, Any]) -> list[figures.Figure]:
    with np.load(folder / f"{hook}.npz") as file:
        arrays = dict(file)
    outliers = np.array([outlier["dimension"] for outlier in record["outlier_dimensions"]], int)
    return [
        figures.spectrum(arrays["spectrum"]),
        figures.norm_histogram(arrays["norm_counts"], arrays["norm_edges"], record["norm_p50"]),
        figures.dimensions(arrays["mean"], outliers, "Mean of each dimension"),
        figures.dimensions(np.sqrt(arrays["variance"]), outliers, "SD of each dimension"),
    ]


def _provenance(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    given = dict(manifest["config"]["rows"])
    kept = "all" if given.pop("specials", False) else "all but special tokens"
    rows = [f"{name} {value}" for name, value in given.items() if value]
    return [
        ("store", f"{manifest['config']['store']}, fingerprint {manifest['inputs']['store']}"),
        ("rows", ", ".join([kept, *rows])),
        ("made", f"{manifest['finished']} by saejax {manifest['saejax']}"),
    ]
