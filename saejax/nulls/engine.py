"""The null engine: scores of very many random re-pairings, held against the score of the pairing as it stands.

Draws are made in batches by `saejax.nulls.scoring`. The few whose interval touches the observed core are scored again
in float64 on the CPU, and only then counted. So p does not depend on batch size, implementation or device count, nor
on who draws what: several processes of one job share the range of re-pairings, runs over disjoint ranges merge
(`saejax.nulls.merge`), and with a checkpoint folder an interrupted run goes on.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from saejax import artifacts, mesh
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Arrangement, Duplicates, Told
from saejax.nulls.budget import Budget, Impl, default_impl
from saejax.nulls.draws import Draws
from saejax.nulls.identity import Ids
from saejax.nulls.inference import Design, count_exceedances, judge
from saejax.nulls.numbers import check_numbers, check_stop, whole
from saejax.nulls.preparing import AnyNull, prepare_null
from saejax.nulls.representatives import Representatives
from saejax.nulls.results import Method, NullResults
from saejax.nulls.selection import check_pairing, find_measures
from saejax.nulls.stacks import Stack, fill
from saejax.progress import progress
from saejax.similarity import Measure
from saejax.similarity.moments import Moments

MEMORY_GIB = 2.0
LONGEST_ROUND = 16  # of a sequential test, in batches
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
    listed: bool
    """Whether all re-pairings are scored, by their place in the list, and not drawn at random."""
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
    row_labels: Ids | None = None,
    duplicates: Duplicates = "refuse",
    stop_after: int | None = None,
    batch: int | None = None,
    impl: Impl | None = None,
    memory_gib: float = MEMORY_GIB,
    rank_bits: int | None = None,
    checkpoint: Path | str | None = None,
) -> NullResults:
    """Score two matrices with paired rows, and hold each score against random re-pairings of their rows.

    All measures see the same re-pairings. If the scheme allows no more of them than are asked for, all are scored, once
    each, and p is exact. Where `jax.distributed` runs several processes, each draws its part and
    all return the whole.

    Args:
        x: `[n, dx]`, of numpy, JAX, torch, pandas or whatever else numpy reads; row i is paired with row i of `y`.
        y: `[n, dy]`.
        measures: names from `saejax.similarity.MEASURES`, with options where they have such
            (`svcca:components=20`, `svcca:variant=k1`, `knn_jaccard:k=5`).
        scheme: name of the set of re-pairings that are equally likely, from `saejax.nulls.SCHEMES`.
        permutations: number of random re-pairings.
        seed: seed of the re-pairings, 0 to 2^64 - 1.
        first: number of the first re-pairing; results of disjoint ranges merge. From 0 on alone are re-pairings listed.
        x_ids: which feature each row of x is, so that a feature in several pairs is recognised; without ids, by
            equal rows.
        y_ids: the same for y.
        row_labels: one per row, where the scheme needs them: the stratum of a pair, the document of a stimulus.
        duplicates: `accept` re-pairs features in several pairs as if each pair had its own, which reproduces published
            numbers; the result says so, and its p is no valid one.
        stop_after: sequential test: a measure's result is of the re-pairings up to the one that is the so manieth at
            least as similar as the observed pairing, and p is their number over the number of re-pairings (Besag and
            Clifford). 10 or 20 make p of unremarkable pairings cheap. What is drawn ahead to fill batches is left out.
        batch: re-pairings scored together; as many as memory holds when absent.
        impl: `host` or `jax`; `host` on CPU and `jax` on accelerators when absent. Neither this nor `batch` changes
            a count; draws may move within the measure's tolerance.
        memory_gib: memory for all that is made of the matrices, in GiB: while they are prepared, and with a batch.
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
    stop_after = None if stop_after is None else whole("stop_after", stop_after)
    check_numbers(permutations, first, batch, memory_gib, impl)
    check_stop(stop_after, permutations)
    key = drawing.key_of(seed)
    budget = Budget(impl or default_impl(), int(memory_gib * 2**30))
    arrangement = check_pairing(x, y, chosen, scheme, Told(x_ids, y_ids, row_labels, duplicates), budget)
    design, count = design_of(arrangement, scheme, permutations, seed, first, stop_after)
    listed = design.method == "enumerated"
    null = prepare_null(arrangement, chosen, key, budget, listed=listed)
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        open_checkpoint(checkpoint, DrawsIdentity(tuple(measures), rank_bits, scheme, listed, seed), arrangement)
    expected = expectations(chosen, arrangement)
    del arrangement  # with its decompositions: what the null keeps of it is within the budget
    batch = batch_size(null, count, batch)
    ranges = _rounds(first, first + count, batch * jax.process_count(), design.stop_after)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with progress(f"null of {', '.join(measures)}", total=count // jax.process_count()) as advance:
        for start, stop in ranges:
            draws = Draws(tuple(measure.name for measure in chosen), *mesh.share(start, stop), checkpoint)
            advance(len(draws) - sum(end - begin for begin, end in draws.missing()))
            fill(Stack.of([null]), [draws], batch, advance)
            parts.append((mesh.gather(draws.cores), mesh.gather(draws.rescored)))
            if design.stop_after is not None and all_reached(null, [cores for cores, _ in parts], design.stop_after):
                break
    cores, rescored = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    return judged(null, expected, cores, rescored, design)


def _rounds(first: int, stop: int, size: int, stop_after: int | None) -> Iterator[tuple[int, int]]:
    """Yield ranges of re-pairings between which a sequential test may stop; the whole where it may not.

    Args:
        first: number of the first re-pairing.
        stop: number behind the last one.
        size: re-pairings of the first range; the next are twice as long, up to `LONGEST_ROUND` times.
        stop_after: exceedances at which it stops; None where it does not.
    """
    longest, size = LONGEST_ROUND * size, size if stop_after is not None else stop - first
    while first < stop:
        yield first, min(first + size, stop)
        first, size = first + size, min(2 * size, longest)


def all_reached(null: AnyNull, parts: Sequence[Float[np.ndarray, "measures _"]], stop_after: int) -> bool:
    """Tell whether a sequential test by every measure has the exceedances at which it stops.

    Args:
        null: what is scored.
        parts: its draws, in parts; NaN where one is missing.
        stop_after: exceedances.
    """
    return all(
        sum(count_exceedances(part[place], observed) for part in parts) >= stop_after
        for place, observed in enumerate(null.observed)
    )


def design_of(
    arrangement: Arrangement,
    scheme: str,
    permutations: int,
    seed: int,
    first: int = 0,
    stop_after: int | None = None,
) -> tuple[Design, int]:
    """Say what is re-paired, whether all re-pairings are scored or some are drawn, and how many.

    Args:
        arrangement: what the scheme made of the pairs.
        scheme: its name.
        permutations: re-pairings asked for.
        seed: seed of the re-pairings.
        first: number of the first of them.
        stop_after: exceedances at which a sequential test stops; it has no meaning where all re-pairings are scored.
    """
    every, count = arrangement.shuffle.count, permutations
    method: Method = "sampled" if stop_after is None else "sequential"
    # Coupled re-pairings are drawn, however few there are: they go with those of other cells.
    coupled = arrangement.shuffle.names is not None
    if first == 0 and every is not None and every <= permutations and not coupled:
        method, count, stop_after = "enumerated", every, None
    return Design(
        n=arrangement.pair.n, units=arrangement.shuffle.units, rows=arrangement.rows,
        scheme=scheme, method=method, seed=seed, first=first,
        repeats=arrangement.repeats, fixed=arrangement.fixed, stop_after=stop_after,
    ), count  # fmt: skip


class Expectation(NamedTuple):
    """What is known of a measure's null without drawing from it.

    Attributes:
        moments: exact moments of the score under the scheme, where they have a closed form.
        predicted_mean: the mean that an asymptotic law of the uniform scheme predicts, where there is one.
        best: score of a perfect match; None where the matrices differ between draws.
        directions: numbers of directions that the measure lays on each other freely, if it does.
    """

    moments: Moments | None
    predicted_mean: float | None
    best: float | None
    directions: tuple[int, int] | None


def expectations(measures: Sequence[Measure], arrangement: Arrangement) -> list[Expectation]:
    """Return what is known of each measure's null of a pair.

    Closed forms are of all n! re-pairings of whatever rows are re-paired, so of every scheme that allows those.

    Args:
        measures: the measures.
        arrangement: the matrices and which re-pairings of them are equally likely.
    """
    pair = arrangement.pair
    if arrangement.pairing is not None or arrangement.pick is not None:
        return [Expectation(None, None, None, None) for _ in measures]
    return [
        Expectation(
            measure.moments(pair, "uniform") if arrangement.plain else None,
            measure.predicted_mean(pair) if measure.predicted_mean and arrangement.plain else None,
            measure.best(pair),
            measure.directions(pair) if measure.directions else None,
        )
        for measure in measures
    ]


def judged(
    null: AnyNull,
    expected: Sequence[Expectation],
    cores: Float[np.ndarray, "measures perm"],
    rescored: Bool[np.ndarray, "measures perm"],
    design: Design,
) -> NullResults:
    """Hold the observed cores of a null against its draws.

    Args:
        null: what was scored.
        expected: what is known of each measure's null.
        cores: the draws.
        rescored: which of them were scored again in float64.
        design: what was re-paired, and how.

    Returns:
        One result per measure.
    """
    picked = null.picked if isinstance(null, Representatives) else [None] * len(cores)
    measures = zip(null.plan.measures, null.own, null.observed, cores, rescored, expected, picked, strict=True)
    return NullResults(
        judge(
            measure,
            own,
            design,
            observed,
            drawn,
            again,
            known.moments,
            known.predicted_mean,
            known.best,
            known.directions,
            picks,
        )  # fmt: skip
        for measure, own, observed, drawn, again, known, picks in measures
    )


def open_checkpoint(folder: Path, identity: DrawsIdentity, arrangement: Arrangement) -> None:
    """Begin a folder of draws, or make sure that it holds draws of the same null.

    Raises:
        InputError: it holds something else.
    """
    inputs = arrangement.digests()
    mesh.in_turn("checkpoint", lambda: artifacts.begin(folder, KIND, identity, inputs))


def batch_size(null: AnyNull, permutations: int, wanted: int | None = None) -> int:
    """Return the size of a batch.

    Args:
        null: what is scored.
        permutations: re-pairings in all.
        wanted: size asked for; when absent, batches are equal and stay within memory.
    """
    if wanted is None:
        wanted = math.ceil(permutations / math.ceil(permutations / null.largest_batch()))
    return math.ceil(min(wanted, permutations) / null.parallel()) * null.parallel()
