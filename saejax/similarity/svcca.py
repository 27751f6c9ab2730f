"""SVCCA: the mean canonical correlation of the directions that carry most of each matrix's variance.

With x `[n, dx]` and y `[n, dy]` column-centred, Ux `[n, kx]` their first kx left singular vectors, and the same for y:

    svcca(x, y) = ||Ux' Uy||_* / min(kx, ky)

because the canonical correlations of two orthonormal bases are the singular values of their product, and ||.||_* is
the sum of those. Re-pairing y moves the rows of Uy and nothing else, so means, bases and ranks are found once.

Three rules for kx and ky. `svcca`: the smallest number whose squared singular values sum to at least 99 % of the
total. `svcca(components=k)`: k on both sides. `svcca(variant="k1")`: one component, |Ux' Uy|, the absolute
correlation of the first principal components. That is what widely copied code computes under the name SVCCA: it
compares a variance normalised to 1 with 0.99 times the total, finds none that reaches it, and keeps one component.
It reproduces published numbers and measures nothing else.

Range 0 to 1, larger is more similar. Random pairings do not score near 0: with kx + ky of the size of n the null
mean is large (Wachter's law, `saejax.similarity.wachter`), and with kx + ky far above n every pairing scores 1. So a
raw score means nothing without its null.
Invariant to rotation of the columns, to scaling by one number and to shifts, on either side; not to general
invertible maps, which move the 99 % cut.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then the singular values of a kx x ky
matrix: in float64 by `saejax_kernels.nuclear_norms` on the CPU, by matrix products with a certificate
(`saejax_kernels.nuclear_bounds`) elsewhere. Float32 cores stay within 2e-7 of float64 ones on the CPU. Tolerance: 2e-6.

Source: Raghu, Gilmer, Yosinski, Sohl-Dickstein, "SVCCA", NeurIPS 2017; singular values as canonical correlations:
Björck and Golub, "Numerical methods for computing angles between linear subspaces", 1973.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.nuclear import NuclearState, nuclear_core, nuclear_core_batch, nuclear_core_exact
from saejax.similarity.pair import Pair
from saejax.similarity.wachter import mean_absolute_correlation, wachter_mean_correlation
from saejax.types import AnyArray, Permutation

VARIANCE = 0.99


@functools.cache
def svcca(*, components: int | None = None, variant: str | None = None) -> Measure:
    """Return SVCCA by one of its rules.

    Args:
        components: directions to keep on both sides; as many as carry 99 % of the variance when None.
        variant: `k1` for the one component that published code keeps by mistake.

    Raises:
        InputError: components is below 1, or given together with a variant, or the variant is unknown.
    """
    if variant not in (None, "k1"):
        raise InputError(f"svcca: variant {variant!r} is unknown; the one there is is k1")
    if variant and components is not None:
        raise InputError(f"svcca: components {components} and variant k1, one component, exclude each other")
    if components is not None and components < 1:
        raise InputError(f"svcca: components {components} must be at least 1")
    name = "svcca" if components is None else f"svcca:components={components}"
    rule = Measure(
        name=name, larger_is_more_similar=True, invariances=("rotation", "column permutation", "scale", "shift"),
        tolerance=2e-6, statistics=(BASES,), own=functools.partial(_own, components), core=nuclear_core,
        core_batch=nuclear_core_batch, core_exact=nuclear_core_exact, check=functools.partial(_check, components),
        extent=functools.partial(_extent, components), reference=functools.partial(_reference, components),
        predicted_mean=functools.partial(_predicted_mean, components),
        directions=functools.partial(_extent, components),
        constant=lambda pair: max(_extent(components, pair)) >= pair.n - 1,
    )  # fmt: skip
    if variant is None:
        return rule
    return dataclasses.replace(svcca(components=1), name="svcca:variant=k1", core=_first_core, core_batch=None)


def _own(components: int | None, pair: Pair) -> NuclearState:
    kx, ky = _extent(components, pair)
    return NuclearState(padded(np.ones(kx)), padded(np.ones(ky)), np.asarray(float(min(kx, ky))))


def _extent(components: int | None, pair: Pair) -> tuple[int, int]:
    if components is not None:
        return components, components
    return _carrying(pair.x.singular), _carrying(pair.y.singular)


def _carrying(singular: Float[np.ndarray, "r"]) -> int:
    """Return how many leading singular values carry `VARIANCE` of the sum of squares."""
    variance = np.cumsum(singular**2)
    return int(np.searchsorted(variance, VARIANCE * variance[-1])) + 1


def _predicted_mean(components: int | None, pair: Pair) -> float:
    """Return the null mean by Wachter's law; for one component the mean absolute correlation of random vectors."""
    kx, ky = _extent(components, pair)
    return mean_absolute_correlation(pair.n) if kx == ky == 1 else wachter_mean_correlation(kx, ky, pair.n)


def _check(components: int | None, pair: Pair) -> None:
    for name, side in pair.sides:
        if components is not None and components > side.rank:
            raise InputError(
                f"svcca: components {components} is above the {side.rank} directions of {name} "
                f"({side.values.shape[0]} rows, {side.values.shape[1]} columns); lower it"
            )


def _first_core(own: NuclearState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the absolute correlation of the first principal components."""
    return exactly(jnp.abs(values[0][0, 0]))


def _reference(components: int | None, x: AnyArray, y: AnyArray) -> float:
    """Return the SVCCA of two matrices, straight from the definition."""
    bases = []
    for _, side in Pair.of(x, y).sides:
        left, singular, _ = np.linalg.svd(side.centred, full_matrices=False)
        bases.append(left[:, : components or _carrying(singular)])
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(correlations.sum() / min(basis.shape[1] for basis in bases))


SVCCA = svcca()
