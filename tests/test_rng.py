import jax
import numpy as np

from saejax.rng import named_key, named_seed


def test_a_key_depends_on_seed_and_name_only() -> None:
    words = [jax.random.bits(named_key(seed, name), (4,)) for seed in (0, 1) for name in ("a", "b")]
    again = [jax.random.bits(named_key(seed, name), (4,)) for seed in (0, 1) for name in ("a", "b")]
    np.testing.assert_array_equal(words, again)
    assert len({tuple(w.tolist()) for w in words}) == 4


def test_named_seeds_differ_and_fit_63_bits() -> None:
    seeds = {named_seed(seed, name) for seed in range(50) for name in ("a", "b", "c")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
