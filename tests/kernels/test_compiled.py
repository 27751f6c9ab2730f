"""Machine code is kept for the next process, and what cannot be kept is compiled all the same."""

import os
import subprocess
import sys
from pathlib import Path

import numba.core.caching
import pytest
from saejax_kernels.compiled import compiled

MODULE = """
from saejax_kernels.compiled import compiled

@compiled(fastmath=True)
def add(x, y):
    return x + y

assert add(1, 2) == 3
print(sum(add.stats.cache_hits.values()), sum(add.stats.cache_misses.values()))
"""


def test_the_next_process_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "adding.py").write_text(MODULE)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    told = [
        subprocess.run(
            [sys.executable, "adding.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["0", "1"], ["1", "0"]]


def test_without_a_folder_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled()(lambda x: 2 * x)(21) == 42
