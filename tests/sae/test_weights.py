import jax
import numpy as np

from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig
from saejax.sae.weights import Weights


def test_weights_hold_a_row_per_latent_and_make_their_sae_again():
    config = SAEConfig(d_model=5, d_sae=12, k=2)
    sae = initial_sae(config, np.random.default_rng(0).normal(size=(20, 5)), jax.random.key(0))
    weights = Weights.of(sae)
    for name in ("encoder", "b_enc", "W_dec"):
        assert len(getattr(weights, name)) == config.d_sae
    np.testing.assert_array_equal(weights.encoder[3], sae.W_enc[:, 3])
    again = weights.sae(sae.normalisation, config)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(sae), strict=True):
        np.testing.assert_array_equal(ours, theirs)
