import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.errors import InputError
from saejax.sae import metrics
from saejax.sae.initial import initial_sae
from saejax.sae.metrics import decoder_cosines, gini, measure
from saejax.sae.normalisation import Kind
from saejax.sae.params import SAE, SAEConfig

SHAPE = SAEConfig(d_model=8, d_sae=24, k=4)


@pytest.fixture
def x() -> np.ndarray:
    spread = np.random.default_rng(0).gamma(1, size=8)
    return (3 + spread * np.random.default_rng(1).normal(size=(700, 8))).astype(np.float32)


def silent(sae: SAE, reconstruction: np.ndarray) -> SAE:
    """Return an SAE that gives one constant for every activation."""
    constant = jnp.asarray(np.asarray(reconstruction * np.float64(sae.normalisation.scale), np.float32))
    return dataclasses.replace(sae, b_enc=jnp.full(24, -1e9), b_dec=constant)


def test_predicting_the_mean_leaves_all_of_the_variance(x):
    sae = silent(initial_sae(SHAPE, x, jax.random.key(0)), x.mean(axis=0, dtype=np.float64))
    found = measure(sae, [x[:300], x[300:]])
    np.testing.assert_allclose(found.fvu, 1, rtol=1e-6)
    assert found.l0 == 0
    assert np.isnan(found.mean_active)
    assert found.dead_rate == 1


def test_predicting_zero_leaves_the_variance_and_the_squared_mean(x):
    """A constant offset is an error: the residual is not centred before it is squared."""
    exact = x.astype(np.float64)
    found = measure(silent(initial_sae(SHAPE, x, jax.random.key(0)), np.zeros(8)), [x])
    expected = np.sum(exact**2) / np.sum((exact - exact.mean(axis=0)) ** 2)
    np.testing.assert_allclose(found.fvu, expected, rtol=1e-6)
    np.testing.assert_allclose(found.mse, np.mean(exact**2), rtol=1e-6)


def test_rows_that_processes_share_are_measured_as_if_one_had_them_all(x, monkeypatch):
    """With a `gather` that joins what each of three processes gave, one of which had no row."""
    sae, given = initial_sae(SHAPE, x, jax.random.key(0)), []
    parts = [[x[:100], x[100:350]], [], [x[350:]]]

    def joined(part):
        given.append(part)
        return np.concatenate(given, axis=-1)

    monkeypatch.setattr(metrics, "gather", joined)
    with pytest.raises(ValueError, match="no row"):
        measure(sae, parts[1], together=True)
    *_, found = (measure(sae, part, together=True) for part in parts)
    whole = measure(sae, [x[:0], x, x[:0]])
    assert (found.rows, found.l0, found.capped) == (whole.rows, whole.l0, whole.capped)
    assert 0 < found.capped <= 1
    for name in ("mse", "fvu", "mean_active", "firing_rate", "mean"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-6, err_msg=name)


def test_an_sae_that_keeps_all_that_is_active_is_measured_on_all_of_it(x):
    sae = initial_sae(SHAPE, x, jax.random.key(0))
    assert measure(sae, [x]).rows == len(x)
    without_room = dataclasses.replace(sae, config=dataclasses.replace(SHAPE, activation="relu"))
    with pytest.raises(InputError, match="k 4 is too small: a row has as many latents active"):
        measure(without_room, [x])
    roomy = dataclasses.replace(sae, config=dataclasses.replace(SHAPE, k=24, activation="relu"))
    codes = np.asarray(roomy.encode(x))
    np.testing.assert_allclose(measure(roomy, [x]).l0, (codes > 0).sum() / len(x), rtol=1e-3)


def test_fvu_is_right_far_from_the_origin(x):
    """In float32, sum x^2 - n mean^2 would lose every digit here."""
    far = x + np.float32(10_000)
    sae = initial_sae(SHAPE, far, jax.random.key(0))
    found = measure(sae, np.array_split(far, 5))
    exact = far.astype(np.float64)
    codes, rows, bias = (np.asarray(array, np.float64) for array in (sae.encode(far), sae.W_dec, sae.b_dec))
    error = exact - (codes @ rows + bias) / float(sae.normalisation.scale)
    expected = np.sum(error**2) / np.sum((exact - exact.mean(axis=0)) ** 2)
    np.testing.assert_allclose(found.fvu, expected, rtol=1e-3)
    assert 0.1 < found.fvu < 1


@pytest.mark.parametrize("kind", get_args(Kind))
def test_fvu_is_that_of_the_reconstruction_in_the_units_of_the_model(x, kind):
    sae = initial_sae(SHAPE, x, jax.random.key(0), kind)
    found = measure(sae, [x[:300], x[300:]])
    error = np.float64(x) - np.asarray(sae.decode(sae.encode(x), like=x), np.float64)
    expected = np.sum(error**2) / np.sum((np.float64(x) - np.float64(x).mean(axis=0)) ** 2)
    np.testing.assert_allclose(found.fvu, expected, rtol=1e-4)
    np.testing.assert_allclose(found.mse, np.mean(error**2), rtol=1e-4)
    assert 0.1 < found.fvu < 1.5


def test_a_pass_does_not_depend_on_how_it_is_cut(x):
    """A mean of per-block ratios would: these blocks differ in variance and in size."""
    ordered = x[np.argsort(np.linalg.norm(x - 3, axis=1))]
    sae = initial_sae(SHAPE, x, jax.random.key(0))
    whole = measure(sae, [ordered])
    cut = measure(sae, [ordered[:3], ordered[3:500], ordered[500:]])
    assert cut.rows == whole.rows == 700
    for name in ("mse", "fvu", "l0", "mean_active"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-6)
    np.testing.assert_array_equal(cut.firing_rate, whole.firing_rate)


def test_firing_statistics_are_those_of_the_dense_codes(x):
    start = initial_sae(SHAPE, x, jax.random.key(0))
    sae = dataclasses.replace(start, b_enc=jnp.where(jnp.arange(24) < 6, -1e9, -1.0))
    codes = np.asarray(sae.encode(x))
    found = measure(sae, [x])
    np.testing.assert_allclose(found.firing_rate, (codes > 0).mean(axis=0))
    np.testing.assert_allclose(found.l0, (codes > 0).sum(axis=1).mean())
    np.testing.assert_allclose(found.mean_active, codes[codes > 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(found.density, found.firing_rate.mean())
    assert found.dead_rate == np.mean(~(codes > 0).any(axis=0)) >= 6 / 24
    assert found.l0 < SHAPE.k


def test_a_pass_without_rows_is_refused(x):
    with pytest.raises(ValueError, match="no row"):
        measure(initial_sae(SHAPE, x, jax.random.key(0)), [])


def test_gini():
    assert gini(np.full(50, 0.3)) == pytest.approx(0, abs=1e-12)
    assert gini(np.eye(50)[7]) == pytest.approx(1 - 1 / 50)
    rates = np.random.default_rng(0).exponential(size=400)
    differences = np.abs(rates[:, None] - rates[None]).mean()
    assert gini(rates) == pytest.approx(differences / (2 * rates.mean()))
    assert np.isnan(gini(np.zeros(50)))


@pytest.mark.parametrize("block", [7, 64, 512])
def test_decoder_cosines_are_those_of_all_pairs(block):
    rows = np.random.default_rng(0).normal(size=(90, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = np.abs(unit @ unit.T)[np.triu_indices(90, 1)]
    found = decoder_cosines(rows.astype(np.float32), block)
    assert found.mean == pytest.approx(pairs.mean(), rel=1e-5)
    assert found.max == pytest.approx(pairs.max(), rel=1e-5)
    assert found.p95 == pytest.approx(np.percentile(pairs, 95), abs=2e-3)


def test_opposite_rows_count_as_alike():
    found = decoder_cosines(np.array([[1, 0], [-1, 0]], np.float32))
    assert (found.mean, found.max) == (1, 1)
    assert found.p95 == pytest.approx(1, abs=1e-4)
