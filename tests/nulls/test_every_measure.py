"""Every measure counts alike however its null is drawn: on the host, on devices, by several processes, after a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saejax.nulls import NullResults, permutation_test
from saejax.similarity import MEASURES

pytestmark = pytest.mark.slow

# Measures of neighbours with so few that lists differ; rules of SVCCA beside the one of 99 %.
NAMES = [name for name in MEASURES if name not in ("knn_jaccard", "rank_similarity", "second_order_cosine")]
NAMES += ["knn_jaccard:k=3", "rank_similarity:k=3", "second_order_cosine:k=3", "svcca:components=2", "svcca:variant=k1"]
PERMUTATIONS = 101  # which neither batches nor devices divide

SCRIPT = """
import json, os, sys
import jax, numpy as np
if os.environ.get("SAEJAX_PROCESSES"):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(os.environ["SAEJAX_ADDRESS"], 2, int(os.environ["SAEJAX_PROCESSES"]) - 1)
from saejax.nulls import draws, permutation_test
from saejax.nulls.scoring import Null
sharded, score = [0], Null.score
def spy(self, perms):
    sharded.append(len({shard.device for shard in perms.addressable_shards}) if isinstance(perms, jax.Array) else 0)
    return score(self, perms)
Null.score = spy
file, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if "checkpoint" in options:
    draws.COMMIT_SECONDS = -1.0
    commit = draws.Draws.commit
    def told(self):
        done = commit(self)
        print("committed", flush=True)
        sys.stdin.readline()
        return done
    draws.Draws.commit = told
matrices = np.load(file)
results = permutation_test(matrices["x"], matrices["y"], **options)
told = {r.measure: {"exceedances": r.exceedances, "draws": r.draws.tolist()} for r in results}
json.dump({"devices": len(jax.devices()), "sharded": max(sharded), "results": told}, open(out, "w"))
"""


def matrices() -> tuple[np.ndarray, np.ndarray]:
    """Rows so alike that neither none nor all of the draws exceed the observed scores."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(14, 5)), rng.normal(size=(14, 4))
    y += 0.15 * x[:, :4]
    return x, y


def options(**changes: Any) -> dict[str, Any]:
    return {"measures": NAMES, "scheme": "uniform", "permutations": PERMUTATIONS, "seed": 5, **changes}


@pytest.fixture(scope="module")
def expected() -> NullResults:
    results = permutation_test(*matrices(), **options(impl="host"))
    assert sum(0 < result.exceedances < PERMUTATIONS for result in results) > len(NAMES) - 3
    return results


def assert_as_expected(told: dict[str, Any], expected: NullResults) -> None:
    for result in expected:
        there = told[result.measure]
        assert there["exceedances"] == result.exceedances, result.measure
        np.testing.assert_allclose(there["draws"], result.draws, atol=3e-6, rtol=0, err_msg=result.measure)


def start(folder: Path, out: str, chosen: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    x, y = matrices()
    np.savez(folder / "matrices.npz", x=x, y=y)
    command = [sys.executable, "-c", SCRIPT, str(folder / "matrices.npz"), str(folder / out), json.dumps(chosen)]
    return subprocess.Popen(
        command, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process that has nothing to complain of."""
    said = process.communicate(timeout=600)[1]
    assert (process.returncode, said) == (0, "")


def test_devices_count_as_the_host_does(expected: NullResults, tmp_path: Path) -> None:
    """Eight of them, and none of what they are made of warns."""
    flags = "--xla_force_host_platform_device_count=8"
    finish(start(tmp_path, "out.json", options(impl="jax"), XLA_FLAGS=flags))
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["devices"], told["sharded"]) == (8, 8)
    assert_as_expected(told["results"], expected)


def test_devices_and_processes_draw_within_strata_as_the_host_does(tmp_path: Path) -> None:
    chosen = options(measures=["rsa", "cka"], scheme="strata", row_labels=[0, 1, 1, 0, 2, 3, 2] * 2)
    expected = permutation_test(*matrices(), **chosen, impl="host")
    flags = "--xla_force_host_platform_device_count=8"
    for process in start_two(tmp_path, {**chosen, "impl": "jax"}, XLA_FLAGS=flags):
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 0, said
    told = json.loads((tmp_path / "2.json").read_text())
    assert (told["devices"], told["sharded"]) == (16, 0)  # drawn on the host, and spread when they are scored
    assert_as_expected(told["results"], expected)


def test_two_processes_stop_where_one_does(tmp_path: Path) -> None:
    chosen = options(measures=["rsa", "cka"], permutations=400, stop_after=3, batch=4)
    expected = permutation_test(*matrices(), **chosen)
    assert all(result.exceedances == 3 and result.permutations < 400 for result in expected)
    for process in start_two(tmp_path, chosen):
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 0, said
    for out in ("1.json", "2.json"):
        assert_as_expected(json.loads((tmp_path / out).read_text())["results"], expected)


def start_two(folder: Path, chosen: dict[str, Any], **environment: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(folder, f"{process}.json", chosen, SAEJAX_PROCESSES=process, SAEJAX_ADDRESS=address, **environment)
        for process in "12"
    ]


def test_two_processes_count_as_one_does(expected: NullResults, tmp_path: Path) -> None:
    for process in start_two(tmp_path, options(impl="host", batch=16)):
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 0, said
    for out in ("1.json", "2.json"):
        assert_as_expected(json.loads((tmp_path / out).read_text())["results"], expected)


def test_what_one_process_refuses_all_refuse(tmp_path: Path) -> None:
    chosen = options(measures=["cka"], checkpoint=str(tmp_path / "run"))
    permutation_test(*matrices(), **chosen)
    for process in start_two(tmp_path, {**chosen, "seed": 6}):
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 1
        assert "holds another run (seed 5 there, 6 now); name a new directory" in said


def test_a_killed_run_goes_on(expected: NullResults, tmp_path: Path) -> None:
    """Killed between two commits, of which it tells; no draw that was committed is made again."""
    checkpoint = tmp_path / "run"
    process = start(tmp_path, "none.json", options(impl="host", batch=16, checkpoint=str(checkpoint)))
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "committed\n"
        process.stdin.write("go on\n")
        process.stdin.flush()
    assert process.stdout.readline() == "committed\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {file.name: file.stat().st_mtime_ns for file in checkpoint.glob("*.npz")}
    assert len(kept) > 1
    results = permutation_test(*matrices(), **options(impl="host", batch=30, checkpoint=checkpoint))
    told = {r.measure: {"exceedances": r.exceedances, "draws": r.draws.tolist()} for r in results}
    assert_as_expected(told, expected)
    assert {name: (checkpoint / name).stat().st_mtime_ns for name in kept} == kept


def test_few_draws_need_float64(expected: NullResults) -> None:
    """Those within the tolerance of the observed core, and not one draw in twenty of continuous scores."""
    for result in expected:
        ties = result.measure.startswith("knn_jaccard")  # counts of few neighbours
        assert ties == (result.rescored > PERMUTATIONS / 20), result.measure
