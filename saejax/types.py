"""Array aliases, and the glossary in which every axis name is defined once.

| axis | meaning | unit |
|---|---|---|
| `rows` | kept tokens of a corpus in corpus order; one activation vector each | tokens |
| `batch` | rows or sequences that one step handles | rows, sequences |
| `position` | place in a packed sequence | tokens |
| `d_model` | width of a model's residual stream, or of whichever hook an SAE reads | |
| `d_sae` | dictionary size of an SAE: its number of latents | features |
| `k` | latents active per row in a TopK SAE; neighbours of a row in a nearest-neighbour measure | features |
| `n` | paired features: the rows of the two matrices that a measure compares | pairs |
| `dx`, `dy` | widths of those two matrices | |
| `kx`, `ky` | directions of their bases, zero columns included | |
| `perm` | permutations scored together | |
| `vocab`, `layer`, `head` | as everywhere | |
"""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Integer

Array: TypeAlias = jax.Array
AnyArray: TypeAlias = jax.Array | np.ndarray

Matrix: TypeAlias = Float[AnyArray, "n d"]
Permutation: TypeAlias = Integer[AnyArray, "n"]
Permutations: TypeAlias = Integer[AnyArray, "perm n"]
Scalar: TypeAlias = Float[AnyArray, ""]
Scores: TypeAlias = Float[AnyArray, "perm"]
