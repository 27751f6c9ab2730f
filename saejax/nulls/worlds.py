"""Simulated pairings of which the truth is known: in what worlds a test is asked to keep its level, or to see a match.

In the first five the pairing means nothing, for the units that the world is made of:

    independent   rows of x and of y are independent directions
    clustered     the same, with clusters of near copies among the rows of either side
    frequency     each pair has a label, and rows of either side point a way of their label's: within labels the pairing
                  means nothing, but labels go with labels
    hubs          features of x are paired with clusters of near copies in y, few with very many: features and clusters
                  are independent
    texts         rows are tokens, and those of one text are alike on either side: texts are independent

In `planted`, a share of the pairs match: y is x in a rotated basis, with noise.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from saejax.nulls.cells import Cell

World: TypeAlias = Callable[[np.random.Generator, int, int, int], Cell]

SPREAD = 0.3  # of near copies about their centre, where the centres' spread is 1
CLUSTERS = 6
LABELS = 4
PULL = 1.5  # of a label on its rows, in the spread of rows
TEXT = 4  # rows of a text
HUBS = (0.3, 0.15, 0.1, 0.075, 0.05, 0.05)  # shares of the rows that the largest clusters take; others have one each


def independent(rng: np.random.Generator, n: int, dx: int, dy: int) -> Cell:
    """Return independent normal rows.

    Args:
        rng: source of chance.
        n: pairs.
        dx: width of x.
        dy: width of y.
    """
    return Cell("independent", rng.normal(size=(n, dx)), rng.normal(size=(n, dy)), row_labels=_labels(rng, n))


def clustered(rng: np.random.Generator, n: int, dx: int, dy: int) -> Cell:
    """Return rows near the centres of six clusters of either side, which have nothing to do with each other."""
    x, y = (_near(rng, rng.normal(size=(CLUSTERS, d)), rng.integers(CLUSTERS, size=n)) for d in (dx, dy))
    return Cell("clustered", x, y, row_labels=_labels(rng, n))


def frequency(rng: np.random.Generator, n: int, dx: int, dy: int) -> Cell:
    """Return rows that lean towards the direction of their pair's label."""
    labels = _labels(rng, n)
    x, y = (rng.normal(size=(n, d)) + PULL * rng.normal(size=(LABELS, d))[labels] for d in (dx, dy))
    return Cell("frequency", x, y, row_labels=labels)


def hubs(rng: np.random.Generator, n: int, dx: int, dy: int) -> Cell:
    """Return a many-to-one pairing: rows of x that repeat, and a cluster of near copies in y for each."""
    sizes = [round(share * n) for share in HUBS]
    unit = np.repeat(np.arange(len(sizes) + n - sum(sizes)), sizes + [1] * (n - sum(sizes)))
    units = unit[-1] + 1
    y = _near(rng, rng.normal(size=(units, dy)), unit)
    return Cell("hubs", rng.normal(size=(units, dx))[unit], y, x_ids=unit, y_ids=np.arange(n))


def texts(rng: np.random.Generator, n: int, dx: int, dy: int) -> Cell:
    """Return four rows of each text, near a centre of their text's on either side."""
    text = np.repeat(np.arange(n // TEXT), TEXT)
    x, y = (_near(rng, rng.normal(size=(n // TEXT, d)), text) for d in (dx, dy))
    return Cell("texts", x, y, row_labels=text)


def planted(rng: np.random.Generator, n: int, dx: int, dy: int, fraction: float = 1.0, noise: float = 1.0) -> Cell:
    """Return a pairing part of which is true: those rows of y are x, rotated, with noise; the others are alone.

    Args:
        rng: source of chance.
        n: pairs.
        dx: width of x.
        dy: width of y; of the wider side's directions, the narrower shares as many as it has.
        fraction: share of the pairs that match, rounded to whole pairs.
        noise: its standard deviation over that of what matches.
    """
    x, width = rng.normal(size=(n, dx)), max(dx, dy)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0][:dx, :dy]
    signal = np.where(np.arange(n)[:, None] < round(fraction * n), x @ rotation, rng.normal(size=(n, dx)) @ rotation)
    return Cell("planted", x, signal + noise * rng.normal(size=(n, dy)))


def _labels(rng: np.random.Generator, n: int) -> Int[np.ndarray, "n"]:
    return rng.permutation(np.arange(n) % LABELS)


def _near(
    rng: np.random.Generator, centres: Float[np.ndarray, "clusters d"], of_row: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n d"]:
    return centres[of_row] + SPREAD * rng.normal(size=(len(of_row), centres.shape[1]))


WORLDS: dict[str, World] = {world.__name__: world for world in (independent, clustered, frequency, hubs, texts)}
