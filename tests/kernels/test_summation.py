import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels.summation import pairwise_sum


@pytest.mark.parametrize("n", [1, 2, 3, 31, 1000, 65_537])
def test_loses_no_more_than_a_rounding_per_halving(n: int) -> None:
    values = np.random.default_rng(n).random((3, n)).astype(np.float32)
    total = values.sum(axis=1, dtype=np.float64)
    error = np.abs(np.asarray(pairwise_sum(jnp.asarray(values))) / total - 1)
    assert np.all(error <= (np.ceil(np.log2(n)) + 1) * 2**-24)
