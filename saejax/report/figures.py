"""Figures of a report, as Plotly figure specifications; plain dictionaries, drawn by the page's own script."""

import itertools
import math
from typing import Any

import numpy as np

COLOURS = {"sae": "#2456b8", "raw": "#c2570c"}
SIDE_COLOURS = ("#2456b8", "#0f8a6d")
SEED_COLOURS = (*SIDE_COLOURS, "#c2570c", "#8b3fb0", "#b3261e", "#5b6472")
BIGRAM_COLOUR = "#667080"
NULL_COLOUR = "#b8bec9"
NAMES = {"sae": "SAE features", "raw": "raw neurons"}
BINS = 60

Figure = dict[str, Any]


def null_histogram(row: dict[str, Any], draws: np.ndarray) -> Figure:
    """Draw one null with the paired score marked.

    Args:
        row: a row of `result.json` that used all pairs of an arm.
        draws: its null scores, `[permutations]`.

    Returns:
        The figure.
    """
    counts, edges = np.histogram(draws, bins=BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    colour = COLOURS[row["arm"]]
    bars = {
        "type": "bar", "x": centres.tolist(), "y": counts.tolist(), "width": float(edges[1] - edges[0]),
        "marker": {"color": NULL_COLOUR}, "name": "random pairings", "hovertemplate": "%{x:.4f}: %{y}<extra></extra>",
    }  # fmt: skip
    line = {
        "type": "line", "xref": "x", "yref": "paper", "x0": row["observed"], "x1": row["observed"], "y0": 0, "y1": 1,
        "line": {"color": colour, "width": 3},
    }  # fmt: skip
    label = {
        "x": row["observed"], "y": 1.0, "xref": "x", "yref": "paper", "showarrow": False, "yanchor": "bottom",
        "xanchor": "right" if row["observed"] > draws.mean() else "left",
        "text": f"paired {row['observed']:.4f}", "font": {"color": colour},
    }  # fmt: skip
    z = "z undefined" if row["z"] is None else f"z = {row['z']:.1f}"
    title = f"{NAMES[row['arm']]}, {row['measure']}, n = {row['n']}: {z}, p = {row['p_value']:.2g}"
    low, high = min(draws.min(), row["observed"]), max(draws.max(), row["observed"])
    margin = 0.06 * (high - low)
    layout = _layout(title, row["measure"], "random pairings")
    layout["xaxis"]["range"] = [float(low - margin), float(high + margin)]
    return {"data": [bars], "layout": {**layout, "shapes": [line], "annotations": [label], "showlegend": False}}


def matched_effects(rows: list[dict[str, Any]], draws: dict[str, np.ndarray]) -> Figure:
    """Draw z of both arms at the same number of pairs: a box of subsets beside the smaller arm's one value.

    Args:
        rows: the rows of `result.json`.
        draws: arrays of `draws.npz`.

    Returns:
        The figure.
    """
    subsets = {row["arm"] for row in rows if row["pairs"] != "all"}
    smallest = min(row["n"] for row in rows)
    data: list[dict[str, Any]] = []
    for row in rows:
        if row["n"] != smallest:
            continue
        first = row["arm"] not in {trace["legendgroup"] for trace in data}
        shared = {"legendgroup": row["arm"], "name": NAMES[row["arm"]], "showlegend": first,
                  "marker": {"color": COLOURS[row["arm"]], "size": 9}}  # fmt: skip
        if row["arm"] in subsets:
            z = draws[f"{row['arm']}/{row['measure']}/subset_z"].tolist()
            data.append({"type": "box", "x": [row["measure"]] * len(z), "y": z, "boxpoints": "all", **shared})
        else:
            data.append({"type": "scatter", "mode": "markers", "x": [row["measure"]], "y": [row["z"]], **shared})
    layout = _layout(f"Both arms at n = {smallest} pairs", "", "z against random pairings")
    return {"data": data, "layout": {**layout, "showlegend": True}}


def training_curves(curves: dict[str, list[dict[str, Any]]], key: str, title: str, unit: str) -> Figure:
    """Draw one logged quantity of each SAE over its training.

    Args:
        curves: lines of each SAE's `metrics.jsonl`, by the SAE's name.
        key: the quantity.
        title: what it is.
        unit: its unit, for the axis.

    Returns:
        The figure.
    """
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": [line["step"] for line in lines],
            "y": [line[key] for line in lines], "line": {"color": colour, "width": 2},
        }
        for (name, lines), colour in zip(curves.items(), itertools.cycle(SEED_COLOURS), strict=False)
    ]  # fmt: skip
    layout = {**_layout(title, "step", unit), "showlegend": True}
    if len(curves) > len(SIDE_COLOURS):  # more than fit beside the title
        layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}
    return {"data": data, "layout": layout}


def pareto(points: list[tuple[str, int, float, float]]) -> Figure:
    """Draw what SAEs leave unexplained against how many latents they use, with a line through the best.

    Args:
        points: name, k, L0 and FVU of each SAE.

    Returns:
        The figure.
    """
    best, lowest = [], math.inf
    for point in sorted(points, key=lambda point: (point[2], point[3])):
        if point[3] < lowest:
            best.append(point)
            lowest = point[3]
    data = [
        {
            "type": "scatter", "mode": "lines", "name": "not beaten in both", "x": [point[2] for point in best],
            "y": [point[3] for point in best], "line": {"color": BIGRAM_COLOUR, "width": 1.5, "dash": "dash"},
        }
    ]  # fmt: skip
    ks = sorted({k for _, k, _, _ in points})
    for k, colour in zip(ks, itertools.cycle(SEED_COLOURS), strict=False):
        of_k = [point for point in points if point[1] == k]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": f"k {k}", "x": [point[2] for point in of_k],
                "y": [point[3] for point in of_k], "text": [point[0] for point in of_k],
                "marker": {"color": colour, "size": 9},
            }
        )  # fmt: skip
    return {"data": data, "layout": {**_layout("L0 against FVU", "L0, latents", "FVU"), "showlegend": True}}


def losses(
    curves: dict[str, list[dict[str, Any]]], key: str, title: str, bigram: float, *, kept: bool = False
) -> Figure:
    """Draw a loss of each language model against the tokens that it has read.

    Args:
        curves: points with `tokens` and the loss, by the model's name.
        key: name of the loss in them, in nats per token.
        title: what it is.
        bigram: loss of a bigram model on held-out text, a dashed line.
        kept: whether each point is a model that was kept: then points are marked, and tokens spaced by their logarithm.

    Returns:
        The figure.
    """
    data = [
        {
            "type": "scatter", "mode": "lines+markers" if kept else "lines", "name": name,
            "x": [point["tokens"] for point in points], "y": [point[key] for point in points],
            "line": {"color": colour, "width": 2},
        }
        for (name, points), colour in zip(curves.items(), itertools.cycle(SEED_COLOURS), strict=False)
    ]  # fmt: skip
    line = {
        "type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": bigram, "y1": bigram,
        "line": {"color": BIGRAM_COLOUR, "width": 1.5, "dash": "dash"},
    }  # fmt: skip
    label = {
        "xref": "paper", "yref": "y", "x": 1, "y": bigram, "showarrow": False, "xanchor": "right", "yanchor": "bottom",
        "text": f"bigram {bigram:.3f}", "font": {"color": BIGRAM_COLOUR},
    }  # fmt: skip
    layout = _layout(title, "tokens", "nats per token")
    layout["yaxis"]["rangemode"] = "normal"
    layout["xaxis"]["type"] = "log" if kept else "linear"
    return {"data": data, "layout": {**layout, "shapes": [line], "annotations": [label], "showlegend": True}}


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    axis = {"gridcolor": "#e6e8ec", "zeroline": False, "linecolor": "#9aa1ad"}
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0, "xref": "paper"},
        "xaxis": {**axis, "title": {"text": x}}, "yaxis": {**axis, "title": {"text": y}, "rangemode": "tozero"},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#22262e"},
        "margin": {"l": 56, "r": 16, "t": 56, "b": 44}, "height": 300,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "bargap": 0,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    }  # fmt: skip
