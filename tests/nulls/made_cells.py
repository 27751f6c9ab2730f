"""Cells of grids, and how tests run them."""

from pathlib import Path
from typing import Any

import numpy as np

from saejax.nulls import Cell, GridResults, NullResult, grid_test, permutation_test
from saejax.nulls.budget import Impl

NAMES = ["svcca", "rsa", "cka", "knn_jaccard:k=3"]
IMPLS: list[Impl] = ["host", "jax"]
SIZES = (8, 14, 33, 21, 40)  # two steps of the ladder


def cell(n: int, shared: float = 0.3, name: str | None = None) -> Cell:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 5))
    y += shared * x[:, :5]
    return Cell(name or f"n{n}", x, y, {"x_layer": n, "subspace": "all"})


def run(cells: Any, out: Path, **options: Any) -> GridResults:
    chosen = {"measures": NAMES, "scheme": "uniform", "permutations": 50, "seed": 5, **options}
    return grid_test(cells, out=out, **chosen)


def alone(each: Cell, **options: Any) -> list[NullResult]:
    chosen = {"measures": NAMES, "scheme": "uniform", "permutations": 50, "seed": 5, **options}
    return permutation_test(each.x, each.y, x_ids=each.x_ids, y_ids=each.y_ids, **chosen)


def draws_of(out: Path, record: dict[str, Any]) -> np.ndarray:
    with np.load(out / record["draws"]) as kept:
        return kept[record["measure"]]
