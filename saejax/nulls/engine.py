"""The null engine: scores of very many random re-pairings, held against the score of the pairing as it stands.

Draws are made in batches by `saejax.nulls.scoring`. The few whose interval touches the observed core are scored again
in float64 on the CPU, and only then counted. So p does not depend on batch size, implementation or device count, nor
on who draws what: several processes of one job share the range of re-pairings, runs over disjoint ranges merge
(`saejax.nulls.merge`), and with a checkpoint folder an interrupted run goes on.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from saejax import artifacts, mesh
from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.draws import Draws
from saejax.nulls.inference import judge
from saejax.nulls.results import NullResults
from saejax.nulls.schemes import Ids, find_scheme
from saejax.nulls.scoring import Impl, Null, default_impl
from saejax.progress import progress
from saejax.similarity import MEASURES, Measure, Pair, find_measure

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
    checkpoint: Path | None = None,
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
        checkpoint: folder for draws as they are made; the same call goes on from what it holds.

    Returns:
        One result per measure, in the order asked for.

    Raises:
        InputError: anything about the input is wrong; before any work is done.
    """
    chosen = find_measures(measures, rank_bits)
    pair = check_pairing(x, y, chosen, scheme, x_ids, y_ids)
    check_numbers(permutations, first, batch, memory_gib)
    if impl not in (None, *get_args(Impl)):
        raise InputError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")
    key = drawing.key_of(seed)
    if checkpoint is not None:
        open_checkpoint(checkpoint, DrawsIdentity(tuple(measures), rank_bits, scheme, seed), pair)
    null = Null.prepare(pair, chosen, key, impl or default_impl(), int(memory_gib * 2**30))
    draws = Draws(tuple(measure.name for measure in chosen), *mesh.share(first, first + permutations), checkpoint)
    fill(null, draws, batch_size(null, permutations, batch))
    cores, rescored = mesh.gather(draws.cores), mesh.gather(draws.rescored)
    return NullResults(
        judge(measure, own, null.n, observed, cores[index], rescored[index], scheme, seed, first)
        for index, (measure, own, observed) in enumerate(zip(chosen, null.own, null.observed, strict=True))
    )


def find_measures(names: Sequence[str], rank_bits: int | None = None) -> list[Measure]:
    """Return measures by name.

    Args:
        names: keys of `saejax.similarity.MEASURES`, with options where they have such (`svcca:components=20`).
        rank_bits: bits of the ranks of Spearman measures.

    Raises:
        InputError: a name is unknown or repeated, or there is none.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"measures {list(names)} must be distinct, and at least one of {', '.join(MEASURES)}")
    return [find_measure(name, rank_bits=rank_bits) for name in names]


def check_numbers(permutations: int, first: int, batch: int | None, memory_gib: float) -> None:
    """Refuse numbers that leave no null.

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


def open_checkpoint(folder: Path, identity: DrawsIdentity, pair: Pair) -> None:
    """Begin a folder of draws, or make sure that it holds draws of the same null.

    Raises:
        InputError: it holds something else.
    """
    if jax.process_index() == 0:
        inputs = {name: artifacts.array_sha256(side.values) for name, side in pair.sides}
        artifacts.begin(folder, KIND, identity, inputs)
    mesh.barrier("checkpoint")


def check_pairing(
    x: Any, y: Any, measures: Sequence[Measure], scheme: str, x_ids: Ids | None, y_ids: Ids | None
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


def fill(null: Null, draws: Draws, batch: int) -> None:
    """Make the draws that are missing; those whose interval touches the observed core are float64 cores.

    Args:
        null: what is scored.
        draws: where they go.
        batch: how many to score together, from `batch_size`. Every batch has that size, so that nothing is compiled
            twice; the last of a range may run past its end, and what is past it is dropped.
    """
    missing, total = draws.missing(), draws.stop - draws.first
    done = total - sum(stop - start for start, stop in missing)
    names = ", ".join(measure.name for measure in null.plan.measures)
    with progress(f"null of {names}", total=total, done=done) as advance:
        for begin, end in missing:
            for start in range(begin, end, batch):
                stop = min(start + batch, end)
                cores, rescored = _draw(null, start, start + batch)
                draws.put(start, cores[:, : stop - start], rescored[:, : stop - start])
                advance(stop - start)
    draws.commit()


def _draw(null: Null, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cores of re-pairings `start` to `stop - 1`, and which were scored again."""
    bounds = null.score_range(start, stop)
    cores = np.stack([low for low, _ in bounds])
    tolerance = np.array([measure.tolerance for measure in null.plan.measures])[:, None]
    observed = np.array(null.observed)[:, None]
    highs = np.stack([high for _, high in bounds])
    touching = (cores - tolerance <= observed) & (observed <= highs + tolerance)
    for place in np.flatnonzero(touching.any(axis=0)):
        perm = drawing.on_host(null.key, drawing.as_indices(start + int(place), start + int(place) + 1), null.n)[0]
        for index in np.flatnonzero(touching[:, place]):
            cores[index, place] = null.rescore(int(index), perm)
    return cores, touching
