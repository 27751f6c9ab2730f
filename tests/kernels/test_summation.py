import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels.summation import pairwise_sum, two_sum


@pytest.mark.parametrize("n", [1, 2, 3, 31, 1000, 65_537])
@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_is_the_float64_sum_rounded_once(n: int, offset: float) -> None:
    """Also of numbers that cancel, where the sum is far smaller than they are."""
    values = (np.random.default_rng(n).random((3, n)) + offset).astype(np.float32)
    total, sizes = values.sum(axis=1, dtype=np.float64), np.abs(values).sum(axis=1, dtype=np.float64)
    for summed in (pairwise_sum, jax.jit(pairwise_sum)):
        errors = np.abs(np.asarray(summed(jnp.asarray(values)), np.float64) - total)
        assert np.all(errors <= 2**-24 * np.abs(total) + np.log2(n) ** 2 * 2**-48 * sizes)


def test_what_a_sum_loses_is_found() -> None:
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=1000) * np.exp(rng.normal(size=1000) * 5), jnp.float32) for _ in range(2))
    high, low = (np.asarray(each, np.float64) for each in jax.jit(two_sum)(a, b))
    np.testing.assert_array_equal(high + low, np.asarray(a, np.float64) + np.asarray(b, np.float64))
    np.testing.assert_array_equal(high, np.asarray(a + b, np.float64))
