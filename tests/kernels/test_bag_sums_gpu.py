"""The Mosaic kernel, interpreted on the CPU against sums in float64, lowered for a GPU, and run where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from saejax_kernels import Impl, encode_top_k, mosaic, outer_sum, products_at, sparse_decode, weighted_rows
from saejax_kernels.bag_sums_gpu import bag_sums_gpu

Bags = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def bags(pairs: int, count: int, size: int, width: int) -> Bags:
    """Return weights, rows, starts of bags of any length, and a table."""
    rng = np.random.default_rng(pairs + width)
    starts = np.sort(np.concatenate([[0, pairs], rng.integers(0, pairs + 1, count - 1)]))
    return (
        jnp.asarray(rng.normal(size=pairs), jnp.float32),
        jnp.asarray(rng.integers(0, size, pairs), jnp.int32),
        jnp.asarray(starts, jnp.int32),
        jnp.asarray(rng.normal(size=(size, width)), jnp.float32),
    )


def exact(weights: jax.Array, rows: jax.Array, starts: jax.Array, table: jax.Array) -> np.ndarray:
    terms = np.asarray(weights, np.float64)[:, None] * np.asarray(table, np.float64)[np.asarray(rows)]
    ends = np.asarray(starts)
    return np.stack([terms[a:b].sum(axis=0) for a, b in zip(ends[:-1], ends[1:], strict=True)])


@pytest.mark.parametrize(
    ("pairs", "count", "size", "width"),
    [(50, 7, 20, 128), (40, 60, 9, 200), (1, 1, 1, 1), (30, 6, 10, 2304), (9, 3, 4, 1151)],
)
def test_the_interpreted_kernel_gives_the_sums(pairs: int, count: int, size: int, width: int) -> None:
    """Bags are empty, of one pair, and longer than the kernel takes at once."""
    given = bags(pairs, count, size, width)
    np.testing.assert_allclose(bag_sums_gpu(*given, interpret=True), exact(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [128, 200, 2304])
def test_it_lowers_for_a_gpu(width: int) -> None:
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in bags(50, 7, 20, width)]
    assert "mosaic_gpu" in bag_sums_gpu.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def test_it_does_not_talk_to_other_devices_of_a_mesh() -> None:
    """The names of a grid's axes and of a mesh's share one space."""
    mesh, whole = Mesh(np.array(jax.devices("cpu")[:1]), ("latent",)), PartitionSpec()
    run = jax.shard_map(bag_sums_gpu, mesh=mesh, in_specs=(whole,) * 4, out_specs=whole, check_vma=False)
    lowered = jax.jit(run).trace(*bags(50, 7, 20, 256)).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in lowered
    assert "nvshmem" not in lowered


@pytest.mark.skipif(mosaic.runs_here(), reason="needs to be without such a GPU")
def test_it_does_not_fall_back_to_the_cpu() -> None:
    with pytest.raises(NotImplementedError, match="not found for platform cpu"):
        weighted_rows(jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32), jnp.ones((3, 4)), impl="gpu")


@pytest.mark.skipif(not mosaic.runs_here(), reason="needs an NVIDIA GPU from Hopper on")
@pytest.mark.parametrize(
    ("pairs", "count", "size", "width"),
    [(50, 7, 20, 128), (4000, 600, 90, 200), (3000, 16, 1000, 2304), (9, 3, 4, 4096), (2000, 70_000, 50, 128)],
)
def test_the_kernel_gives_the_sums_on_the_gpu_and_the_same_ones_again(
    pairs: int, count: int, size: int, width: int
) -> None:
    given = bags(pairs, count, size, width)
    found = np.asarray(bag_sums_gpu(*given))
    np.testing.assert_allclose(found, exact(*given), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found, bag_sums_gpu(*given))


@pytest.mark.skipif(not mosaic.runs_here(), reason="needs an NVIDIA GPU from Hopper on")
@pytest.mark.parametrize(("k", "d_sae", "width"), [(1, 64, 128), (8, 512, 576), (64, 64, 256)])
def test_products_and_their_gradients_are_those_of_the_reference_on_the_gpu(k: int, d_sae: int, width: int) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    x, W_dec, W = (jax.random.normal(key, (n, width)) for key, n in zip(keys, (100, d_sae, d_sae), strict=False))
    centre, b = jax.random.normal(keys[3], (width,)), jax.random.normal(keys[4], (d_sae,))
    values, indices = encode_top_k(x, centre, W, b, k, "float32", "jax")
    for product in (
        lambda impl: weighted_rows(values, indices, W_dec, impl=impl),
        lambda impl: products_at(x, indices, W_dec, impl=impl),
        lambda impl: outer_sum(values, indices, x, d_sae, impl=impl),
    ):
        np.testing.assert_allclose(product("gpu"), product("jax"), rtol=1e-4, atol=1e-3)

    def loss(impl: Impl, *given: jax.Array) -> jax.Array:
        values, indices = encode_top_k(given[0], given[1], given[2], given[3], k, "float32", impl)
        return jnp.sum((sparse_decode(values, indices, given[4], impl) - x) ** 2) / 1000

    slopes = [jax.grad(loss, argnums=(1, 2, 3, 4, 5))(impl, x, centre, W, b, W_dec) for impl in ("gpu", "jax")]
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(theirs).max()))
