"""Sparse autoencoders: train them on an activation store, load them, encode with them.

`load(folder)` gives an `SAE` with `encode` and `decode`; `feature_directions` are the features in the model's space,
and `fold` makes an SAE on the model's own units.
"""

from saejax.sae.fold import feature_directions as feature_directions
from saejax.sae.fold import fold as fold
from saejax.sae.params import SAE as SAE
from saejax.sae.params import SAEConfig as SAEConfig
from saejax.sae.params import load as load
