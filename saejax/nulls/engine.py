"""The null engine: scores of very many random re-pairings, held against the score of the pairing as it stands.

Draws are made in batches by `saejax.nulls.scoring`. The few whose interval touches the observed core are scored again
in float64 on the CPU, and only then counted. So p does not depend on batch size, implementation or device count.
"""

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.inference import NullResult, judge
from saejax.nulls.schemes import Ids, find_scheme
from saejax.nulls.scoring import Impl, Null, default_impl
from saejax.progress import progress
from saejax.similarity import MEASURES, Measure, Pair
from saejax.types import AnyArray

MEMORY_GIB = 2.0


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
    memory_gib: float = MEMORY_GIB,
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
        batch: re-pairings scored together; as many as memory holds when absent.
        impl: `host` or `jax`; `host` on CPU and `jax` on accelerators when absent. Neither this nor `batch` changes
            a count; draws may move within the measure's tolerance.
        memory_gib: memory for what is kept of the matrices and for a batch, in GiB.

    Returns:
        One result per measure, in the order asked for.

    Raises:
        InputError: anything about the input is wrong; before any work is done.
    """
    chosen = find_measures(measures)
    pair = check_pairing(x, y, chosen, scheme, x_ids, y_ids)
    if not 1 <= permutations <= drawing.MOST_PERMUTATIONS:
        raise InputError(f"permutations {permutations} must be at least 1 and at most 2^32")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    if impl not in (None, *get_args(Impl)):
        raise InputError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")
    if not 0 < memory_gib < math.inf:
        raise InputError(f"memory_gib {memory_gib} must be above 0")
    key = drawing.key_of(seed)
    null = Null.prepare(pair, chosen, key, impl or default_impl(), int(memory_gib * 2**30))
    drawn = draw(null, permutations, batch_size(null, permutations, batch))
    return [
        judge(measure, own, null.n, observed, cores, scheme)
        for measure, own, observed, cores in zip(chosen, null.own, null.observed, drawn, strict=True)
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
) -> Pair:
    """Read a pairing; refuse, within moments, one that the measures cannot score or the scheme cannot re-pair.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    found = find_scheme(scheme)
    pair = Pair.of(x, y)
    for measure in measures:
        measure.check(pair)
    found.check(pair.x.values, x_ids, "x")
    found.check(pair.y.values, y_ids, "y")
    return pair


def batch_size(null: Null, permutations: int, wanted: int | None = None) -> int:
    """Return the size of a batch.

    Args:
        null: what is scored.
        permutations: re-pairings in all.
        wanted: size asked for; when absent, batches are equal and stay within memory.
    """
    if wanted is None:
        wanted = math.ceil(permutations / math.ceil(permutations / null.largest_batch()))
    return math.ceil(min(wanted, permutations) / null.parallel()) * null.parallel()


def draw(null: Null, permutations: int, batch: int) -> list[Float[np.ndarray, "perm"]]:
    """Score re-pairings 0 to `permutations - 1`.

    Args:
        null: what is scored.
        permutations: number of re-pairings.
        batch: how many to score together, from `batch_size`. Every batch has that size, so that nothing is compiled
            twice; the last may run past the end, and what is past it is dropped.

    Returns:
        One array of cores per measure; those whose interval touches the observed core are float64 cores.
    """
    draws = [np.empty(permutations) for _ in null.observed]
    names = ", ".join(measure.name for measure in null.plan.measures)
    with progress(f"null of {names}", total=permutations) as advance:
        for start in range(0, permutations, batch):
            stop = min(start + batch, permutations)
            for index, (low, high) in enumerate(null.score_range(start, start + batch)):
                draws[index][start:stop] = low[: stop - start]
                tolerance, observed = null.plan.measures[index].tolerance, null.observed[index]
                touching = (low - tolerance <= observed) & (observed <= high + tolerance)
                for place in np.flatnonzero(touching[: stop - start]) + start:
                    perm = drawing.on_host(null.key, drawing.as_indices(int(place), int(place) + 1), null.n)[0]
                    draws[index][place] = null.rescore(index, perm)
            advance(stop - start)
    return draws
