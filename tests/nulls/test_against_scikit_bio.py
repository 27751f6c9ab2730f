"""RSA is Mantel's test on distances of rows: scikit-bio's, fed the same re-pairings, counts the same."""

import importlib
import warnings
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from saejax.nulls import permutation_test
from saejax.nulls import permutations as drawing

M = 499
# Its distance, and the correlation that Mantel's test takes of it.
MANTEL: dict[str, tuple[Any, str]] = {
    "rsa": ("correlation", "spearman"),
    "rsa_cosine": ("cosine", "spearman"),
    "rsa_euclidean": ("euclidean", "spearman"),
    "rsa_pearson": ("correlation", "pearson"),
}


class Fed(np.random.Generator):
    """Gives the permutations that it was given, whatever it is asked for."""

    def __init__(self, perms: np.ndarray) -> None:
        super().__init__(np.random.PCG64(0))
        self.perms = iter(perms)

    def permutation(self, *_: Any, **__: Any) -> np.ndarray:
        return next(self.perms)


@pytest.fixture(scope="module")
def skbio() -> ModuleType:
    """scikit-bio's distances; importing them turns JAX to 64 bits for the whole process, which is taken back."""
    before = jax.config.read("jax_enable_x64")
    try:
        return importlib.import_module("skbio.stats.distance")
    finally:
        jax.config.update("jax_enable_x64", before)


def mantel_test(
    skbio: ModuleType, x: np.ndarray, y: np.ndarray, distance: Any, method: str, perms: np.ndarray
) -> tuple[float, float]:
    """Return r and the one-sided p of scikit-bio, which permutes x where we permute y."""
    matrices = (skbio.DistanceMatrix(squareform(pdist(each, distance))) for each in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r, p, _ = skbio.mantel(
            *matrices, method=method, permutations=len(perms), alternative="greater",
            seed=Fed(np.argsort(perms, axis=1)),
        )  # fmt: skip
    return float(r), float(p)


@pytest.mark.parametrize("shared", [0.0, 0.25, 0.4])
@pytest.mark.parametrize("measure", MANTEL)
def test_score_and_p_are_those_of_mantel(skbio: ModuleType, measure: str, shared: float) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 9))
    y[:, :8] += shared * x
    result = permutation_test(x, y, measures=[measure], scheme="uniform", permutations=M, seed=5)[0]
    perms = drawing.on_host(drawing.key_of(5), drawing.as_indices(0, M), 30).astype(np.intp)
    r, p = mantel_test(skbio, x, y, *MANTEL[measure], perms)
    assert result.observed == pytest.approx(r, abs=1e-10)
    assert result.p_value == p
    assert 1 / (M + 1) < p < 1
