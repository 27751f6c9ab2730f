"""Parts of a batch that are read apart, so that a process reads no more than the rows of its own devices.

Lane l of L gives rows [l b / L, (l + 1) b / L) of every batch of b rows, out of text that is its own in an epoch. The
order of rows depends on how many lanes there are, and on nothing else: not on which process reads them.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int

from saejax.errors import InputError

Batch: TypeAlias = tuple[Int[np.ndarray, "_"], list[Float32[np.ndarray, "_ _"]]]
"""Row numbers, and their activations in each stream."""

ALL = slice(None)


def require_lanes(lanes: int, batch: int) -> None:
    """Refuse lanes into which batches do not go.

    Raises:
        InputError: there is none, or batches are no multiple of them.
    """
    if lanes < 1 or batch % lanes:
        raise InputError(f"batch {batch} is no multiple of lanes {lanes}, from 1 on; change one of them")


def side_by_side(
    of_lane: Callable[[int], Iterator[Batch]], batch: int, lanes: int, part: slice = ALL
) -> Iterator[Batch]:
    """Lay the rows of lanes side by side, of those lanes alone that have some of a part.

    Args:
        of_lane: begins to read a lane, batch / lanes rows at a time.
        batch: rows in a batch.
        lanes: how many there are.
        part: rows of each batch that are yielded.

    Returns:
        An iterator of the part of each batch.
    """
    each = batch // lanes
    start, stop, _ = part.indices(batch)
    chosen = range(start // each, -(-stop // each))
    cut = slice(start - chosen.start * each, stop - chosen.start * each)
    # Not `zip`, which keeps every other batch until the next but one.
    for rows, streams in map(_joined, *map(of_lane, chosen)):
        yield rows[cut], [x[cut] for x in streams]


def _joined(*parts: Batch) -> Batch:
    if len(parts) == 1:
        return parts[0]
    rows, streams = zip(*parts, strict=True)
    return np.concatenate(rows), [np.concatenate(of_stream) for of_stream in zip(*streams, strict=True)]
