import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.random import threefry_2x32

from saejax.errors import InputError
from saejax.nulls import permutations as drawing

# Known answers of threefry2x32 with 20 rounds, from the authors' library Random123: key, counter, output.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
SEEDS = [0, 7, 2**32 + 5, 2**64 - 1]


@pytest.mark.parametrize(("key", "counter", "output"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers_in_both_libraries(key: tuple, counter: tuple, output: tuple) -> None:
    key_words = np.array(key, dtype=np.uint32)
    counters = [np.array([word], dtype=np.uint32) for word in counter]
    assert tuple(int(word[0]) for word in drawing.threefry2x32(key_words, *counters)) == output
    on_device = jax.jit(drawing.threefry2x32)(jnp.asarray(key_words), *map(jnp.asarray, counters))
    assert tuple(int(word[0]) for word in on_device) == output


def test_words_agree_with_the_threefry_of_jax() -> None:
    key = drawing.key_of(2**40 + 3)
    first, second = np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)
    theirs = threefry_2x32(jnp.asarray(key), jnp.asarray(np.concatenate([first, second]), jnp.uint32))
    np.testing.assert_array_equal(drawing.words(key, np.arange(4, dtype=np.uint32), 6).ravel(), theirs[:24])


def test_golden_permutations() -> None:
    """What was drawn once is drawn for ever: results on disk depend on it."""
    perms = drawing.on_host(drawing.key_of(0), drawing.as_indices(0, 3), 8)
    expected = [[1, 5, 0, 4, 3, 7, 6, 2], [4, 7, 3, 0, 2, 5, 1, 6], [1, 6, 0, 7, 2, 4, 5, 3]]
    np.testing.assert_array_equal(perms, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_host_and_device_draw_the_same_permutations(seed: int) -> None:
    key, indices = drawing.key_of(seed), drawing.as_indices(2**32 - 3, 2**32 + 3)
    host = drawing.on_host(key, indices, 50)
    np.testing.assert_array_equal(host, np.argsort(drawing.words(key, indices, 50), axis=1, kind="stable"))
    np.testing.assert_array_equal(host, drawing.on_device(jnp.asarray(key), jnp.asarray(indices), 50))
    np.testing.assert_array_equal(np.sort(host, axis=1), np.tile(np.arange(50), (6, 1)))


def test_equal_words_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.random.default_rng(0).integers(4, size=(2, 3000)).astype(np.uint32)

    def words(key: np.ndarray, indices: np.ndarray | jax.Array, n: int) -> np.ndarray | jax.Array:
        return few if isinstance(indices, np.ndarray) else jnp.asarray(few)

    monkeypatch.setattr(drawing, "words", words)
    expected = np.argsort(few, axis=1, kind="stable")
    key, indices = drawing.key_of(0), drawing.as_indices(0, 2)
    np.testing.assert_array_equal(drawing.on_host(key, indices, 3000), expected)
    np.testing.assert_array_equal(drawing.on_device(jnp.asarray(key), jnp.asarray(indices), 3000), expected)


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
