"""Scores of an independent public library (resi at 24ab9e5), which ours must repeat.

`golden.npz` holds matrices, four pairings each and the library's scores of four cases: more columns on the right
(tall7), more on the left (unit7), fewer rows than columns (wide7), and many equal rows (hubs7).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.similarity import MEASURES

GOLDEN = Path(__file__).parent / "golden.npz"


def cases() -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    found = []
    with np.load(GOLDEN) as golden:
        for case, table in json.loads(str(golden["scores_json"])).items():
            x, y, perms = golden[f"{case}/x"], golden[f"{case}/y"], golden[f"{case}/perms"].astype(np.int32)
            expected = {name: np.array(table[name.upper()], dtype=float) for name in MEASURES}
            found.append((case, x, y, perms, expected))
    return found


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
every_measure = pytest.mark.parametrize("name", list(MEASURES))


@every_case
@every_measure
def test_reference_repeats_the_library(case: tuple, name: str) -> None:
    _, x, y, perms, expected = case
    for perm, score in zip(perms, expected[name], strict=True):
        assert abs(MEASURES[name].reference(x, y[perm]) - score) < 1e-6


@every_case
@every_measure
def test_prepared_scores_repeat_the_library_in_float64(case: tuple, name: str) -> None:
    _, x, y, perms, expected = case
    measure = MEASURES[name]
    with jax.enable_x64(True):
        state = jax.tree.map(jnp.asarray, measure.prepare(x, y))
        scores = jax.vmap(measure.score, in_axes=(None, 0))(state, jnp.asarray(perms))
    np.testing.assert_allclose(scores, expected[name], atol=1e-6, rtol=0)
    references = [measure.reference(x, y[perm]) for perm in perms]
    np.testing.assert_allclose(scores, references, atol=1e-13, rtol=0)


@every_case
@every_measure
def test_prepared_scores_repeat_the_library_in_float32(case: tuple, name: str) -> None:
    """Both ways stay within 1e-4 of the library, and within half the stated tolerance of the definition."""
    _, x, y, perms, expected = case
    measure = MEASURES[name]
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, None if leaf.dtype == np.int32 else jnp.float32),
                         measure.prepare(x, y))  # fmt: skip
    references = [measure.reference(x, y[perm]) for perm in perms]
    batch = jax.jit(jax.vmap(measure.score, in_axes=(None, 0)))(state, jnp.asarray(perms))
    for scores in (batch, measure.score_batch(state, perms)):
        np.testing.assert_allclose(scores, expected[name], atol=1e-4, rtol=0)
        np.testing.assert_allclose(scores, references, atol=measure.tolerance / 2, rtol=0)
