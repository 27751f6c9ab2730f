"""Sparse autoencoders: train them on an activation store, load them, encode with them.

`load(folder)` gives an `SAE` with `encode`, `decode` and `W_dec`, whose rows are the features.
"""

from saejax.sae.params import SAE as SAE
from saejax.sae.params import SAEConfig as SAEConfig
from saejax.sae.params import load as load
