import numpy as np
import pytest

from saejax.errors import InputError
from saejax.text.choice import TokenChoice

SPECIAL = np.array([True, False, False, True, False, False, True])  # text at 1, 2, 4 and 5


def chosen(words: str, document: int = 0, seed: int = 0, special: np.ndarray = SPECIAL) -> list[int]:
    return np.flatnonzero(TokenChoice.parse(words, seed).of(special, document)).tolist()


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]), ("last", [5]), ("end:0", [5]), ("end:1", [4]), ("end:3", [1]), ("end:4", []),
        ("random:4", [1, 2, 4, 5]), ("random:9", [1, 2, 4, 5]),
    ],
)  # fmt: skip
def test_words_name_tokens_that_stand_for_text(words: str, places: list[int]) -> None:
    assert chosen(words) == places


def test_a_document_of_special_tokens_has_none_to_choose() -> None:
    alone = np.ones(2, bool)
    assert chosen("all", special=alone) == [0, 1]
    assert [chosen(words, special=alone) for words in ("last", "end:1", "random:2")] == [[], [], []]


def test_random_tokens_are_different_ones_each_as_often_as_another() -> None:
    drawn = [chosen("random:2", document) for document in range(3000)]
    assert all(len(set(places)) == 2 for places in drawn)
    pairs = {tuple(pair): drawn.count(pair) for pair in map(list, {tuple(places) for places in drawn})}
    assert len(pairs) == 6
    chi_square = sum((count - 500) ** 2 / 500 for count in pairs.values())
    assert chi_square < 20.5  # .999 quantile at 5 degrees of freedom


def test_random_tokens_are_a_function_of_seed_and_document() -> None:
    draws = [[chosen("random:1", document, seed) for document in range(50)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("words", ["", "first", "end", "end:-1", "random:0", "random:", "random:2.5", "all:1"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(InputError, match=r"choose .* is none of all, last, end:N"):
        TokenChoice.parse(words, 0)
