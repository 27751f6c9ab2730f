"""The Pallas kernels, interpreted on the CPU against exact sums and lowered for the devices they are for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from saejax_kernels import pair_sums
from saejax_kernels.pair_sums_gpu import pair_sums_gpu
from saejax_kernels.pair_sums_tpu import pair_sums_tpu

KERNELS = [pair_sums_gpu, pair_sums_tpu]
CUSTOM_CALLS = {"cuda": "mosaic_gpu", "tpu": "tpu_custom_call"}


def example(n: int, count: int, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(n)
    lower = [np.tril(rng.integers(-(2**15), 2**15, (n, n)), -1) for _ in range(2)]
    a, b = (jnp.asarray((each + each.T).astype(dtype)) for each in lower)
    return a, b, jnp.asarray([rng.permutation(n) for _ in range(count)])


def assert_close(sums: jax.Array | np.ndarray, a: jax.Array, b: jax.Array, perms: jax.Array) -> None:
    """Assert that the sums are those of numba to within three roundings of the sum of the terms' sizes."""
    x, y = (np.asarray(matrix, np.float64) for matrix in (a, b))
    sizes = pair_sums(abs(x), abs(y), np.asarray(perms), impl="numba")
    errors = abs(np.asarray(sums, np.float64) - pair_sums(x, y, np.asarray(perms), impl="numba"))
    assert np.all(errors <= 3 * 2.0**-24 * sizes)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "count", "dtype"), [(60, 2, "int16"), (128, 1, "int32"), (300, 1, "float32")])
def test_interpreted_kernel_gives_the_sums(kernel: Callable, n: int, count: int, dtype: str) -> None:
    a, b, perms = example(n, count, dtype)
    assert_close(kernel(a, b, perms, interpret=True), a, b, perms)


@pytest.mark.parametrize("kernel", KERNELS)
def test_interpreted_kernel_traces_under_vmap(kernel: Callable) -> None:
    a, b, perms = example(50, 2, "int16")
    sums = jax.vmap(lambda one, perm: kernel(one, b, perm[None], interpret=True)[0])(jnp.stack([a, -a]), perms)
    assert_close(sums * jnp.array([1, -1]), a, b, perms)


@pytest.mark.parametrize("platform", CUSTOM_CALLS)
@pytest.mark.parametrize("dtype", ["float32", "int16", "int32"])
@pytest.mark.parametrize(("n", "wide"), [(1000, False), (1150, True)])
def test_pallas_lowers_for_its_devices(platform: str, dtype: str, n: int, wide: bool) -> None:
    a = jax.ShapeDtypeStruct((n, n), np.dtype(dtype))
    perm = jax.ShapeDtypeStruct((3, n), np.dtype("int32"))
    with jax.enable_x64(wide):
        batch = jax.jit(jax.vmap(lambda a, b, one: pair_sums(a, b, one[None], impl="pallas")[0], (None, None, 0)))
        lowered = batch.trace(a, a, perm).lower(lowering_platforms=(platform,)).as_text()
    assert [name for name, call in CUSTOM_CALLS.items() if call in lowered] == [platform]


@pytest.mark.parametrize("platform", CUSTOM_CALLS)
def test_pallas_does_not_talk_to_other_devices_of_a_mesh(platform: str) -> None:
    """The names of a grid's axes and of a mesh's share one space."""
    mesh, whole, along = Mesh(np.array(jax.devices("cpu")[:1]), ("perm",)), PartitionSpec(), PartitionSpec("perm")
    batch = jax.shard_map(
        lambda a, b, perms: pair_sums(a, b, perms, impl="pallas"),
        mesh=mesh, in_specs=(whole, whole, along), out_specs=along, check_vma=False,
    )  # fmt: skip
    lowered = jax.jit(batch).trace(*example(256, 2, "int16")).lower(lowering_platforms=(platform,)).as_text()
    assert CUSTOM_CALLS[platform] in lowered
    assert "nvshmem" not in lowered


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs a GPU or a TPU")
@pytest.mark.parametrize(("n", "dtype"), [(60, "float32"), (1000, "int16"), (2048, "int32")])
def test_pallas_gives_the_sums_on_the_device(n: int, dtype: str) -> None:
    a, b, perms = example(n, 5, dtype)
    assert_close(pair_sums(a, b, perms, impl="pallas"), a, b, perms)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs to be without an accelerator")
def test_pallas_does_not_fall_back_to_the_cpu() -> None:
    with pytest.raises(NotImplementedError, match="not found for platform cpu"):
        pair_sums(*example(20, 1, "float32"), impl="pallas")


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_dtypes_are_refused(kernel: Callable) -> None:
    a, b, perms = example(20, 1, "float32")
    with pytest.raises(ValueError, match="dtypes float32 and int16 are not one of float32, int16, int32; convert"):
        kernel(a, b.astype(jnp.int16), perms, interpret=True)
    with pytest.raises(ValueError, match="dtypes float16 and float16"):
        kernel(a.astype(jnp.float16), b.astype(jnp.float16), perms, interpret=True)
