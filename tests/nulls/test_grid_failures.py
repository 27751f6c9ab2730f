"""What cannot be scored in a grid is reported, and costs nothing else."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_cells import IMPLS, alone, cell, draws_of, run

from saejax.errors import InputError
from saejax.nulls.budget import Impl
from saejax.nulls.scoring import Null
from saejax.similarity import MEASURES, Pair


def fail_while_scored(monkeypatch: pytest.MonkeyPatch, error: Exception, where: Callable[[Null], bool]) -> None:
    settle = Null.settle

    def failing(self: Null, start: int, bounds: Any) -> Any:
        if where(self):
            raise error
        return settle(self, start, bounds)

    monkeypatch.setattr(Null, "settle", failing)


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
    fail_while_scored(monkeypatch, MemoryError("no room"), lambda null: null.n == 30)
    unreadable = dataclasses.replace(cell(9), x=Unreadable())
    results = run([unreadable, cell(28), cell(30), cell(31)], tmp_path, impl=impl, measures=["cka"])
    assert [record["cell"] for record in results] == ["n28", "n31"]
    assert [(failure["cell"], failure["error"]) for failure in results.failures] == [
        ("n9", "the disk is gone"), ("n30", "no room"),
    ]  # fmt: skip


def test_a_measure_without_room_leaves_its_cell_to_the_others(tmp_path: Path) -> None:
    """Ranking 300 rows takes 6.7 MB, all their distances 5.1, each measure apart from the other."""
    names = ["rsa", "second_order_cosine", "cka"]
    room = 5.5 / 1024
    with pytest.raises(InputError, match="memory .* is below"):
        alone(cell(300), measures=["rsa"], memory_gib=room)
    results = run([cell(300), cell(20)], tmp_path, measures=names, impl="host", memory_gib=room)
    assert [(record["cell"], record["measure"]) for record in results] == [
        ("n300", "second_order_cosine"), ("n300", "cka"),
        ("n20", "rsa"), ("n20", "second_order_cosine"), ("n20", "cka"),
    ]  # fmt: skip
    assert [(failure["cell"], failure["measure"]) for failure in results.failures] == [("n300", "rsa")]
    apart = alone(cell(300), measures=["second_order_cosine", "cka"])
    for record, result in zip(results, apart, strict=False):
        assert record["exceedances"] == result.exceedances
        np.testing.assert_array_equal(draws_of(tmp_path, record), result.draws)
    more = run([cell(300), cell(20)], tmp_path, measures=names, impl="host")
    assert (len(more), more.failures) == (6, [])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_measure_that_fails_on_the_way_leaves_its_cell_to_the_others(
    impl: Impl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_cka(null: Null) -> bool:
        return null.n == 30 and "cka" in [measure.name for measure in null.plan.measures]

    fail_while_scored(monkeypatch, InputError("cka: not this one"), with_cka)
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
