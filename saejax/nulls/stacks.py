"""Nulls that are scored together: small ones of one shape in one program, and the loop that draws them.

A batch of re-pairings of a hundred pairs keeps an accelerator busy for less time than it takes to start its programs.
So nulls whose states were padded to the same lengths (`saejax.nulls.buckets`) are stacked along a leading axis, and
one program scores cells x re-pairings. Each has its own number of pairs, so the permutations of a stack differ: every
null still sees re-pairing i as the same function of its seed, i and its number of pairs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Integer, UInt32

from saejax.mesh import device_mesh, replicated, spread
from saejax.nulls import permutations as drawing
from saejax.nulls.buckets import LADDER
from saejax.nulls.budget import batch_bytes
from saejax.nulls.draws import Draws
from saejax.nulls.preparing import AnyNull
from saejax.nulls.running import write_running
from saejax.nulls.scoring import Null, Plan, program, score_mapped
from saejax.similarity.measure import Bounds
from saejax.types import AnyArray, Array

ALONG = PartitionSpec(None, "perm")  # of arrays by cell and re-pairing


@dataclasses.dataclass(frozen=True)
class Stack:
    """Nulls of the same measures and shapes.

    Attributes:
        nulls: the nulls; one alone may have any shape.
        states: their float32 states, stacked, with the last one repeated up to a power of two; None for one null.
        n: their numbers of pairs, likewise.
        keys: their Threefry keys, likewise.
    """

    nulls: tuple[AnyNull, ...]
    states: Any
    n: UInt32[np.ndarray, "cells"]
    keys: UInt32[np.ndarray, "cells 2"]

    @classmethod
    def of(cls, nulls: Sequence[AnyNull]) -> "Stack":
        """Stack nulls; one alone, or several of kind `Null` with states of the same shapes and `impl` `jax`."""
        if len(nulls) == 1:
            return cls(tuple(nulls), None, *_numbers(nulls))
        members = [null for null in nulls if isinstance(null, Null)]
        members += [members[-1]] * ((1 << (len(nulls) - 1).bit_length()) - len(nulls))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(null.fast for null in members))
        states = jax.device_put(stacked, replicated(device_mesh("perm")))
        return cls(tuple(nulls), states, *_numbers(members))

    def score_range(self, start: int, stop: int) -> list[list[Bounds]]:
        """Return the float32 cores of re-pairings `start` to `stop - 1`, by null and measure."""
        first = self.nulls[0]
        if self.states is None or not isinstance(first, Null):
            return [first.score_range(start, stop)]
        ends = jax.device_get(_score_stack(first.plan, self.states, self._perms(start, stop)))
        return [
            [Bounds(*(np.asarray(end[place], np.float64) for end in bounds)) for bounds in ends]
            for place in range(len(self.nulls))
        ]

    def _perms(self, start: int, stop: int) -> AnyArray:
        """Return re-pairings of every null, `[cells, perm, rows]`, drawn on devices where these can."""
        nulls = [null for null in self.nulls if isinstance(null, Null)]
        if all(null.shuffle.drawn_on_devices and not null.listed for null in nulls):
            indices = jax.device_put(drawing.as_indices(start, stop), spread(device_mesh("perm")))
            return _draw_stack(self.keys, indices, self.n, nulls[0].rows)
        drawn = [null.perms(np.arange(start, stop)) for null in nulls]
        drawn += [drawn[-1]] * (len(self.n) - len(drawn))
        return jax.device_put(np.stack(drawn), NamedSharding(device_mesh("perm"), ALONG))


def stackable(null: Null) -> bool:
    """Tell whether a null is small."""
    return null.n <= LADDER[-1]


def stack_size(null: Null, batch: int, memory: int, most: int) -> int:
    """Return how many nulls like one to score together, a power of two.

    Args:
        null: one of them.
        batch: re-pairings of each that are scored together.
        memory: bytes for a batch of all of them.
        most: the largest number that is worth it.
    """
    room = batch_bytes(null.impl, memory) // (null.bytes_each() * batch)
    return 1 << (min(max(room, 1), most).bit_length() - 1)


def _numbers(nulls: Sequence[AnyNull]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of pairs of some nulls, and their keys."""
    return np.array([null.n for null in nulls], np.uint32), np.stack([null.key for null in nulls])


def fill(
    stack: Stack,
    draws: Sequence[Draws],
    batch: int,
    advance: Callable[[int], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Make the draws that are missing; those that float32 cannot tell are float64 cores.

    Args:
        stack: what is scored.
        draws: where they go, by null; all lack the same.
        batch: how many to score together. Every batch has that size, so that nothing is compiled twice; the last of
            a range may run past its end, and what is past it is dropped.
        advance: told of the number of re-pairings that were scored.
        enough: asked before each batch whether those that are there will do.
    """
    for begin, end in draws[0].missing():
        for start in range(begin, end, batch):
            if enough():
                break
            count = min(batch, end - start)
            for null, made, bounds in zip(stack.nulls, draws, stack.score_range(start, start + batch), strict=True):
                settled = null.settle(start, [Bounds(low[:count], high[:count]) for low, high in bounds])
                if made.put(start, *settled):
                    write_running(null, made)
            advance(count)
    for null, made in zip(stack.nulls, draws, strict=True):
        if made.commit():
            write_running(null, made)


@functools.partial(program, static_argnames="plan")
def _score_stack(plan: Plan, states: Any, perms: AnyArray) -> list[Bounds]:
    whole = PartitionSpec()
    crossed, own = states
    return jax.shard_map(
        jax.vmap(functools.partial(score_mapped, plan)), mesh=device_mesh("perm"), in_specs=(whole, whole, ALONG),
        out_specs=ALONG, check_vma=False,
    )(crossed, own, perms)  # fmt: skip


@functools.partial(jax.jit, static_argnames="rows")
def _draw_stack(
    keys: UInt32[AnyArray, "cells 2"], indices: UInt32[Array, "perm"], n: UInt32[AnyArray, "cells"], rows: int
) -> Integer[AnyArray, "cells perm rows"]:
    return jax.vmap(lambda key, each: drawing.on_device(key, indices, each, rows))(keys, n)
