"""What a similarity is held against: random re-pairings under a stated scheme, and what may be inferred from them."""

from saejax.nulls.engine import permutation_test
from saejax.nulls.exact import ExactResult, exact_test
from saejax.nulls.inference import merge
from saejax.nulls.results import NullResult, NullResults, load
from saejax.nulls.schemes import SCHEMES, Scheme

__all__ = [
    "SCHEMES",
    "ExactResult",
    "NullResult",
    "NullResults",
    "Scheme",
    "exact_test",
    "load",
    "merge",
    "permutation_test",
]
