"""The benchmark of stores times ways that all read every row, and its last line is JSON."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_store.py"
TINY = {"rows": 4000, "width": 8, "shard_rows": 512, "chunk_rows": 64, "window_rows": 256, "batch": 36, "turns": 1}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_store", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bench_store"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pass_of_every_way_reads_all_rows(bench: ModuleType, tmp_path: Path) -> None:
    config = bench.BenchConfig(**TINY)
    (x, _), (y, _) = (bench.written(config, tmp_path, name) for name in "xy")
    kept = 4000 - 4  # a special token begins each document
    passes = {name: (rows, bench.count_up_to(rows, read())) for name, (rows, read) in bench.ways(config, x, y).items()}
    rows = {"plain": 4000, "slices": 4000, "blocks": kept, "shuffled": kept, "pair": 2 * kept}
    assert passes == {name: (count, count) for name, count in rows.items()}


@pytest.mark.parametrize("cold", [False, True])
def test_figures_end_in_a_line_of_json(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], cold: bool
) -> None:
    parts = ("reading",) if cold else ("reading", "waiting")
    small = {"d_sae": 16, "k": 2, "steps": 8, "runs": 1, "cold": cold, "folder": tmp_path, "parts": parts}
    bench.main(bench.BenchConfig(**TINY, **small))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    for way in ("slices", "blocks", "shuffled", "pair"):
        assert told[f"{way}_rows_per_second"] > 0
        assert told[f"{way}_over_plain"] > 0
    assert told["writing_rows_per_second"] > 0
    assert cold or 0 <= told["wait_share"] <= 1
    assert not list(tmp_path.iterdir())
