"""Nulls that are scored together: small ones of one shape in one program, and the loop that draws them.

A batch of re-pairings of a hundred pairs keeps an accelerator busy for less time than it takes to start its programs.
So nulls whose states were padded to the same lengths (`saejax.nulls.buckets`) are stacked along a leading axis, and
one program scores cells x re-pairings. Each has its own number of pairs, so the permutations of a stack differ: every
null still sees re-pairing i as the same function of the seed, i and its number of pairs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import UInt32

from saejax.mesh import device_mesh, replicated, spread
from saejax.nulls import permutations as drawing
from saejax.nulls.draws import Draws
from saejax.nulls.preparing import AnyNull
from saejax.nulls.running import write_running
from saejax.nulls.scoring import Null, Plan, program, score_mapped
from saejax.similarity.measure import Bounds
from saejax.types import AnyArray, Array


@dataclasses.dataclass(frozen=True)
class Stack:
    """Nulls of the same measures, key and shapes.

    Attributes:
        nulls: the nulls; one alone may have any shape.
        states: their float32 states, stacked, with the last one repeated up to a power of two; None for one null.
        n: their numbers of pairs, likewise.
    """

    nulls: tuple[AnyNull, ...]
    states: Any
    n: UInt32[np.ndarray, "cells"]

    @classmethod
    def of(cls, nulls: Sequence[AnyNull]) -> "Stack":
        """Stack nulls; one alone, or several of kind `Null` with states of the same shapes and `impl` `jax`."""
        if len(nulls) == 1:
            return cls(tuple(nulls), None, np.array([nulls[0].n], np.uint32))
        members = [null for null in nulls if isinstance(null, Null)]
        members += [members[-1]] * ((1 << (len(nulls) - 1).bit_length()) - len(nulls))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(null.fast for null in members))
        states = jax.device_put(stacked, replicated(device_mesh("perm")))
        return cls(tuple(nulls), states, np.array([null.n for null in members], np.uint32))

    def score_range(self, start: int, stop: int) -> list[list[Bounds]]:
        """Return the float32 cores of re-pairings `start` to `stop - 1`, by null and measure."""
        first = self.nulls[0]
        if self.states is None or not isinstance(first, Null):
            return [first.score_range(start, stop)]
        indices = jax.device_put(drawing.as_indices(start, stop), spread(device_mesh("perm")))
        ends = jax.device_get(_score_stack(first.plan, first.rows, first.key, indices, self.n, self.states))
        return [
            [Bounds(*(np.asarray(end[place], np.float64) for end in bounds)) for bounds in ends]
            for place in range(len(self.nulls))
        ]


def fill(stack: Stack, draws: Sequence[Draws], batch: int, advance: Callable[[int], None]) -> None:
    """Make the draws that are missing; those that float32 cannot tell are float64 cores.

    Args:
        stack: what is scored.
        draws: where they go, by null; all lack the same.
        batch: how many to score together. Every batch has that size, so that nothing is compiled twice; the last of
            a range may run past its end, and what is past it is dropped.
        advance: told of the number of re-pairings that were scored.
    """
    for begin, end in draws[0].missing():
        for start in range(begin, end, batch):
            count = min(batch, end - start)
            for null, made, bounds in zip(stack.nulls, draws, stack.score_range(start, start + batch), strict=True):
                settled = null.settle(start, [Bounds(low[:count], high[:count]) for low, high in bounds])
                if made.put(start, *settled):
                    write_running(null, made)
            advance(count)
    for null, made in zip(stack.nulls, draws, strict=True):
        if made.commit():
            write_running(null, made)


@functools.partial(program, static_argnames=("plan", "rows"))
def _score_stack(
    plan: Plan,
    rows: int,
    key: UInt32[AnyArray, "2"],
    indices: UInt32[Array, "perm"],
    n: UInt32[AnyArray, "cells"],
    states: Any,
) -> list[Bounds]:
    perms = jax.vmap(lambda each: drawing.on_device(key, indices, each, rows))(n)
    whole, along = PartitionSpec(), PartitionSpec(None, "perm")
    crossed, own = states
    return jax.shard_map(
        jax.vmap(functools.partial(score_mapped, plan)), mesh=device_mesh("perm"), in_specs=(whole, whole, along),
        out_specs=along, check_vma=False,
    )(crossed, own, perms)  # fmt: skip
