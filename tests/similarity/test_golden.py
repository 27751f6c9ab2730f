"""Scores of an independent public library (resi at 24ab9e5), which ours must repeat where the definition is the same.

`golden.npz` holds matrices, four pairings each and the library's scores of four cases: more columns on the right
(tall7), more on the left (unit7), fewer rows than columns (wide7), and many equal rows (hubs7). What is left out, and
why, stands in `DIFFERENT`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from saejax.similarity import MEASURES, Measure
from saejax.similarity.svcca import svcca

GOLDEN = Path(__file__).parent / "golden.npz"

LIBRARY_NAMES = {
    "svcca": "SVCCA",
    "svcca:variant=k1": "SVCCA_k1",
    "rsa": "RSA",
    "cka": "CKA",
    "procrustes": "OrthogonalProcrustesCenteredAndNormalized",
    "procrustes_size_and_shape": "ProcrustesSizeAndShapeDistance",
    "angular_procrustes": "OrthogonalAngularShapeMetricCentered",
    "aligned_cosine": "AlignedCosineSimilarity",
    "linear_regression": "LinearRegression",
    "distance_correlation": "DistanceCorrelation",
    "eigenspace_overlap": "EigenspaceOverlapScore",
    "gulp": "Gulp",
    "knn_jaccard": "JaccardSimilarity",
    "rank_similarity": "RankSimilarity",
    "second_order_cosine": "SecondOrderCosineSimilarity",
    "soft_correlation_match": "SoftCorrelationMatch",
    "hard_correlation_match": "HardCorrelationMatch",
}
EQUAL_ROWS = "neighbours of equal rows are in an order that only rounding decides; refused here"
DIFFERENT = {
    ("gulp", "wide7"): "the library fails with more columns than rows",
    ("rsa", "hubs7"): "distances of equal rows, 0 or a few 1e-16 there, tie here",
    ("knn_jaccard", "hubs7"): EQUAL_ROWS,
    ("rank_similarity", "hubs7"): EQUAL_ROWS,
    ("second_order_cosine", "hubs7"): EQUAL_ROWS,
}


class Case(NamedTuple):
    """One measure on one pair of matrices, and the library's score of each pairing."""

    measure: Measure
    x: np.ndarray
    y: np.ndarray
    perms: np.ndarray
    expected: np.ndarray


def cases() -> dict[str, Case]:
    found = {}
    measures = {**MEASURES, "svcca:variant=k1": svcca(variant="k1")}
    with np.load(GOLDEN) as golden:
        for case, table in json.loads(str(golden["scores_json"])).items():
            x, y, perms = golden[f"{case}/x"], golden[f"{case}/y"], golden[f"{case}/perms"].astype(np.int32)
            for name, library_name in LIBRARY_NAMES.items():
                scores = table[library_name]
                if (name, case) not in DIFFERENT:
                    found[f"{name}-{case}"] = Case(measures[name], x, y, perms, np.array(scores))
    return found


CASES = cases()
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


@every_case
def test_the_definition_repeats_the_library(case: Case) -> None:
    for perm, score in zip(case.perms, case.expected, strict=True):
        assert case.measure.reference(case.x, case.y[perm]) == pytest.approx(score, abs=1e-6, rel=1e-6)


@every_case
def test_scores_repeat_the_library(case: Case) -> None:
    """In float32 by both ways to 1e-4, in float64 to 1e-6."""
    measure = case.measure
    state = measure.prepare(case.x, case.y)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32 if leaf.dtype == np.float64 else None), state)
    mapped = jax.jit(jax.vmap(measure.score, in_axes=(None, 0)))(single, case.perms)
    for scores in (mapped, measure.score_batch(single, case.perms)):
        np.testing.assert_allclose(np.asarray(scores), case.expected, atol=1e-4, rtol=1e-4)
    exact = [measure.score_exact(state, perm) for perm in case.perms]
    np.testing.assert_allclose(exact, case.expected, atol=1e-6, rtol=1e-6)


def test_rsa_of_equal_rows_is_the_librarys_but_for_ties() -> None:
    """Spearman of distances that are 0 where rows are equal; the library's, in the order of rounding, are near it."""
    with np.load(GOLDEN) as golden:
        x, y, perms = (golden[f"hubs7/{name}"] for name in ("x", "y", "perms"))
        library = json.loads(str(golden["scores_json"]))["hubs7"]["RSA"]
    above = np.triu_indices(len(x), 1)
    for perm, score in zip(perms, library, strict=True):
        distances = []
        for rows in (x, y[perm]):
            _, which = np.unique(rows, axis=0, return_inverse=True)
            apart = np.round(1 - np.corrcoef(rows), 13)
            distances.append(np.where(which[:, None] == which, 0, apart)[above])
        found: Any = scipy.stats.spearmanr(*distances)
        assert MEASURES["rsa"].reference(x, y[perm]) == pytest.approx(found.statistic, abs=1e-9)
        assert score == pytest.approx(found.statistic, abs=1e-4)


def test_every_measure_is_held_against_the_library_or_says_why_not() -> None:
    without = {"cca_mean_squared", "cka_debiased", "rsa_cosine", "rsa_euclidean", "rsa_pearson", "pwcca"}
    assert set(MEASURES) - without <= set(LIBRARY_NAMES)
    assert len(CASES) == 4 * len(LIBRARY_NAMES) - len(DIFFERENT)
