"""What a permutation test refuses, by name and before any work."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.nulls import NullResults, permutation_test
from saejax.nulls.numbers import whole
from saejax.similarity import MEASURES


def matrices(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    return rng.normal(size=(n, 3)), rng.normal(size=(n, 3))


def run(x: np.ndarray, y: np.ndarray, permutations: int = 300, **options: Any) -> NullResults:
    chosen = {"measures": ["svcca", "rsa"], "scheme": "uniform", "seed": 5, "permutations": permutations, **options}
    return permutation_test(x, y, **chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["svcca", "ckk"]}, "measure 'ckk' is unknown; choose among svcca"),
        ({"measures": []}, r"measures \[\] must be distinct, and at least one of svcca"),
        ({"measures": ["rsa", "rsa"]}, r"measures \['rsa', 'rsa'\] must be distinct"),
        ({"measures": "svcca"}, "measures 'svcca' is one name; give a list"),
        ({"scheme": "block"}, "scheme 'block' is unknown; choose one of uniform"),
        ({"permutations": 0}, "permutations 0 must be at least 1"),
        ({"first": -1}, r"permutations -1 to 299 must lie between 0 and 2\^32"),
        ({"first": 2**32 - 10}, r"permutations 4294967286 to 4294967586 must lie between 0 and 2\^32"),
        ({"memory_gib": 0.0}, "memory_gib 0.0 must be above 0"),
        ({"seed": -3}, "seed -3 must be at least 0"),
        ({"batch": 0}, "batch 0 must be at least 1"),
        ({"x_ids": [0] * 8}, "x_ids names feature 0 for rows 0 and 1"),
        ({"y_ids": [0, 1]}, "y_ids has 2 ids for 8 rows of y"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    x, y = matrices(8)
    with pytest.raises(InputError, match=message):
        run(x, y, **options)


def test_whole_numbers_of_any_library_will_do() -> None:
    assert type(whole("seed", np.int64(3))) is int
    for number in (1e4, "20", None):
        with pytest.raises(InputError, match=f"permutations {number!r} must be a whole number"):
            whole("permutations", number)


def test_a_refused_null_leaves_no_checkpoint(tmp_path: Path) -> None:
    """So that its remedy, fewer measures, can be followed in the same place."""
    x, y = matrices(300)
    with pytest.raises(InputError, match="ask for fewer measures"):
        run(x, y, measures=["cka", "rsa"], memory_gib=0.0005, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(x, y, 20, measures=["cka"], checkpoint=tmp_path / "run")


def test_bad_matrices_die_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without correlations is found before the first, slower measure is prepared."""
    x, y = matrices(8)
    y[3] = 0.5

    def work(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setitem(MEASURES, "svcca", dataclasses.replace(MEASURES["svcca"], own=work))
    with pytest.raises(InputError, match="rsa: row 3 of y is constant"):
        run(x, y)
