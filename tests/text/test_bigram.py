import numpy as np
import pytest

from saejax.text.bigram import Bigram

VOCAB = 7


@pytest.fixture(scope="module")
def pairs() -> np.ndarray:
    rng = np.random.default_rng(0)
    skewed = rng.geometric(0.4, size=(400, 2)) - 1
    return np.minimum(skewed, VOCAB - 2)  # token 6 and context 6 are never seen


def test_every_context_has_a_distribution(pairs: np.ndarray) -> None:
    model = Bigram([pairs], VOCAB)
    for context in range(VOCAB):
        every = np.stack([np.full(VOCAB, context), np.arange(VOCAB)], axis=1)
        probability = np.exp(model.log_probability(every))
        assert (probability > 0).all()
        np.testing.assert_allclose(probability.sum(), 1, atol=1e-12)


def test_a_count_by_hand() -> None:
    # Pairs ab ab ac bc: seen once ac, bc (n1 = 2), seen twice ab (n2 = 1), so D = 2 / (2 + 2) = 1/2.
    # Unigrams b 2, c 2: none seen once, so their discount is the fallback 1/2 over 2 types of a vocabulary of 3.
    pairs = np.array([[0, 1], [0, 1], [0, 2], [1, 2]])
    unigram_b = (2 - 0.5 + 0.5 * 2 / 3) / 4
    expected = (2 - 0.5) / 3 + 0.5 * 2 / 3 * unigram_b
    model = Bigram([pairs], 3)
    np.testing.assert_allclose(np.exp(model.log_probability(np.array([[0, 1]]))), [expected], rtol=1e-12)


def test_blocks_of_pairs_count_as_one(pairs: np.ndarray) -> None:
    whole = Bigram([pairs], VOCAB).log_probability(pairs)
    np.testing.assert_array_equal(Bigram(np.array_split(pairs, 5), VOCAB).log_probability(pairs), whole)


def test_it_beats_the_uniform_model_on_its_own_kind(pairs: np.ndarray) -> None:
    held_out = np.random.default_rng(1).permutation(pairs)[:50]
    assert -Bigram([pairs], VOCAB).log_probability(held_out).mean() < np.log(VOCAB)
