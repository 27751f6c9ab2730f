import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.aligned_cosine import ALIGNED_COSINE
from saejax.similarity.measure import State


def exact(x: np.ndarray, y: np.ndarray) -> float:
    return ALIGNED_COSINE.score_exact(ALIGNED_COSINE.prepare(x, y), np.arange(len(x), dtype=np.int32))


def single(state: State) -> State:
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), state)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


@pytest.mark.parametrize(("dx", "dy"), [(4, 4), (3, 5), (6, 2)])
def test_is_the_mean_cosine_after_scipys_rotation(dx: int, dy: int) -> None:
    """The narrower side gets columns of zeros, into which its rows may turn: the lengths of whole rows count."""
    rng = np.random.default_rng([dx, dy])
    x, y = rng.normal(1, 1, size=(20, dx)), rng.exponential(size=(20, 1)) * rng.normal(1, 1, size=(20, dy))
    width = max(dx, dy)
    a, b = (np.pad(matrix, ((0, 0), (0, width - matrix.shape[1]))) for matrix in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
    expected = cosines(a @ rotation, b).mean()
    assert exact(x, y) == pytest.approx(expected, abs=1e-12)
    assert ALIGNED_COSINE.reference(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mirror", [1, -1])
def test_the_rotation_is_the_best_of_the_plane(mirror: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(15, 2))
    y = x * [1, mirror] @ scipy.stats.special_ortho_group.rvs(2, random_state=0) + 0.5 * rng.normal(size=(15, 2))
    angles = np.radians(np.arange(0, 360, 0.01))
    turned = [
        np.stack([x[:, :1] * np.cos(angles) - side * x[:, 1:] * np.sin(angles),
                  x[:, :1] * np.sin(angles) + side * x[:, 1:] * np.cos(angles)], axis=-1)
        for side in (1, -1)
    ]  # fmt: skip
    candidates = np.moveaxis(np.concatenate(turned, axis=1), 1, 0)
    best = candidates[np.argmin(np.linalg.norm(candidates - y, axis=(1, 2)))]
    assert exact(x, y) == pytest.approx(cosines(best, y).mean(), abs=1e-3)


def test_a_rotated_copy_scores_one_whatever_the_lengths_of_its_rows() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 5))
    lengths = rng.uniform(0.1, 10, size=(20, 1))
    moved = np.pad(x, ((0, 0), (0, 2))) @ scipy.stats.ortho_group.rvs(7, random_state=rng)
    assert exact(x, moved) == pytest.approx(1, abs=1e-12)
    assert exact(x, -3 * moved) == pytest.approx(1, abs=1e-12)
    assert exact(x, lengths * moved) > 0.9


def test_equal_lengths_make_it_a_nuclear_norm() -> None:
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(30, d)) for d in (8, 6))
    x, y = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (x, y))
    perms = np.stack([rng.permutation(30) for _ in range(4)]).astype(np.int32)
    expected = [np.linalg.norm(x.T @ y[perm], "nuc") / 30 for perm in perms]
    state = ALIGNED_COSINE.prepare(x, 5 * y)
    np.testing.assert_allclose([ALIGNED_COSINE.score_exact(state, perm) for perm in perms], expected, atol=1e-12)
    assert state.own.even
    np.testing.assert_allclose(ALIGNED_COSINE.score_batch(single(state), perms), expected, atol=1e-7)


def test_nearly_equal_lengths_are_not_taken_for_equal() -> None:
    rng = np.random.default_rng(7)
    x, y = (rng.normal(size=(30, d)) for d in (8, 6))
    x, y = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (x, y))
    y *= rng.uniform(0.99, 1.01, size=(30, 1))
    state, perms = ALIGNED_COSINE.prepare(x, y), np.arange(30, dtype=np.int32)[None]
    score = ALIGNED_COSINE.score_batch(single(state), perms)
    np.testing.assert_allclose(score, ALIGNED_COSINE.reference(x, y), atol=1e-7)


def test_more_directions_than_rows_are_no_more_to_align() -> None:
    """With n rows in d > n columns, only the n directions of the rows count."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 40)), rng.normal(size=(6, 50))
    state = ALIGNED_COSINE.prepare(x, y)
    assert state.crossed[0].a.shape == (6, 32)
    assert exact(x, y) == pytest.approx(ALIGNED_COSINE.reference(x, y), abs=1e-12)


def lengths(kind: str, n: int) -> np.ndarray:
    kinds = {"one long row": np.where(np.arange(n) < 1, 900, 1), "every length": np.geomspace(1, 900, n)}
    return kinds[kind][:, None]


@pytest.mark.parametrize("kind", ["one long row", "every length"])
def test_float32_products_decide_rotations_where_rows_differ_much_in_length(kind: str) -> None:
    """Fails by 0.01 where the rotation is found in float32."""
    rng = np.random.default_rng(4)
    x, y = (scipy.stats.ortho_group.rvs(40, random_state=rng)[:, :20] for _ in range(2))
    x, y = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True) * lengths(kind, 40) for matrix in (x, y))
    perms = np.stack([np.arange(40), *(rng.permutation(40) for _ in range(5))]).astype(np.int32)
    expected = [ALIGNED_COSINE.reference(x, y[perm]) for perm in perms]
    state = single(ALIGNED_COSINE.prepare(x, y))
    mapped = jax.jit(jax.vmap(ALIGNED_COSINE.score, in_axes=(None, 0)))(state, perms)
    assert mapped.dtype == np.float32
    for scores in (mapped, ALIGNED_COSINE.score_batch(state, perms)):
        np.testing.assert_allclose(scores, expected, atol=ALIGNED_COSINE.tolerance / 2, rtol=0)


def test_rows_without_a_direction_are_refused() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    y[[2, 4]] = 0
    with pytest.raises(InputError) as error:
        ALIGNED_COSINE.prepare(x, y)
    assert str(error.value) == (
        "aligned_cosine: row 2 of y is 0 in every column (2 such row(s)), so it has no direction; leave that pair out"
    )


def test_rows_too_unlike_in_length_are_refused() -> None:
    x = np.eye(6)[:, :5] + 1
    x[3] *= 1e-4 / np.linalg.norm(x[3])
    with pytest.raises(InputError) as error:
        ALIGNED_COSINE.prepare(np.random.default_rng(6).normal(size=(6, 2)), x)
    assert str(error.value) == (
        "aligned_cosine: rows of y have lengths from 0.0001 (row 3) to 2.83 (row 0), a ratio above 1000, where the "
        "long rows leave the rotation of the short ones to rounding; leave out those pairs"
    )
