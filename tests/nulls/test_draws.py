from pathlib import Path

import numpy as np
import pytest

from saejax.nulls import draws as module
from saejax.nulls.draws import Draws

NAMES = ("a", "b:k=3")
CORES = np.random.default_rng(0).normal(size=(2, 100))
RESCORED = CORES > 1


def put(draws: Draws, start: int, stop: int) -> None:
    draws.put(start, CORES[:, start:stop], RESCORED[:, start:stop])


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    draws = Draws(NAMES, 0, 100, tmp_path)
    for start in range(0, 40, 10):
        put(draws, start, start + 10)
    draws.commit()
    put(draws, 70, 80)
    draws.commit()
    put(draws, 80, 90)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0000000000-0000000040.npz", "0000000070-0000000080.npz",
    ]  # fmt: skip
    again = Draws(NAMES, 0, 100, tmp_path)
    assert again.missing() == [(40, 70), (80, 100)]
    for part in (slice(0, 40), slice(70, 80)):
        np.testing.assert_array_equal(again.cores[:, part], CORES[:, part])
        np.testing.assert_array_equal(again.rescored[:, part], RESCORED[:, part])
    assert np.isnan(again.cores[:, 40:70]).all()


def test_a_range_takes_its_part_of_commits_that_others_made(tmp_path: Path) -> None:
    whole = Draws(NAMES, 0, 100, tmp_path)
    put(whole, 0, 60)
    whole.commit()
    part = Draws(NAMES, 50, 90, tmp_path)
    assert part.missing() == [(60, 90)]
    np.testing.assert_array_equal(part.cores[:, :10], CORES[:, 50:60])
    assert Draws(NAMES, 10, 60, tmp_path).missing() == []
    assert Draws(NAMES, 60, 70, tmp_path).missing() == [(60, 70)]


def test_commits_come_by_the_clock_and_where_a_range_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    draws = Draws(NAMES, 0, 100, tmp_path)
    put(draws, 0, 10)
    now = module.COMMIT_SECONDS + 1
    put(draws, 10, 20)
    put(draws, 20, 30)
    put(draws, 50, 60)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0000000000-0000000020.npz", "0000000020-0000000030.npz",
    ]  # fmt: skip


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    draws = Draws(NAMES, 0, 20)
    put(draws, 0, 20)
    assert not draws.commit()
    assert draws.missing() == []
