import jax.numpy as jnp
import numpy as np
from saejax_kernels import pair_sums
from saejax_kernels.padding import pad_pair


def test_padding_changes_no_sum() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.tril(rng.normal(size=(11, 11)), -1) for _ in range(2))
    a, b, perms = a + a.T, b + b.T, np.stack([rng.permutation(11) for _ in range(3)])
    padded = pad_pair(jnp.asarray(a), jnp.asarray(b), jnp.asarray(perms), 8)
    assert [x.shape for x in padded] == [(16, 16), (16, 16), (3, 16)]
    np.testing.assert_array_equal(np.sort(padded[2], axis=1), np.tile(np.arange(16), (3, 1)))
    a, b = (matrix.astype(np.float32) for matrix in (a, b))
    expected = pair_sums(a, b, perms, impl="numba")
    np.testing.assert_array_equal(pair_sums(*map(np.asarray, padded), impl="numba"), expected)


def test_a_multiple_is_left_as_it_is() -> None:
    a, perms = jnp.ones((16, 16)), jnp.arange(16)[None]
    padded = pad_pair(a, a, perms, 8)
    assert padded[0] is a
    assert padded[1] is a
