"""SVCCA: the mean canonical correlation of the directions that carry 99 % of each matrix's variance.

With x and y column-centred, Ux `[n, kx]` their first kx left singular vectors, kx the smallest number whose squared
singular values sum to at least 99 % of the total, and the same for y:

    svcca(x, y) = ||Ux' Uy||_* / min(kx, ky)

because the canonical correlations of two orthonormal bases are the singular values of their product, and ||.||_* is
the sum of those. Re-pairing y by a permutation P moves the rows of Uy and nothing else: score = ||Ux' P Uy||_* /
min(kx, ky), so means, bases and ranks are found once.

Range 0 to 1, larger is more similar. Random pairings do not score near 0: with kx + ky of the size of n the null
mean is large (Wachter's law), so a raw score means nothing without its null.
Invariant to rotation of the columns, to scaling by one number and to shifts, on either side; not to general
invertible maps, which move the 99 % cut.

Cost per permutation: 2 n kx ky flop for the product, then the singular values of a kx x ky matrix by
`saejax_kernels.nuclear_norms`: in float64 on the CPU (`score_batch`), or in the dtype of the state anywhere (`score`).
On two cores, n = 600 with 235 directions on both sides: 1.4 and 3.3 ms, against 29 ms for a direct computation of
everything for each pairing; n = 4,000 with 491 and 730: 15 and 39 ms against 540 (`scripts/bench_null.py`). Float32
scores stay within 2e-7 of float64 ones.

Source: Raghu, Gilmer, Yosinski, Sohl-Dickstein, "SVCCA", NeurIPS 2017; singular values as canonical correlations:
Björck and Golub, "Numerical methods for computing angles between linear subspaces", 1973.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from saejax_kernels import nuclear_norms

from saejax.similarity.measure import Measure, as_pair
from saejax.types import AnyArray, Matrix, Permutation, Permutations, Scalar, Scores

VARIANCE = 0.99

# Bases get zero columns up to a multiple of this, which add zero singular values, so that subsamples of one n with
# slightly different kx and ky share one compiled program.
PADDING = 32


class SVCCAState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        ux: orthonormal basis of centred x, `[n, kx]` and zero columns up to a multiple of `PADDING`.
        uy: the same for y.
        kx: number of directions in `ux`.
        ky: number of directions in `uy`.
    """

    ux: Float[AnyArray, "n padded_kx"]
    uy: Float[AnyArray, "n padded_ky"]
    kx: Int[AnyArray, ""]
    ky: Int[AnyArray, ""]


def prepare(x: AnyArray, y: AnyArray) -> SVCCAState:
    """Find both bases, in float64.

    Args:
        x: `[n, dx]`.
        y: `[n, dy]`.

    Returns:
        Bases and their ranks as numpy arrays; 8 n (kx + ky) bytes.

    Raises:
        InputError: the matrices cannot be compared.
    """
    bases = [_basis(matrix) for matrix in as_pair(x, y)]
    padded = [np.pad(basis, ((0, 0), (0, -basis.shape[1] % PADDING))) for basis in bases]
    kx, ky = (np.asarray(basis.shape[1], dtype=np.int32) for basis in bases)
    return SVCCAState(padded[0], padded[1], kx, ky)


def score(state: SVCCAState, perm: Permutation) -> Scalar:
    """Return the mean canonical correlation of x and y[perm]."""
    product = _product(state.ux, state.uy, jnp.asarray(perm))
    components = jnp.minimum(jnp.asarray(state.kx), jnp.asarray(state.ky))
    return nuclear_norms(product[None], impl="jax")[0] / components.astype(product.dtype)


def score_batch(state: SVCCAState, perms: Permutations) -> Scores:
    """Return the scores of a batch on the CPU: products by XLA, nuclear norms by the numba kernel in float64."""
    products = _products(state.ux, state.uy, perms)
    return np.asarray(nuclear_norms(products, impl="numba")) / min(int(state.kx), int(state.ky))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the SVCCA of two matrices, straight from the definition."""
    ux, uy = (_basis(matrix) for matrix in as_pair(x, y))
    return float(np.linalg.svd(ux.T @ uy, compute_uv=False).sum() / min(ux.shape[1], uy.shape[1]))


def scratch(state: SVCCAState) -> int:
    """Return the bytes that one permutation of a batch takes: its product, and two matrices of the kernel."""
    kx, ky = state.ux.shape[1], state.uy.shape[1]
    return 12 * kx * ky + 16 * min(kx, ky) ** 2


def _basis(matrix: Matrix) -> Float[np.ndarray, "n k"]:
    """Return the left singular vectors that carry `VARIANCE` of a matrix's variance about its column means."""
    vectors, values, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    variance = np.cumsum(values**2)
    return vectors[:, : np.searchsorted(variance, VARIANCE * variance[-1]) + 1]


def _product(ux: AnyArray, uy: AnyArray, perm: AnyArray) -> jax.Array:
    # The highest precision, because the default on an accelerator is TF32 or bfloat16 and would move p-values.
    return jnp.matmul(jnp.asarray(ux).T, jnp.asarray(uy)[perm], precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _products(ux: AnyArray, uy: AnyArray, perms: AnyArray) -> jax.Array:
    return jax.lax.map(lambda perm: _product(ux, uy, perm), perms)


SVCCA = Measure(
    name="svcca",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift"),
    tolerance=1e-6,
    check=as_pair,
    prepare=prepare,
    score=score,
    score_batch=score_batch,
    reference=reference,
    scratch=scratch,
)
