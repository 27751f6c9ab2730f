import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import permutations as drawing

SEEDS = [0, 7, 2**32 + 5, 2**64 - 1]


def test_golden_permutations() -> None:
    """What was drawn once is drawn for ever: results on disk depend on it."""
    key, indices = drawing.key_of(0), drawing.as_indices(0, 3)
    expected = [[1, 5, 0, 4, 3, 7, 6, 2], [4, 7, 3, 0, 2, 5, 1, 6], [1, 6, 0, 7, 2, 4, 5, 3]]
    np.testing.assert_array_equal(drawing.on_host(key, indices, 8), expected)
    np.testing.assert_array_equal(drawing.on_device(key, jnp.asarray(indices), 8), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_host_and_device_draw_the_same_permutations(seed: int) -> None:
    key, indices = drawing.key_of(seed), drawing.as_indices(2**32 - 3, 2**32 + 3)
    host = drawing.on_host(key, indices, 50)
    on_device = jax.jit(drawing.on_device, static_argnums=2)
    np.testing.assert_array_equal(host, on_device(jnp.asarray(key), jnp.asarray(indices), 50))
    np.testing.assert_array_equal(np.sort(host, axis=1), np.tile(np.arange(50), (6, 1)))


def test_rows_past_the_last_pair_stay_in_place() -> None:
    key, indices = drawing.key_of(5), drawing.as_indices(0, 20)
    bare = drawing.on_host(key, indices, 7)
    expected = np.hstack([bare, np.tile(np.arange(7, 12), (20, 1))])
    np.testing.assert_array_equal(drawing.extended(bare, 12), expected)
    np.testing.assert_array_equal(drawing.extended(bare, 7), bare)
    among = jax.jit(drawing.on_device, static_argnums=3)
    np.testing.assert_array_equal(among(jnp.asarray(key), jnp.asarray(indices), jnp.uint32(7), 12), expected)


def test_a_row_that_draws_the_largest_word_stays_before_those_past_the_last_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That happens in one permutation of 4,000 rows out of a million."""
    drawn = jnp.array([[7, 2**32 - 1, 3, 1, 0]], jnp.uint32)
    monkeypatch.setattr(drawing, "words", lambda key, indices, rows: drawn)
    perm = drawing.on_device(drawing.key_of(0), jnp.zeros(1, jnp.uint32), 3, 5)
    np.testing.assert_array_equal(perm, [[2, 0, 1, 3, 4]])


def test_permutation_i_does_not_depend_on_what_is_drawn_with_it() -> None:
    key = drawing.key_of(3)
    together = drawing.on_host(key, drawing.as_indices(0, 40), 30)
    for start, stop in ((0, 7), (39, 40), (13, 29)):
        np.testing.assert_array_equal(together[start:stop], drawing.on_host(key, drawing.as_indices(start, stop), 30))


def test_all_permutations_of_four_rows_are_equally_likely() -> None:
    perms = drawing.on_host(drawing.key_of(11), drawing.as_indices(0, 48_000), 4)
    _, counts = np.unique(perms @ 4 ** np.arange(4), return_counts=True)
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=rf"^seed {seed} must be at least 0 and below 2\^64$"):
        drawing.key_of(seed)
