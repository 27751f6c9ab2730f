"""Nulls under each scheme, against every re-pairing that the scheme allows, scored by the measures' definitions."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import Cell, exact_test, grid_test, permutation_test
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Told
from saejax.nulls.budget import Impl
from saejax.nulls.schemes import arrange
from saejax.similarity import MEASURES, Pair, find_measure

pytestmark = pytest.mark.slow

IMPLS: list[Impl] = ["host", "jax"]
NAMES = ["svcca", "rsa", "cka_debiased", "procrustes", "knn_jaccard:k=2"]


def matrices(n: int, shared: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 4))
    y[:, :3] += shared * x
    return x, y


X, Y = matrices(12)
HUBS = np.array([0, 1, 2, 1, 3, 0, 4, 4, 1, 2, 5, 5])
BLOCKS = np.repeat(list("dabc"), 3)[np.random.default_rng(1).permutation(12)]
STRATA = np.array([0, 1, 1, 0, 2, 3, 2, 1, 0, 2, 3, 4])  # 3! 3! 3! 2! 1! re-pairings


def many_to_one() -> tuple[np.ndarray, np.ndarray]:
    """Each of six features of x in one to three pairs, and partners that share something with it."""
    x = np.random.default_rng(3).normal(size=(6, 3))[HUBS]
    y = Y.copy()
    y[:, :3] += 0.5 * x
    return x, y


CASES: dict[str, dict[str, Any]] = {
    "uniform": {"x": X[:5], "y": Y[:5]},
    "collapse": dict(zip("xy", many_to_one(), strict=True)),
    "strata": {"x": X, "y": Y, "row_labels": STRATA},
    "stimulus": {"x": X, "y": Y, "row_labels": STRATA},
    "stimulus_blocks": {"x": X, "y": Y, "row_labels": BLOCKS},
}


def permitted(scheme: str) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """The matrices that a scheme compares, and every re-pairing of them, by going through all orders of the units."""
    case = dict(CASES[scheme])
    x, y, labels = case["x"], case["y"], np.asarray(case.get("row_labels"))
    if scheme == "collapse":
        features = list(dict.fromkeys(HUBS.tolist()))
        x, y = (np.stack([m[HUBS == feature].mean(axis=0) for feature in features]) for m in (x, y))
    if scheme == "stimulus":
        documents = list(dict.fromkeys(labels.tolist()))
        x, y = (np.stack([m[labels == document].mean(axis=0) for document in documents]) for m in (x, y))
    if scheme == "stimulus_blocks":
        rows = [np.flatnonzero(labels == document) for document in dict.fromkeys(labels.tolist())]
        order = np.concatenate(rows)
        block = [list(range(3 * place, 3 * place + 3)) for place in range(4)]
        return x[order], y[order], [sum((block[p] for p in perm), []) for perm in itertools.permutations(range(4))]
    if scheme == "strata":
        rows = [np.flatnonzero(labels == stratum) for stratum in range(5)]
        found = []
        for orders in itertools.product(*(itertools.permutations(stratum) for stratum in rows)):
            perm = np.arange(len(x))
            for stratum, order in zip(rows, orders, strict=True):
                perm[stratum] = order
            found.append(perm.tolist())
        return x, y, found
    return x, y, [list(perm) for perm in itertools.permutations(range(len(x)))]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scheme", CASES)
def test_p_of_a_list_is_the_share_of_all_re_pairings(scheme: str, impl: Impl) -> None:
    x, y, perms = permitted(scheme)
    results = permutation_test(
        **CASES[scheme], measures=NAMES, scheme=scheme, permutations=1000, seed=0, impl=impl, batch=50
    )
    for result, name in zip(results, NAMES, strict=True):
        measure = find_measure(name)
        scores = np.array([measure.reference(x, y[perm]) for perm in perms])
        sign = 1 if measure.larger_is_more_similar else -1
        more_similar = sign * (scores - scores[0])  # than the first, which is as observed
        above, below = float(np.mean(more_similar >= -1e-9)), float(np.mean(more_similar <= 1e-9))
        assert (result.method, result.permutations, result.n) == ("enumerated", len(perms), len(x))
        assert (result.p_value, result.p_low, result.p_high) == pytest.approx((above, above, above), abs=1e-12)
        assert result.p_two_sided == pytest.approx(min(1, 2 * min(above, below)), abs=1e-12)
        assert result.null_mean == pytest.approx(scores.mean(), abs=2e-6)
        assert result.null_sd == pytest.approx(scores.std(), abs=2e-6)
        np.testing.assert_allclose(np.sort(result.draws), np.sort(scores), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scheme", CASES)
def test_draw_i_is_the_definition_on_re_pairing_i(scheme: str, impl: Impl) -> None:
    case = dict(CASES[scheme])
    pair, shuffle, *_ = arrange(Pair.of(case.pop("x"), case.pop("y")), scheme, Told(**case))
    perms = shuffle.drawn(drawing.key_of(5), drawing.as_indices(0, 20))
    for result in permutation_test(
        **CASES[scheme], measures=["svcca", "rsa"], scheme=scheme, permutations=20, seed=5, impl=impl, batch=7
    ):
        measure = MEASURES[result.measure]
        expected = [measure.reference(pair.x.values, pair.y.values[perm]) for perm in perms]
        np.testing.assert_allclose(result.draws, expected, atol=measure.tolerance / 2, rtol=0)
        assert result.method == "sampled"


def test_exact_moments_hold_where_all_re_pairings_are_allowed() -> None:
    """That is, of the rows that a scheme makes: not of pairs within strata, nor of blocks."""
    for scheme, case in CASES.items():
        x, y, perms = permitted(scheme)
        result = permutation_test(**case, measures=["cka"], scheme=scheme, permutations=5, seed=0)[0]
        if scheme in ("strata", "stimulus_blocks"):
            assert (result.exact_mean, result.exact_sd, result.exact_z, result.predicted_mean) == (None,) * 4
            with pytest.raises(InputError, match=f"^measure cka has no exact moments under scheme {scheme}; sample it"):
                exact_test(**case, measures=["cka"], scheme=scheme)
            continue
        scores = np.array([MEASURES["cka"].reference(x, y[perm]) for perm in perms])
        assert result.exact_mean == pytest.approx(scores.mean(), abs=1e-12)
        assert result.exact_sd == pytest.approx(scores.std(), abs=1e-12)
        assert exact_test(**case, measures=["cka"], scheme=scheme)[0].sd == pytest.approx(scores.std(), abs=1e-12)


FOUR = np.array([0, 1, 2, 1, 3, 0, 3, 3, 1])  # clusters of two, three, one and three
MANY = ["svcca", "rsa", "cka", "procrustes", "procrustes_size_and_shape", "linear_regression"]


def four_features(hub_side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rows of four features, nine partners that share something with them, and x and y."""
    rng = np.random.default_rng(5)
    singles, partners = rng.normal(size=(4, 5)), rng.normal(size=(9, 4))
    partners += 0.7 * singles[FOUR][:, :4]
    x, y = singles[FOUR], partners
    return singles, partners, *((x, y) if hub_side == "x" else (y, x))


@pytest.mark.parametrize("hub_side", ["x", "y"])
def test_blocks_deal_rows_to_whole_clusters_and_score_from_nothing(hub_side: str) -> None:
    singles, partners, x, y = four_features(hub_side)
    results = permutation_test(x, y, measures=MANY, scheme="blocks", permutations=24, seed=0)
    assert str(results).splitlines()[-1].startswith("p of 4 units is exact: all 24 re-pairings of scheme blocks")
    for result in results:
        reference = MEASURES[result.measure].reference
        dealt = [singles[list(perm)][FOUR] for perm in itertools.permutations(range(4))]
        scores = np.array([reference(rows, y) if hub_side == "x" else reference(x, rows) for rows in dealt])
        sign = 1 if MEASURES[result.measure].larger_is_more_similar else -1
        assert (result.method, result.rows, result.n, result.units) == ("enumerated", 9, 9, 4)
        np.testing.assert_allclose(np.sort(result.draws), np.sort(scores), rtol=1e-9)
        assert result.observed == pytest.approx(scores[0], rel=1e-9)
        assert result.p_value == float(np.mean(sign * (scores - scores[0]) >= -1e-9))
        assert (result.exact_mean, result.rescored) == (None, 0)
    sampled = permutation_test(x, y, measures=MANY, scheme="blocks", permutations=9, seed=2)
    perms = drawing.on_host(drawing.key_of(2), drawing.as_indices(0, 9), 4)
    for result in sampled:
        reference = MEASURES[result.measure].reference
        dealt = [singles[np.argsort(perm) if hub_side == "x" else perm][FOUR] for perm in perms]
        scores = [reference(rows, y) if hub_side == "x" else reference(x, rows) for rows in dealt]
        np.testing.assert_allclose(result.draws, scores, rtol=1e-9)


def test_blocks_of_equal_clusters_are_the_uniform_null_of_repeated_rows() -> None:
    """Where every feature has as many partners, only the cross term moves."""
    rng = np.random.default_rng(6)
    x, y = np.repeat(rng.normal(size=(6, 3)), 2, axis=0), rng.normal(size=(12, 4))
    blocks = permutation_test(x, y, measures=["cka"], scheme="blocks", permutations=30, seed=1)[0]
    assert blocks.observed == pytest.approx(MEASURES["cka"].reference(x, y), abs=1e-12)
    means = y.reshape(6, 2, 4).mean(axis=1)
    collapsed = permutation_test(x[::2], means, measures=["cka"], scheme="uniform", permutations=30, seed=1)[0]
    assert np.corrcoef(blocks.draws, collapsed.draws)[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("hub_side", ["x", "y"])
def test_representatives_are_scored_as_the_mean_over_random_picks(hub_side: str, impl: Impl) -> None:
    _, partners, x, y = four_features(hub_side)
    scheme, key = "representative:picks=7", drawing.key_of(4)
    found = arrange(Pair.of(x, y), scheme, Told())
    assert found.pick is not None
    picks = list(found.pick(key))
    assert len({pair.x.values.tobytes() + pair.y.values.tobytes() for pair in picks}) > 3
    for pair in picks:
        chosen = (pair.y if hub_side == "x" else pair.x).values
        for feature, row in enumerate(chosen):
            assert any(np.array_equal(row, partner) for partner in partners[FOUR == feature])
    for count, perms in (
        (24, list(itertools.permutations(range(4)))),
        (9, found.shuffle.drawn(key, drawing.as_indices(0, 9))),
    ):
        results = permutation_test(x, y, measures=MANY, scheme=scheme, permutations=count, seed=4, impl=impl, batch=5)
        for result in results:
            reference = MEASURES[result.measure].reference
            single = np.array([reference(pair.x.values, pair.y.values) for pair in picks])
            scores = np.array(
                [np.mean([reference(pair.x.values, pair.y.values[list(perm)]) for pair in picks]) for perm in perms]
            )
            if count == 24:
                np.testing.assert_allclose(np.sort(result.draws), np.sort(scores), atol=1e-5)
                sign = 1 if MEASURES[result.measure].larger_is_more_similar else -1
                assert result.p_value == float(np.mean(sign * (scores - single.mean()) >= -1e-9))
            else:
                np.testing.assert_allclose(result.draws, scores, atol=1e-5)
            assert result.observed == pytest.approx(single.mean(), abs=1e-9)
            spread = (result.picks, result.pick_sd, result.pick_low, result.pick_high)
            assert spread == pytest.approx((7, single.std(ddof=1), single.min(), single.max()), abs=1e-9)
            assert (result.n, result.units, result.rows, result.exact_mean) == (4, 4, 9, None)
        assert "svcca is the mean over 7 picks: " in str(results)


def test_picks_take_each_partner_equally_often() -> None:
    _, partners, x, y = four_features("x")
    found = arrange(Pair.of(x, y), "representative:picks=6000", Told())
    assert found.pick is not None
    chosen = np.array([pair.y.values[[0, 1], 0] for pair in found.pick(drawing.key_of(0))])
    for feature in (0, 1):
        counts = [np.sum(chosen[:, feature] == partner) for partner in partners[FOUR == feature, 0]]
        assert sum(counts) == 6000
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "name", ["representative:picks=1", "representative:picks=x", "representative:k=3", "uniform:a=1"]
)
def test_options_of_schemes_are_checked(name: str) -> None:
    with pytest.raises(
        InputError, match=f"^scheme '{name}' is unknown; the one with an option is representative:picks"
    ):
        arrange(Pair.of(X, Y), name, Told())


def test_what_a_scheme_did_stands_under_the_table() -> None:
    def notes(scheme: str, permutations: int = 40, **told: Any) -> list[str]:
        case = {**CASES[scheme], **told}
        results = permutation_test(**case, measures=["cka", "rsa"], scheme=scheme, permutations=permutations, seed=0)
        return str(results).splitlines()[3:]

    assert notes("uniform") == []
    assert notes("uniform", 120) == ["p of 5 units is exact: all 120 re-pairings of scheme uniform were scored"]
    assert notes("collapse") == ["scheme collapse exchanged 6 units, made of 12 pairs"]
    assert notes("strata") == ["1 of 12 pairs are alone in their stratum and stayed as they are"]
    x, y = many_to_one()
    assert notes("uniform", x=x, y=y, duplicates="accept") == [
        "p is no valid one: 6 of 12 pairs repeat a feature, and were shuffled singly"
    ]


def test_draws_of_another_arrangement_are_not_taken_for_these(tmp_path: Path) -> None:
    options: dict[str, Any] = {"measures": ["cka"], "scheme": "strata", "permutations": 30, "seed": 0}
    permutation_test(X, Y, row_labels=STRATA, **options, checkpoint=tmp_path)
    with pytest.raises(InputError, match=r"holds another run \(inputs\.shuffle .* there, .* now\)"):
        permutation_test(X, Y, row_labels=STRATA[::-1], **options, checkpoint=tmp_path)
    with pytest.raises(InputError, match="listed False there, True now"):
        permutation_test(X, Y, row_labels=STRATA, **{**options, "permutations": 500}, checkpoint=tmp_path)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scheme", [*CASES, "blocks", "representative:picks=3"])
def test_a_cell_of_a_grid_is_the_test_of_it_alone(scheme: str, impl: Impl, tmp_path: Path) -> None:
    case: dict[str, Any] = CASES[scheme] if scheme in CASES else dict(zip("xy", four_features("x")[2:], strict=True))
    cells = [Cell(name, **case) for name in ("one", "two")]
    for permutations in (50, 1000):
        options: dict[str, Any] = {
            "measures": ["rsa", "cka"],
            "scheme": scheme,
            "permutations": permutations,
            "seed": 1,
        }
        results = grid_test(cells, **options, impl=impl, out=tmp_path / str(permutations))
        assert not results.failures
        alone = permutation_test(**case, **options, impl=impl)
        for record, result in zip(results, [*alone, *alone], strict=True):
            for field in ("n", "rows", "exceedances", "shortfalls", "permutations", "method", "fixed", "exact_mean"):
                assert record[field] == getattr(result, field), field
        assert len(grid_test(cells, **options, impl=impl, out=tmp_path / str(permutations))) == 4
