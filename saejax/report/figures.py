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
POINTS = 300  # of a curve on a logarithmic axis

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
    return {"data": data, "layout": _names_beside(layout) if len(curves) > len(SIDE_COLOURS) else layout}


def pareto(points: list[tuple[str, str, float, float]]) -> Figure:
    """Draw what SAEs leave unexplained against how many latents they use, with a line through the best.

    Args:
        points: name, what sets its sparsity, L0 and FVU of each SAE; equal ones of the second share a colour.

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
    kinds = dict.fromkeys(kind for _, kind, _, _ in points)
    for kind, colour in zip(kinds, itertools.cycle(SEED_COLOURS), strict=False):
        alike = [point for point in points if point[1] == kind]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": kind, "x": [point[2] for point in alike],
                "y": [point[3] for point in alike], "text": [point[0] for point in alike],
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


def over_layers(values: dict[str, float | None], title: str, unit: str) -> Figure:
    """Draw one number of several hooks over the layers of their model, a line for each kind of hook.

    Args:
        values: the number by hook; None where it does not exist.
        title: what it is.
        unit: its unit, for the axis.

    Returns:
        The figure.
    """
    lines: dict[str, dict[str, float | None]] = {}
    for hook, value in values.items():
        kind, _, layer = hook.rpartition(".")
        kind, place = (kind, layer) if layer.isdecimal() else (hook, hook)
        lines.setdefault(kind, {})[place] = value
    layers = sorted({place for line in lines.values() for place in line if place.isdecimal()}, key=int)
    outside = [kind for kind, line in lines.items() if kind in line]  # hooks of no layer
    places = [*(hook for hook in outside if hook == "embed"), *layers, *(hook for hook in outside if hook != "embed")]
    data = []
    for (kind, line), colour in zip(lines.items(), itertools.cycle(SEED_COLOURS), strict=False):
        along = [place for place in places if place in line]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": kind, "x": along, "y": [line[place] for place in along],
            "line": {"color": colour, "width": 2}, "marker": {"size": 8},
        })  # fmt: skip
    layout = {**_layout(title, "layer", unit), "showlegend": True}
    layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": places}
    return {"data": data, "layout": _names_beside(layout) if len(lines) > len(SIDE_COLOURS) else layout}


def spectrum(eigenvalues: np.ndarray) -> Figure:
    """Draw the eigenvalues of a covariance and the share of the variance that the first of them hold.

    Args:
        eigenvalues: the largest first, `[d_model]`; those that rounding makes are left out.

    Returns:
        The figure.
    """
    above_rounding = eigenvalues > eigenvalues[0] * len(eigenvalues) * np.finfo(np.float64).eps
    number = np.unique(np.geomspace(1, len(eigenvalues), POINTS).astype(int))
    number = number[above_rounding[number - 1]]
    held = np.cumsum(eigenvalues)[number - 1] / eigenvalues.sum() if len(number) else number
    line = {"type": "scatter", "mode": "lines", "x": number.tolist()}
    data = [
        {**line, "name": "eigenvalue", "y": _short(eigenvalues[number - 1]), "line": {"color": SIDE_COLOURS[0]}},
        {**line, "name": "share held", "y": _short(held), "yaxis": "y2", "line": {"color": SIDE_COLOURS[1]}},
    ]
    layout = {**_layout("Spectrum of the covariance", "component", "eigenvalue"), "showlegend": True}
    layout["xaxis"]["type"] = "log"
    layout["yaxis"] |= {"type": "log", "exponentformat": "power"}
    layout["yaxis2"] = {
        "title": {"text": "share of the variance held", "standoff": 8}, "overlaying": "y", "side": "right",
        "range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1], "showgrid": False,
    }  # fmt: skip
    layout["margin"] |= {"r": 64}
    return {"data": data, "layout": layout}


def dimensions(values: np.ndarray, outliers: np.ndarray, title: str) -> Figure:
    """Draw a number of every dimension, with the outlier dimensions marked.

    Args:
        values: the number, `[d_model]`.
        outliers: outlier dimensions.
        title: what it is.

    Returns:
        The figure.
    """
    dots = {"type": "scatter", "mode": "markers", "hovertemplate": "dimension %{x}: %{y}<extra></extra>"}
    data = [
        {
            **dots, "name": "dimensions", "x": list(range(len(values))), "y": _short(values),
            "marker": {"color": SIDE_COLOURS[0], "size": 4, "opacity": 0.6},
        },
        {
            **dots, "name": "outlier dimensions", "x": outliers.tolist(), "y": _short(values[outliers]),
            "marker": {"color": COLOURS["raw"], "size": 9, "symbol": "diamond"},
        },
    ]  # fmt: skip
    return {"data": data, "layout": {**_layout(title, "dimension", "activation units"), "showlegend": True}}


def norm_histogram(counts: np.ndarray, edges: np.ndarray, median: float) -> Figure:
    """Draw how the norms of rows are distributed, with their median marked; both axes are logarithmic.

    Args:
        counts: rows in each bin, `[bins]`.
        edges: the bins' edges, `[bins + 1]`.
        median: the median norm.

    Returns:
        The figure.
    """
    bars = {
        "type": "bar", "x": _short((edges[:-1] + edges[1:]) / 2), "y": counts.tolist(), "width": _short(np.diff(edges)),
        "marker": {"color": NULL_COLOUR}, "hovertemplate": "about %{x:.4g}: %{y} rows<extra></extra>",
    }  # fmt: skip
    layout = {**_layout("Norms of the rows", "norm, activation units", "rows"), "showlegend": False}
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"type": "log", "nticks": 6}
    if median > 0:
        layout["shapes"] = [{"type": "line", "xref": "x", "yref": "paper", "x0": median, "x1": median, "y0": 0, "y1": 1,
                             "line": {"color": SIDE_COLOURS[0], "width": 2}}]  # fmt: skip
        layout["annotations"] = [{"x": math.log10(median), "y": 1.0, "xref": "x", "yref": "paper", "showarrow": False,
                                  "yanchor": "bottom", "text": f"median {median:.4g}",
                                  "font": {"color": SIDE_COLOURS[0]}}]  # fmt: skip
    return {"data": [bars], "layout": layout}


def _short(values: np.ndarray) -> list[float]:
    """Return what a figure can show of numbers, five digits: a page of many hooks stays small."""
    return [float(f"{value:.5g}") for value in values]


def _names_beside(layout: dict[str, Any]) -> dict[str, Any]:
    """Name what is drawn beside the figure, where it is more than fits beside the title."""
    return {**layout, "legend": {"orientation": "v", "x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}}


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
