"""What a similarity is held against: random re-pairings under a stated scheme, and what may be inferred from them."""

from saejax.nulls.arms import ArmDifference, ArmDifferences, compare_arms
from saejax.nulls.cells import Cell, Subspace, layer_cells
from saejax.nulls.engine import permutation_test
from saejax.nulls.exact import ExactResult, ExactResults, exact_test
from saejax.nulls.grid import grid_test
from saejax.nulls.grid_folder import GridResults, load_grid
from saejax.nulls.inference import merge
from saejax.nulls.power import Power, Powers, simulate_power
from saejax.nulls.random_sets import RandomSetResult, RandomSetResults, random_set_test
from saejax.nulls.results import NullResult, NullResults, load
from saejax.nulls.schemes import SCHEMES, Scheme
from saejax.nulls.subsampling import Arm, ArmScore, ArmScores, score_arm

__all__ = [
    "SCHEMES",
    "Arm",
    "ArmDifference",
    "ArmDifferences",
    "ArmScore",
    "ArmScores",
    "Cell",
    "ExactResult",
    "ExactResults",
    "GridResults",
    "NullResult",
    "NullResults",
    "Power",
    "Powers",
    "RandomSetResult",
    "RandomSetResults",
    "Scheme",
    "Subspace",
    "compare_arms",
    "exact_test",
    "grid_test",
    "layer_cells",
    "load",
    "load_grid",
    "merge",
    "permutation_test",
    "random_set_test",
    "score_arm",
    "simulate_power",
]
