"""Common sizes for small cells of a grid, so that cells of different sizes share compiled programs.

Every new shape costs XLA a compilation of each program that scores it, 0.1 s to seconds, and a thousand re-pairings
of a hundred pairs are scored faster than that. So states of up to 1,024 pairs are padded to the next length of a
ladder along rows and directions (`saejax.similarity.padding`). Steps are at most a factor of 3 / 2 apart (2 at the
very bottom): products of padded states cost at most 3.4 times as much, on average 1.9 times.
"""

from collections.abc import Mapping

LADDER = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
AXES = ("n", "kx", "ky", "dx", "dy")  # those that differ between the cells of a grid
WIDTH_STEP = 512  # above the ladder, for matrices wider than they are long


def common_lengths(lengths: Mapping[str, int], n: int) -> dict[str, int]:
    """Return the lengths to which the states of a cell are padded; none where it is too large to gain from that.

    Args:
        lengths: what they are, by name of the axis.
        n: pairs of the cell.
    """
    if n > LADDER[-1]:
        return {}
    return {axis: next_length(lengths[axis]) for axis in AXES if axis in lengths}


def next_length(length: int) -> int:
    """Return the next length of the ladder."""
    on_ladder = (step for step in LADDER if step >= length)
    return next(on_ladder, -(-length // WIDTH_STEP) * WIDTH_STEP)
