"""Makes the null that an arrangement asks for."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt32

from saejax.nulls.arrangement import Arrangement
from saejax.nulls.budget import Budget, require
from saejax.nulls.recomputed import Recomputed
from saejax.nulls.representatives import Representatives
from saejax.nulls.scoring import CommonLengths, Null
from saejax.similarity import Measure, Pair

AnyNull = Null | Recomputed | Representatives


def prepare_null(
    arrangement: Arrangement,
    measures: Sequence[Measure],
    key: UInt32[np.ndarray, "2"],
    budget: Budget,
    *,
    listed: bool,
    lengths: CommonLengths | None = None,
) -> AnyNull:
    """Do once what no re-pairing changes, and score the observed pairing.

    Args:
        arrangement: what a scheme made of a pairing.
        measures: the measures.
        key: Threefry key of the re-pairings.
        budget: memory, with room for preparing; picks share it.
        listed: whether re-pairing i is number i in the list of all, not a random one.
        lengths: to what lengths the axes of states are padded, where that is possible.

    Raises:
        InputError: states and the smallest batch need more memory, or a pick is one that a measure cannot score.
    """
    shuffle = arrangement.shuffle
    if arrangement.pairing is not None:
        return Recomputed.prepare(shuffle, arrangement.pairing, measures, key, listed=listed)
    if arrangement.pick is not None:
        return _of_picks(arrangement, arrangement.pick(key), measures, key, budget, listed, lengths)
    padded = lengths if shuffle.together == 1 else None
    return Null.prepare(arrangement.pair, shuffle, measures, key, budget, listed=listed, lengths=padded)


def _of_picks(
    arrangement: Arrangement,
    picks: Iterator[Pair],
    measures: Sequence[Measure],
    key: UInt32[np.ndarray, "2"],
    budget: Budget,
    listed: bool,
    lengths: CommonLengths | None,
) -> Representatives:
    """Prepare one pick after another; batches may have what the states of all leave."""
    nulls, left = [], budget.memory
    for pair in picks:
        for measure in measures:
            measure.check(pair)
        null = Null.prepare(
            pair, arrangement.shuffle, measures, key, budget._replace(memory=left), listed=listed, lengths=lengths
        )
        if not nulls:
            others = (arrangement.picks - 1) * null.state_bytes()
            what = f"the states of {arrangement.picks} picks of"
            require(others + budget.preparing_bytes(arrangement, measures), budget.memory, what, null.n)
        left -= null.state_bytes()
        nulls.append(null)
    return Representatives.of([dataclasses.replace(null, memory=left + null.state_bytes()) for null in nulls])
