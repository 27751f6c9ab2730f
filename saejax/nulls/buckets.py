"""Common lengths for small cells of a grid, so that cells of different sizes share compiled programs.

Every new shape costs XLA a compilation of each program that scores it: 0.6 s for five measures on the CPU, where a
thousand re-pairings of a hundred pairs are scored in 0.15 s. So states of up to 1,024 pairs are padded to the next
length of a ladder along rows and directions (`saejax.similarity.padding`), by less than half from 64 on. Kernels on
the host leave the appended zeros out; products do not, and cost up to 3.4 times as much.

Sixty cells of 12 to 200 pairs, d = 64 and 96, five measures, 1,000 re-pairings, on two cores: 13 s against 55 s of
`permutation_test` on one after another, 115 compilations against 858.
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
