"""Cells whose draws go together, and the corrections that are made of them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import Cell, Subspace, grid_test, layer_cells, load_grid
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Told
from saejax.nulls.multiplicity import corrected, step_down
from saejax.nulls.schemes import arrange
from saejax.similarity import Pair

RNG = np.random.default_rng(0)
N = 24
OPTIONS: dict[str, Any] = {"scheme": "uniform", "permutations": 60, "seed": 7}


def overlapping(seed: int, shared: float = 0.0, found: int = 0) -> Iterator[Cell]:
    """Two layers of x against one of y: all pairs, and two subspaces that share a third of them.

    Args:
        seed: of the matrices.
        shared: how much of x is in y.
        found: the pairs for which it is.
    """
    rng = np.random.default_rng(seed)
    x_rows = {layer: rng.normal(size=(N, 4)) for layer in (1, 2)}
    y_rows = {5: rng.normal(size=(N, 3))}
    y_rows[5][:found] += shared * x_rows[1][:found, :3]
    pairs = {(layer, 5): (np.arange(N), np.arange(N)) for layer in x_rows}
    halves = {"low": Subspace(y={5: range(16)}), "high": Subspace(y={5: range(8, N)})}
    return layer_cells(x_rows, y_rows, pairs, halves)


def order_of(cell: Cell, coupled: tuple[str, Any] | None, count: int = 30, scheme: str = "uniform") -> list[list[int]]:
    """Return in which order re-pairings put the features of y, by their ids."""
    told = Told(cell.x_ids, cell.y_ids, None, "refuse", coupled)
    arrangement = arrange(Pair.of(cell.x, cell.y), scheme, told)
    rows = {row.tobytes(): int(each) for row, each in zip(np.asarray(cell.y), np.asarray(cell.y_ids), strict=True)}
    ids = np.array([rows[row.tobytes()] for row in arrangement.pair.y.values])
    perms = arrangement.shuffle.drawn(drawing.key_of(3), drawing.as_indices(0, count))
    return ids[perms].tolist()


def test_a_feature_stands_in_the_same_order_in_every_cell() -> None:
    whole, low, high, *_ = overlapping(0)
    every = order_of(whole, ("y", 5))
    for part in (low, high):
        kept = set(np.asarray(part.y_ids).tolist())
        assert order_of(part, ("y", 5)) == [[each for each in order if each in kept] for order in every]
        assert order_of(part, ("y", 6)) != order_of(part, ("y", 5))
    shuffled = RNG.permutation(N)
    moved = Cell("moved", np.asarray(whole.x)[shuffled], np.asarray(whole.y)[shuffled], y_ids=shuffled)
    assert order_of(moved, ("y", 5)) == every


def test_features_with_several_partners_draw_alike_too(tmp_path: Path) -> None:
    """As units of scheme collapse, whatever partners they have in a cell; one-to-one pairs as either side's."""
    rng = np.random.default_rng(3)
    y, of_row = rng.normal(size=(9, 4)), rng.permutation(np.repeat(np.arange(9), [4, 3, 3, 2, 1, 1, 1, 1, 1]))
    whole = Cell("whole", rng.normal(size=(17, 3)), y[of_row], y_ids=of_row, y_set=5)
    kept = np.flatnonzero(np.isin(of_row, [0, 2, 3, 5, 8]) & (np.arange(17) != np.flatnonzero(of_row == 0)[0]))
    part = Cell("part", np.asarray(whole.x)[kept], y[of_row[kept]], y_ids=of_row[kept], y_set=5)
    every, some = (order_of(each, ("y", 5), scheme="collapse") for each in (whole, part))
    assert {len(order) for order in every} == {9}
    assert some == [[each for each in order if each in {0, 2, 3, 5, 8}] for order in every]
    single = next(overlapping(0))
    assert order_of(single, ("y", 5), scheme="collapse") == order_of(single, ("y", 5))
    options = {**OPTIONS, "scheme": "collapse", "measures": ["cka", "rsa"]}
    by_max_t = grid_test([whole, part], out=tmp_path / "y", couple="y", correction="max_t", **options)
    assert [record["method"] for record in by_max_t] == ["sampled"] * 4
    by_x = grid_test([whole], out=tmp_path / "x", couple="x", **options)
    assert by_x.failures[0]["error"].startswith("couple 'x': scheme collapse exchanges features of y, each with the")


def test_pairs_stay_together_where_cells_are_coupled(tmp_path: Path) -> None:
    """Scores do not depend on the order of pairs, and draws neither."""
    whole, *_ = overlapping(1)
    order = RNG.permutation(N)
    moved = Cell("moved", np.asarray(whole.x)[order], np.asarray(whole.y)[order], y_ids=order, y_set=5)
    for impl in ("host", "jax"):
        results = grid_test(
            [whole, moved], measures=["cka", "rsa"], out=tmp_path / impl, couple="y", impl=impl, **OPTIONS
        )
        for one, other in itertools.product(results[:2], results[2:]):
            if one["measure"] == other["measure"]:
                assert one["observed"] == pytest.approx(other["observed"], abs=1e-12)
                assert one["exceedances"] == other["exceedances"]
                assert one["exact_sd"] == pytest.approx(other["exact_sd"])
    apart = grid_test([whole], measures=["cka", "rsa"], out=tmp_path / "apart", **OPTIONS)
    assert [each["null_mean"] for each in apart] != [each["null_mean"] for each in results[:2]]


def by_definition(scores: np.ndarray) -> np.ndarray:
    """Westfall and Young's step-down p-values, from statistics `[tests, 1 + m]`, the observed ones first."""
    order = np.argsort(-scores[:, 0], kind="stable")
    p = np.empty(len(scores))
    for step, test in enumerate(order):
        left = scores[order[step:]].max(axis=0)
        p[test] = max(np.mean(left >= scores[test, 0]), *(p[each] for each in order[:step]), 0)
    return p


def test_step_down_follows_its_definition() -> None:
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=(7, 40)).round(1)
        found, largest = step_down(scores[:, 0], lambda place, scores=scores: scores[place, 1:])
        np.testing.assert_allclose(found, by_definition(scores))
        np.testing.assert_array_equal(largest, scores[:, 1:].max(axis=0))


def test_corrections_of_a_grid_follow_their_definitions(tmp_path: Path) -> None:
    """With a distance among the measures, and exact moments of some of them."""
    measures = ["cka_debiased", "procrustes", "rsa", "svcca"]
    results = grid_test(overlapping(2, 0.6, N), measures=measures, out=tmp_path, couple="y", **OPTIONS)
    signs = np.array([1 if each["tail"] == "upper" else -1 for each in results])
    draws = [np.load(tmp_path / each["draws"])[each["measure"]] for each in results]
    scores = signs[:, None] * np.stack([[each["observed"], *drawn] for each, drawn in zip(results, draws, strict=True)])
    ranks = np.stack([scipy.stats.rankdata(-each, method="max") / 61 for each in scores])
    by_min_p = load_grid(tmp_path).corrected("min_p", 0.9)
    np.testing.assert_allclose([each["p_corrected"] for each in by_min_p], by_definition(-ranks))
    moments = [
        (sign * each["exact_mean"], each["exact_sd"]) if each["exact_sd"] else (row.mean(), row.std())
        for sign, each, row in zip(signs, results, scores, strict=True)
    ]
    assert len({each["exact_sd"] is None for each in results}) == 2
    z = np.stack([(row - mean) / sd for row, (mean, sd) in zip(scores, moments, strict=True)])
    by_max_t = results.corrected("max_t")
    np.testing.assert_allclose([each["p_corrected"] for each in by_max_t], by_definition(z))
    assert {each["p_floor"] for each in by_max_t} == {1 / 61}
    assert "p corrected by max_t over 24 results; one alone could reach 0.016" in str(by_max_t)
    alone = np.sum(ranks[:, 1:].min(axis=0) <= 1 / 61)
    assert {each["p_floor"] for each in by_min_p} == {(1 + alone) / 61}


def quadratic_scores(cell: Cell, seed: int, m: int) -> Iterator[np.ndarray]:
    """Yield the observed and the null scores of a coupled cell by two correlations: of products, and of their ranks."""
    arrangement = arrange(Pair.of(cell.x, cell.y), "uniform", Told(cell.x_ids, cell.y_ids, None, "refuse", ("y", 5)))
    perms = arrangement.shuffle.drawn(drawing.key_of(seed), drawing.as_indices(0, m)).astype(int)
    perms = np.concatenate([np.arange(arrangement.pair.n)[None], perms])
    above = np.triu_indices(arrangement.pair.n, 1)
    for kind in (lambda values: values, lambda values: scipy.stats.rankdata(values)):
        sides = []
        for _, side in arrangement.pair.sides:
            matrix = np.zeros((arrangement.pair.n,) * 2)
            matrix[above] = scipy.stats.zscore(kind((side.centred @ side.centred.T)[above]))
            sides.append(matrix + matrix.T)
        yield np.array([np.vdot(sides[0], sides[1][np.ix_(perm, perm)]) for perm in perms]) / 2 / len(above[0])


def simulated(families: int, **planted: Any) -> dict[str, np.ndarray]:
    """Return corrected p-values `[families, tests]` by correction."""
    found: dict[str, list[list[float]]] = {"holm": [], "min_p": [], "max_t": []}
    same = {"permutations": 199, "first": 0, "method": "sampled", "tail": "upper", "exact_sd": None, "z": 1.0}
    for seed in range(families):
        scores = [each for cell in overlapping(seed, **planted) for each in quadratic_scores(cell, seed, 199)]
        records = [
            {**same, "seed": seed, "place": place, "observed": each[0], "p_value": np.mean(each >= each[0] - 1e-12)}
            for place, each in enumerate(scores)
        ]
        for correction, ps in found.items():
            by = corrected(records, correction, 0.99, lambda record, scores=scores: scores[record["place"]][1:])
            ps.append([each["p_corrected"] for each in by])
    return {correction: np.array(ps) for correction, ps in found.items()}


def test_family_wise_error_on_nested_and_overlapping_cells() -> None:
    """Twelve tests of nothing: any false rejection at level .1 in at most a tenth of the families."""
    for correction, ps in simulated(100).items():
        rejected = int(np.sum(ps.min(axis=1) <= 0.1))
        assert scipy.stats.binomtest(rejected, 100, 0.1, alternative="greater").pvalue > 1e-3, correction
        if correction == "max_t":
            assert scipy.stats.binomtest(rejected, 100, 0.1, alternative="less").pvalue > 1e-3


def test_what_is_there_is_found_more_often_and_the_rest_stays_below_the_level() -> None:
    """The first layer has something in all its cells, the second nothing in any."""
    found = simulated(40, shared=0.5, found=N)
    power = {correction: np.mean(ps[:, :6] <= 0.1) for correction, ps in found.items()}
    assert power["max_t"] > power["holm"] + 0.02
    assert power["min_p"] >= power["holm"]
    for ps in found.values():
        false = int(np.sum(ps[:, 6:].min(axis=1) <= 0.1))
        assert scipy.stats.binomtest(false, 40, 0.1, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"couple": "z"}, "couple 'z' must be one of x, y"),
        ({"correction": "max_t"}, "correction max_t needs draws that go together in all cells; score the grid with"),
        ({"correction": "max-t"}, "correction 'max-t' is unknown; choose one of holm, benjamini_hochberg, min_p, max"),
        ({"correction": "holm", "level": 2.0}, "level 2.0 must lie between 0 and 1"),
        (
            {"correction": "holm", "permutations": 99},
            "permutations 99 cannot reach level 0.05 over 6 results: the smallest p after holm is 0.06; draw at least "
            "119",
        ),
        (
            {"correction": "max_t", "couple": "y", "permutations": 9},
            "permutations 9 cannot reach level 0.05 over 6 results: the smallest p after max_t is 0.1; draw at least "
            "19",
        ),
    ],
)  # fmt: skip
def test_what_could_not_be_corrected_is_refused_before_any_work(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        grid_test(list(overlapping(0)), measures=["cka"], out=tmp_path / "run", **{**OPTIONS, **options})
    assert not (tmp_path / "run").exists()


def test_a_correction_over_one_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^correction holm over 1 result\(s\) corrects nothing"):
        grid_test([next(overlapping(0))], measures=["cka"], out=tmp_path, correction="holm", **OPTIONS)


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (Cell("a", RNG.normal(size=(9, 3)), RNG.normal(size=(9, 3))), {}, "couple 'y' needs y_ids: features that"),
        (
            Cell("a", RNG.normal(size=(9, 3)), RNG.normal(size=(9, 3)), y_ids=[0, 0, *range(7)]),
            {"duplicates": "accept"}, "couple 'y': y_ids names feature 0 for rows 0 and 1; coupled cells have each",
        ),
        (
            Cell("a", RNG.normal(size=(9, 3)), RNG.normal(size=(9, 3)), row_labels=list(range(9))),
            {"scheme": "stimulus"}, "couple 'y' has no meaning under scheme stimulus; choose one of uniform, coll",
        ),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_coupled_are_reported(
    cell: Cell, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    results = grid_test([cell], measures=["cka"], out=tmp_path, couple="y", **{**OPTIONS, **options})
    assert [failure["error"].startswith(message) for failure in results.failures] == [True]


def test_sequential_results_have_no_min_p() -> None:
    """Each stopped at a draw of its own, so draws do not go together."""
    record = {"p_value": 0.1, "permutations": 99, "seed": 0, "first": 0, "method": "sequential"}
    with pytest.raises(InputError, match="^correction max_t needs the same sampled re-pairings of all results"):
        corrected([record, record], "max_t", draws=lambda record: np.zeros(99))
