"""One transformer for every family: a config of it is a family's model, and hook points read its inside.

Parameters are stacked by layer. Layers without a tapped hook run under one `scan` per segment between tapped
layers, so compile time does not grow with depth; a forward pass stops after the last hook asked for. A token sees
the earlier tokens of its own segment (document) only, so packed rows need no padding.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from saejax.errors import InputError

BLOCK_HOOKS = ("resid_pre", "attn_in", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out",
               "resid_post")  # fmt: skip
MODEL_HOOKS = ("embed", "final_norm")

Hidden: TypeAlias = Float[Array, "batch position d_model"]
Tap: TypeAlias = Callable[[str, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and constants of one transformer.

    Attributes:
        vocab_size: tokens in the vocabulary.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads.
        n_kv_heads: key and value heads; fewer than `n_heads` is grouped-query attention.
        d_head: width of one head.
        d_mlp: width of the MLP's hidden layer.
        rope_theta: base of the rotary position angles.
        norm_eps: constant added to the mean square in RMS norms.
        tie_embeddings: whether the output matrix is the embedding's transpose.
        max_positions: longest sequence that the model was made for, in tokens.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_positions: int = 2048

    def __post_init__(self) -> None:
        """Refuse shapes that no model can have."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "tie_embeddings" and value <= 0:
                raise InputError(f"{field.name} {value} must be positive")
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.d_head % 2:
            raise InputError(f"d_head {self.d_head} must be even: rotary angles come in pairs")

    def hook_width(self, hook: str) -> int:
        """Return the number of entries that one token has at a hook point.

        Raises:
            InputError: the model has no such hook.
        """
        name = self.require_hooks((hook,))[0].partition(".")[0]
        return {"attn_z": self.n_heads * self.d_head, "mlp_hidden": self.d_mlp}.get(name, self.d_model)

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points of the model, in the order in which a forward pass meets them."""
        inside = (f"{name}.{layer}" for layer in range(self.n_layers) for name in BLOCK_HOOKS)
        return ("embed", *inside, "final_norm")

    def require_hooks(self, hooks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the hooks as given.

        Raises:
            InputError: the model lacks one of them.
        """
        unknown = [hook for hook in hooks if hook not in self.hooks]
        if unknown:
            raise InputError(
                f"hook {', '.join(unknown)} is not in this model; it has {', '.join(MODEL_HOOKS)} and "
                f"{', '.join(BLOCK_HOOKS)} with .0 to .{self.n_layers - 1} behind"
            )
        return hooks


def rms_norm(
    x: Float[Array, "*rows d_model"], weight: Float[Array, "d_model"], eps: float
) -> Float[Array, "*rows d_model"]:
    """Divide each row by its root mean square and scale it: x / sqrt(mean(x^2) + eps) * weight."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotary_angles(
    position: Int[Array, "batch position"], config: TransformerConfig
) -> tuple[Float[Array, "batch position 1 half"], Float[Array, "batch position 1 half"]]:
    """Return the cosines and sines of each position's rotary angles, position * theta^(-2 i / d_head)."""
    frequency = config.rope_theta ** (-jnp.arange(0, config.d_head, 2) / config.d_head)
    angle = position[:, :, None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "batch position head d_head"],
    cos: Float[Array, "batch position 1 half"],
    sin: Float[Array, "batch position 1 half"],
) -> Float[Array, "batch position head d_head"]:
    """Turn each pair (i, i + d_head / 2) of a head by its angle (Su et al. 2021, in Llama's pairing)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Block(nnx.Module):
    """One pre-norm block: attention, then a gated MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Draw the weights from N(0, 0.02^2); matrices that write to the residual are scaled by 1/sqrt(2 layers)."""
        self.config = config
        queries, keys = config.n_heads * config.d_head, config.n_kv_heads * config.d_head

        def weight(rows: int, columns: int, scale: float = 1.0) -> nnx.Param:
            return nnx.Param(0.02 * scale * jax.random.normal(rngs.params(), (rows, columns)))

        writes = (2 * config.n_layers) ** -0.5
        self.attn_norm = nnx.Param(jnp.ones(config.d_model))
        self.w_q = weight(config.d_model, queries)
        self.w_k = weight(config.d_model, keys)
        self.w_v = weight(config.d_model, keys)
        self.w_o = weight(queries, config.d_model, writes)
        self.mlp_norm = nnx.Param(jnp.ones(config.d_model))
        self.w_gate = weight(config.d_model, config.d_mlp)
        self.w_up = weight(config.d_model, config.d_mlp)
        self.w_down = weight(config.d_mlp, config.d_model, writes)

    def __call__(self, x: Hidden, rotary: tuple[jax.Array, jax.Array], mask: jax.Array, tap: Tap) -> Hidden:
        """Run the block and show `tap` each of the block's hook points.

        Args:
            x: residual stream, `[batch, position, d_model]`.
            rotary: cosines and sines of `rotary_angles`.
            mask: `[batch, 1, query, key]`, true where the query may look.
            tap: called with the bare hook name and its activation.

        Returns:
            The residual stream after the block.
        """
        eps = self.config.norm_eps
        tap("resid_pre", x)
        normed = rms_norm(x, self.attn_norm[...], eps)
        tap("attn_in", normed)
        heads = self._attend(normed, rotary, mask)
        tap("attn_z", heads)
        written = heads @ self.w_o[...]
        tap("attn_out", written)
        x = x + written
        tap("resid_mid", x)
        normed = rms_norm(x, self.mlp_norm[...], eps)
        tap("mlp_in", normed)
        hidden = jax.nn.silu(normed @ self.w_gate[...]) * (normed @ self.w_up[...])
        tap("mlp_hidden", hidden)
        written = hidden @ self.w_down[...]
        tap("mlp_out", written)
        x = x + written
        tap("resid_post", x)
        return x

    def _attend(self, x: Hidden, rotary: tuple[jax.Array, jax.Array], mask: jax.Array) -> jax.Array:
        split = (*x.shape[:2], -1, self.config.d_head)
        query = rotate((x @ self.w_q[...]).reshape(split), *rotary)
        key = rotate((x @ self.w_k[...]).reshape(split), *rotary)
        value = (x @ self.w_v[...]).reshape(split)
        return jax.nn.dot_product_attention(query, key, value, mask=mask).reshape(*x.shape[:2], -1)


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm, output matrix."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Draw all weights from the `params` stream of `rngs`."""
        self.config = config
        shape = (config.vocab_size, config.d_model)
        self.embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        self.blocks = nnx.vmap(Block, in_axes=(None, 0))(config, rngs.split(config.n_layers))
        self.final_norm = nnx.Param(jnp.ones(config.d_model))
        if not config.tie_embeddings:
            self.unembed = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape[::-1]))

    @property
    def output_matrix(self) -> Float[Array, "d_model vocab"]:
        """The matrix that turns the final norm's output into logits."""
        return self.embed[...].T if self.config.tie_embeddings else self.unembed[...]

    def hidden(
        self,
        input_ids: Int[Array, "batch position"],
        segment: Int[Array, "batch position"],
        position: Int[Array, "batch position"],
        hooks: tuple[str, ...] = (),
        stop: str = "final_norm",
    ) -> tuple[Hidden, dict[str, jax.Array]]:
        """Run the model up to one hook point and collect others on the way.

        Args:
            input_ids: token ids.
            segment: document number within the row, 0 for padding; a token attends within its segment only.
            position: position of each token for the rotary angles.
            hooks: hook points to collect.
            stop: the last hook point that is needed; blocks after its block do not run.

        Returns:
            The residual stream where the pass stopped (normalised if that is `final_norm`), and the activations
            by hook, each `[batch, position, width]`.
        """
        found: dict[str, jax.Array] = {}

        def keep(hook: str, value: jax.Array) -> None:
            if hook in hooks:
                found[hook] = value

        x = self.embed[...][input_ids]
        keep("embed", x)
        rotary = rotary_angles(position, self.config)
        mask = attention_mask(segment)
        graph, weights = nnx.split(self.blocks)
        last = {"embed": 0, "final_norm": self.config.n_layers}.get(stop)
        last = int(stop.rpartition(".")[2]) + 1 if last is None else last
        tapped = sorted({int(h.rpartition(".")[2]) for h in hooks if h not in MODEL_HOOKS})
        done = 0
        for layer in [*(layer for layer in tapped if layer < last), last]:
            if layer > done:

                def step(x: jax.Array, layer_weights: nnx.State) -> tuple[jax.Array, None]:
                    return nnx.merge(graph, layer_weights)(x, rotary, mask, _no_tap), None

                x, _ = jax.lax.scan(step, x, jax.tree.map(lambda w, a=done, b=layer: w[a:b], weights))
            if layer < last:
                block = nnx.merge(graph, jax.tree.map(lambda w, at=layer: w[at], weights))
                x = block(x, rotary, mask, lambda name, value, at=layer: keep(f"{name}.{at}", value))
            done = layer + 1
        if stop == "final_norm":
            x = rms_norm(x, self.final_norm[...], self.config.norm_eps)
            keep("final_norm", x)
        return x, found


def attention_mask(segment: Int[Array, "batch position"]) -> jax.Array:
    """Return `[batch, 1, query, key]`: true where the key is no later and of the same segment."""
    length = segment.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return (causal & (segment[:, :, None] == segment[:, None, :]))[:, None]


def _no_tap(name: str, value: jax.Array) -> None:
    """Collect nothing: the tap of layers that run under `scan`."""
