"""Exact moments against all n! pairings, and against sampled ones where n! is too many."""

import itertools

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity.moments import (
    Moments,
    PairSums,
    centred_moments,
    factor_sums,
    mantel_moments,
    matrix_sums,
    ucentred_moments,
    uncentred_moments,
)
from saejax.similarity.third_moment import factor_third, matrix_third, third_central_moment, ucentred_third

SIDES = ("plain", "hub", "deficient", "full", "wide")
CASES = [(n, x, y) for n in (4, 5, 6, 7) for x, y in itertools.combinations_with_replacement(SIDES, 2)]


def side(kind: str, n: int, seed: int) -> np.ndarray:
    """Return a matrix of n rows with equal rows, of low rank, of almost full rank, or of more columns than rows."""
    rng = np.random.default_rng([seed, n])
    if kind == "hub":
        matrix = rng.normal(size=(n, 3)) + 1
        matrix[: n - 2] = matrix[0]
        return matrix
    if kind == "deficient":
        return rng.normal(size=(n, 2)) @ rng.normal(size=(2, 4)) - 0.5
    return rng.normal(size=(n, {"plain": 2, "full": n - 2, "wide": n + 3}[kind])) + rng.normal()


def all_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return sum_ij a[i, j] b[p_i, p_j] of every permutation."""
    perms = np.array(list(itertools.permutations(range(len(a)))))
    blocks = np.array_split(perms, max(1, len(perms) // 1000))
    return np.concatenate([np.einsum("ij,pij->p", a, b[block[:, :, None], block[:, None, :]]) for block in blocks])


def assert_exact(moments: Moments, scores: np.ndarray, scale: float = 1.0) -> None:
    """Hold moments against those of all scores; `scale` is the size of the terms that a mean of 0 cancels from."""
    assert moments.mean == pytest.approx(scores.mean(), rel=1e-12, abs=1e-12 * scale)
    assert moments.sd == pytest.approx(scores.std(), rel=1e-12)
    if moments.skewness is not None:
        assert moments.skewness == pytest.approx(np.mean(((scores - scores.mean()) / scores.std()) ** 3), abs=1e-12)


def centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(axis=0)


def ucentred(gram: np.ndarray) -> np.ndarray:
    """Return the U-centred matrix by its definition (Szekely and Rizzo 2014), of unit norm."""
    n = len(gram)
    off = gram - np.diag(np.diag(gram))
    rows = off.sum(axis=0) / (n - 2)
    off = off - rows - rows[:, None] + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(off, 0)
    return off / np.linalg.norm(off)


def standardised(gram: np.ndarray) -> np.ndarray:
    """Return the ranks of the off-diagonal entries, less their mean and of unit norm."""
    off = ~np.eye(len(gram), dtype=bool)
    ranks = np.zeros_like(gram)
    ranks[off] = np.unique(np.round(gram[off], 9), return_inverse=True)[1]
    ranks[off] -= ranks[off].mean()
    return ranks / np.linalg.norm(ranks)


@pytest.mark.parametrize(("n", "x", "y"), CASES)
def test_uncentred_and_mantel_moments_are_those_of_all_pairings(n: int, x: str, y: str) -> None:
    first, second = side(x, n, 0), side(y, n, 1)
    a, b = first @ first.T, second @ second.T
    sums = factor_sums(first), factor_sums(second)
    assert_exact(uncentred_moments(*sums), all_scores(a, b))
    off = all_scores(a - np.diag(np.diag(a)), b - np.diag(np.diag(b))) / 2
    assert_exact(mantel_moments(*sums), off, scale=float(np.abs(off).max()))


@pytest.mark.parametrize(("n", "x", "y"), CASES)
def test_centred_moments_up_to_the_third_are_those_of_all_pairings(n: int, x: str, y: str) -> None:
    first, second = centred(side(x, n, 2)), centred(side(y, n, 3))
    moments = centred_moments(
        factor_sums(first), factor_sums(second), thirds=(factor_third(first), factor_third(second))
    )
    assert moments.skewness is not None
    assert_exact(moments, all_scores(first @ first.T, second @ second.T))


@pytest.mark.parametrize("n", [5, 6, 7])
def test_ucentred_moments_up_to_the_third_are_those_of_all_pairings(n: int) -> None:
    first, second = side("wide", n, 4), side("plain", n, 5)
    moments = ucentred_moments(n, thirds=(ucentred_third(first), ucentred_third(second)))
    assert moments.skewness is not None
    assert_exact(moments, all_scores(ucentred(first @ first.T), ucentred(second @ second.T)))


@pytest.mark.parametrize("n", [5, 6, 7])
def test_moments_of_matrices_that_are_no_gram_are_those_of_all_pairings(n: int) -> None:
    """Distances, indefinite and with a negative trace; ranks as integers; double-centred distances (dCor)."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 3)), np.round(rng.normal(size=(n, 2)))
    y[1] = y[0]
    distances = [np.linalg.norm(z[:, None] - z, axis=2) for z in (x, y)]
    scores = all_scores(*distances)
    assert_exact(mantel_moments(*map(matrix_sums, distances)), scores / 2)
    ranks = [np.unique(d, return_inverse=True)[1].reshape(n, n).astype(np.uint16) for d in distances]
    assert_exact(mantel_moments(*map(matrix_sums, ranks)), all_scores(*ranks) / 2)
    project = np.eye(n) - 1 / n
    a, b = (project @ d @ project for d in distances)
    moments = centred_moments(matrix_sums(a), matrix_sums(b), thirds=(matrix_third(a), matrix_third(b)))
    assert moments.skewness is not None
    assert_exact(moments, all_scores(a, b))
    u, v = map(ucentred, distances)
    assert_exact(ucentred_moments(n, thirds=(matrix_third(u), matrix_third(v))), all_scores(u, v))


@pytest.mark.parametrize("d", [7, 90])
def test_sums_of_a_factor_are_those_of_its_matrix(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saejax.similarity.moments.BLOCK", 300)  # blocks of 5 rows
    monkeypatch.setattr("saejax.similarity.third_moment.BLOCK", 420)  # of 7
    factor = np.random.default_rng(d).normal(size=(60, d)) + 0.3
    np.testing.assert_allclose(factor_sums(factor), matrix_sums(factor @ factor.T), rtol=1e-10)
    factor = centred(factor)
    np.testing.assert_allclose(factor_third(factor), matrix_third(factor @ factor.T), rtol=1e-9)
    expected = matrix_third(ucentred(factor @ factor.T))
    np.testing.assert_allclose(ucentred_third(factor), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [6, 7, 11, 40, 1000, 40_000])
def test_third_moment_is_the_published_one_at_zero_trace(n: int) -> None:
    """Kazi-Aoual et al. (1995), as in the R packages FactoMineR and MatrixCorrelation, where both traces are 0."""
    rng = np.random.default_rng(n)
    a, b = factor_third(rng.normal(size=(6, 3))), factor_third(rng.normal(size=(6, 3)))
    t, u, r, d, s = a
    t_, u_, r_, d_, s_ = b
    m = float(n)
    total = (
        m**2 * (m + 1) * (m**2 + 15 * m - 4) * s * s_
        + 4 * (m**4 - 8 * m**3 + 19 * m**2 - 4 * m - 16) * u * u_
        + 6 * (m**4 - 8 * m**3 + 21 * m**2 - 6 * m - 24) * d * d_
        + 12 * (m**4 - m**3 - 8 * m**2 + 36 * m - 48) * r * r_
        + 8 * (m**3 - 9 * m**2 + 26 * m - 22) * t * t_
        + 24 * (m**2 - m - 4) * (u * d_ + d * u_)
        + 24 * (m**3 - 3 * m**2 - 2 * m + 8) * (r * u_ + u * r_)
        + 24 * (m**3 - 2 * m**2 - 3 * m + 12) * (r * d_ + d * r_)
        - 2 * m * (m - 1) * (m**2 - m + 4) * ((2 * u + 3 * d) * s_ + (2 * u_ + 3 * d_) * s)
        - 12 * m * (m - 1) ** 2 * (m + 4) * (r * s_ + r_ * s)
        + 16 * m * (m - 1) * (m - 2) * (t * s_ + t_ * s)
        - 8 * (3 * m**2 - 15 * m + 16) * (t * u_ + u * t_)
        - 8 * (3 * m**2 - 15 * m + 24) * (t * d_ + d * t_)
        - 8 * (m - 2) * (3 * m**2 - 15 * m + 24) * (t * r_ + r * t_)
    )
    published = total / np.prod([m - i for i in range(6)])
    assert third_central_moment(n, a, b) == pytest.approx(published, rel=1e-11)


def test_known_variances_are_special_cases() -> None:
    """U-centred: 2 / (n (n - 3)) for any data; centred: Kazi-Aoual's second moment; ranks of unit norm: Mantel's."""
    rng = np.random.default_rng(8)
    n = 30
    u, v = (ucentred(z @ z.T) for z in (rng.normal(size=(n, 4)), rng.exponential(size=(n, 9))))
    expected = Moments(0.0, np.sqrt(2 / (n * (n - 3))))
    assert ucentred_moments(n) == expected
    general = uncentred_moments(matrix_sums(u), matrix_sums(v))
    np.testing.assert_allclose(general[:2], expected[:2], rtol=1e-12, atol=1e-15)
    bases = [np.linalg.qr(centred(rng.normal(size=(n, k))))[0] for k in (3, 11)]
    t, t_ = 3, 11
    leverage, leverage_ = (np.sum(np.sum(basis**2, axis=1) ** 2) for basis in bases)
    variance = 2 * ((n - 1) * t - t**2) * ((n - 1) * t_ - t_**2) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    spread, spread_ = (n * (n + 1) * s - (n - 1) * (k**2 + 2 * k) for s, k in ((leverage, t), (leverage_, t_)))
    variance += spread * spread_ / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    projections = centred_moments(factor_sums(bases[0]), factor_sums(bases[1]))
    np.testing.assert_allclose(projections[:2], (t * t_ / (n - 1), np.sqrt(variance)), rtol=1e-12)
    ranks = [standardised(z @ z.T) for z in (rng.normal(size=(n, 2)), rng.exponential(size=(n, 5)))]
    h, h_ = (np.sum(rank.sum(axis=1) ** 2) for rank in ranks)
    variance = 2 / (n * (n - 1)) + 4 * (h - 1) * (h_ - 1) / (n * (n - 1) * (n - 2))
    variance += (4 * h - 2) * (4 * h_ - 2) / (n * (n - 1) * (n - 2) * (n - 3))
    mantel = mantel_moments(matrix_sums(ranks[0]), matrix_sums(ranks[1])).rescaled(2.0)
    np.testing.assert_allclose(mantel[:2], (0, np.sqrt(variance)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("hubs", [0, 12])
def test_moments_are_those_of_sampled_pairings(hubs: int) -> None:
    """10^5 pairings of 40 rows, some of them equal: mean, SD and skewness within 4 standard errors."""
    rng = np.random.default_rng(9 + hubs)
    n, count = 40, 100_000
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(n, 2))
    x[:hubs], y[:hubs] = x[0], y[0] + 2
    a, b = centred(x), centred(y)
    scores = np.empty(count)
    for chunk in np.array_split(np.arange(count), 20):
        products = np.einsum("nd,pne->pde", a, b[np.argsort(rng.random((len(chunk), n)), axis=1)])
        scores[chunk] = np.sum(products**2, axis=(1, 2))
    moments = centred_moments(factor_sums(a), factor_sums(b), thirds=(factor_third(a), factor_third(b)))
    z = (scores - moments.mean) / moments.sd
    for power, expected in ((1, 0.0), (2, 1.0), (3, moments.skewness)):
        assert np.mean(z**power) == pytest.approx(expected, abs=4 * np.std(z**power) / np.sqrt(count))
    assert moments.skewness is not None
    assert moments.skewness > 0.5  # far from symmetric: a skewness of 0 would have failed


def test_a_large_mean_costs_no_digits() -> None:
    """A full set of directions less a few: the score hardly moves about its mean, and its SD stays exact."""
    n, k = 60, 55
    basis = np.linalg.qr(centred(np.random.default_rng(10).normal(size=(n, n - 1))))[0]
    kept, left_out = basis[:, :k], basis[:, k : n - 1]
    other = centred(np.random.default_rng(11).normal(size=(n, 3)))
    rest = factor_third(left_out)
    moments = centred_moments(factor_sums(kept), factor_sums(other), (factor_third(kept), factor_third(other)))
    mirror = centred_moments(factor_sums(left_out), factor_sums(other), (rest, factor_third(other)))
    total = float(np.sum(other**2))
    np.testing.assert_allclose(np.array(moments), np.array(mirror.rescaled(-1.0, shift=total)), rtol=1e-10)


def test_rescaled_moments_are_those_of_the_rescaled_score() -> None:
    assert Moments(2.0, 3.0, 0.5).rescaled(-2.0, shift=1.0) == Moments(-3.0, 6.0, -0.5)
    assert Moments(2.0, 3.0).rescaled(0.5) == Moments(1.0, 1.5)


@pytest.mark.parametrize("seed", range(4))
def test_a_null_without_spread_has_no_skewness(seed: int) -> None:
    """A basis of all directions scores the same under every pairing; rounding may even leave a variance below 0."""
    n, rng = 20, np.random.default_rng(seed)
    basis, other = np.linalg.qr(centred(rng.normal(size=(n, n - 1))))[0], centred(rng.normal(size=(n, 3)))
    moments = centred_moments(factor_sums(basis), factor_sums(other), (factor_third(basis), factor_third(other)))
    assert moments.mean == pytest.approx(float(np.sum(other**2)), rel=1e-12)
    assert moments.sd < 1e-7 * moments.mean
    assert moments.skewness is None


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(12)
    with pytest.raises(InputError, match="n 3 must be at least 4 pairs"):
        factor_sums(rng.normal(size=(3, 2)))
    with pytest.raises(InputError, match="n 3 must be at least 4 pairs"):
        ucentred_moments(3)
    five, six = (PairSums(n, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0) for n in (5, 6))
    with pytest.raises(InputError, match="n 5 of one side is not the 6 of the other"):
        mantel_moments(five, six)
