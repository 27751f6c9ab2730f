import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.monitoring
import numpy as np
import pytest
import scipy.stats
from made_cells import IMPLS, NAMES, SIZES, alone, cell, draws_of, run

from saejax.errors import InputError
from saejax.nulls import Cell, draws, load_grid, stacks
from saejax.nulls import grid as module
from saejax.nulls.buckets import common_lengths
from saejax.nulls.budget import Impl
from saejax.nulls.scoring import Null

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("impl", IMPLS)
def test_each_cell_is_its_permutation_test(impl: Impl, tmp_path: Path) -> None:
    cells = [cell(n) for n in SIZES]
    results = run(cells, tmp_path, impl=impl)
    assert results.failures == []
    expected = {(each.name, result.measure): result for each in cells for result in alone(each)}
    assert [(record["cell"], record["measure"]) for record in results] == list(expected)
    for record in results:
        result = expected[record["cell"], record["measure"]]
        assert record["exceedances"] == result.exceedances
        assert record["observed"] == pytest.approx(result.observed, abs=1e-12)
        for field in ("n", "p_value", "first", "exact_mean", "exact_sd", "predicted_mean"):
            assert record[field] == getattr(result, field)
        np.testing.assert_allclose(draws_of(tmp_path, record), result.draws, atol=1e-6, rtol=0)
        assert (record["x_layer"], record["subspace"]) == (result.n, "all")


def test_ties_count_alike_in_a_stack(tmp_path: Path) -> None:
    """Six and seven rows have few pairings, so that scores tie with the observed one now and then."""
    cells = [cell(n, 0.5) for n in (6, 7)]
    results = run(cells, tmp_path, impl="jax", measures=["svcca", "rsa"], permutations=200)
    counts = [
        result.exceedances for each in cells for result in alone(each, measures=["svcca", "rsa"], permutations=200)
    ]
    assert [record["exceedances"] for record in results] == counts


def test_p_is_corrected_over_all_cells_and_measures(tmp_path: Path) -> None:
    results = run([cell(n) for n in (12, 17)], tmp_path, permutations=300)
    for correction, method in (("holm", None), ("benjamini_hochberg", "bh")):
        found = results.corrected(correction)
        p = np.array([record["p_value"] for record in results])
        if method:
            expected = scipy.stats.false_discovery_control(p, method=method)
        else:
            expected = [min(1, max((len(p) - np.sum(p < q)) * q for q in p[p <= each])) for each in p]
        assert [record["p_corrected"] for record in found] == pytest.approx(list(expected))
        floor = len(p) / 301
        lines = str(found).splitlines()
        assert "corrected p" in lines[0]
        assert lines[-1] == f"p corrected by {correction} over {len(p)} results; one alone could reach {floor:.2g}"
        assert found.to_pandas()["p_floor"].tolist() == pytest.approx([floor] * len(p))
    assert "corrected p" not in str(results)
    with pytest.raises(InputError, match=f"permutations 300 cannot reach level 0.001 over {len(results)} results"):
        results.corrected("holm", 0.001)


@pytest.mark.parametrize("impl", IMPLS)
def test_cells_of_one_step_of_the_ladder_compile_once(impl: Impl, tmp_path: Path) -> None:
    compiled = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run([cell(n) for n in (12, 17, 22, 25)], tmp_path / "first", impl=impl, permutations=47)
        first = len(compiled)
        run([cell(n) for n in (9, 28, 31)], tmp_path / "second", impl=impl, permutations=47)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first > 0
    assert len(compiled) == first


def test_large_cells_are_scored_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "LADDER", (32,))
    monkeypatch.setattr(module, "common_lengths", lambda lengths, n: {} if n > 32 else common_lengths(lengths, n))
    each = cell(40)
    for impl in IMPLS:
        results = run([each], tmp_path / impl, impl=impl)
        assert [record["exceedances"] for record in results] == [result.exceedances for result in alone(each)]


class Interruption(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("impl", IMPLS)
def test_an_interrupted_grid_goes_on(impl: Impl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are done are not scored again, and one in the middle goes on from its draws."""
    cells = [cell(n) for n in (40, 20, 36)]
    expected = run(cells, tmp_path / "whole", impl=impl)
    monkeypatch.setattr(module, "LARGEST_STACK", 1)
    monkeypatch.setattr(draws, "COMMIT_SECONDS", -1.0)
    settle, settled = Null.settle, []

    def interrupted(self: Null, start: int, bounds: Any) -> Any:
        settled.append((self.n, start))
        if len(settled) == 5:
            raise Interruption
        return settle(self, start, bounds)

    monkeypatch.setattr(Null, "settle", interrupted)
    with pytest.raises(Interruption):
        run(cells, tmp_path / "run", impl=impl, batch=20)
    assert [record["cell"] for record in load_grid(tmp_path / "run")] == ["n40"] * len(NAMES)
    results = run(cells, tmp_path / "run", impl=impl, batch=20)
    assert settled == [(40, 0), (40, 20), (40, 40), (20, 0), (20, 20), (20, 20), (20, 40), (36, 0), (36, 20), (36, 40)]
    assert [(r["cell"], r["exceedances"]) for r in results] == [(r["cell"], r["exceedances"]) for r in expected]
    assert not (tmp_path / "run" / "partial").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "complete"
    again = run(cells, tmp_path / "run", impl=impl)
    assert (again, len(settled)) == (results, 10)


def test_lines_that_were_cut_short_are_made_again(tmp_path: Path) -> None:
    cells = [cell(n) for n in (20, 30)]
    whole = run(cells, tmp_path)
    file = tmp_path / "results.jsonl"
    text = file.read_text()
    file.write_text(text[: text.rindex("}")])
    assert run(cells, tmp_path) == whole
    assert file.read_text() == text
    file.write_text(text.replace("{", "", 1))
    with pytest.raises(InputError, match=r"results\.jsonl has a line that is not JSON .*; remove that line"):
        run(cells, tmp_path)


def test_results_are_a_table(tmp_path: Path) -> None:
    results = run((cell(n) for n in (20, 8)), tmp_path, measures=["svcca", "rsa"])
    lines = str(results).splitlines()
    assert lines[0].split()[:4] == ["cell", "measure", "n", "observed"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["n20", "svcca", "20"], ["n20", "rsa", "20"], ["n8", "svcca", "8"], ["n8", "rsa", "8"],
    ]  # fmt: skip
    assert load_grid(tmp_path) == results
    frame = results.to_pandas()
    assert list(frame["p_value"]) == [record["p_value"] for record in results]
    assert {"cell", "x_layer", "subspace", "measure"} <= set(frame.columns)


def test_cells_come_one_at_a_time(tmp_path: Path) -> None:
    """So a grid of any size needs the memory of a few cells."""
    there = []

    def cells() -> Iterator[Cell]:
        for n in (9, 11, 13):
            file = tmp_path / "results.jsonl"
            there.append(len(file.read_text().splitlines()) if file.exists() else 0)
            yield cell(n)

    run(cells(), tmp_path, measures=["rsa"], impl="host")
    assert there == [0, 1, 2]


TWO_PROCESSES = """
import sys
import jax
from pathlib import Path
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from made_cells import cell, run
cells = [cell(n) for n in (20, 9, 30)]
cells.insert(1, cell(3, name="bad"))
results = run(cells, Path(sys.argv[4]), measures=["cka"], impl="jax")
assert [record["cell"] for record in results] == ["n20", "n9", "n30"], results
assert [failure["cell"] for failure in results.failures] == ["bad"]
"""


def test_two_processes_share_the_cells(tmp_path: Path) -> None:
    """Each writes what it scored, and both return the whole."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = run([cell(n) for n in (20, 9, 30)], tmp_path / "one", measures=["cka"], impl="jax")
    run([cell(20)], tmp_path / "two", measures=["cka"], impl="jax")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(port), process, str(Path(__file__).parent),
             str(tmp_path / "two")],
            env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True,
        )
        for process in "01"
    ]  # fmt: skip
    for process in started:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    lines = {file.name: len(file.read_text().splitlines()) for file in (tmp_path / "two").glob("*.jsonl")}
    assert lines == {"results.jsonl": 2, "results-1.jsonl": 1, "failures.jsonl": 1}
    kept = {(record["cell"], record["measure"]): record["exceedances"] for record in load_grid(tmp_path / "two")}
    assert kept == {(record["cell"], record["measure"]): record["exceedances"] for record in alone}


EIGHT_DEVICES = """
import sys
import jax
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from made_cells import cell, run
assert len(jax.devices()) == 8
run([cell(5, 0.5), cell(6, 0.5), cell(12)], Path(sys.argv[2]), impl="jax", measures=["svcca", "cka"])
"""


def test_eight_devices_count_as_one_does(tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(Path(__file__).parent), str(tmp_path / "eight")], check=True,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, timeout=300,
    )  # fmt: skip
    one = run([cell(5, 0.5), cell(6, 0.5), cell(12)], tmp_path / "one", measures=["svcca", "cka"])
    eight = load_grid(tmp_path / "eight")
    assert [record["exceedances"] for record in eight] == [record["exceedances"] for record in one]
    for left, right in zip(eight, one, strict=True):
        np.testing.assert_allclose(
            draws_of(tmp_path / "eight", left), draws_of(tmp_path / "one", right), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["svcca", "ckk"]}, "measure 'ckk' is unknown"),
        ({"measures": ["knn_jaccard", "knn_jaccard:k=10"]}, "measures .* must be distinct"),
        ({"scheme": "block"}, "scheme 'block' is unknown"),
        ({"permutations": 0}, "permutations 0 must be at least 1"),
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"cells": []}, "cells are none; give at least one"),
        ({"cells": iter([])}, "cells are none; give at least one"),
        ({"cells": [cell(9), cell(10), cell(9)]}, "cell 'n9' is there twice"),
    ],
)
def test_bad_options_die_before_anything_is_written(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(**{"cells": [cell(9)], "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    run([cell(9)], tmp_path / "run", measures=["rsa"])
    with pytest.raises(InputError, match=r"holds another run \(seed 5 there, 6 now\)"):
        run([cell(9)], tmp_path / "run", measures=["rsa"], seed=6)
    with pytest.raises(
        InputError, match=r"holds results of cell 'n9' with other matrices \(y_sha256 [0-9a-f]{64} there"
    ):
        run([dataclasses.replace(cell(9), y=cell(9).x)], tmp_path / "run", measures=["rsa"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds files of no saejax run"):
        run([cell(9)], tmp_path / "other")
    with pytest.raises(InputError, match="cell 'n9' is there twice"):
        run(iter([cell(9), cell(9)]), tmp_path / "third", measures=["rsa"])
