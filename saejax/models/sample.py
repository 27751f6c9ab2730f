"""Text from a language model, one token after another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from saejax.errors import InputError
from saejax.models.forward import forward
from saejax.models.transformer import Transformer
from saejax.types import AnyArray


def sample(
    model: Transformer, prompts: Int[AnyArray, "row prompt"], key: jax.Array, *, new: int, temperature: float
) -> Int[Array, "row text"]:
    """Continue prompts, each next token drawn from softmax(logits / temperature).

    The whole row is computed for every token, so a text of n tokens costs n forward passes over its length.

    Args:
        model: a causal language model.
        prompts: token ids; each row is the beginning of one document.
        key: decides all draws.
        new: tokens to add to each row.
        temperature: below 1 it makes likely tokens likelier.

    Returns:
        Prompts and what follows, `[row, prompt + new]`.

    Raises:
        InputError: the temperature is not positive, or the text would be longer than the model's positions.
    """
    if not temperature > 0:
        raise InputError(f"temperature {temperature} must be positive")
    length = prompts.shape[1] + new
    if length > model.config.max_positions:
        raise InputError(f"{length} tokens of text exceed the model's {model.config.max_positions} positions")
    graph, weights = nnx.split(model)
    return _continued(graph, weights, jnp.asarray(prompts, jnp.int32), key, jnp.float32(temperature), new)


@functools.partial(jax.jit, static_argnames=("graph", "new"))
def _continued(
    graph: Any, weights: nnx.State, prompts: jax.Array, key: jax.Array, temperature: jax.Array, new: int
) -> jax.Array:
    model, begin = nnx.merge(graph, weights), prompts.shape[1]
    ids = jnp.pad(prompts, ((0, 0), (0, new)))
    segment = jnp.ones_like(ids)
    position = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)

    def add(ids: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        # What stands after the last token is not seen: the model is causal.
        x, _ = forward(model, ids, segment, position)
        logits = model.logits(jax.lax.dynamic_slice_in_dim(x, at - 1, 1, axis=1))[:, 0]
        token = jax.random.categorical(jax.random.fold_in(key, at), logits / temperature)
        return jax.lax.dynamic_update_index_in_dim(ids, token.astype(ids.dtype), at, axis=1), None

    return jax.lax.scan(add, ids, jnp.arange(begin, begin + new))[0]
