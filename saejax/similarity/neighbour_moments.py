"""Exact moments of shared nearest neighbours over all n! re-pairings, from lists of neighbours.

A list of k neighbours for each row is a directed graph: a[i, j] = 1 where j is among the k of i. A re-pairing p
relabels the second graph, and the edges that both have number

    T(p) = sum_{i != j} a[i, j] b[p_i, p_j].

With the share k / (n - 1) taken from all entries, rows sum to 0 and T moves by its mean. As in
`saejax.similarity.moments`, terms of T^2 are grouped by which of their four indices coincide; for directed edges

    Var T = (q q' + t t') / (n)_2 + (q q' + (C - q) (C' - q') + 2 t t') / (n)_3 + (q + t - C) (q' + t' - C') / (n)_4

with (n)_k = n (n - 1) ... (n - k + 1), q the sum of squares of the entries, t the sum of a[i, j] a[j, i] (so many
reciprocal edges less their expectation), and C the sum of squares of the column sums, the in-degrees less k: hubs
widen the null through C.

The Jaccard score is not linear in the shared edges; its mean is exact all the same, as the neighbours that one row
shares are hypergeometric. Uniform scheme only.

Source: Mantel, "The detection of disease clustering and a generalized regression approach", 1967; Hubert and Schultz,
"Quadratic assignment as a general data analysis strategy", 1976.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer
from scipy.stats import hypergeom

from saejax.errors import InputError
from saejax.similarity.moments import Moments


class GraphSums(NamedTuple):
    """All that the moments of shared edges need to know of one graph of k neighbours.

    Attributes:
        n: rows.
        k: neighbours of each.
        squares: q, n k (1 - k / (n - 1)).
        reciprocal: t, ordered pairs that are neighbours of each other, less n k^2 / (n - 1).
        in_degree_squares: C, the sum of (in-degree - k)^2.
    """

    n: int
    k: int
    squares: float
    reciprocal: float
    in_degree_squares: float


def graph_sums(neighbours: Integer[np.ndarray, "n k"]) -> GraphSums:
    """Return the sums of a graph; O(n k log n) time, memory for three copies of the lists.

    Args:
        neighbours: for each row the numbers of k other rows, none twice.

    Raises:
        InputError: n is below 4, or a row lists itself, another twice, or none of the n.
    """
    n, k = neighbours.shape
    if n < 4:
        raise InputError(f"n {n} must be at least 4 pairs")
    lists = np.sort(neighbours.astype(np.int64), axis=1)
    rows = np.arange(n)[:, None]
    wrong = (lists == rows).any(axis=1) | (lists[:, :1] < 0).any(axis=1) | (lists[:, -1:] >= n).any(axis=1)
    wrong |= (np.diff(lists, axis=1) == 0).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"neighbours {lists[row].tolist()} of row {row} must be different rows of the other {n - 1}")
    edges = (rows * n + lists).ravel()
    mutual = np.isin((lists * n + rows).ravel(), edges, assume_unique=True).sum()
    in_degrees = np.bincount(lists.ravel(), minlength=n)
    chance = n * k**2 / (n - 1)
    return GraphSums(n, k, n * k - chance, float(mutual) - chance, float(np.sum((in_degrees - k) ** 2)))


def graph_moments(a: GraphSums, b: GraphSums) -> Moments:
    """Return mean and SD of the number of directed edges that two graphs share; uniform scheme.

    The mean is n k k' / (n - 1). The shared neighbours per row are T / n: `.rescaled(1 / n)`.

    Raises:
        InputError: the graphs differ in n.
    """
    if a.n != b.n:
        raise InputError(f"n {a.n} of one graph is not the {b.n} of the other; moments compare paired rows")
    n = a.n
    squares, reciprocal = a.squares * b.squares, a.reciprocal * b.reciprocal
    columns = (a.in_degree_squares - a.squares) * (b.in_degree_squares - b.squares)
    apart = math.prod(side.squares + side.reciprocal - side.in_degree_squares for side in (a, b))
    variance = (
        (squares + reciprocal) / math.perm(n, 2)
        + (squares + columns + 2 * reciprocal) / math.perm(n, 3)
        + apart / math.perm(n, 4)
    )
    return Moments(n * a.k * b.k / (n - 1), math.sqrt(max(variance, 0.0)))


def jaccard_mean(n: int, k: int) -> float:
    """Return the null mean of the k-nearest-neighbour Jaccard score, exact for any data; uniform scheme.

    Under a random re-pairing the k neighbours of a row meet a uniformly random k of the n - 1 other rows, so they
    share m with the hypergeometric probability, and the score is m / (2 k - m).

    Raises:
        InputError: k lies outside 1 to n - 1.
    """
    if not 1 <= k <= n - 1:
        raise InputError(f"k {k} must be from 1 to n - 1 = {n - 1} neighbours")
    shared = np.arange(k + 1)
    return float(np.sum(hypergeom.pmf(shared, n - 1, k, k) * shared / (2 * k - shared)))
