"""The bigram model that a trained language model has to beat.

A baseline with no training of its own: what is left below it is what a model learned beyond pairs of tokens.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int


class Bigram:
    """Interpolated absolute discounting over pairs of neighbouring tokens.

    P(w | v) = max(c(vw) - D, 0) / c(v) + D t(v) / c(v) P(w), where t(v) counts the types seen after v, P(w) is the
    unigram model discounted the same way against the uniform one, and each D = n1 / (n1 + 2 n2) from the number of
    types seen once and twice (Ney, Essen and Kneser 1994, section 3).
    """

    def __init__(self, pairs: Iterable[Int[np.ndarray, "pairs 2"]], vocab_size: int) -> None:
        """Count the pairs.

        Args:
            pairs: blocks of (previous token, token).
            vocab_size: tokens in the vocabulary.
        """
        self.vocab_size = vocab_size
        keys = np.concatenate([block[:, 0].astype(np.int64) * vocab_size + block[:, 1] for block in pairs])
        self._keys, self._counts = np.unique(keys, return_counts=True)
        previous, token = np.divmod(self._keys, vocab_size)
        self._discount = _discount(self._counts)
        self._total = np.bincount(previous, self._counts, vocab_size)
        self._types = np.bincount(previous, minlength=vocab_size)
        unigram = np.bincount(token, self._counts, vocab_size)
        discount, seen = _discount(unigram[unigram > 0]), np.count_nonzero(unigram)
        self._unigram = (np.maximum(unigram - discount, 0) + discount * seen / vocab_size) / unigram.sum()

    def log_probability(self, pairs: Int[np.ndarray, "pairs 2"]) -> Float[np.ndarray, "pairs"]:
        """Return ln P(token | previous token) of each pair, in nats."""
        previous, token = pairs[:, 0], pairs[:, 1]
        keys = previous.astype(np.int64) * self.vocab_size + token
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        count = np.where(self._keys[at] == keys, self._counts[at], 0)
        total = np.maximum(self._total[previous], 1)
        backed = np.where(self._total[previous] > 0, self._discount * self._types[previous] / total, 1.0)
        return np.log(np.maximum(count - self._discount, 0) / total + backed * self._unigram[token])


def _discount(counts: np.ndarray) -> float:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once else 0.5
