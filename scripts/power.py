"""How many pairs does a study need? A figure of the power of each measure against the number of pairs.

    python scripts/power.py

simulates pairings of which a share matches, up to a rotation and noise (`saejax.nulls.simulate_power`), for every
number of pairs, and draws one panel for every share (some minutes on two cores). Rows that spread over more
directions, or match with more noise, need more pairs: give --dx, --dy and --noise. The last line is JSON: by share and
measure, the fewest of these pairs at which power reaches .8.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import plotly.graph_objects
import plotly.subplots
import tyro

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls import Power, simulate_power

COLOURS = ("#2456b8", "#c2571a", "#158466", "#8a4fbd", "#6b7280", "#b8244c", "#8c7300")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is simulated, and where the figure goes."""

    measures: tuple[str, ...] = (
        "cka_debiased", "svcca:components=20", "rsa", "procrustes", "linear_regression", "knn_jaccard",
        "soft_correlation_match",
    )  # fmt: skip
    """Measures, each a curve."""
    n: tuple[int, ...] = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    """Numbers of pairs."""
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """Shares of the pairs that match, each a panel."""
    noise: float = 1.0
    """Standard deviation of the noise in what matches, over that of what matches."""
    dx: int = 64
    """Width of x: the directions that hold most of the variance of its rows."""
    dy: int = 96
    """Width of y."""
    level: float = 0.05
    """A match is seen when p is at most this."""
    pairings: int = 100
    """Simulated pairings of each point."""
    seed: int = 0
    """Seed of all chance."""
    out: Path = Path("runs/power.html")
    """The figure."""


def curve(measure: str, fraction: float, config: Config) -> list[Power]:
    """Return the power of a measure at every number of pairs that it can score."""
    found = []
    for n in config.n:
        try:
            found += simulate_power(
                measures=[measure], n=n, dx=config.dx, dy=config.dy, fraction=fraction, noise=config.noise,
                level=config.level, pairings=config.pairings, seed=config.seed,
            )  # fmt: skip
        except InputError as error:
            print(f"{measure}, n = {n}: {error}")
    return found


def figure(curves: dict[float, dict[str, list[Power]]], config: Config) -> plotly.graph_objects.Figure:
    """Return power against pairs, a panel for each share of pairs that match."""
    titles = [f"{fraction:.0%} of the pairs match" for fraction in curves]
    drawn = plotly.subplots.make_subplots(rows=1, cols=len(curves), subplot_titles=titles, shared_yaxes=True)
    for column, by_measure in enumerate(curves.values(), 1):
        for (measure, points), colour in zip(by_measure.items(), itertools.cycle(COLOURS), strict=False):
            drawn.add_scatter(
                x=[each.n for each in points], y=[each.power for each in points], mode="lines+markers", name=measure,
                legendgroup=measure, showlegend=column == 1, line={"color": colour}, row=1, col=column,
                error_y={
                    "type": "data", "symmetric": False, "thickness": 0.7, "width": 0,
                    "array": [each.high - each.power for each in points],
                    "arrayminus": [each.power - each.low for each in points],
                },
            )  # fmt: skip
        drawn.add_hline(y=0.8, line_dash="dot", line_color="#9ca3af", row=1, col=column)  # type: ignore[arg-type]
        drawn.update_xaxes(title_text="pairs", type="log", dtick="D2", row=1, col=column)
    drawn.update_yaxes(title_text=f"power at level {config.level:g}", range=[0, 1.02], row=1, col=1)
    title = f"Power to see a rotated match; {config.dx} and {config.dy} directions, noise {config.noise:g}"
    return drawn.update_layout(template="plotly_white", width=340 * len(curves) + 200, height=520, title=title)


def main(config: Config) -> None:
    """Simulate, draw the figure and print how many pairs are enough."""
    curves = {each: {name: curve(name, each, config) for name in config.measures} for each in config.fractions}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_bytes(config.out, figure(curves, config).to_html(include_plotlyjs=True).encode())
    print(config.out)
    enough = {
        f"{fraction:g}": {
            name: min((each.n for each in points if each.power >= 0.8), default=None)
            for name, points in by_measure.items()
        }
        for fraction, by_measure in curves.items()
    }
    print(json.dumps(enough))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
