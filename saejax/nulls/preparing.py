"""Makes the null that an arrangement asks for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32

from saejax.nulls.recomputed import Recomputed
from saejax.nulls.representatives import Representatives
from saejax.nulls.schemes import Arrangement
from saejax.nulls.scoring import CommonLengths, Impl, Null
from saejax.similarity import Measure

AnyNull = Null | Recomputed | Representatives


def prepare_null(
    arrangement: Arrangement,
    measures: Sequence[Measure],
    key: UInt32[np.ndarray, "2"],
    impl: Impl,
    memory: int,
    *,
    listed: bool,
    lengths: CommonLengths | None = None,
) -> AnyNull:
    """Do once what no re-pairing changes, and score the observed pairing.

    Args:
        arrangement: what a scheme made of a pairing.
        measures: the measures.
        key: Threefry key of the re-pairings.
        impl: how batches are scored, where they are.
        memory: bytes that states and a batch may take; picks share them.
        listed: whether re-pairing i is number i in the list of all, not a random one.
        lengths: to what lengths the axes of states are padded, where that is possible.

    Raises:
        InputError: the states need more memory than that, or a pick is one that a measure cannot score.
    """
    shuffle = arrangement.shuffle
    if arrangement.pairing is not None:
        return Recomputed.prepare(shuffle, arrangement.pairing, measures, key, listed=listed)
    if arrangement.pick is not None:
        picks = arrangement.pick(key)
        for measure in measures:
            for pair in picks:
                measure.check(pair)
        share = memory // len(picks)
        return Representatives.of([
            Null.prepare(pair, shuffle, measures, key, impl, share, listed=listed, lengths=lengths) for pair in picks
        ])  # fmt: skip
    padded = lengths if shuffle.together == 1 else None
    return Null.prepare(arrangement.pair, shuffle, measures, key, impl, memory, listed=listed, lengths=padded)
