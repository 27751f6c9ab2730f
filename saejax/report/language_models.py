"""Language models that were trained together, as one HTML file: losses, samples of text, how they were made.

It reads what the runs have written and computes nothing.
"""

from pathlib import Path
from typing import Any

from saejax import artifacts
from saejax.report import figures
from saejax.report.render import write_page

KIND = "language_model"


def draw(folders: list[Path], out: Path) -> Path:
    """Write the report of some language models.

    Args:
        folders: run directories that one `saejax lm train` wrote, a model each.
        out: the HTML file.

    Returns:
        The file.

    Raises:
        InputError: a run is absent or unfinished.
    """
    models = [_model(folder) for folder in folders]
    bigram = models[0]["facts"]["bigram_loss"]
    curves = {model["name"]: artifacts.read_metrics(model["folder"]) for model in models}
    phases = {model["name"]: [phase["facts"] for phase in model["phases"]] for model in models}
    drawn = [figures.losses(curves, "loss", "Loss on the text being learned", bigram),
             figures.losses(phases, "heldout_loss", "Loss on held-out text", bigram, kept=True)]  # fmt: skip
    manifest = artifacts.read_finished(folders[0], KIND)
    return write_page(
        out, "language_models.jinja", title="Small language models, from scratch", models=models,
        figures=drawn if any(curves.values()) else [], config=manifest["config"], facts=_provenance(manifest),
    )  # fmt: skip


def _model(folder: Path) -> dict[str, Any]:
    """Read a model and its intermediate ones, the final one last."""
    kept = sorted((folder / "snapshots").iterdir()) if (folder / "snapshots").exists() else []
    phases = [
        {"facts": artifacts.read_finished(path, KIND)["facts"], **artifacts.read_json(path / "samples.json")}
        for path in [*kept, folder]
    ]
    return {"name": folder.name, "folder": folder, "facts": phases[-1]["facts"], "phases": phases}


def _provenance(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    config = {name: value for name, value in manifest["config"].items() if name not in ("corpus", "seeds")}
    corpus = manifest["inputs"]["corpus"]
    return [
        ("configuration", ", ".join(f"{name} {value}" for name, value in config.items())),
        ("text", ", ".join(f"{name} {value}" for name, value in corpus.items() if name != "files")),
        ("files", ", ".join(f"{file['name']} sha256 {file['sha256']}" for file in corpus.get("files", []))),
        ("made", f"{manifest['finished']} by saejax {manifest['saejax']}"),
    ]
