from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from saejax.report import figures

ROW = {"arm": "sae", "pairs": "all", "n": 90, "measure": "rsa", "observed": 0.4, "z": 31.0, "p_value": 0.01}


def plotted(figure: figures.Figure) -> Any:
    """Let Plotly check the specification and read it back."""
    return go.Figure(figure)


def test_a_histogram_holds_every_draw_and_shows_the_paired_score() -> None:
    draws = np.random.default_rng(0).normal(0, 0.02, 500)
    drawn = plotted(figures.null_histogram(ROW, draws))
    assert sum(drawn.data[0].y) == 500
    assert drawn.layout.shapes[0].x0 == drawn.layout.shapes[0].x1 == 0.4
    low, high = drawn.layout.xaxis.range
    assert low < draws.min()
    assert high > 0.4
    assert "z = 31.0" in drawn.layout.title.text


def test_an_undefined_z_is_said_and_not_drawn() -> None:
    drawn = plotted(figures.null_histogram({**ROW, "z": None}, np.full(9, 0.4)))
    assert "z undefined" in drawn.layout.title.text


def test_arms_are_drawn_at_the_smallest_n_only() -> None:
    rows = [
        ROW, {**ROW, "arm": "raw", "n": 40, "z": 12.0}, {**ROW, "n": 40, "pairs": "3 subsets", "z": 9.0},
    ]  # fmt: skip
    drawn = plotted(figures.matched_effects(rows, {"sae/rsa/subset_z": np.array([8.0, 9.0, 10.0])}))
    by_arm = {trace.legendgroup: list(trace.y) for trace in drawn.data}
    assert by_arm == {"raw": [12.0], "sae": [8.0, 9.0, 10.0]}


def test_curves_keep_the_order_and_names_of_the_saes() -> None:
    curves = {"a": [{"step": 50, "fvu": 0.3}, {"step": 100, "fvu": 0.2}], "b": [{"step": 50, "fvu": 0.4}]}
    drawn = plotted(figures.training_curves(curves, "fvu", "FVU", "share"))
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in drawn.data] == [
        ("a", [50, 100], [0.3, 0.2]), ("b", [50], [0.4]),
    ]  # fmt: skip


def test_the_line_of_a_pareto_figure_joins_what_no_other_beats() -> None:
    points = [
        ("a", "k 8", 8.0, 0.3),
        ("b", "k 8", 7.9, 0.35),
        ("c", "k 16, L1 2", 15.0, 0.2),
        ("d", "k 16, L1 2", 15.5, 0.31),
        ("e", "k 16, L1 2", 16.0, 0.1),
    ]
    drawn = plotted(figures.pareto(points))
    assert list(drawn.data[0].x) == [7.9, 8.0, 15.0, 16.0]
    assert list(drawn.data[0].y) == [0.35, 0.3, 0.2, 0.1]
    assert [trace.name for trace in drawn.data[1:]] == ["k 8", "k 16, L1 2"]
    assert list(drawn.data[2].text) == ["c", "d", "e"]


@pytest.mark.parametrize(("count", "orientation"), [(2, "h"), (6, "v")])
def test_the_names_of_many_curves_stand_beside_them(count: int, orientation: str) -> None:
    curves = {f"sae{n}": [{"step": 50, "fvu": 0.5}, {"step": 100, "fvu": 0.4}] for n in range(count)}
    drawn = plotted(figures.training_curves(curves, "fvu", "FVU", "FVU"))
    assert [trace.name for trace in drawn.data] == list(curves)
    assert drawn.layout.legend.orientation == orientation


def test_hooks_stand_in_the_order_of_a_forward_pass_with_a_line_for_each_kind() -> None:
    values = {"final_norm": 5.0, "resid_post.10": 4.0, "resid_post.2": None, "embed": 1.0, "mlp_out.2": 2.0}
    drawn = plotted(figures.over_layers(values, "RMS", "units"))
    assert list(drawn.layout.xaxis.categoryarray) == ["embed", "2", "10", "final_norm"]
    assert {trace.name: (list(trace.x), list(trace.y)) for trace in drawn.data} == {
        "final_norm": (["final_norm"], [5.0]), "resid_post": (["2", "10"], [None, 4.0]),
        "embed": (["embed"], [1.0]), "mlp_out": (["2"], [2.0]),
    }  # fmt: skip


def test_a_spectrum_is_drawn_down_to_what_rounding_makes() -> None:
    eigenvalues = np.array([8.0, 4.0, 2.0, 2.0, 1e-16, 0.0])
    drawn = plotted(figures.spectrum(eigenvalues))
    assert [list(trace.x) for trace in drawn.data] == [[1, 2, 3, 4]] * 2
    assert list(drawn.data[0].y) == [8, 4, 2, 2]
    assert list(drawn.data[1].y) == [0.5, 0.75, 0.875, 1]
    assert not plotted(figures.spectrum(np.zeros(6))).data[0].x


def test_a_spectrum_of_many_eigenvalues_is_drawn_by_a_few_hundred() -> None:
    drawn = plotted(figures.spectrum(1 / np.arange(1, 20_001)))
    assert len(drawn.data[0].x) <= figures.POINTS
    assert (drawn.data[0].x[0], drawn.data[0].x[-1]) == (1, 20_000)


def test_outlier_dimensions_are_marked_where_they_are() -> None:
    drawn = plotted(figures.dimensions(np.array([0.1, 9.0, -0.1, -8.0]), np.array([3, 1]), "Mean"))
    assert list(drawn.data[0].y) == [0.1, 9.0, -0.1, -8.0]
    assert (list(drawn.data[1].x), list(drawn.data[1].y)) == ([3, 1], [-8.0, 9.0])


def test_bars_of_norms_stand_between_their_edges_and_the_median_is_marked_at_its_logarithm() -> None:
    edges = np.array([1.0, 10.0, 100.0])
    drawn = plotted(figures.norm_histogram(np.array([3, 4]), edges, 10.0))
    bars = drawn.data[0]
    np.testing.assert_allclose(np.array(bars.x) - np.array(bars.width) / 2, edges[:-1])
    np.testing.assert_allclose(np.array(bars.x) + np.array(bars.width) / 2, edges[1:])
    assert drawn.layout.shapes[0].x0 == 10.0
    assert drawn.layout.annotations[0].x == 1.0
    assert not plotted(figures.norm_histogram(np.array([0, 0]), edges, 0.0)).layout.shapes
