"""Whole grids of nulls in one call: many cells, every measure, results written as cells finish.

Every cell sees re-pairings of the same seed, so its result is that of `permutation_test` on it alone. Cells of
up to 1,024 pairs share compiled programs (`saejax.nulls.buckets`), and on an accelerator those of one shape are scored
together (`saejax.nulls.stacks`). A cell, or a measure of it, that cannot be scored is reported, and the rest goes on.
Where `jax.distributed` runs several processes, cells are dealt to them in turn; they need one file system.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt32

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Arrangement, Duplicates, Told
from saejax.nulls.buckets import common_lengths
from saejax.nulls.budget import Budget, Impl, default_impl
from saejax.nulls.cells import Cell
from saejax.nulls.draws import Draws
from saejax.nulls.engine import (
    MEMORY_GIB,
    Expectation,
    all_reached,
    batch_size,
    design_of,
    expectations,
    judged,
)
from saejax.nulls.grid_folder import GridFolder, GridIdentity, GridResults, arranged, failure_line
from saejax.nulls.inference import Design
from saejax.nulls.multiplicity import LEVEL, check_correction, check_floor, check_uneven
from saejax.nulls.numbers import check_numbers, check_stop, whole
from saejax.nulls.preparing import AnyNull, prepare_null
from saejax.nulls.schemes import find_scheme
from saejax.nulls.scoring import Null
from saejax.nulls.selection import find_measures
from saejax.nulls.stacks import Stack, fill, stack_size, stackable
from saejax.progress import progress
from saejax.similarity import Measure

SIDES = ("x", "y")
LOG = logging.getLogger(__name__)
SEQUENTIAL_BATCH = 64  # re-pairings between looks at whether tests stop
STACK_BATCH = 256  # re-pairings of each cell in a stack that are scored together
LARGEST_STACK = 16
SHARES = 4  # of the budget: one for nulls that wait, one for a batch of them, and two for stacking their states

# What may be wrong with one cell, or too large in it, while others can be scored; numpy's LinAlgError is a ValueError.
OF_ONE_CELL = (InputError, ArithmeticError, ValueError, MemoryError, jax.errors.JaxRuntimeError)


def grid_test(
    cells: Iterable[Cell],
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    seed: int,
    out: Path | str,
    duplicates: Duplicates = "refuse",
    couple: str | None = None,
    stop_after: int | None = None,
    correction: str | None = None,
    level: float = LEVEL,
    batch: int | None = None,
    impl: Impl | None = None,
    memory_gib: float = MEMORY_GIB,
    rank_bits: int | None = None,
) -> GridResults:
    """Hold every cell of a grid against random re-pairings of its rows.

    Args:
        cells: what to score, one after another as they are needed; `layer_cells` makes those of layers and subspaces.
        measures: as in `permutation_test`, for every cell.
        scheme: name of the set of re-pairings that are equally likely.
        permutations: number of random re-pairings of each cell.
        seed: seed of the re-pairings; re-pairing i of n pairs is the same in all cells.
        out: run directory for results, failures and draws. The same call with the same directory scores what it
            lacks, and tries again what failed.
        duplicates: as in `permutation_test`.
        couple: `x` or `y` where cells share features of that side: re-pairing i then puts those in the same order in
            all of them, so that draws depend on each other as the scores do. Features are told by the ids and sets of
            the cells, and each stands in one pair of a cell, or is a unit of scheme collapse. All re-pairings are
            drawn, however few there are.
        stop_after: as in `permutation_test`, for every result by itself: remarkable cells get the draws that others
            do not need.
        correction: for the number of results, as in `GridResults.corrected`; none when None.
        level: what a corrected p is to be held against.
        batch: re-pairings of a cell that are scored together.
        impl: `host` or `jax`; `host` on CPU and `jax` on accelerators when absent.
        memory_gib: memory for all that is made of the matrices, in GiB: while they are prepared, and with a batch.
        rank_bits: bits of the ranks that Spearman measures keep.

    Returns:
        One record per cell and measure, and what failed; in the order of the cells, before any others that the
        directory holds.

    Raises:
        InputError: there are no cells, two of one name, or one whose name stands for other matrices in `out`; a
            measure or scheme is unknown, a number leaves no null, or `out` holds another run; re-pairings are too few
            for the correction. What is wrong with a single cell is reported instead.
    """
    chosen = find_measures(measures, rank_bits)
    find_scheme(scheme)
    permutations, seed = whole("permutations", permutations), whole("seed", seed)
    stop_after = None if stop_after is None else whole("stop_after", stop_after)
    batch = None if batch is None else whole("batch", batch)
    check_numbers(permutations, 0, batch, memory_gib, impl)
    check_stop(stop_after, permutations)
    key = drawing.key_of(seed)
    cells, total = _named_apart(cells)
    names = tuple(measure.name for measure in chosen)
    if couple not in (None, *SIDES):
        raise InputError(f"couple {couple!r} must be one of {', '.join(SIDES)}")
    if batch is None and stop_after is not None:
        batch = SEQUENTIAL_BATCH
    check_uneven(stop_after, couple, correction)
    if correction is not None:
        check_correction(correction, level, couple is not None)
        if total is not None:
            check_floor(correction, level, total * len(names), permutations)
    told = Told(duplicates=duplicates)
    identity = GridIdentity(names, permutations, rank_bits, scheme, told.duplicates, seed, couple, stop_after)
    folder = GridFolder(Path(out), identity)
    with progress("null grid", total=None if total is None else total * len(names)) as advance:
        budget = Budget(impl or default_impl(), int(memory_gib * 2**30))
        work = _Work(folder, identity, chosen, key, batch, budget, advance)
        order = work.score(cells)
    results = folder.finish(order)
    for failure in results.failures:
        LOG.warning("%s", failure_line(failure))
    return results if correction is None else results.corrected(correction, level)


@dataclasses.dataclass(frozen=True)
class _Item:
    """A cell that is ready to be scored."""

    cell: Cell
    digest: dict[str, str]
    design: Design
    null: AnyNull
    expected: list[Expectation]
    draws: Draws


class _Together(NamedTuple):
    """Measures that cannot be prepared together, and why."""

    measures: list[Measure]
    error: Exception


@dataclasses.dataclass(frozen=True)
class _Work:
    """The cells of one process: scored at once, or kept until enough of one shape are there."""

    folder: GridFolder
    identity: GridIdentity
    measures: list[Measure]
    key: UInt32[np.ndarray, "2"]
    batch: int | None
    budget: Budget
    advance: Callable[..., None]
    waiting: dict[Any, list[_Item]] = dataclasses.field(default_factory=dict)

    def score(self, cells: Iterable[Cell]) -> dict[str, int]:
        """Score what is lacking of this process's share of the cells; return the place of every cell by its name."""
        turn, order = 0, {}
        for cell in cells:
            order[cell.name] = len(order)
            lacking = self.folder.lacking(cell)
            self.advance(len(self.measures) - len(lacking))
            if lacking and turn % jax.process_count() == jax.process_index():
                self._take(cell, lacking)
            turn += bool(lacking)
        while self.waiting:
            self._score_waiting()
        return order

    def _take(self, cell: Cell, names: Sequence[str]) -> None:
        """Score a cell by the measures that can, as soon as that pays, and report what is wrong with it."""
        item = self._ready(cell, names)
        if isinstance(item, _Together):
            self._score_apart(cell, item.measures, item.error)
        if not isinstance(item, _Item):
            return
        null = item.null
        if self.budget.impl == "host" or not isinstance(null, Null) or not stackable(null):
            self._score_items([item], batch_size(null, len(item.draws), self.batch))
            return
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(null.fast))
        alike = self.waiting.setdefault((null.plan, shapes, tuple(item.draws.missing()), item.design.stop_after), [])
        alike.append(item)
        share = self.budget.memory // SHARES
        full = len(alike) == stack_size(null, self._stack_batch(null), share, LARGEST_STACK)
        if full or self._waiting_bytes() > share:
            self._score_waiting()

    def _ready(self, cell: Cell, names: Sequence[str]) -> "_Item | _Together | None":
        """Prepare a cell for the measures that can score it; None where none can.

        Its matrices are let go with the return, before anything is scored.
        """
        try:
            arrangement = arranged(cell, self.identity)
        except (*OF_ONE_CELL, OSError, TypeError) as error:
            self._fail(cell, None, error, len(names))
            return None
        asked, fitting = [measure for measure in self.measures if measure.name in names], []
        try:
            self.budget.require_room(arrangement, asked)
        except InputError as error:
            return _Together(asked, error.with_traceback(None))
        needed = self.budget.preparing_bytes(arrangement, asked)
        while self.waiting and self._waiting_bytes() + needed > self.budget.memory:
            self._score_waiting()
        for measure in asked:
            try:
                measure.check(arrangement.pair)
                fitting.append(measure)
            except OF_ONE_CELL as error:
                self._fail(cell, measure.name, error)
        try:
            return self._prepared(cell, arrangement, fitting) if fitting else None
        except OF_ONE_CELL as error:
            return _Together(fitting, error.with_traceback(None))

    def _score_apart(self, cell: Cell, measures: Sequence[Measure], error: Exception) -> None:
        """Score measures that failed together one by one, so that only those fail that must."""
        for measure in measures:
            if len(measures) > 1:
                self._take(cell, [measure.name])
            else:
                self._fail(cell, measure.name, error)

    def _fail(self, cell: Cell, measure: str | None, error: Exception, results: int = 1) -> None:
        """Report a cell, or a measure of it, that leaves so many results out."""
        self.folder.fail(cell, measure, error)
        self.advance(results)

    def _prepared(self, cell: Cell, arrangement: Arrangement, measures: Sequence[Measure]) -> _Item:
        """Do what no re-pairing changes.

        Raises:
            InputError: the cell needs too much memory, or a score of it is not determined.
            ArithmeticError: the fast way of scoring it is off.
        """
        identity, digest = self.identity, arrangement.digests()
        design, count = design_of(
            arrangement, identity.scheme, identity.permutations, identity.seed, stop_after=identity.stop_after
        )
        null = prepare_null(
            arrangement, measures, self.key, self.budget._replace(memory=self.budget.memory - self._waiting_bytes()),
            listed=design.method == "enumerated", lengths=common_lengths,
        )  # fmt: skip
        names = tuple(measure.name for measure in measures)
        draws = Draws(names, 0, count, self.folder.partial(cell, digest, names))
        return _Item(cell, digest, design, null, expectations(measures, arrangement), draws)

    def _score_waiting(self) -> None:
        """Score the largest group of cells of one shape."""
        alike = max(self.waiting, key=lambda shapes: len(self.waiting[shapes]))
        items = self.waiting.pop(alike)
        self._score_items(items, self._stack_batch(items[0].null))

    def _score_items(self, items: list[_Item], batch: int) -> None:
        try:
            stack = Stack.of([item.null for item in items])
            draws, enough = [item.draws for item in items], functools.partial(_all_stopped, items)
            fill(stack, draws, batch, lambda count: None, enough)
        except OF_ONE_CELL as error:
            for item in items:
                if len(items) > 1:
                    self._score_items([item], batch)
                else:
                    self._score_apart(item.cell, item.null.plan.measures, error)
            return
        for item in items:
            made = slice(0, item.draws.made())
            cores, rescored = item.draws.cores[:, made], item.draws.rescored[:, made]
            results = judged(item.null, item.expected, cores, rescored, item.design)
            self.folder.write(item.cell, item.digest, results)
            self.advance(len(results))

    def _stack_batch(self, null: AnyNull) -> int:
        """Return how many re-pairings of each cell in a stack are scored together."""
        permutations = self.identity.permutations
        if self.batch is not None:
            return batch_size(null, permutations, self.batch)
        most = min(STACK_BATCH, null.largest_batch())
        return batch_size(null, permutations, math.ceil(permutations / math.ceil(permutations / most)))

    def _waiting_bytes(self) -> int:
        return sum(item.null.state_bytes() for items in self.waiting.values() for item in items)


def _all_stopped(items: Sequence[_Item]) -> bool:
    """Tell whether all cells in a stack are sequential tests that have the draws they need."""
    stop_after = items[0].design.stop_after
    return stop_after is not None and all(all_reached(item.null, [item.draws.cores], stop_after) for item in items)


def _named_apart(cells: Iterable[Cell]) -> tuple[Iterator[Cell], int | None]:
    """Return the cells and their number, where that is known; two of one name are refused, at once or on the way.

    Raises:
        InputError: there are none, or two of one name in a sequence.
    """
    if isinstance(cells, Sequence):
        for _ in _without_repeats(cells):
            pass
    iterator = _without_repeats(cells)
    first = next(iterator, None)
    if first is None:
        raise InputError("cells are none; give at least one")
    return itertools.chain([first], iterator), len(cells) if isinstance(cells, Sized) else None


def _without_repeats(cells: Iterable[Cell]) -> Iterator[Cell]:
    names: set[str] = set()
    for cell in cells:
        if cell.name in names:
            raise InputError(f"cell {cell.name!r} is there twice; give each cell its own name")
        names.add(cell.name)
        yield cell
