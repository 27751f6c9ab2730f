"""The trained part of an SAE as training holds it: every latent is a row of each of its arrays.

`W_enc` lies transposed, because its gradient comes row by row, and because all that a device holds of some latents is
then the same range of first entries.
"""

import dataclasses
from typing import Any

import jax

from saejax.sae.normalisation import Normalisation
from saejax.sae.params import SAE, SAEConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """What training changes; also its gradient, and Adam's moments."""

    encoder: Any
    """`W_enc.T`, `[d_sae, d_model]`."""
    b_enc: Any
    """`[d_sae]`."""
    W_dec: Any
    """`[d_sae, d_model]`, rows of unit norm."""
    b_dec: Any
    """`[d_model]`."""

    @classmethod
    def of(cls, sae: SAE) -> "Weights":
        """Take the trained part of an SAE."""
        return cls(sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec)

    def sae(self, normalisation: Normalisation, config: SAEConfig) -> SAE:
        """Make the SAE of these weights.

        Args:
            normalisation: of what it reads.
            config: its shape.
        """
        return SAE(self.encoder.T, self.b_enc, self.W_dec, self.b_dec, normalisation, config)
