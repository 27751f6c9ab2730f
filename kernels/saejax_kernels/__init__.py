"""Kernels for the costly inner sums, each behind a pure-JAX reference with the same signature.

Which one runs is an argument of every call (`impl="jax"`, `"numba"`, `"lapack"` or `"pallas"`), never a guess at
import.
"""

from saejax_kernels import mosaic
from saejax_kernels.cores import on_all_cores
from saejax_kernels.draw_permutations import draw_permutations
from saejax_kernels.encode_top_k import Precision, encode_top_k, fused_top_k, product
from saejax_kernels.largest_of_rows import largest_of_rows, top_k
from saejax_kernels.listed_entries import listed_entries
from saejax_kernels.mid_ranks import mid_ranks
from saejax_kernels.neighbour_matches import neighbour_matches
from saejax_kernels.nuclear_bounds import nuclear_bounds
from saejax_kernels.nuclear_norms import nuclear_norms
from saejax_kernels.ordering import zero_after
from saejax_kernels.pair_sums import pair_sums
from saejax_kernels.polar_factors import polar_factors
from saejax_kernels.sparse_products import Impl, outer_sum, products_at, sparse_decode, weighted_rows
from saejax_kernels.weighted_squares import weighted_squares

__all__ = [
    "Impl",
    "Precision",
    "draw_permutations",
    "encode_top_k",
    "fused_top_k",
    "largest_of_rows",
    "listed_entries",
    "mid_ranks",
    "mosaic",
    "neighbour_matches",
    "nuclear_bounds",
    "nuclear_norms",
    "on_all_cores",
    "outer_sum",
    "pair_sums",
    "polar_factors",
    "product",
    "products_at",
    "sparse_decode",
    "top_k",
    "weighted_rows",
    "weighted_squares",
    "zero_after",
]
