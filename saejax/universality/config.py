"""What a comparison of two SAE spaces is asked."""

import dataclasses
from pathlib import Path

from saejax.errors import InputError
from saejax.features.matching import Method
from saejax.nulls.selection import find_measures


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What `saejax compare` holds against each other."""

    x: Path
    """Features run of the first model's SAE."""
    y: Path
    """Features run of the second model's SAE, over the same rows."""
    x_raw: str
    """Hook of the first store with its raw neurons, for example mlp_hidden.0."""
    y_raw: str
    """Hook of the second store with its raw neurons."""
    out: Path
    """Directory for the result."""
    measures: tuple[str, ...] = ("svcca", "rsa")
    """Measures of the paired decoder rows."""
    method: Method = "mutual_best"
    """How features are paired; many_to_one pairings are collapsed: each feature of x against its partners' mean."""
    minimum_correlation: float = 0.1
    """Smallest activation correlation that a pair may have."""
    permutations: int = 10_000
    """Random pairings per arm and measure."""
    subsamples: int = 20
    """Random subsets of the larger arm, of the smaller arm's size."""
    subsample_permutations: int = 500
    """Random pairings per subset and measure."""
    difference: tuple[str, ...] = ("cka_debiased", "rsa")
    """Measures by which arms are compared with an interval; of SVCCA and its kin at one number of directions
    (svcca:components=20)."""
    replicates: int = 50
    """Random halves of each arm's pairs that tell how sure the difference is over features."""
    document_replicates: int = 0
    """Times that documents are drawn anew and their features paired anew, to tell how sure the difference is over
    texts; each takes as long as pairing."""
    memory_gib: float = 2.0
    """Memory that the correlations of all feature pairs may take, and after them each null, in GiB."""
    seed: int = 0
    """Root seed of the random pairings and subsets."""

    def __post_init__(self) -> None:
        """Refuse counts that leave no null."""
        for name in ("permutations", "subsamples", "subsample_permutations"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} {getattr(self, name)} must be at least 2: a null needs a spread")
        if self.replicates < 2:
            raise InputError(f"replicates {self.replicates} must be at least 2: a standard error needs a spread")
        if self.document_replicates < 0 or self.document_replicates == 1:
            raise InputError(f"document_replicates {self.document_replicates} must be 0, or at least 2")
        find_measures(self.measures)
        if self.difference:
            find_measures(self.difference)
        if not -1 <= self.minimum_correlation < 1:
            raise InputError(f"minimum_correlation {self.minimum_correlation} must be at least -1 and below 1")
