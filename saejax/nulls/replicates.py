"""Tests of many small pairings of one kind, each with a seed of its own, those of one shape scored in one program.

`grid_test` gives all cells the same re-pairings, as tests of one study may have. Replicates of a simulation must have
no chance in common, or the share of those that reject would depend on which re-pairings were drawn.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Duplicates, Told
from saejax.nulls.budget import Budget, Impl
from saejax.nulls.cells import Cell
from saejax.nulls.draws import Draws
from saejax.nulls.engine import MEMORY_GIB, Expectation, batch_size, design_of, expectations, judged
from saejax.nulls.inference import Design
from saejax.nulls.preparing import AnyNull, prepare_null
from saejax.nulls.results import NullResults
from saejax.nulls.scoring import Null
from saejax.nulls.selection import check_pairing, find_measures
from saejax.nulls.stacks import Stack, fill, stack_size, stackable

LARGEST_STACK = 128


class _Replicate(NamedTuple):
    place: int
    null: AnyNull
    expected: list[Expectation]
    design: Design
    draws: Draws


def replicate_tests(
    cells: Iterable[Cell],
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    seed: int,
    duplicates: Duplicates = "refuse",
    impl: Impl = "jax",
) -> list[NullResults]:
    """Hold each of some pairings against random re-pairings of its own.

    Args:
        cells: the pairings.
        measures: as in `permutation_test`.
        scheme: name of the set of re-pairings that are equally likely.
        permutations: number of random re-pairings of each.
        seed: seed of the first one's re-pairings; the next has the next.
        duplicates: as in `permutation_test`.
        impl: `jax` scores small pairings of one shape together; `host` each alone.

    Returns:
        What `permutation_test` says of each with its seed, in order.

    Raises:
        InputError: as `permutation_test`.
    """
    chosen, names = find_measures(measures), tuple(measures)
    memory = int(MEMORY_GIB * 2**30)
    budget = Budget(impl, memory)
    waiting: dict[Any, list[_Replicate]] = defaultdict(list)
    found: dict[int, NullResults] = {}
    for place, cell in enumerate(cells):
        told = Told(cell.x_ids, cell.y_ids, cell.row_labels, duplicates)
        arrangement = check_pairing(cell.x, cell.y, chosen, scheme, told, budget)
        design, count = design_of(arrangement, scheme, permutations, seed + place)
        null = prepare_null(
            arrangement, chosen, drawing.key_of(seed + place), budget, listed=design.method == "enumerated"
        )
        each = _Replicate(place, null, expectations(chosen, arrangement), design, Draws(names, 0, count))
        if impl == "jax" and isinstance(null, Null) and stackable(null):
            alike = waiting[null.plan, tuple(leaf.shape for leaf in jax.tree.leaves(null.fast)), count]
            most = stack_size(null, batch_size(null, count), memory, LARGEST_STACK)
        else:
            alike, most = waiting[place], 1
        alike.append(each)
        if len(alike) == most:
            found.update(_scored(alike))
            alike.clear()
    for alike in filter(None, waiting.values()):
        found.update(_scored(alike))
    return [found[place] for place in range(len(found))]


def _scored(alike: Sequence[_Replicate]) -> dict[int, NullResults]:
    """Return the results of nulls that can be scored together, by their places."""
    draws = [each.draws for each in alike]
    batch = batch_size(alike[0].null, len(draws[0]))
    fill(Stack.of([each.null for each in alike]), draws, batch, lambda count: None)
    return {
        each.place: judged(each.null, each.expected, each.draws.cores, each.draws.rescored, each.design)
        for each in alike
    }
