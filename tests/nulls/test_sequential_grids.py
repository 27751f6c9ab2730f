"""Grids of sequential tests: every result stops at a draw of its own."""

from pathlib import Path
from typing import Any

import pytest
from made_cells import IMPLS, alone, cell, draws_of, run

from saejax.errors import InputError
from saejax.nulls import draws, grid
from saejax.nulls.budget import Impl
from saejax.nulls.scoring import Null


@pytest.mark.parametrize("impl", IMPLS)
def test_cells_of_a_grid_stop_each_at_its_own_draw(impl: Impl, tmp_path: Path) -> None:
    cells = [cell(n, shared) for n, shared in ((20, 0.0), (24, 1.5), (30, 0.1), (31, 0.0))]
    names = ["rsa", "cka", "knn_jaccard:k=3"]
    asked: dict[str, Any] = {"measures": names, "permutations": 300, "stop_after": 10, "impl": impl}
    results = run(cells, tmp_path / "grid", **asked)
    expected = [result for each in cells for result in alone(each, **asked)]
    assert len({result.permutations for result in expected}) > 5
    assert max(result.permutations for result in expected) == 300
    for record, result in zip(results, expected, strict=True):
        assert record["measure"] == result.measure
        assert record["p_value"] == result.p_value
        assert record["permutations"] == result.permutations == len(draws_of(tmp_path / "grid", record))
    # What they would have gone on to is what a correction must be able to reach, not where they stopped.
    least = min(record["p_value"] for record in results)
    assert min(record["p_corrected"] for record in results.corrected("holm")) == pytest.approx(12 * least)
    assert max(record["p_floor"] for record in results.corrected("holm")) == pytest.approx(12 / 301)
    assert run(cells, tmp_path / "grid", **asked).records() == results.records()


def test_a_sequential_grid_goes_on_from_its_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"measures": ["rsa"], "permutations": 300, "stop_after": 40, "batch": 16, "impl": "host"}
    scored, score_range = [], Null.score_range

    def counting(null: Null, start: int, stop: int) -> Any:
        scored.append(stop - start)
        return score_range(null, start, stop)

    monkeypatch.setattr(Null, "score_range", counting)
    whole = run([cell(40, 0.0)], tmp_path / "whole", **asked)
    assert whole[0]["permutations"] <= sum(scored) < whole[0]["permutations"] + 16
    monkeypatch.setattr(draws, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(grid, "judged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run([cell(40, 0.0)], tmp_path / "again", **asked)
    monkeypatch.undo()
    monkeypatch.setattr(Null, "score_range", lambda *_: pytest.fail("there are enough draws"))
    again = run([cell(40, 0.0)], tmp_path / "again", **asked)
    assert again[0]["permutations"] == whole[0]["permutations"] < 300
    assert again[0]["p_value"] == whole[0]["p_value"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"couple": "y"}, "stop_after 10 ends each result at a draw of its own, and couple 'y' needs the same"),
        ({"couple": "y", "correction": "max_t"}, "and correction max_t needs the same draws of all; leave stop_after"),
        ({"correction": "min_p"}, "and correction min_p needs"),
        ({"stop_after": 1}, "stop_after 1 must be at least 2"),
    ],
)
def test_a_sequential_grid_is_not_coupled(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run([cell(20)], tmp_path, **{"stop_after": 10, **asked})
