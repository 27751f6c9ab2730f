"""SAEs that were trained together, as one HTML file: L0 against FVU, a table, training curves.

It reads what the runs have written and computes nothing.
"""

from pathlib import Path
from typing import Any

from saejax import artifacts
from saejax.report import figures
from saejax.report.render import write_page

KIND = "sae"


def draw(folders: list[Path], out: Path) -> Path:
    """Write the report of some SAEs of one store and hook.

    Args:
        folders: run directories of kind "sae".
        out: the HTML file.

    Returns:
        The file.

    Raises:
        InputError: a run is absent or unfinished.
    """
    saes = [_sae(folder) for folder in folders]
    points = [(sae["name"], _sparsity(sae["config"]), sae["health"]["l0"], sae["health"]["fvu"]) for sae in saes]
    curves = {sae["name"]: artifacts.read_metrics(sae["folder"]) for sae in saes}
    manifest = artifacts.read_finished(folders[0], KIND)
    drawn = [figures.pareto(points), figures.training_curves(curves, "fvu", "FVU of each step's batch", "FVU")]
    return write_page(
        out, "sweep.jinja", title="Sparse autoencoders on one stream of activations", saes=saes, figures=drawn,
        facts=manifest["facts"], made=f"{manifest['finished']} by saejax {manifest['saejax']}",
    )  # fmt: skip


def _sparsity(config: dict[str, Any]) -> str:
    l1 = config["l1_coefficient"]
    return f"k {config['k']}, L1 {l1:g}" if l1 else f"k {config['k']}"


def _sae(folder: Path) -> dict[str, Any]:
    manifest = artifacts.read_finished(folder, KIND)
    health = {line["metric"]: line["value"] for line in artifacts.read_json(folder / "health.json")}
    return {"name": folder.name, "folder": folder, "config": manifest["config"], "health": health}
