"""A budget is one of the whole process: its resident memory is what counts, not what numpy says of its arrays."""

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_cells import NAMES, run

from saejax.errors import InputError
from saejax.nulls import Cell, grid, permutation_test
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Arrangement, Told
from saejax.nulls.budget import Budget, Impl
from saejax.nulls.preparing import prepare_null
from saejax.nulls.selection import check_pairing, find_measures
from saejax.similarity import MEASURES, Measure

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# So that every array of a megabyte or more is given back to the system when it is let go.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
PROGRAMS = 48 * 2**20  # XLA's compiler and what it makes, threads, and heap that is not given back
ROOM = 100_000  # for two or three nulls that wait
TIGHT = 3  # times that a bound may exceed what was used

# (measure, bits of a rank, n, dx, dy), by what takes most of the memory
LARGE: dict[str, tuple[str, int | None, int, int, int]] = {
    "bases": ("cka_debiased", None, 8_000, 200, 256),
    "wide bases": ("svcca", None, 700, 2_000, 4_000),
    "bases, uncentred too": ("eigenspace_overlap", None, 7_000, 200, 256),
    "loadings": ("pwcca", None, 7_000, 200, 256),
    "rows and unit rows": ("aligned_cosine", None, 6_000, 200, 256),
    "standardised rows": ("rsa_pearson", None, 8_000, 200, 256),
    "wide standardised rows": ("rsa_pearson", None, 1_000, 1_500, 2_000),
    "unit columns": ("soft_correlation_match", None, 8_000, 200, 256),
    "neighbours": ("knn_jaccard", None, 5_000, 200, 256),
    "distances of neighbours": ("second_order_cosine", None, 2_600, 64, 96),
    "exact ranks": ("rsa", 32, 3_500, 16, 24),
    "exact ranks in float32": ("rsa", None, 3_000, 16, 24),
    "quantised ranks": ("rsa_euclidean", 16, 3_500, 16, 24),
    "distances of wide rows": ("rsa_euclidean", None, 1_500, 64, 4_000),
    "float64 distances": ("distance_correlation", None, 2_700, 16, 24),
    "float32 distances": ("distance_correlation", None, 4_000, 16, 24),
}
CASES: list[tuple[str, Impl]] = [
    *((case, "host") for case in LARGE),
    *((case, "jax") for case in ("bases", "exact ranks")),
]


def planted(n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dx)).astype(np.float32), rng.normal(size=(n, dy)).astype(np.float32)


def preparing(x: np.ndarray, y: np.ndarray, measures: list[Measure], impl: Impl) -> int:
    return Budget(impl, 0).preparing_bytes(check_pairing(x, y, (), "uniform", Told()), measures)


def needed(case: str, impl: Impl) -> int:
    name, bits, *shape = LARGE[case]
    return preparing(*planted(*shape), find_measures([name], bits), impl)


def resident(kind: str) -> int:
    """Return the resident memory of this process now (VmRSS), or the most since that was last cleared (VmHWM)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])


def used(case: str, impl: Impl) -> int:
    """Return by how much resident memory grows, with the smallest budget that is accepted."""
    name, bits, *shape = LARGE[case]
    options = {"measures": [name], "scheme": "uniform", "seed": 0, "impl": impl, "rank_bits": bits}
    permutation_test(*planted(40, 4, 5), permutations=20, **options)
    x, y = planted(*shape)
    memory = needed(case, impl)
    gc.collect()
    PEAK.write_text("5")
    before = resident("VmRSS")
    permutation_test(x, y, permutations=12, memory_gib=(memory + 1) / 2**30, **options)
    return resident("VmHWM") - before


@pytest.fixture(scope="module")
def all_used() -> dict[str, int]:
    """What each case used, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, **ALLOCATION, "JAX_PLATFORMS": "cpu"}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="peaks of resident memory are Linux's to tell")
@pytest.mark.parametrize(("case", "impl"), CASES)
def test_the_process_stays_within_the_budget(case: str, impl: Impl, all_used: dict[str, int]) -> None:
    """From reading the matrices to the last draw; and the bound is not an idle one."""
    memory = needed(case, impl)
    assert memory / TIGHT < all_used[f"{case}, {impl}"] < memory + PROGRAMS


def test_a_small_budget_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any) -> None:
        raise AssertionError

    x, y = planted(60, 5, 6)
    memory = preparing(x, y, [MEASURES["svcca"]], "host")
    monkeypatch.setitem(MEASURES, "svcca", dataclasses.replace(MEASURES["svcca"], check=work, own=work))
    options = {"measures": ["svcca"], "scheme": "uniform", "permutations": 9, "seed": 0}
    with pytest.raises(InputError, match=r"^memory .* GiB is below the .* GiB that preparing svcca of 60 pairs needs"):
        permutation_test(x, y, memory_gib=(memory - 1) / 2**30, **options)


def test_picks_share_the_budget() -> None:
    rng = np.random.default_rng(1)
    x, y = np.repeat(rng.normal(size=(30, 4)), 3, axis=0), rng.normal(size=(90, 5))
    measures, key = find_measures(["cka", "rsa"]), drawing.key_of(0)
    arrangement = check_pairing(x, y, measures, "representative:picks=40", Told())
    budget = Budget("host", 2**21)
    null = prepare_null(arrangement, measures, key, budget, listed=False)
    assert null.state_bytes() + budget.preparing_bytes(arrangement, measures) < budget.memory
    assert null.held_bytes() <= budget.memory
    assert null.largest_batch() > 1
    with pytest.raises(InputError, match=r" GiB that the states of 40 picks of 30 pairs needs; raise memory_gib"):
        prepare_null(arrangement, measures, key, Budget("host", null.state_bytes()), listed=False)


def test_cells_that_wait_leave_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are scored the earlier for that, to the same results."""
    cells = [Cell(f"cell {n}", *planted(n, 2000, 3000)) for n in range(20, 32)]
    expected = run(cells, tmp_path / "roomy", impl="jax", permutations=5)
    prepared, waited = grid._Work._prepared, []

    def spy(self: Any, cell: Cell, arrangement: Arrangement, measures: list[Measure]) -> Any:
        waiting = self._waiting_bytes()
        waited.append(waiting)
        assert waiting + self.budget.preparing_bytes(arrangement, measures) <= self.budget.memory
        return prepared(self, cell, arrangement, measures)

    monkeypatch.setattr(grid._Work, "_prepared", spy)
    largest = preparing(cells[-1].x, cells[-1].y, find_measures(NAMES), "jax")
    results = run(cells, tmp_path / "tight", impl="jax", permutations=5, memory_gib=(largest + ROOM) / 2**30)
    assert max(waited) > 0
    for record, other in zip(results, expected, strict=True):
        assert (record["cell"], record["exceedances"]) == (other["cell"], other["exceedances"])
        np.testing.assert_allclose(record["null_mean"], other["null_mean"], atol=1e-6)


if __name__ == "__main__":
    print(json.dumps({f"{case}, {impl}": used(case, impl) for case, impl in CASES}))
