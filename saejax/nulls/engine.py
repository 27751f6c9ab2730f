"""The null engine: scores of very many random re-pairings, the same numbers however they are computed.

Scores are computed in float32, batch by batch, either on the devices of JAX (`impl="jax"`: permutations are drawn
where they are used and the batch is spread over the mesh axis `perm`) or on the CPU by the measures' own faster ways
(`impl="host"`: numba kernels beside XLA). A float32 score is within the measure's tolerance of the
float64 one; the few draws that lie that close to the observed score are scored again in float64 on the CPU, and only
then counted. So p does not depend on batch size, implementation or device count.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, UInt32

from saejax.errors import InputError
from saejax.mesh import device_mesh, replicated, spread
from saejax.nulls import permutations as drawing
from saejax.nulls.inference import NullResult, judge
from saejax.nulls.schemes import Ids, find_scheme
from saejax.progress import progress
from saejax.similarity import MEASURES, Measure
from saejax.similarity.measure import as_pair
from saejax.types import AnyArray, Array, Permutation, Permutations, Scores

Impl = Literal["host", "jax"]

MEMORY = 256 * 2**20  # bytes that a batch may take
PERMUTATION_BYTES = 40  # per row, while a permutation is drawn
LARGEST_BATCH = 1024


def permutation_test(
    x: AnyArray,
    y: AnyArray,
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    seed: int,
    x_ids: Ids | None = None,
    y_ids: Ids | None = None,
    batch: int | None = None,
    impl: Impl | None = None,
) -> list[NullResult]:
    """Score two matrices with paired rows, and hold each score against random re-pairings of their rows.

    All measures see the same re-pairings.

    Args:
        x: `[n, dx]`; row i is paired with row i of `y`.
        y: `[n, dy]`.
        measures: names from `saejax.similarity.MEASURES`.
        scheme: name of the set of re-pairings that are equally likely, from `saejax.nulls.SCHEMES`.
        permutations: number of random re-pairings.
        seed: seed of the re-pairings, 0 to 2^64 - 1.
        x_ids: which feature each row of x is, so that a feature in several pairs is recognised; without ids, by
            equal rows.
        y_ids: the same for y.
        batch: re-pairings scored together; as many as `MEMORY` holds when absent.
        impl: `host` or `jax`; `host` on CPU and `jax` on accelerators when absent. Neither this nor `batch` changes
            a count; draws may move within the measure's tolerance.

    Returns:
        One result per measure, in the order asked for.

    Raises:
        InputError: anything about the input is wrong; before any work is done.
    """
    chosen = find_measures(measures)
    check_pairing(x, y, chosen, scheme, x_ids, y_ids)
    if not 1 <= permutations <= drawing.MOST_PERMUTATIONS:
        raise InputError(f"permutations {permutations} must be at least 1 and at most 2^32")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    if impl not in (None, *get_args(Impl)):
        raise InputError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")
    key = drawing.key_of(seed)
    null = Null.prepare(x, y, chosen, key, impl or default_impl())
    draws = null.draw(permutations, null.batch_size(permutations, batch))
    return [
        judge(measure, null.n, observed, scores, scheme)
        for measure, observed, scores in zip(chosen, null.observed, draws, strict=True)
    ]


def find_measures(names: Sequence[str]) -> list[Measure]:
    """Return measures by name.

    Raises:
        InputError: a name is unknown or repeated, or there is none.
    """
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise InputError(f"measure {unknown[0]!r} is unknown; choose among {', '.join(MEASURES)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"measures {list(names)} must be distinct, and at least one of {', '.join(MEASURES)}")
    return [MEASURES[name] for name in names]


def check_pairing(
    x: AnyArray, y: AnyArray, measures: Sequence[Measure], scheme: str, x_ids: Ids | None, y_ids: Ids | None
) -> None:
    """Refuse, within moments, a pairing that the measures cannot score or the scheme cannot re-pair.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    found = find_scheme(scheme)
    x, y = as_pair(x, y)
    for measure in measures:
        measure.check(x, y)
    found.check(x, x_ids, "x")
    found.check(y, y_ids, "y")


def default_impl() -> Impl:
    """Return `host` where JAX runs on the CPU, `jax` where it has an accelerator."""
    return "host" if jax.default_backend() == "cpu" else "jax"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One measure, ready to score re-pairings of one pair of matrices.

    Attributes:
        measure: the measure.
        exact: its state in float64, on the CPU.
        fast: its state in float32, where batches are scored.
    """

    measure: Measure
    exact: Any
    fast: Any

    def rescore(self, perm: Permutation) -> float:
        """Return the float64 score of one re-pairing, always on the CPU."""
        with jax.enable_x64(True):
            return float(_exact_score(self.measure, self.exact, perm))


@dataclasses.dataclass(frozen=True)
class Null:
    """Random re-pairings of two matrices, and the measures that score them.

    Attributes:
        n: number of pairs.
        key: Threefry key of the re-pairings.
        impl: how batches are scored.
        prepared: the measures.
        observed: float64 score of the pairing as it stands, by measure.
    """

    n: int
    key: UInt32[np.ndarray, "2"]
    impl: Impl
    prepared: tuple[Prepared, ...]
    observed: tuple[float, ...]

    @classmethod
    def prepare(
        cls, x: AnyArray, y: AnyArray, measures: Sequence[Measure], key: UInt32[np.ndarray, "2"], impl: Impl
    ) -> "Null":
        """Do once what no re-pairing changes, and score the observed pairing.

        Raises:
            ArithmeticError: some way of scoring the observed pairing is not within tolerance of the definition; then
                no draw could be trusted.
        """
        identity = np.arange(len(x), dtype=np.uint32)
        prepared = tuple(_prepare(measure, x, y, impl) for measure in measures)
        observed = tuple(each.rescore(identity) for each in prepared)
        null = cls(len(x), key, impl, prepared, observed)
        for each, exact in zip(prepared, observed, strict=True):
            fast = null.score(each, np.repeat(identity[None], null.parallel(), axis=0))
            definition, tolerance = each.measure.reference(x, y), each.measure.tolerance
            for score in (exact, *np.asarray(fast).tolist()):
                if not abs(score - definition) <= tolerance:
                    raise ArithmeticError(
                        f"{each.measure.name} of the observed pairing is {score} by impl {impl!r} and {definition} by "
                        f"definition, farther apart than its tolerance {tolerance}"
                    )
        return null

    def parallel(self) -> int:
        """Return how many devices share a batch, of which its size must be a multiple."""
        return len(jax.local_devices()) if self.impl == "jax" else 1

    def batch_size(self, permutations: int, wanted: int | None = None) -> int:
        """Return the size of a batch.

        Args:
            permutations: re-pairings in all.
            wanted: size asked for; when absent, batches are equal and stay within `MEMORY`.
        """
        if wanted is None:
            bytes_each = PERMUTATION_BYTES * self.n + max(each.measure.scratch(each.fast) for each in self.prepared)
            largest = max(1, min(LARGEST_BATCH, MEMORY // bytes_each))
            wanted = math.ceil(permutations / math.ceil(permutations / largest))
        return math.ceil(min(wanted, permutations) / self.parallel()) * self.parallel()

    def draw(self, permutations: int, batch: int) -> list[Float[np.ndarray, "perm"]]:
        """Score re-pairings 0 to `permutations - 1`.

        Args:
            permutations: number of re-pairings.
            batch: how many to score together, from `batch_size`. Every batch has that size, so that nothing is
                compiled twice; the last may run past the end, and what is past it is dropped.

        Returns:
            One array of scores per measure; those within tolerance of the observed score are float64 scores.
        """
        draws = [np.empty(permutations) for _ in self.prepared]
        names = ", ".join(each.measure.name for each in self.prepared)
        with progress(f"null of {names}", total=permutations) as advance:
            for start in range(0, permutations, batch):
                stop = min(start + batch, permutations)
                for column, scores in zip(draws, self.score_range(start, start + batch), strict=True):
                    column[start:stop] = scores[: stop - start]
                advance(stop - start)
        for each, observed, scores in zip(self.prepared, self.observed, draws, strict=True):
            for index in np.flatnonzero(np.abs(scores - observed) <= each.measure.tolerance):
                indices = drawing.as_indices(int(index), int(index) + 1)
                scores[index] = each.rescore(drawing.on_host(self.key, indices, self.n)[0])
        return draws

    def score_range(self, start: int, stop: int) -> list[np.ndarray]:
        """Return the float32 scores of re-pairings `start` to `stop - 1`, by measure."""
        indices = drawing.as_indices(start, stop)
        if self.impl == "jax":
            perms = _draw_on_device(self.key, jax.device_put(indices, spread(device_mesh("perm"))), self.n)
        else:
            perms = drawing.on_host(self.key, indices, self.n)
        return [np.asarray(self.score(each, perms)) for each in self.prepared]

    def score(self, each: Prepared, perms: Permutations) -> Scores:
        """Return the float32 scores of given re-pairings; their number is a multiple of `parallel()`."""
        if self.impl == "host":
            return each.measure.score_batch(each.fast, perms)
        return _score_on_device(each.measure, each.fast, jax.device_put(perms, spread(device_mesh("perm"))))


def _prepare(measure: Measure, x: AnyArray, y: AnyArray, impl: Impl) -> Prepared:
    state = measure.prepare(x, y)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, state)
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True):
        exact = jax.device_put(state, cpu)
    return Prepared(measure, exact, jax.device_put(single, cpu if impl == "host" else replicated(device_mesh("perm"))))


@functools.partial(jax.jit, static_argnames="measure")
def _exact_score(measure: Measure, state: Any, perm: Permutation) -> AnyArray:
    return measure.score(state, perm)


@functools.partial(jax.jit, static_argnames="measure")
def _score_on_device(measure: Measure, state: Any, perms: Permutations) -> AnyArray:
    return jax.vmap(measure.score, in_axes=(None, 0))(state, perms)


@functools.partial(jax.jit, static_argnames="n")
def _draw_on_device(key: UInt32[AnyArray, "2"], indices: UInt32[Array, "perm"], n: int) -> Permutations:
    return drawing.on_device(key, indices, n)
