"""Scores of re-pairings of one pair of matrices, by all measures asked for, the same numbers however computed.

Cores are computed in float32, batch by batch, either on the devices of JAX (`impl="jax"`: permutations are drawn
where they are used and `shard_map` spreads a batch over the mesh axis `perm`) or on the CPU by the measures' own
faster ways (`impl="host"`: numba kernels beside XLA). Measures that read one statistic share it. A float32 core is
within the measure's tolerance of the float64 one, or its interval says by how much it may be off; `rescore` gives the
float64 core of any single re-pairing, always on the CPU.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Int, UInt32

from saejax.mesh import device_mesh, replicated, spread
from saejax.nulls import permutations as drawing
from saejax.nulls.budget import Budget, Impl, batch_bytes, require
from saejax.nulls.shuffles import Shuffle
from saejax.similarity import Measure, Pair, padding
from saejax.similarity.measure import (
    Bounds,
    CrossStatistic,
    core_batch,
    exact_core,
    exact_statistic,
    statistic_batch,
)
from saejax.types import AnyArray, Array, Permutation, Permutations

CommonLengths: TypeAlias = Callable[[dict[str, int], int], dict[str, int]]

PERMUTATION_BYTES = 40  # per row, while a permutation is drawn
LARGEST_BATCH = 1024
WIDE = 50

# Before it takes cuBLAS all the same, XLA tries many tilings of Triton for every product: on an H200 a program took
# 14 s to compile instead of 2 and was no faster.
COMPILER_OPTIONS: dict[str, dict[str, bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


def program(work: Callable[..., Any], *, static_argnames: str | Sequence[str]) -> Callable[..., Any]:
    """Return `jax.jit` of a function with the `COMPILER_OPTIONS` of the platform that it is first called on."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        options = COMPILER_OPTIONS.get(jax.default_backend())
        return jax.jit(work, static_argnames=static_argnames, compiler_options=options)

    @functools.wraps(work)
    def call(*arguments: Any) -> Any:
        return compiled()(*arguments)

    return call


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which statistics the measures asked for read.

    Attributes:
        measures: the measures.
        statistics: each statistic once.
        reads: by measure, which of the statistics it reads.
    """

    measures: tuple[Measure, ...]
    statistics: tuple[CrossStatistic, ...]
    reads: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, measures: Sequence[Measure]) -> "Plan":
        """Find the distinct statistics of some measures."""
        statistics = tuple(dict.fromkeys(each for measure in measures for each in measure.statistics))
        reads = tuple(tuple(statistics.index(each) for each in measure.statistics) for measure in measures)
        return cls(tuple(measures), statistics, reads)

    def extent(self, statistic: CrossStatistic, pair: Pair) -> tuple[int, int] | None:
        """Return the largest part of a statistic that one of its readers needs; None for all of it."""
        extents = [measure.extent(pair) for measure in self.measures if statistic in measure.statistics]
        wanted = [extent for extent in extents if extent is not None]
        if len(wanted) < len(extents):
            return None
        return max(kx for kx, _ in wanted), max(ky for _, ky in wanted)


@dataclasses.dataclass(frozen=True)
class Null:
    """Random re-pairings of two matrices, and the measures that score them.

    Attributes:
        shuffle: which re-pairings are equally likely.
        listed: whether re-pairing i is number i in the list of all, not a random one.
        rows: length of the states' row axis: n, or more where zeros were appended.
        key: Threefry key of the re-pairings.
        impl: how batches are scored.
        plan: the measures and their statistics.
        crossed: float64 states of the statistics, on the CPU.
        own: float64 states of the measures, in numpy.
        fast: both in float32, where batches are scored.
        observed: float64 core of the pairing as it stands, by measure.
        constant: whether every re-pairing has the observed core, by measure.
        memory: bytes that states and a batch may take.
    """

    shuffle: Shuffle
    listed: bool
    rows: int
    key: UInt32[np.ndarray, "2"]
    impl: Impl
    plan: Plan
    crossed: tuple[Any, ...]
    own: tuple[Any, ...]
    fast: tuple[tuple[Any, ...], tuple[Any, ...]]
    observed: tuple[float, ...]
    constant: tuple[bool, ...]
    memory: int

    @classmethod
    def prepare(
        cls,
        pair: Pair,
        shuffle: Shuffle,
        measures: Sequence[Measure],
        key: UInt32[np.ndarray, "2"],
        budget: Budget,
        *,
        listed: bool = False,
        lengths: CommonLengths | None = None,
    ) -> "Null":
        """Do once what no re-pairing changes, and score the observed pairing.

        Args:
            pair: the matrices, which the measures have checked, with room for what `preparing_bytes` says.
            shuffle: which re-pairings of their rows are equally likely.
            measures: the measures.
            key: Threefry key of the re-pairings.
            budget: how batches are scored, and the memory for states and a batch.
            listed: whether re-pairing i is number i in the list of all, not a random one.
            lengths: to what lengths the axes of the states are padded, from what they are and n; not at all when
                None.

        Raises:
            InputError: states and the smallest batch need more memory than that.
            ArithmeticError: the fast way of scoring the observed pairing is not within tolerance of the float64 one;
                then no draw could be trusted.
        """
        plan, (impl, memory) = Plan.of(measures), budget
        crossed = tuple(each.prepare(pair, plan.extent(each, pair)) for each in plan.statistics)
        own = tuple(measure.own(pair) for measure in measures)
        wanted = {} if lengths is None else lengths(padding.lengths([*crossed, *own]), pair.n)
        if wanted:
            crossed, own = (tuple(padding.padded(state, wanted) for state in states) for states in (crossed, own))
        rows = wanted.get("n", pair.n)
        fast = jax.tree.map(functools.partial(_single, impl), (crossed, own))
        constant = tuple(measure.constant(pair) for measure in measures)
        null = cls(shuffle, listed, rows, key, impl, plan, crossed, own, fast, (), constant, memory)
        require(null.least_bytes(), memory, f"scoring {', '.join(measure.name for measure in measures)} of", pair.n)
        identity = np.arange(rows, dtype=np.uint32)
        observed = tuple(null.rescore(range(len(measures)), identity))
        bounds = null.score(np.repeat(identity[None], null.parallel(), axis=0))
        for measure, core, (low, high) in zip(measures, observed, bounds, strict=True):
            if not (np.all(low - measure.tolerance <= core) and np.all(core <= high + measure.tolerance)):
                raise ArithmeticError(
                    f"{measure.name} of the observed pairing has core {core} in float64 and {low[0]} to {high[0]} by "
                    f"impl {impl!r}, farther apart than its tolerance {measure.tolerance}"
                )
        return dataclasses.replace(null, observed=observed)

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.shuffle.n

    def parallel(self) -> int:
        """Return how many devices share a batch, of which its size must be a multiple."""
        return len(jax.local_devices()) if self.impl == "jax" else 1

    def state_bytes(self) -> int:
        """Return the bytes of all states."""
        leaves = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves((self.crossed, self.own, self.fast))}
        return sum(leaves.values())

    def bytes_each(self) -> int:
        """Return the bytes that each re-pairing of a batch takes."""
        states = zip(self.plan.statistics, self.crossed, strict=True)
        return PERMUTATION_BYTES * self.rows + sum(statistic.scratch(state) for statistic, state in states)

    def least_bytes(self) -> int:
        """Return the bytes of all states and of the smallest batch, or of scoring one re-pairing in float64."""
        return self.state_bytes() + self.bytes_each() * max(self.parallel(), 2)

    def held_bytes(self) -> int:
        """Return the bytes of all states and of the largest batch."""
        return self.state_bytes() + self.bytes_each() * self.largest_batch()

    def largest_batch(self) -> int:
        """Return how many re-pairings may be scored together, a multiple of `parallel()`."""
        room = batch_bytes(self.impl, max(self.memory - self.state_bytes(), 0))
        largest = min(LARGEST_BATCH, room // self.bytes_each())
        return max(largest // self.parallel(), 1) * self.parallel()

    def score_range(self, start: int, stop: int) -> list[Bounds]:
        """Return the float32 cores of re-pairings `start` to `stop - 1`, by measure, as intervals of arrays."""
        if self.impl == "host" or self.listed or not self.shuffle.drawn_on_devices:
            return self.score(self.perms(np.arange(start, stop)))
        indices = jax.device_put(drawing.as_indices(start, stop), spread(device_mesh("perm")))
        return self.score(_draw_on_devices(self.key, indices, np.uint32(self.n), self.rows))

    def perms(self, numbers: Int[np.ndarray, "perm"]) -> Permutations:
        """Return re-pairings by their numbers, on the host; past the end of a list, it begins anew."""
        return drawing.extended(self.shuffle.numbered(self.key, numbers, self.listed), self.rows)

    def score(self, perms: Permutations) -> list[Bounds]:
        """Return the float32 cores of given re-pairings; their number is a multiple of `parallel()`."""
        crossed, own = self.fast
        if self.impl == "jax":
            perms = jax.device_put(perms, spread(device_mesh("perm")))
            bounds = _score_on_devices(self.plan, crossed, own, perms)
        else:
            values = [statistic_batch(*each, perms) for each in zip(self.plan.statistics, crossed, strict=True)]
            bounds = [
                core_batch(measure, state, tuple(values[index] for index in reads), perms)
                for measure, state, reads in zip(self.plan.measures, own, self.plan.reads, strict=True)
            ]
        return [Bounds(*(np.asarray(end, np.float64) for end in each)) for each in bounds]

    def settle(self, start: int, bounds: Sequence[Bounds]) -> tuple[np.ndarray, np.ndarray]:
        """Score draws again in float64 that float32 cannot tell, by `settle`."""
        return settle(self, start, bounds)

    def rescore(self, chosen: Sequence[int], perm: Permutation) -> list[float]:
        """Return the float64 core of one re-pairing by each of some measures, always on the CPU."""
        needed = dict.fromkeys(read for index in chosen for read in self.plan.reads[index])
        values = {read: exact_statistic(self.plan.statistics[read], self.crossed[read], perm) for read in needed}
        return [
            exact_core(
                self.plan.measures[index], self.own[index], tuple(values[read] for read in self.plan.reads[index]), perm
            )
            for index in chosen
        ]


@runtime_checkable
class Scored(Protocol):
    """What `settle` asks of a null, as `Null` describes it."""

    @property
    def plan(self) -> Plan:
        """The measures."""
        ...

    @property
    def observed(self) -> tuple[float, ...]:
        """Float64 core of the pairing as it stands, by measure."""
        ...

    @property
    def constant(self) -> tuple[bool, ...]:
        """Whether every re-pairing has the observed core, by measure."""
        ...

    def perms(self, numbers: Int[np.ndarray, "perm"]) -> Permutations:
        """Return re-pairings by their numbers, on the host."""
        ...

    def rescore(self, chosen: Sequence[int], perm: Permutation) -> list[float]:
        """Return the float64 core of one re-pairing by each of some measures."""
        ...


def settle(null: Scored, start: int, bounds: Sequence[Bounds]) -> tuple[np.ndarray, np.ndarray]:
    """Score draws again in float64 that float32 cannot tell.

    They are those whose interval touches the observed core, so that they count alike everywhere, and those whose
    interval is so wide that it would be seen in the null's mean and SD: `WIDE` tolerances to either side.

    Args:
        null: what is scored.
        start: number of the first re-pairing.
        bounds: float32 cores of consecutive re-pairings, by measure.

    Returns:
        Cores `[measures, perm]`, and which of them were scored again.
    """
    lows, highs = (np.stack([ends[side] for ends in bounds]) for side in (0, 1))
    tolerance = np.array([measure.tolerance for measure in null.plan.measures])[:, None]
    observed, constant = np.array(null.observed)[:, None], np.array(null.constant)[:, None]
    cores = np.where(constant, observed, (lows + highs) / 2)
    touching = (lows - tolerance <= observed) & (observed <= highs + tolerance)
    untold = (touching | (highs - lows > 2 * WIDE * tolerance)) & ~constant
    places = np.flatnonzero(untold.any(axis=0))
    if not len(places):
        return cores, untold
    for place, perm in zip(places, null.perms(start + places), strict=True):
        again = np.flatnonzero(untold[:, place])
        cores[again, place] = null.rescore(again.tolist(), perm)
    return cores, untold


def _single(impl: Impl, leaf: np.ndarray) -> AnyArray:
    """Return an array in float32 if it is float64, where it is scored; on the host others need no copy."""
    if leaf.dtype == np.float64:
        with np.errstate(over="ignore", under="ignore"):  # norms of scores, which are float64; no core reads them
            leaf = leaf.astype(np.float32)
    elif impl == "host":
        return leaf
    return jax.device_put(
        leaf, jax.local_devices(backend="cpu")[0] if impl == "host" else replicated(device_mesh("perm"))
    )


def score_mapped(plan: Plan, crossed: tuple[Any, ...], own: tuple[Any, ...], perms: Permutations) -> list[Bounds]:
    """Return the cores of a batch of re-pairings, by measure; pure JAX."""

    def score(perm: Permutation) -> list[Bounds]:
        values = [each.compute(state, perm) for each, state in zip(plan.statistics, crossed, strict=True)]
        return [
            measure.core(state, tuple(values[index] for index in reads), perm)
            for measure, state, reads in zip(plan.measures, own, plan.reads, strict=True)
        ]

    return jax.vmap(score)(perms)


@functools.partial(program, static_argnames="plan")
def _score_on_devices(plan: Plan, crossed: tuple[Any, ...], own: tuple[Any, ...], perms: AnyArray) -> list[Bounds]:
    whole, along = PartitionSpec(), PartitionSpec("perm")
    return jax.shard_map(
        functools.partial(score_mapped, plan), mesh=device_mesh("perm"), in_specs=(whole, whole, along),
        out_specs=along, check_vma=False,
    )(crossed, own, perms)  # fmt: skip


@functools.partial(jax.jit, static_argnames="rows")
def _draw_on_devices(
    key: UInt32[AnyArray, "2"], indices: UInt32[Array, "perm"], n: UInt32[AnyArray, ""], rows: int
) -> Permutations:
    return drawing.on_device(key, indices, n, rows)
