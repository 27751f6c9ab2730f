"""The TPU kernels, interpreted on the CPU against sums in float64, and lowered for a TPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from saejax_kernels import Impl, outer_sum, products_at, sparse_decode, weighted_rows
from saejax_kernels.sparse_products_tpu import outer_sum_tpu, products_at_tpu, weighted_rows_tpu

Operands = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
KERNELS: dict[str, Callable[..., Any]] = {
    "weighted_rows": lambda values, indices, table, x, **how: weighted_rows_tpu(values, indices, table, **how),
    "products_at": lambda values, indices, table, x, **how: products_at_tpu(x, indices, table, **how),
    "outer_sum": lambda values, indices, table, x, **how: outer_sum_tpu(values, indices, x, len(table), **how),
}


def operands(rows: int, k: int, d_sae: int, d_model: int, dtype: str = "float32") -> Operands:
    """Return values, some of them zero, indices, of which rows have some twice, a table and activations."""
    rng = np.random.default_rng(rows + k)
    values = rng.normal(size=(rows, k)) * (rng.random((rows, k)) < 0.8)
    # Few latents have most of the codes, as in an SAE.
    indices = (d_sae * rng.random((rows, k)) ** 3).astype(np.int32)
    vectors = [jnp.asarray(rng.normal(size=(n, d_model)), dtype) for n in (d_sae, rows)]
    return jnp.asarray(values, jnp.float32), jnp.asarray(indices), vectors[0], vectors[1]


def exact(values: jax.Array, indices: jax.Array, table: jax.Array, x: jax.Array) -> dict[str, np.ndarray]:
    codes, W, z = (np.asarray(each.astype(jnp.float32), np.float64) for each in (values, table, x))
    at, outer = np.asarray(indices), np.zeros(W.shape)
    np.add.at(outer, at, codes[:, :, None] * z[:, None, :])
    return {
        "weighted_rows": np.einsum("rk,rkd->rd", codes, W[at]),
        "products_at": np.einsum("rd,rkd->rk", z, W[at]),
        "outer_sum": outer,
    }


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("rows", "k", "d_sae", "d_model", "dtype"),
    [
        (10, 1, 5, 200, "float32"),
        (70, 37, 37, 130, "bfloat16"),
        (1100, 5, 700, 128, "float32"),  # several blocks of rows and of latents, and windows of codes
        (9, 600, 600, 128, "float32"),  # several blocks of columns
    ],
)
def test_products_are_those_of_float64(name: str, rows: int, k: int, d_sae: int, d_model: int, dtype: str) -> None:
    given = operands(rows, k, d_sae, d_model, dtype)
    found, expected = KERNELS[name](*given, interpret=True), exact(*given)[name]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    if name == "outer_sum":
        silent = np.setdiff1d(np.arange(d_sae), given[1])
        assert not np.asarray(found)[silent].any()


@pytest.mark.parametrize("name", KERNELS)
def test_no_copy_is_read_before_it_is_there_nor_overwritten_while_it_is_read(name: str) -> None:
    """Rows so wide that the ring has four slots go around several times; memory begins as NaN, copies come last."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # JAX tells of races nowhere else

    given = operands(60, 2, 6, 16_384)
    how = pltpu.InterpretParams(dma_execution_mode="on_wait", uninitialized_memory="nan", detect_races=True)
    with pltpu.force_tpu_interpret_mode(how):
        found = np.asarray(KERNELS[name](*given))
    races: Any = interpret_pallas_call.races
    assert not races.races_found
    expected = exact(*given)[name]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_row_that_is_not_finite_reaches_what_names_it_alone() -> None:
    """Nor does a latent that is not there, which an encoder gives to a row of NaN, take the place of another."""
    values, indices, table, x = operands(20, 3, 600, 128)
    x, indices = x.at[7].set(jnp.nan).at[12].set(jnp.inf), indices.at[7].set(jnp.iinfo(jnp.int32).max)
    hit = 255  # the last of a block, whose last codes come with the first ones of the next
    rows, indices = np.delete(np.arange(20), [7, 12]), indices.at[12].set(hit)
    found = np.asarray(outer_sum_tpu(values.at[7].set(jnp.nan), indices, x, len(table), interpret=True))
    assert not np.isfinite(found[hit]).any()
    expected = exact(values[rows], indices[rows], table, x[rows])
    np.testing.assert_allclose(np.delete(found, hit, 0), np.delete(expected["outer_sum"], hit, 0), rtol=1e-5, atol=1e-5)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(out_of_bounds_reads="raise")):
        found = np.asarray(products_at_tpu(x, indices, table))
    np.testing.assert_allclose(found[rows], expected["products_at"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_a_decode_has_the_gradients_of_the_reference(
    dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference adds in bfloat16 where that comes in."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *given, tpu: tpu(*given, interpret=True))
    values, indices, table, x = operands(30, 4, 50, 130, dtype)

    def loss(values: jax.Array, table: jax.Array, impl: Impl) -> jax.Array:
        return jnp.sum((sparse_decode(values, indices, table, impl) * x).astype(jnp.float32) ** 2)

    slopes = [jax.grad(loss, argnums=(0, 1))(values.astype(dtype), table, impl) for impl in ("tpu", "jax")]
    for ours, theirs in zip(*slopes, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        largest = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours.astype("float32"), theirs.astype("float32"), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("product", [weighted_rows, products_at, outer_sum])
def test_they_lower_for_a_tpu(product: Callable[..., Any], dtype: str) -> None:
    def shape(*sizes: int, of: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(of))

    codes, indices, table, x = shape(100, 30), shape(100, 30, of="int32"), shape(1000, 200), shape(100, 200)
    given = {weighted_rows: (codes, indices, table), products_at: (x, indices, table), outer_sum: (codes, indices, x)}
    run = jax.jit(lambda *given: product(*given, *([1000] if product is outer_sum else []), impl="tpu"))
    assert "tpu_custom_call" in run.trace(*given[product]).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="needs to be without a TPU")
def test_they_do_not_fall_back_to_the_cpu() -> None:
    with pytest.raises(NotImplementedError, match="not found for platform cpu"):
        weighted_rows(jnp.ones((2, 1)), jnp.zeros((2, 1), jnp.int32), jnp.ones((3, 4)), impl="tpu")
