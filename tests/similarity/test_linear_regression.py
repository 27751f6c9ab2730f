import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics

from saejax.similarity.linear_regression import LINEAR_REGRESSION


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 2, size=(40, 6)), rng.normal(size=(40, 4))
    y[:, :3] += x[:, :3]
    return x, y


def test_is_the_variance_that_ordinary_least_squares_explains() -> None:
    x, y = pair()
    fit = sklearn.linear_model.LinearRegression().fit(y, x)
    expected = sklearn.metrics.r2_score(x, fit.predict(y), multioutput="variance_weighted")
    assert LINEAR_REGRESSION.reference(x, y) == pytest.approx(expected, abs=1e-12)
    score = LINEAR_REGRESSION.score(LINEAR_REGRESSION.prepare(x, y), np.arange(40))
    assert float(score) == pytest.approx(expected, abs=1e-6)


def test_the_second_matrix_predicts_the_first() -> None:
    x, y = pair()
    part = x[:, :2]
    assert LINEAR_REGRESSION.reference(part, x) == pytest.approx(1, abs=1e-12)
    assert LINEAR_REGRESSION.reference(x, part) < 0.5


def test_linear_maps_of_the_predictor_alone_change_nothing() -> None:
    x, y = pair()
    scale = np.geomspace(1, 1e4, 6)
    assert LINEAR_REGRESSION.reference(x, y * scale[:4]) == pytest.approx(LINEAR_REGRESSION.reference(x, y), abs=1e-10)
    assert abs(LINEAR_REGRESSION.reference(x * scale, y) - LINEAR_REGRESSION.reference(x, y)) > 0.01


def test_a_predictor_of_n_minus_one_directions_explains_everything() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 5)), rng.normal(size=(12, 30))
    perms = np.stack([rng.permutation(12) for _ in range(5)])
    scores = LINEAR_REGRESSION.score_batch(LINEAR_REGRESSION.prepare(x, y), perms)
    np.testing.assert_allclose(scores, 1, atol=1e-6)
