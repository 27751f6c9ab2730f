import jax
import jax.numpy as jnp
import pytest
from saejax_kernels import zero_after


@pytest.mark.parametrize("value", [[3.0], [[-2.0, jnp.nan]], [jnp.inf], [-jnp.inf], [0.0]])
def test_it_is_zero(value: list) -> None:
    assert float(zero_after(jnp.array(value))) == 0


def test_an_array_with_a_reader_is_overwritten_in_place() -> None:
    """Without it XLA copies the array: a loop reads it, and nothing says whether before or after it is overwritten."""
    size = 1 << 20

    def copied(wait: bool) -> bool:
        def run(table: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
            read = jax.lax.map(lambda i: table[i] * 2, at)
            return table + 1 + (zero_after(read) if wait else 0), read

        shapes = jax.ShapeDtypeStruct((size,), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
        memory = jax.jit(run, donate_argnums=0).lower(*shapes).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes >= 4 * size

    assert copied(wait=False)
    assert not copied(wait=True)
