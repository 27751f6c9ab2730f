"""What the null means that a published study saved say of its SVCCA.

"Quantifying feature space universality across large language models via sparse autoencoders" (Lan et al., 2024) holds
paired decoder rows against random pairings, by an SVCCA that should keep 99 % of the variance: hundreds of components.
Random pairings by so many score far above 0, as Wachter's law says. By one component they score the mean absolute
correlation of two random vectors, sqrt(2 / (pi (n - 1))). The null means saved in the study's notebooks follow the
second curve over four orders of magnitude of n: one component was kept.

    python scripts/published_nulls.py

writes the figure and prints, last, the mean ratio of what was saved to either law, as JSON.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import plotly.graph_objects
import tyro

from saejax import artifacts
from saejax.similarity.wachter import mean_absolute_correlation, wachter_mean_correlation

COLOURS = ("#2456b8", "#c2571a", "#158466", "#8a4fbd", "#6b7280")


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the saved null means are, and what they should have been."""

    saved: Path = Path(__file__).parents[1] / "tests" / "nulls" / "published_nulls.json"
    """List of objects with study, n (pairs) and null_mean."""
    components: tuple[int, int] = (500, 750)
    """Components that carry 99 % of the variance of decoder rows 512 and 768 wide."""
    fewest: int = 12
    """Pairs below which a cell is left out."""
    out: Path = Path("runs/published_nulls.html")
    """The figure."""


def ratios(saved: list[dict], config: Config) -> dict[str, dict[str, float]]:
    """Return by study the mean ratio of saved null means to those of one component and of many."""
    found = {}
    for study in dict.fromkeys(row["study"] for row in saved):
        rows = [row for row in saved if row["study"] == study and row["n"] >= config.fewest]
        one = [row["null_mean"] / mean_absolute_correlation(row["n"]) for row in rows]
        many = [row["null_mean"] / _many(row["n"], config.components) for row in rows]
        found[study] = {
            "cells": len(rows), "to_one_component": float(np.mean(one)), "to_many_components": float(np.mean(many)),
        }  # fmt: skip
    return found


def figure(saved: list[dict], config: Config) -> plotly.graph_objects.Figure:
    """Return saved null means against n, with both laws."""
    drawn = plotly.graph_objects.Figure()
    for study, colour in zip(dict.fromkeys(row["study"] for row in saved), COLOURS, strict=True):
        rows = [row for row in saved if row["study"] == study and row["n"] >= config.fewest]
        drawn.add_scatter(
            x=[row["n"] for row in rows], y=[row["null_mean"] for row in rows], mode="markers", name=study,
            marker={"color": colour, "size": 6, "opacity": 0.7},
        )  # fmt: skip
    n = np.unique(np.geomspace(config.fewest, 30_000, 120).astype(int))
    kx, ky = config.components
    for name, law, dash in (
        ("one component: sqrt(2 / (pi (n - 1)))", [mean_absolute_correlation(int(each)) for each in n], "solid"),
        (f"{kx} and {ky} components: Wachter's law", [_many(int(each), config.components) for each in n], "dash"),
    ):
        drawn.add_scatter(x=n, y=law, mode="lines", name=name, line={"color": "#111827", "dash": dash, "width": 2})
    drawn.update_xaxes(title_text="pairs", type="log").update_yaxes(title_text="null mean of SVCCA", type="log")
    title = "Published null means of SVCCA follow the law of one component"
    return drawn.update_layout(template="plotly_white", width=1000, height=620, title=title)


def _many(n: int, components: tuple[int, int]) -> float:
    """Return the null mean by as many components, or as many as n pairs have."""
    kx, ky = (min(each, n - 1) for each in components)
    return wachter_mean_correlation(kx, ky, n)


def main(config: Config) -> None:
    """Draw the figure and print the ratios."""
    saved = json.loads(config.saved.read_text())
    config.out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(config.out, figure(saved, config).to_html(include_plotlyjs=True).encode())
    print(config.out)
    print(json.dumps(ratios(saved, config)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
