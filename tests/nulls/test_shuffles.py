"""The re-pairings that a scheme allows, against lists made by other means."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from saejax.nulls import permutations as drawing
from saejax.nulls.shuffles import Shuffle

KEY = drawing.key_of(3)


def stratified(*sizes: int) -> np.ndarray:
    """Strata of given sizes, mixed."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels).astype(np.int32)


def allowed(shuffle: Shuffle) -> set[tuple[int, ...]]:
    """All permutations of rows that keep units whole and in their stratum, by trying every one of the units."""
    strata = np.zeros(shuffle.units) if shuffle.strata is None else shuffle.strata
    kept = [p for p in itertools.permutations(range(shuffle.units)) if np.array_equal(strata[list(p)], strata)]
    block = range(shuffle.together)
    return {tuple(unit * shuffle.together + row for unit in p for row in block) for p in kept}


SHUFFLES = [
    Shuffle(4), Shuffle(6), Shuffle(6, stratified(2, 3, 1)), Shuffle(7, stratified(1, 1, 5)), Shuffle(6, stratified(6)),
    Shuffle(12, together=3), Shuffle(12, stratified(2, 2), together=3),
]  # fmt: skip


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_list_holds_every_re_pairing_once(shuffle: Shuffle) -> None:
    count = shuffle.count
    assert count is not None
    perms = [tuple(perm) for perm in shuffle.listed(np.arange(count)).tolist()]
    assert len(perms) == count
    assert set(perms) == allowed(shuffle)
    assert perms[0] == tuple(range(shuffle.n))
    np.testing.assert_array_equal(shuffle.listed(np.array([count + 1])), shuffle.listed(np.array([1])))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_all_re_pairings_are_drawn_equally_often(shuffle: Shuffle) -> None:
    perms = [tuple(perm) for perm in shuffle.drawn(KEY, drawing.as_indices(0, 20_000)).tolist()]
    places = {perm: place for place, perm in enumerate(sorted(allowed(shuffle)))}
    counts = np.bincount([places[perm] for perm in perms], minlength=len(places))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_number_of_re_pairings_is_known_while_it_can_be_listed() -> None:
    assert Shuffle(12).count == math.factorial(12)
    assert Shuffle(13).count is None
    assert Shuffle(40_000).count is None
    few = np.arange(1000, dtype=np.int32)
    few[:9] = 0
    assert Shuffle(1000, few).count == math.factorial(9)
    assert Shuffle(24, together=6).count == 24


def test_only_a_shuffle_of_all_rows_is_plain() -> None:
    assert Shuffle(6).plain
    assert not Shuffle(6, stratified(3, 3)).plain
    assert not Shuffle(6, together=2).plain
