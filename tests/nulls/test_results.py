from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import torch

from saejax.errors import InputError
from saejax.nulls import NullResults, load, permutation_test

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)
Y = (0.3 * X + RNG.normal(size=(20, 4))).astype(np.float32)


def run(x: object = X, y: object = Y) -> NullResults:
    return permutation_test(x, y, measures=["svcca", "rsa"], scheme="uniform", permutations=50, seed=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results() -> NullResults:
    return run()


def test_prints_as_a_table(results: NullResults) -> None:
    lines = str(results).splitlines()[:3]
    assert lines[0].split() == ["measure", "n", "observed", "null", "mean", "null", "SD", "z", "exact",
                                "z", "calibrated", "p", "95", "%", "interval", "of", "p"]  # fmt: skip
    assert [line.split()[:2] for line in lines[1:]] == [["svcca", "20"], ["rsa", "20"]]
    assert len({len(line) for line in lines}) == 1
    assert f"{results[1].exact_z:.2f}" in lines[2].split()


def test_columns_that_are_empty_are_left_out() -> None:
    """SVCCA has no exact moments, and one re-pairing no SD."""
    lines = str(permutation_test(X, Y, measures=["svcca"], scheme="uniform", permutations=1, seed=1)).splitlines()
    assert lines[0].split() == ["measure", "n", "observed", "null", "mean", "p", "95", "%", "interval", "of", "p"]
    assert len(lines[0]) == len(lines[1])


def test_becomes_a_data_frame(results: NullResults) -> None:
    frame = results.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["measure"].tolist() == ["svcca", "rsa"]
    assert frame["p_value"].tolist() == [result.p_value for result in results]
    assert "draws" not in frame


def test_saves_and_loads(results: NullResults, tmp_path: Path) -> None:
    again = load(results.save(tmp_path / "result.json"))
    assert again == results
    for left, right in zip(again, results, strict=True):
        np.testing.assert_array_equal(left.draws, right.draws)
    (tmp_path / "result.npz").unlink()
    with pytest.raises(InputError, match=r"result\.npz does not exist; it holds the draws of result\.json"):
        load(tmp_path / "result.json")
    with pytest.raises(InputError, match=r"result\.txt must end in \.json"):
        results.save(tmp_path / "result.txt")


def test_plots_every_null_with_the_observed_score(results: NullResults) -> None:
    figure: Any = results.plot()
    for trace, line, result in zip(figure.data, figure.layout.shapes, results, strict=True):
        assert sum(trace.y) == 50
        assert line.x0 == line.x1 == result.observed


def test_matrices_of_other_libraries_are_read(results: NullResults) -> None:
    for kind in (torch.tensor, jnp.asarray, pandas.DataFrame, np.ndarray.tolist):
        assert run(kind(X), kind(Y)) == (results if kind is not np.ndarray.tolist else run(X.tolist(), Y.tolist()))


def test_what_no_array_can_be_made_of_is_named() -> None:
    with pytest.raises(InputError, match="^y cannot be read as an array"):
        run(X, torch.tensor(Y, requires_grad=True))


def test_a_measure_that_no_repairing_changes_says_so() -> None:
    wide = RNG.normal(size=(6, 20))
    results = permutation_test(wide, wide, measures=["svcca"], scheme="uniform", permutations=20, seed=0)
    assert results[0].z is None
    assert str(results).splitlines()[-1] == (
        "no z for svcca: constant under this scheme, every re-pairing scores the same"
    )
