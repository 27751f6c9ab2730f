"""The null engine: scores of very many random re-pairings, held against the score of the pairing as it stands.

Draws are made in batches by `saejax.nulls.scoring`. The few whose interval touches the observed core are scored again
in float64 on the CPU, and only then counted. So p does not depend on batch size, implementation or device count, nor
on who draws what: several processes of one job share the range of re-pairings, runs over disjoint ranges merge
(`saejax.nulls.merge`), and with a checkpoint folder an interrupted run goes on.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from saejax import artifacts, mesh
from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.draws import Draws
from saejax.nulls.inference import judge
from saejax.nulls.results import NullResults
from saejax.nulls.schemes import Ids
from saejax.nulls.scoring import Impl, Null, default_impl
from saejax.nulls.selection import check_pairing, find_measures
from saejax.nulls.stacks import Stack, fill
from saejax.progress import progress
from saejax.similarity import Measure, Pair
from saejax.similarity.moments import Moments

MEMORY_GIB = 2.0
KIND = "null draws"


@dataclasses.dataclass(frozen=True)
class DrawsIdentity:
    """What draws in a checkpoint folder are of; with `inputs`, the hashes of the matrices."""

    measures: tuple[str, ...]
    """Measures, in order."""
    rank_bits: int | None
    """Bits of ranks, where given."""
    scheme: str
    """Which re-pairings are equally likely."""
    seed: int
    """Seed of the re-pairings."""


def permutation_test(
    x: Any,
    y: Any,
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    seed: int,
    first: int = 0,
    x_ids: Ids | None = None,
    y_ids: Ids | None = None,
    batch: int | None = None,
    impl: Impl | None = None,
    memory_gib: float = MEMORY_GIB,
    rank_bits: int | None = None,
    checkpoint: Path | str | None = None,
) -> NullResults:
    """Score two matrices with paired rows, and hold each score against random re-pairings of their rows.

    All measures see the same re-pairings. Where `jax.distributed` runs several processes, each draws its part and
    all return the whole.

    Args:
        x: `[n, dx]`, of numpy, JAX, torch, pandas or whatever else numpy reads; row i is paired with row i of `y`.
        y: `[n, dy]`.
        measures: names from `saejax.similarity.MEASURES`, with options where they have such
            (`svcca:components=20`, `svcca:variant=k1`, `knn_jaccard:k=5`).
        scheme: name of the set of re-pairings that are equally likely, from `saejax.nulls.SCHEMES`.
        permutations: number of random re-pairings.
        seed: seed of the re-pairings, 0 to 2^64 - 1.
        first: number of the first re-pairing; results of disjoint ranges merge.
        x_ids: which feature each row of x is, so that a feature in several pairs is recognised; without ids, by
            equal rows.
        y_ids: the same for y.
        batch: re-pairings scored together; as many as memory holds when absent.
        impl: `host` or `jax`; `host` on CPU and `jax` on accelerators when absent. Neither this nor `batch` changes
            a count; draws may move within the measure's tolerance.
        memory_gib: memory for what is kept of the matrices and for a batch, in GiB.
        rank_bits: bits of the ranks that Spearman measures keep: 32, exact, 8 n^2 bytes; 16, quantised, with the
            largest error of a score in the result; by default 32 up to n = 4,096 and 16 above.
        checkpoint: folder for draws as they are made, and their count, mean, SD and exceedances so far
            (`running-START-STOP.json`); the same call goes on from what it holds.

    Returns:
        One result per measure, in the order asked for.

    Raises:
        InputError: anything about the input is wrong; before any work is done.
    """
    chosen = find_measures(measures, rank_bits)
    permutations, first, seed = whole("permutations", permutations), whole("first", first), whole("seed", seed)
    batch = None if batch is None else whole("batch", batch)
    check_numbers(permutations, first, batch, memory_gib, impl)
    key = drawing.key_of(seed)
    pair = check_pairing(x, y, chosen, scheme, x_ids, y_ids)
    null = Null.prepare(pair, chosen, key, impl or default_impl(), int(memory_gib * 2**30))
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        open_checkpoint(checkpoint, DrawsIdentity(tuple(measures), rank_bits, scheme, seed), pair)
    expected = expectations(chosen, pair, scheme)
    del pair  # with its decompositions: what the null keeps of it is within the budget
    draws = Draws(tuple(measure.name for measure in chosen), *mesh.share(first, first + permutations), checkpoint)
    total, missing = draws.stop - draws.first, sum(stop - start for start, stop in draws.missing())
    with progress(f"null of {', '.join(measures)}", total=total, done=total - missing) as advance:
        fill(Stack.of([null]), [draws], batch_size(null, permutations, batch), advance)
    return judged(null, expected, mesh.gather(draws.cores), mesh.gather(draws.rescored), scheme, seed, first)


class Expectation(NamedTuple):
    """What is known of a measure's null without drawing from it.

    Attributes:
        moments: exact moments of the score under the scheme, where they have a closed form.
        predicted_mean: the mean that an asymptotic law of the uniform scheme predicts, where there is one.
    """

    moments: Moments | None
    predicted_mean: float | None


def expectations(measures: Sequence[Measure], pair: Pair, scheme: str) -> list[Expectation]:
    """Return what is known of each measure's null of a pair.

    Args:
        measures: the measures.
        pair: the matrices.
        scheme: name of the scheme.
    """
    uniform = scheme == "uniform"
    return [
        Expectation(
            measure.moments(pair, scheme), measure.predicted_mean(pair) if uniform and measure.predicted_mean else None
        )
        for measure in measures
    ]


def judged(
    null: Null,
    expected: Sequence[Expectation],
    cores: Float[np.ndarray, "measures perm"],
    rescored: Bool[np.ndarray, "measures perm"],
    scheme: str,
    seed: int,
    first: int,
) -> NullResults:
    """Hold the observed cores of a null against its draws.

    Args:
        null: what was scored.
        expected: what is known of each measure's null.
        cores: the draws.
        rescored: which of them were scored again in float64.
        scheme: name of the scheme that they were drawn under.
        seed: seed of the re-pairings.
        first: number of the first of them.

    Returns:
        One result per measure.
    """
    measures = zip(null.plan.measures, null.own, null.observed, cores, rescored, expected, strict=True)
    return NullResults(
        judge(measure, own, null.n, observed, drawn, again, scheme, seed, first, *known)
        for measure, own, observed, drawn, again, known in measures
    )


def whole(name: str, number: Any) -> int:
    """Return a whole number of Python, of whatever library it came.

    Args:
        name: what errors call it.
        number: the number.

    Raises:
        InputError: it is not whole.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise InputError(f"{name} {number!r} must be a whole number") from None


def check_numbers(permutations: int, first: int, batch: int | None, memory_gib: float, impl: str | None) -> None:
    """Refuse numbers that leave no null, and implementations that do not exist.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    if permutations < 1:
        raise InputError(f"permutations {permutations} must be at least 1")
    if first < 0 or first + permutations > drawing.MOST_PERMUTATIONS:
        raise InputError(f"permutations {first} to {first + permutations} must lie between 0 and 2^32")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    if not 0 < memory_gib < math.inf:
        raise InputError(f"memory_gib {memory_gib} must be above 0")
    if impl not in (None, *get_args(Impl)):
        raise InputError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")


def open_checkpoint(folder: Path, identity: DrawsIdentity, pair: Pair) -> None:
    """Begin a folder of draws, or make sure that it holds draws of the same null.

    Raises:
        InputError: it holds something else.
    """
    inputs = {name: artifacts.array_sha256(side.values) for name, side in pair.sides}
    mesh.in_turn("checkpoint", lambda: artifacts.begin(folder, KIND, identity, inputs))


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
