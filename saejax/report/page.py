"""A comparison as one HTML file that opens without a network: numbers, nulls, the SAEs' training and health, features.

It reads what runs have written and computes no score.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from saejax import artifacts
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.sources import FeatureCodes
from saejax.report import figures
from saejax.report.examples import corpus_of, snippets, texts_of, windows_around
from saejax.report.render import write_page

MEASURE_NOTES = {
    "svcca": "svcca: mean canonical correlation of the directions that carry 99 % of each side's variance.",
    "rsa": "rsa: Spearman correlation of the two sides' pairwise correlation distances.",
}


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What `saejax report` draws."""

    comparison: Path
    """Directory that `saejax compare` wrote."""
    out: Path
    """HTML file to write."""
    pairs: int = 12
    """Best-paired features to show."""
    examples: int = 3
    """Snippets of text per feature and side."""
    reach: int = 12
    """Tokens of text on either side of a feature's strongest token."""

    def __post_init__(self) -> None:
        """Refuse counts below zero and an `out` that is no file name."""
        for name in ("pairs", "examples", "reach"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} must be 0 or more")
        if self.out.is_dir():
            raise InputError(f"--out {self.out} is a directory; name the HTML file")


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two models, with the runs that its features came from."""

    name: str
    features: FeatureCodes
    store: Store
    sae: Path

    @classmethod
    def open(cls, path: Path) -> "Side":
        """Open a features run and the runs that it was made from."""
        features = FeatureCodes.open(path)
        facts = artifacts.read_finished(path, "features")["facts"]
        store = Store.open(features.store)
        return cls(f"{store.manifest['facts']['model']} {facts['hook']}", features, store, path / facts["sae"])


def report(config: ReportConfig) -> Path:
    """Write the report of a comparison.

    Args:
        config: the comparison, where the file goes, and how much text it shows.

    Returns:
        The HTML file.

    Raises:
        InputError: the comparison or a run that it was made from is absent or unfinished, or its stores were imported
            without their text.
    """
    manifest = artifacts.read_finished(config.comparison, "comparison")
    sides = tuple(Side.open(config.comparison / manifest["facts"][name]) for name in ("x", "y"))
    rows = artifacts.read_json(config.comparison / "result.json")
    with np.load(config.comparison / "draws.npz") as file:
        draws = dict(file)
    full = [row for row in rows if row["pairs"] == "all"]
    curves = {side.name: artifacts.read_metrics(side.sae) for side in sides}
    return write_page(
        config.out,
        "comparison.jinja",
        title="Do two language models share a feature space?",
        names=[side.name for side in sides],
        rows_read=int(sides[0].store.kept.sum()),
        rows=rows,
        differences=artifacts.read_json(config.comparison / "difference.json"),
        arm_names=figures.NAMES,
        permutations=manifest["config"]["permutations"],
        measures_note=" ".join(MEASURE_NOTES[name] for name in manifest["config"]["measures"] if name in MEASURE_NOTES),
        nulls=[figures.null_histogram(row, draws[f"{row['arm']}/{row['measure']}"]) for row in full],
        matched=figures.matched_effects(rows, draws),
        training=[
            figures.training_curves(curves, "fvu", "Reconstruction while training", "FVU"),
            figures.training_curves(curves, "dead", "Dead latents while training", "latents"),
        ],
        health=health_lines([artifacts.read_json(side.sae / "health.json") for side in sides]),
        pairs=best_pairs(config, sides),
        facts=provenance(manifest, sides),
    )


def best_pairs(config: ReportConfig, sides: tuple[Side, ...]) -> list[dict[str, Any]]:
    """Return the pairs with the largest correlation, each side with the text that fires it."""
    with np.load(config.comparison / "pairs_sae.npz") as file:
        x_ids, y_ids, correlation = (file[name] for name in ("x_ids", "y_ids", "correlation"))
    best = np.argsort(-correlation, kind="stable")[: config.pairs]
    ids = (x_ids[best], y_ids[best])
    windows, documents = [], set()
    for side, features in zip(sides, ids, strict=True):
        top = side.features.top_examples(features, config.examples)
        windows.append([windows_around(side.store, rows.tolist(), config.reach) for rows in top.rows])
        documents |= {window.document for found in windows[-1] for window in found}
    texts = texts_of(corpus_of(sides[0].store), documents)
    rates = [side.features.statistics()["firing_rate"] for side in sides]
    shown = []
    for index, pair in enumerate(best):
        shown.append({"x": int(ids[0][index]), "y": int(ids[1][index]), "correlation": float(correlation[pair])})
        shown[-1]["sides"] = [
            {
                "feature": int(features[index]), "rate": float(rate[features[index]]),
                "snippets": snippets(side.features, side.store, texts, int(features[index]), found[index]),
            }
            for side, features, rate, found in zip(sides, ids, rates, windows, strict=True)
        ]  # fmt: skip
    return shown


def health_lines(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Lay the health tables of both SAEs side by side, one line per metric."""
    lines = []
    for cells in zip(*tables, strict=True):
        first = cells[0]
        advice = dict.fromkeys(cell["advice"] for cell in cells if cell["advice"])
        shown = [{"value": _number(cell["value"]), "verdict": _verdict_class(cell["verdict"])} for cell in cells]
        lines.append({
            "metric": first["metric"], "unit": first["unit"], "cells": shown, "advice": "; ".join(advice),
            "healthy": _interval(first["low"], first["high"]),
        })  # fmt: skip
    return lines


def provenance(manifest: dict[str, Any], sides: tuple[Side, ...]) -> list[tuple[str, str]]:
    """Return what a reader needs to make the same numbers again."""
    config = manifest["config"]
    facts = [
        ("comparison", f"method {config['method']}, minimum correlation {config['minimum_correlation']}, "
                       f"{config['permutations']:,} random pairings, {config['subsamples']} subsets of "
                       f"{config['subsample_permutations']:,}, {config['replicates']} halves, documents drawn anew "
                       f"{config['document_replicates']} times, seed {config['seed']}"),
        ("made", f"{manifest['finished']} by saejax {manifest['saejax']}"),
    ]  # fmt: skip
    for side in sides:
        store, sae = side.store.manifest, artifacts.read_manifest(side.sae)
        model, revision, weights = (store["facts"][key] for key in ("model", "revision", "model_fingerprint"))
        facts += [
            (f"{side.name}: model", f"{model}, revision {revision or 'not known'}, weights sha256 {weights}"),
            (f"{side.name}: text", f"{store['config']['corpus']}, {store['facts']['rows']:,} tokens"),
            (f"{side.name}: SAE", ", ".join(f"{key} {value}" for key, value in sae["config"].items())),
        ]
    return facts


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _verdict_class(verdict: str | None) -> str:
    return {None: "", "healthy": "healthy"}.get(verdict, "outside")


def _interval(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
