from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from saejax_kernels import draw_permutations

drawing = import_module("saejax_kernels.draw_permutations")  # the package gives that name to the function

# Known answers of threefry2x32 with 20 rounds, from the authors' library Random123: key, counter, output.
KNOWN_ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]

# key, index, permutation of 12 rows
GOLDEN = [
    ((0, 0), 0, [11, 9, 1, 5, 0, 4, 8, 3, 7, 10, 6, 2]),
    ((0, 0), 1, [4, 7, 11, 3, 8, 0, 2, 5, 10, 1, 6, 9]),
    ((0, 7), 2**32 - 1, [7, 9, 2, 1, 4, 6, 10, 3, 5, 8, 11, 0]),
    ((1, 2**32 - 1), 123_456_789, [0, 9, 8, 2, 6, 4, 5, 3, 10, 1, 11, 7]),
]


def from_numpy(key: np.ndarray, indices: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(drawing.words(key, indices, n), axis=1, kind="stable")


def from_numba(key: np.ndarray, indices: np.ndarray, n: int, strata: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(draw_permutations(key, indices, n, impl="numba", strata=strata))


def from_jax(key: np.ndarray, indices: np.ndarray, n: int, strata: np.ndarray | None = None) -> np.ndarray:
    on_device = None if strata is None else jnp.asarray(strata)
    return np.asarray(draw_permutations(jnp.asarray(key), jnp.asarray(indices), n, impl="jax", strata=on_device))


FORMS = [from_numpy, from_numba, from_jax]


def array(*words: int) -> np.ndarray:
    return np.array(words, dtype=np.uint32)


@pytest.mark.parametrize(("key", "counter", "output"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers(key: tuple, counter: tuple, output: tuple) -> None:
    first, second = (array(word) for word in counter)
    assert tuple(int(word[0]) for word in drawing.threefry2x32(array(*key), first, second)) == output
    on_device = jax.jit(drawing.threefry2x32)(*map(jnp.asarray, (array(*key), first, second)))
    assert tuple(int(word[0]) for word in on_device) == output
    assert drawing._word(*array(*key), first[0], second[0]) == output[0]


def test_words_agree_with_the_threefry_of_jax() -> None:
    key = array(2**8, 3)
    first, second = np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)
    theirs = threefry_2x32(jnp.asarray(key), jnp.asarray(np.concatenate([first, second]), jnp.uint32))
    np.testing.assert_array_equal(drawing.words(key, np.arange(4, dtype=np.uint32), 6).ravel(), theirs[:24])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("key", "index", "perm"), GOLDEN)
def test_golden_permutations(form: Callable, key: tuple, index: int, perm: list[int]) -> None:
    """What was drawn once is drawn for ever: results on disk depend on it."""
    assert form(array(*key), array(index), 12)[0].tolist() == perm


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 300, 4097])
def test_all_forms_draw_the_same_permutations(n: int) -> None:
    key, indices = array(2**32 - 1, n), array(0, 1, 2**31, 2**32 - 1)
    numba = from_numba(key, indices, n)
    np.testing.assert_array_equal(numba, from_numpy(key, indices, n))
    np.testing.assert_array_equal(numba, from_jax(key, indices, n))


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("strata", [[0] * 40, list(range(40)), [3, 1] * 20, [0] * 5 + [7] + [2] * 30 + [7] * 3 + [9]])
def test_rows_of_a_stratum_take_each_others_places(form: Callable, strata: list[int]) -> None:
    """By the order of their words, as if there were no others."""
    key, indices, labels = array(5, 6), array(0, 1, 77), np.array(strata)
    perms, words = form(key, indices, 40, labels), drawing.words(key, indices, 40)
    for stratum in set(strata):
        rows = np.flatnonzero(labels == stratum)
        order = np.argsort(words[:, rows], axis=1, kind="stable")
        np.testing.assert_array_equal(perms[:, rows], rows[order])


def test_rows_with_the_same_word_keep_their_order() -> None:
    """The first permutation under this key in which two of 4,000 rows have one word."""
    key, indices = array(0, 0), array(20)
    ordered = np.sort(drawing.words(key, indices, 4000)[0])
    assert np.count_nonzero(ordered[1:] == ordered[:-1]) == 1
    for form in FORMS[1:]:
        np.testing.assert_array_equal(form(key, indices, 4000), from_numpy(key, indices, 4000))


@pytest.mark.parametrize("rows", [1, 3000])
def test_numba_sorts_any_words_stably(rows: int) -> None:
    few = np.random.default_rng(0).integers(4, size=rows).astype(np.uint32)
    for words in (few, few << np.uint32(30), np.sort(few)[::-1].copy()):
        perm = np.empty(rows, dtype=np.uint32)
        drawing._argsort(words, perm)
        np.testing.assert_array_equal(perm, np.argsort(words, kind="stable"))


def test_jax_sorts_equal_words_stably(monkeypatch: pytest.MonkeyPatch) -> None:
    few = np.random.default_rng(0).integers(4, size=(2, 3000)).astype(np.uint32)
    monkeypatch.setattr(drawing, "words", lambda key, indices, n, names: jnp.asarray(few))
    expected = np.argsort(few, axis=1, kind="stable")
    np.testing.assert_array_equal(from_jax(array(0, 0), array(0, 1), 3000), expected)


@pytest.mark.parametrize("impl", ["numba", "jax"])
def test_rows_with_names_draw_by_them_wherever_they_stand(impl: Any) -> None:
    """Any subset, in any order, is put in the order in which all are; names that count rows change nothing."""
    rng = np.random.default_rng(3)
    key, indices = array(5, 6), np.arange(40, dtype=np.uint32)
    names = rng.integers(2**32, size=(30, 2), dtype=np.uint32)
    strata = rng.integers(3, size=30)

    def drawn(n: int, **given: np.ndarray) -> np.ndarray:
        chosen = {name: jnp.asarray(each) if impl == "jax" else each for name, each in given.items()}
        as_given = (jnp.asarray(key), jnp.asarray(indices)) if impl == "jax" else (key, indices)
        return np.asarray(draw_permutations(*as_given, n, impl=impl, **chosen))

    every = drawn(30, names=names)
    assert len({tuple(perm) for perm in every.tolist()}) == 40
    kept = rng.permutation(30)[:17]
    for perm, part in zip(every, drawn(17, names=names[kept]), strict=True):
        order = [row for row in perm if row in kept]
        assert kept[part].tolist() == order
    places = np.stack([np.zeros(30, np.uint32), np.arange(30, dtype=np.uint32)], axis=1)
    np.testing.assert_array_equal(drawn(30, names=places), drawn(30))
    np.testing.assert_array_equal(drawn(30, names=places, strata=strata), drawn(30, strata=strata))


def test_named_rows_draw_alike_in_jax_and_numba() -> None:
    names = np.random.default_rng(4).integers(2**32, size=(200, 2), dtype=np.uint32)
    key, indices = array(2**31, 9), np.arange(50, dtype=np.uint32)
    by_numba = draw_permutations(key, indices, 200, impl="numba", names=names)
    by_jax = draw_permutations(jnp.asarray(key), jnp.asarray(indices), 200, impl="jax", names=jnp.asarray(names))
    np.testing.assert_array_equal(by_numba, by_jax)
