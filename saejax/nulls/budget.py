"""What a null takes of memory, known before it is taken.

The budget holds all that is made of two matrices: their float64 copies, decompositions while they are needed, states in
float64 and float32, and a batch. Besides it there are the matrices as they were given, the draws, 60 bytes for each
draw and measure, and what programs take themselves, among them XLA's compiler.

Preparing is bounded by the shapes alone: everything that statistics keep, and all that they take for a while, as if it
were there at once. Once it is over, batches may have what states leave.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numba

from saejax.errors import InputError
from saejax.nulls.arrangement import Arrangement
from saejax.similarity import Measure

Impl = Literal["host", "jax"]

CPU_BATCH_BYTES = 128 * 2**20  # for each core; more at once is no faster on a CPU


class Budget(NamedTuple):
    """Memory for a null.

    Attributes:
        impl: how batches are scored; `jax` on the CPU keeps copies of all arrays there.
        memory: bytes.
    """

    impl: Impl
    memory: int

    def require_room(self, arrangement: Arrangement, measures: Sequence[Measure]) -> None:
        """Refuse matrices that measures cannot be prepared for.

        Args:
            arrangement: what a scheme made of a pairing.
            measures: the measures.

        Raises:
            InputError: checking and preparing them needs more memory.
        """
        names = ", ".join(measure.name for measure in measures)
        require(self.preparing_bytes(arrangement, measures), self.memory, f"preparing {names} of", arrangement.pair.n)

    def preparing_bytes(self, arrangement: Arrangement, measures: Sequence[Measure]) -> int:
        """Return a bound on the bytes of checking matrices and preparing measures, the float64 copies included."""
        pair = arrangement.pair
        statistics = dict.fromkeys(each for measure in measures for each in measure.statistics)
        copies = 2 if self.impl == "jax" and jax.default_backend() == "cpu" else 1
        kept = copies * sum(statistic.size(pair) for statistic in statistics)
        return _matrix_bytes(arrangement) + kept + sum(statistic.making(pair) for statistic in statistics)


def default_impl() -> Impl:
    """Return `host` where JAX runs on the CPU, `jax` where it has an accelerator."""
    return "host" if jax.default_backend() == "cpu" else "jax"


def batch_bytes(impl: Impl, memory: int) -> int:
    """Return how many bytes of those that are free batches should take: all, to keep an accelerator busy."""
    on_cpu = impl == "host" or jax.default_backend() == "cpu"
    return min(CPU_BATCH_BYTES * numba.get_num_threads(), memory) if on_cpu else memory


def require(needed: int, memory: int, what: str, n: int) -> None:
    """Refuse what the budget does not hold.

    Args:
        needed: bytes.
        memory: the budget, in bytes.
        what: what needs them.
        n: number of pairs.

    Raises:
        InputError: it needs more.
    """
    if needed > memory:
        raise InputError(
            f"memory {memory / 2**30:.3g} GiB is below the {needed / 2**30:.3g} GiB that {what} {n} pairs needs; "
            "raise memory_gib or ask for fewer measures"
        )


def _matrix_bytes(arrangement: Arrangement) -> int:
    """Return the bytes of both matrices, and of the rows that further pairs are made of, where there are such."""
    pair = arrangement.pair
    once = sum(side.values.nbytes for _, side in pair.sides)
    if arrangement.pairing is None and arrangement.pick is None:
        return once
    return 2 * once + once * arrangement.rows // pair.n
