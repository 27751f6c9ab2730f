"""The interval of one arm against simulated truth."""

from typing import Any

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.nulls import Arm, compare_arms, permutation_test, score_arm
from saejax.nulls.worlds import hubs, planted

OPTIONS: dict[str, Any] = {"measures": ["cka_debiased", "rsa"], "permutations": 20, "replicates": 12}


def arm(seed: int, n: int = 40) -> Arm:
    cell = planted(np.random.default_rng(seed), n, 6, 5, noise=0.8)
    return Arm("a", cell.x, cell.y)


@pytest.mark.slow
def test_intervals_hold_the_true_score() -> None:
    made = [score_arm(arm(seed), scheme="uniform", seed=seed, **OPTIONS) for seed in range(12)]
    scores = np.array([[each.score for each in results] for results in made])
    truth = []
    for seed in range(100, 150):
        each = arm(seed)
        found = permutation_test(
            each.x, each.y, measures=["cka_debiased", "rsa"], scheme="uniform", permutations=20, seed=0
        )
        truth.append([result.calibrated for result in found])
    true = np.mean(truth, axis=0)
    held = np.array([[each.low <= t <= each.high for each, t in zip(results, true, strict=True)] for results in made])
    assert np.all(held.mean(axis=0) >= 0.75)
    ratio = np.mean([[each.se for each in results] for results in made], axis=0) / scores.std(axis=0, ddof=1)
    assert np.all((ratio > 0.6) & (ratio < 1.7))


def test_it_is_the_score_of_the_whole_arm_and_prints_its_interval() -> None:
    scores = score_arm(arm(0), scheme="uniform", seed=3, **OPTIONS)
    compared = compare_arms(arm(0), Arm("b", arm(1, 60).x, arm(1, 60).y), scheme="uniform", seed=3, **OPTIONS)
    assert [each.score for each in scores] == [each.first_score for each in compared]
    assert repr(scores).count(" to ") == 2
    assert scores.records()[0]["n"] == 40


def test_units_of_a_many_to_one_pairing_are_resampled() -> None:
    cell = hubs(np.random.default_rng(0), 60, 6, 5)
    many = Arm("hubs", cell.x, cell.y, cell.x_ids, cell.y_ids)
    assert score_arm(many, scheme="collapse", seed=0, **OPTIONS)[0].n == len(np.unique(np.asarray(cell.x_ids)))
    with pytest.raises(InputError, match="scheme blocks has no units"):
        score_arm(many, scheme="blocks", seed=0, **OPTIONS)
    with pytest.raises(InputError, match="arm 'a' has 15 pairs; give at least 16"):
        score_arm(arm(0, 15), scheme="uniform", seed=0, **OPTIONS)
    with pytest.raises(InputError, match="replicates 1 must be at least 2"):
        score_arm(arm(0), scheme="uniform", seed=0, **{**OPTIONS, "replicates": 1})
