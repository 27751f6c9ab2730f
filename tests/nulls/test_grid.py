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

from saejax.errors import InputError
from saejax.nulls import Cell, GridResults, NullResult, draws, grid_test, load_grid, permutation_test
from saejax.nulls import grid as module
from saejax.nulls.buckets import common_lengths
from saejax.nulls.scoring import Impl, Null
from saejax.similarity import MEASURES, Pair

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
    """Five and six rows have few pairings, so that scores tie with the observed one all the time."""
    cells = [cell(n, 0.5) for n in (5, 6)]
    results = run(cells, tmp_path, impl="jax", measures=["svcca", "rsa"], permutations=200)
    counts = [
        result.exceedances for each in cells for result in alone(each, measures=["svcca", "rsa"], permutations=200)
    ]
    assert [record["exceedances"] for record in results] == counts


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
    monkeypatch.setattr(module, "LADDER", (32,))
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


def test_a_failed_cell_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = dataclasses.replace(cell(20), name="bad", x=np.full((20, 6), np.nan))
    repeated = dataclasses.replace(cell(12), name="repeated", x_ids=[0, 0, *range(2, 12)])
    results = run([cell(30), bad, repeated, cell(8)], tmp_path)
    assert {record["cell"] for record in results} == {"n30", "n8"}
    assert [(failure["cell"], failure["x_layer"]) for failure in results.failures] == [("bad", 20), ("repeated", 12)]
    assert [failure["measure"] for failure in results.failures] == [None, None]
    assert "120 value(s) that are not finite" in results.failures[0]["error"]
    assert "x_ids names feature 0 for rows 0 and 1" in results.failures[1]["error"]
    assert [line.partition(":")[0] for line in caplog.messages] == ["cell bad failed", "cell repeated failed"]
    assert str(results).splitlines()[-2:] == caplog.messages
    mended = run([cell(30), dataclasses.replace(cell(20), name="bad"), cell(8)], tmp_path)
    assert mended.failures == []
    assert {record["cell"] for record in mended} == {"n30", "n8", "bad"}


def test_a_measure_that_refuses_a_cell_leaves_it_to_the_others(tmp_path: Path) -> None:
    cells = [cell(9), cell(20), cell(8)]
    few = run(cells, tmp_path, measures=["rsa", "knn_jaccard", "cka"], impl="jax")
    assert [(failure["cell"], failure["measure"]) for failure in few.failures] == [
        ("n9", "knn_jaccard"), ("n8", "knn_jaccard"),
    ]  # fmt: skip
    assert few.failures[0]["error"].startswith("knn_jaccard: 9 pairs have no 10 neighbours each")
    assert [record["measure"] for record in few] == ["rsa", "cka", "rsa", "knn_jaccard", "cka", "rsa", "cka"]


def test_a_measure_that_was_refused_joins_the_others_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pair: Any) -> None:
        raise InputError("cka: not today; run again tomorrow")

    with monkeypatch.context() as today:
        today.setitem(MEASURES, "cka", dataclasses.replace(MEASURES["cka"], check=refuse))
        few = run([cell(12)], tmp_path, measures=["cka", "rsa"])
    assert str(few).splitlines()[-1] == "cell n12 failed: cka: not today; run again tomorrow"
    kept = draws_of(tmp_path, few[0])
    whole = run([cell(12)], tmp_path, measures=["cka", "rsa"])
    assert ([record["measure"] for record in whole], whole.failures) == (["rsa", "cka"], [])
    np.testing.assert_array_equal(draws_of(tmp_path, whole[0]), kept)
    assert len(draws_of(tmp_path, whole[1])) == 50


def test_a_check_that_breaks_down_leaves_its_cell_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_convergence(pair: Pair) -> None:
        if pair.n == 20:
            raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setitem(MEASURES, "cka", dataclasses.replace(MEASURES["cka"], check=no_convergence))
    results = run([cell(20), cell(12)], tmp_path, measures=["cka", "rsa"])
    assert [(record["cell"], record["measure"]) for record in results] == [
        ("n20", "rsa"), ("n12", "cka"), ("n12", "rsa"),
    ]  # fmt: skip
    assert [(each["cell"], each["measure"]) for each in results.failures] == [("n20", "cka")]
    alone = run([dataclasses.replace(cell(20), x=np.ones(3))], tmp_path / "one", measures=["rsa"])
    assert [(each["cell"], each["measure"]) for each in alone.failures] == [("n20", None)]


class Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise OSError("the disk is gone")


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cell_that_fails_on_the_way_leaves_the_others_alone(
    impl: Impl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cannot be read; one has no memory left once it is scored, alone or in a stack with another of its shape."""
    settle = Null.settle

    def without_memory(self: Null, start: int, bounds: Any) -> Any:
        if self.n == 30:
            raise MemoryError("no room")
        return settle(self, start, bounds)

    monkeypatch.setattr(Null, "settle", without_memory)
    unreadable = dataclasses.replace(cell(9), x=Unreadable())
    results = run([unreadable, cell(28), cell(30), cell(31)], tmp_path, impl=impl, measures=["cka"])
    assert [record["cell"] for record in results] == ["n28", "n31"]
    assert [(failure["cell"], failure["error"]) for failure in results.failures] == [
        ("n9", "the disk is gone"), ("n30", "no room"),
    ]  # fmt: skip


def test_a_measure_without_room_leaves_its_cell_to_the_others(tmp_path: Path) -> None:
    """All distances of 300 rows twice, in float64, take 1.4 MB; ranks alone 1.2, each measure apart from the other."""
    names = ["rsa", "second_order_cosine", "cka"]
    room = 1.25 / 1024
    with pytest.raises(InputError, match="memory .* is below"):
        alone(cell(300), measures=["second_order_cosine"], memory_gib=room)
    results = run([cell(300), cell(20)], tmp_path, measures=names, impl="host", memory_gib=room)
    assert [(record["cell"], record["measure"]) for record in results] == [
        ("n300", "rsa"), ("n300", "cka"), ("n20", "rsa"), ("n20", "second_order_cosine"), ("n20", "cka"),
    ]  # fmt: skip
    assert [(failure["cell"], failure["measure"]) for failure in results.failures] == [("n300", "second_order_cosine")]
    apart = alone(cell(300), measures=["rsa", "cka"])
    for record, result in zip(results, apart, strict=False):
        assert record["exceedances"] == result.exceedances
        np.testing.assert_array_equal(draws_of(tmp_path, record), result.draws)
    more = run([cell(300), cell(20)], tmp_path, measures=names, impl="host")
    assert (len(more), more.failures) == (6, [])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_measure_that_fails_on_the_way_leaves_its_cell_to_the_others(
    impl: Impl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Null.settle

    def undetermined(self: Null, start: int, bounds: Any) -> Any:
        if self.n == 30 and "cka" in [measure.name for measure in self.plan.measures]:
            raise InputError("cka: not this one")
        return settle(self, start, bounds)

    monkeypatch.setattr(Null, "settle", undetermined)
    results = run([cell(28), cell(30), cell(31)], tmp_path, impl=impl, measures=["rsa", "cka", "svcca"])
    assert [record["measure"] for record in results if record["cell"] == "n30"] == ["rsa", "svcca"]
    assert [(failure["cell"], failure["measure"]) for failure in results.failures] == [("n30", "cka")]
    assert len(results) == 8


def test_a_fast_way_that_is_off_fails_its_cell_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rsa = MEASURES["rsa"]

    def off(own: Any, values: Any, perms: np.ndarray) -> np.ndarray:
        return np.asarray(values[0]) * float(own.slope) + float(own.intercept) + (1e-3 if own.slope > 1e-6 else 0)

    monkeypatch.setitem(MEASURES, "rsa", dataclasses.replace(rsa, core_batch=off))
    results = run([cell(8), cell(40)], tmp_path, measures=["rsa"], impl="host")
    assert [record["cell"] for record in results] == ["n40"]
    assert "rsa of the observed pairing has core" in results.failures[0]["error"]


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
from test_grid import cell, run
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
from test_grid import cell, run
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
