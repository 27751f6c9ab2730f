from typing import Any

import jax
import numpy as np
import pytest
import scipy.linalg

from saejax.similarity.eigenspace_overlap import EIGENSPACE_OVERLAP

N = 20


def random(rng: np.random.Generator, columns: int, rank: int | None = None) -> np.ndarray:
    if rank is None:
        return rng.normal(size=(N, columns))
    return rng.normal(size=(N, rank)) @ rng.normal(size=(rank, columns))


def centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(axis=0)


def projection_trace(x: np.ndarray, y: np.ndarray) -> float:
    """Return the shared dimensions from projections by pivoted QR, no singular values."""
    projections = []
    for matrix in (x, y):
        decomposition: Any = scipy.linalg.qr(matrix, mode="economic", pivoting=True)
        q, r, _ = decomposition
        kept = q[:, np.abs(np.diag(r)) > 1e-9 * np.abs(r[0, 0])]
        projections.append(kept @ kept.T)
    return np.trace(projections[0] @ projections[1])


def sides(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return matrices by how their columns lie to the constant direction."""
    return {
        "oblique": random(rng, 5),
        "one column": random(rng, 1),
        "mean zero": centred(random(rng, 3)),
        "holding a constant column": np.column_stack([2 * np.ones(N), random(rng, 3)]),
        "rank 3 of 8": random(rng, 8, 3),
        "rank 3 of 8, mean zero": centred(random(rng, 8, 3)),
        "rank 3 of 8, mean outside": centred(random(rng, 8, 3)) + rng.normal(size=8),
        "n - 1 columns": random(rng, N - 1),
        "more columns than rows": random(rng, 30),
        "clusters": np.eye(4)[rng.integers(4, size=N)],
        "far from the origin": random(rng, 6) + 1e5 * rng.normal(size=6),
    }


@pytest.mark.parametrize("name", list(sides(np.random.default_rng(0))))
def test_uncentred_overlap_follows_from_the_centred_product(name: str) -> None:
    rng = np.random.default_rng(1)
    x = sides(rng)[name]
    perms = np.stack([rng.permutation(N) for _ in range(3)])
    for y in sides(rng).values():
        columns = max(x.shape[1], y.shape[1])
        expected = [projection_trace(x, y[perm]) / columns for perm in perms]
        with jax.enable_x64(True):
            scores = EIGENSPACE_OVERLAP.score_batch(EIGENSPACE_OVERLAP.prepare(x, y), perms)
        np.testing.assert_allclose(scores, expected, atol=1e-9)
        np.testing.assert_allclose([EIGENSPACE_OVERLAP.reference(x, y[perm]) for perm in perms], expected, atol=1e-9)


def test_columns_count_and_not_ranks() -> None:
    x = random(np.random.default_rng(2), 8, 3)
    assert EIGENSPACE_OVERLAP.reference(x, x) == pytest.approx(3 / 8, abs=1e-12)


def test_the_constant_direction_is_shared_by_all_pairings() -> None:
    rng = np.random.default_rng(3)
    x, y = np.column_stack([np.ones(N), random(rng, 2)]), np.column_stack([random(rng, 2), np.ones(N)])
    perms = np.stack([rng.permutation(N) for _ in range(100)])
    scores = np.asarray(EIGENSPACE_OVERLAP.score_batch(EIGENSPACE_OVERLAP.prepare(x, y), perms))
    assert 1 / 3 < scores.min() < 0.36
