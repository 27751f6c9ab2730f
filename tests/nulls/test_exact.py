import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import exact_test, permutation_test
from saejax.similarity import MEASURES, Measure, find_measure
from saejax.similarity.pair import Pair

WITH_MOMENTS = [name for name, measure in MEASURES.items() if measure.exact_moments and name != "knn_jaccard"]
EXPECTED = {
    "cca_mean_squared", "cka", "cka_debiased", "rsa", "rsa_cosine", "rsa_euclidean", "rsa_pearson", "linear_regression",
    "eigenspace_overlap", "gulp", "knn_jaccard",
}  # fmt: skip


def matrices(n: int, dx: int, dy: int, shared: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n, dx, dy])
    x, y = rng.normal(size=(n, dx)) + 0.4, rng.normal(size=(n, dy)) - 0.2
    width = min(dx, dy)
    y[:, :width] += shared * x[:, :width]
    return x, y


def scores_of_all(measure: Measure, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the float64 score of every re-pairing."""
    perms = np.array(list(itertools.permutations(range(len(x)))), np.int32)
    state = measure.prepare(x, y)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf, state)
        return np.asarray(jax.jit(jax.vmap(measure.score, in_axes=(None, 0)))(wide, perms))


def test_all_quadratic_measures_have_exact_moments() -> None:
    assert {name for name, measure in MEASURES.items() if measure.exact_moments} == EXPECTED


@pytest.mark.parametrize("name", WITH_MOMENTS)
@pytest.mark.parametrize("shape", [(5, 2, 3), (6, 3, 2), (7, 9, 3)])
def test_moments_are_those_of_all_repairings(name: str, shape: tuple[int, int, int]) -> None:
    measure, (x, y) = MEASURES[name], matrices(*shape)
    scores = scores_of_all(measure, x, y)
    moments = measure.moments(Pair.of(x, y), "uniform", skewness=True)
    assert moments is not None
    assert moments.mean == pytest.approx(scores.mean(), abs=1e-10)
    assert moments.sd == pytest.approx(scores.std(), abs=1e-7 if scores.std() < 1e-10 else 1e-12)
    if moments.skewness is not None:
        assert moments.skewness == pytest.approx(scipy.stats.skew(scores), abs=1e-7)


def test_jaccards_mean_is_that_of_all_repairings() -> None:
    measure, (x, y) = find_measure("knn_jaccard:k=2"), matrices(6, 3, 2)
    moments = measure.moments(Pair.of(x, y), "uniform")
    assert moments is not None
    assert moments.mean == pytest.approx(scores_of_all(measure, x, y).mean(), abs=1e-6)
    assert np.isnan(moments.sd)
    result = exact_test(x, y, measures=["knn_jaccard:k=2"], scheme="uniform")[0]
    assert (result.z, result.p_value, result.method) == (None, None, "moments")


def test_no_formula_answers_for_another_scheme() -> None:
    pair = Pair.of(*matrices(8, 3, 2))
    for name in EXPECTED - {"knn_jaccard"}:
        assert MEASURES[name].moments(pair, "strata") is None


def test_sampled_nulls_have_the_exact_moments() -> None:
    """Mean to within four standard errors, SD to within five of its own, at 100,000 re-pairings."""
    x, y = matrices(40, 6, 5)
    m = 100_000
    for result in permutation_test(x, y, measures=WITH_MOMENTS, scheme="uniform", permutations=m, seed=3):
        assert result.exact_mean is not None
        assert result.exact_sd is not None
        assert result.null_sd is not None
        assert abs(result.null_mean - result.exact_mean) < 4 * result.exact_sd / np.sqrt(m) + 1e-6
        kurtosis = float(scipy.stats.kurtosis(result.draws, fisher=False))
        assert result.null_sd == pytest.approx(result.exact_sd, rel=5 * np.sqrt((kurtosis - 1) / 4 / m))
        assert result.exact_z == pytest.approx((result.observed - result.exact_mean) / result.exact_sd)


def test_wachters_law_predicts_the_null_mean_of_svcca() -> None:
    x, y = matrices(200, 40, 60, 0.0)
    results = permutation_test(
        x, y, measures=["svcca", "svcca:variant=k1", "rsa"], scheme="uniform", permutations=400, seed=3
    )
    for result, accuracy in zip(results[:2], (0.005, 0.01), strict=True):
        assert result.predicted_mean == pytest.approx(result.null_mean, abs=accuracy)
    assert results[2].predicted_mean is None


def test_an_exact_test_needs_no_permutations() -> None:
    x, y = matrices(40, 6, 5)
    sampled = {
        result.measure: result
        for result in permutation_test(x, y, measures=["cka", "cka_debiased", "gulp", "rsa"], scheme="uniform",
                                       permutations=20_000, seed=0)
    }  # fmt: skip
    for result in exact_test(x, y, measures=list(sampled), scheme="uniform"):
        null = sampled[result.measure]
        assert result.observed == pytest.approx(null.observed, abs=1e-12)
        assert result.z == pytest.approx(null.exact_z, rel=1e-9)
        if result.measure == "rsa":
            assert (result.p_value, result.method) == (None, "moments")
        else:
            assert result.method == "pearson III"
            assert result.p_value == pytest.approx(null.p_value, rel=0.25, abs=2e-4)


def test_measures_without_exact_moments_are_refused() -> None:
    with pytest.raises(InputError) as error:
        exact_test(*matrices(20, 3, 2), measures=["cka", "svcca"], scheme="uniform")
    assert str(error.value) == (
        "measure svcca has no exact moments under scheme uniform; sample it by permutation_test"
    )


def test_a_constant_null_has_no_z() -> None:
    """With as many columns as rows every pairing has all squared canonical correlations at 1."""
    result = exact_test(*matrices(6, 8, 8), measures=["cca_mean_squared"], scheme="uniform")[0]
    assert (result.z, result.p_value) == (None, None)


def test_results_are_a_table() -> None:
    """Columns that no measure fills are left out; a measure of which the mean alone is known has blanks."""
    results = exact_test(*matrices(20, 3, 4), measures=["cka", "knn_jaccard:k=3"], scheme="uniform")
    lines = [line.split() for line in str(results).splitlines()]
    assert lines[0] == "measure n observed exact mean exact SD skewness z p (Pearson III)".split()
    assert lines[1][:2] == ["cka", "20"]
    assert float(lines[1][2]) == pytest.approx(results[0].observed, abs=1e-5)
    assert (len(lines[1]), len(lines[2])) == (8, 4)
    frame = results.to_pandas()
    assert list(frame["measure"]) == ["cka", "knn_jaccard:k=3"]
    assert list(frame["z"])[0] == results[0].z
