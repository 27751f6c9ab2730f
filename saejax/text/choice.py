"""Which tokens of a document are kept."""

import dataclasses
import re
from typing import Literal

import numpy as np
from jaxtyping import Bool

from saejax.errors import InputError
from saejax.rng import named_seed


@dataclasses.dataclass(frozen=True)
class TokenChoice:
    """A rule that keeps some tokens of every document.

    All but `all` choose among the tokens that stand for text, and keep no special one.

    Attributes:
        kind: `all`; `end`, the one that `number` tokens follow; `random`, `number` different ones, or all of a
            document with fewer.
        number: tokens.
        seed: root seed of the random ones.
    """

    kind: Literal["all", "end", "random"] = "all"
    number: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, words: str, seed: int) -> "TokenChoice":
        """Read `all`, `last`, `end:N` or `random:K`.

        Args:
            words: the rule; `last` is `end:0`.
            seed: root seed of the random ones.

        Raises:
            InputError: it is another word.
        """
        if words == "all":
            return cls()
        found = re.fullmatch(r"(end|random):(\d+)", "end:0" if words == "last" else words)
        if found is None or (found[1] == "random" and not int(found[2])):
            raise InputError(f"choose {words!r} is none of all, last, end:N (N tokens before the last), random:K")
        return cls("end" if found[1] == "end" else "random", int(found[2]), seed)

    def of(self, special: Bool[np.ndarray, "n"], document: int) -> Bool[np.ndarray, "n"]:
        """Return which tokens of a document are kept.

        Args:
            special: whether each token stands for no text.
            document: ordinal of the document; random tokens are a function of it and the seed.
        """
        if self.kind == "all":
            return np.ones(len(special), bool)
        text = np.flatnonzero(~special)
        if self.kind == "end":
            text = text[len(text) - 1 - self.number :][:1] if self.number < len(text) else text[:0]
        else:
            draw = np.random.default_rng((named_seed(self.seed, "text.choice"), document))
            text = text[np.argsort(draw.random(len(text)), kind="stable")[: self.number]]
        kept = np.zeros(len(special), bool)
        kept[text] = True
        return kept


ALL = TokenChoice()
