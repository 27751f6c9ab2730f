"""The benchmark of nulls compares like with like, and its last line is JSON."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from saejax.similarity import MEASURES

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_null.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_null", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bench_null"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["svcca", "rsa"])
def test_what_is_computed_anew_is_what_the_engine_scores(bench: ModuleType, name: str) -> None:
    x, y = bench.matrices(60, 8, 12, seed=0)
    perm = np.random.default_rng(0).permutation(60)
    direct = getattr(bench, f"direct_{name}")(x, y[perm])
    assert MEASURES[name].reference(x, y[perm]) == pytest.approx(direct, abs=2e-6)


def test_figures_end_in_a_line_of_json(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(bench.BenchConfig(parts=("speed", "million"), n=60, dx=8, dy=12, seconds=0.01, permutations=1000))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"svcca", "rsa", "cka", "rsa_pearson", "cka_debiased"} < set(told["speed"])
    for figures in (*told["speed"].values(), *told["million"].values()):
        assert all(0 < figure < 1e6 for figure in figures.values())
