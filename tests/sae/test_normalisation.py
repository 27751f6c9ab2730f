"""Each normalisation against its definition in float64, and its inverse."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from saejax.errors import InputError
from saejax.sae.normalisation import ARRAYS, FLOOR, Kind, Normalisation

KINDS = get_args(Kind)
D = 12


def made(rows: int, seed: int = 0) -> np.ndarray:
    """Return correlated activations off the origin, whose dimensions differ in SD by a factor of 50."""
    mixing = np.random.default_rng(7).normal(size=(D, D)) + 2 * np.eye(D)
    x = np.random.default_rng(seed).normal(size=(rows, D)) @ mixing
    return (5 + x * np.geomspace(0.2, 10, D)).astype(np.float32)


def by_definition(kind: str, sample: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Normalise x in float64, whitening by Schur's square root of the covariance instead of by eigenvectors."""
    sample, x = sample.astype(np.float64), x.astype(np.float64)
    covariance, mean = np.cov(sample.T, ddof=0), sample.mean(axis=0)
    if kind == "none":
        return x
    if kind == "scalar":
        return x * np.sqrt(D / np.trace(covariance))
    if kind == "layer_norm":
        return (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    if kind == "standardise":
        return (x - mean) / sample.std(axis=0)
    return (x - mean) @ np.linalg.inv(np.real(np.asarray(scipy.linalg.sqrtm(covariance))))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_it_is_defined_to_be(kind: Kind) -> None:
    sample, x = made(400), made(50, seed=1)
    found = Normalisation.fit(kind, sample)
    expected = by_definition(kind, sample, x)
    np.testing.assert_allclose(found.apply(x), expected, atol=3e-5 * np.abs(expected).max())
    held = {name for name, value in vars(found).items() if name != "kind" and value is not None}
    assert held == set(ARRAYS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 1000])
def test_its_inverse_gives_activations_back(kind: Kind, offset: float) -> None:
    sample, x = made(400) + np.float32(offset), made(50, seed=1) + np.float32(offset)
    normalisation = Normalisation.fit(kind, sample)
    back = normalisation.invert(normalisation.apply(x), x)
    np.testing.assert_allclose(back, x, atol=1e-6 * np.abs(x).max())


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_those_of_the_inverse_times_the_unit(kind: Kind) -> None:
    normalisation, x = Normalisation.fit(kind, made(400)), made(50, seed=1)
    a, b = np.random.default_rng(2).normal(size=(2, 50, D)).astype(np.float32)
    expected = np.float64(normalisation.invert(a, x)) - np.float64(normalisation.invert(b, x))
    found = np.asarray(normalisation.differences(a - b, x)) / normalisation.unit
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["scalar", "standardise", "zca"])
@pytest.mark.parametrize("factor", [1, 1e-3, 1e4])
def test_variance_summed_over_dimensions_is_their_number_in_whatever_units(kind: Kind, factor: float) -> None:
    sample = made(400) * np.float32(factor)
    z = np.asarray(Normalisation.fit(kind, sample).apply(sample), np.float64)
    assert z.var(axis=0).sum() == pytest.approx(D, rel=1e-5)


def test_standardised_dimensions_have_mean_0_and_sd_1() -> None:
    sample = made(400)
    z = np.asarray(Normalisation.fit("standardise", sample).apply(sample), np.float64)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-5)


def test_a_whitened_sample_has_the_identity_as_covariance() -> None:
    sample = made(400)
    assert np.linalg.cond(np.cov(sample.T)) > 1e4
    z = np.asarray(Normalisation.fit("zca", sample).apply(sample), np.float64)
    np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(D), atol=1e-4)


def test_a_dimension_that_never_varies_is_divided_by_the_root_of_the_mean_variance() -> None:
    sample = made(400)
    sample[:, 3] = 0.1
    normalisation = Normalisation.fit("standardise", sample)
    expected = np.sqrt(np.mean(np.var(sample.astype(np.float64), axis=0)))
    assert float(normalisation.sd[3]) == pytest.approx(expected, rel=1e-6)
    assert not np.asarray(normalisation.apply(sample))[:, 3].any()


def test_whitening_raises_no_direction_that_hardly_varies_to_one() -> None:
    """One direction is never taken, another hardly; the inverse is right even for rows that take the first."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    sds = np.array([0, 3e-4, *np.ones(D - 2)])
    sample = (rng.normal(size=(400, D)) * sds @ basis.T).astype(np.float32)
    normalisation = Normalisation.fit("zca", sample)
    mean = np.cov(sample.T, ddof=0).trace() / D
    np.testing.assert_allclose(np.asarray(normalisation.sd)[:2] ** 2, FLOOR * mean, rtol=1e-4)
    along = np.asarray(normalisation.apply(sample), np.float64) @ basis
    np.testing.assert_allclose(along.std(axis=0)[:2], sds[:2] / np.sqrt(FLOOR * mean), rtol=0.1, atol=1e-3)
    x = rng.normal(size=(20, D)).astype(np.float32)
    np.testing.assert_allclose(normalisation.invert(normalisation.apply(x)), x, atol=1e-4)


def test_layer_norm_forgets_what_a_row_is_multiplied_by_and_moved_by() -> None:
    normalisation, x = Normalisation.fit("layer_norm", made(400)), made(50, seed=1)
    moved = 3 * x + np.arange(50, dtype=np.float32)[:, None]
    np.testing.assert_allclose(normalisation.apply(moved), normalisation.apply(x), atol=1e-4)
    constant = np.full((2, D), 4, np.float32)
    assert not np.asarray(normalisation.apply(constant)).any()
    np.testing.assert_array_equal(normalisation.invert(jnp.zeros((2, D)), constant), constant)


def test_layer_norm_has_no_inverse_without_the_rows() -> None:
    normalisation = Normalisation.fit("layer_norm", made(400))
    with pytest.raises(InputError, match="takes the mean and SD of each row from the activations; give them as like=x"):
        normalisation.invert(jnp.zeros((2, D)))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_without_variance_or_with_nan_are_refused(kind: Kind) -> None:
    with pytest.raises(InputError, match="all 30 sampled activations are equal; name a hook"):
        Normalisation.fit(kind, np.ones((30, D), np.float32))
    with pytest.raises(InputError, match="hold NaN or infinity"):
        Normalisation.fit(kind, np.full((30, D), np.nan, np.float32))


def test_samples_that_are_too_small_are_refused() -> None:
    for rows in (2, D):
        with pytest.raises(InputError, match=f"more sampled rows than the 12 dimensions, and has {rows}; raise init"):
            Normalisation.fit("zca", made(rows))
    Normalisation.fit("zca", made(D + 1))
    with pytest.raises(InputError, match="layer_norm leaves nothing of activations of 1 dimension"):
        Normalisation.fit("layer_norm", made(20)[:, :1])
