"""Pairings that are tested together have the results of each tested alone."""

import numpy as np
import pytest

from saejax.nulls import permutation_test
from saejax.nulls.replicates import replicate_tests
from saejax.nulls.worlds import WORLDS

pytestmark = pytest.mark.slow

MEASURES = ["svcca", "rsa", "knn_jaccard:k=3"]


@pytest.mark.parametrize("impl", ["host", "jax"])
@pytest.mark.parametrize(
    ("scheme", "world", "n"),
    [
        ("collapse", "hubs", 40),
        ("strata", "frequency", 30),
        ("stimulus_blocks", "texts", 24),
        ("stimulus", "texts", 16),  # 4! re-pairings, fewer than are asked for
        ("representative:picks=2", "hubs", 40),
    ],
)
def test_each_is_what_it_is_alone(scheme: str, world: str, n: int, impl: str) -> None:
    measures = MEASURES[1:2] if n == 16 else MEASURES
    cells = [WORLDS[world](np.random.default_rng(seed), n, 5, 4) for seed in range(5)]
    asked = {"measures": measures, "scheme": scheme, "permutations": 40, "impl": impl}
    together = replicate_tests(cells, seed=7, **asked)
    assert len(together) == 5
    for place, (cell, found) in enumerate(zip(cells, together, strict=True)):
        ids = {"x_ids": cell.x_ids, "y_ids": cell.y_ids, "row_labels": cell.row_labels}
        alone = permutation_test(cell.x, cell.y, seed=7 + place, **ids, **asked)
        for one, other in zip(found, alone, strict=True):
            assert one.p_value == other.p_value
            assert one.method == other.method == ("enumerated" if n == 16 else "sampled")
            assert one.seed == other.seed
            np.testing.assert_allclose(one.draws, other.draws, atol=2e-5)
