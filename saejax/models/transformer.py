"""One transformer for every family: a config of it is a family's model, and hook points read and edit its inside.

Parameters are stacked by layer. A token sees the tokens of its own segment (document) only, so packed rows need no
padding.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.models.attention import Surroundings, attend, rotate, soft_capped
from saejax.models.config import TransformerConfig

Hidden: TypeAlias = Float[Array, "batch position d_model"]
Tap: TypeAlias = Callable[[str, jax.Array], jax.Array]
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


class Dense(nnx.Module):
    """A matrix, with or without a bias."""

    def __init__(self, rngs: nnx.Rngs, rows: int, columns: int, *, bias: bool = False, scale: float = 1.0) -> None:
        """Draw the matrix from N(0, (0.02 scale)^2); a bias is 0."""
        self.kernel = nnx.Param(0.02 * scale * jax.random.normal(rngs.params(), (rows, columns)))
        if bias:
            self.bias = nnx.Param(jnp.zeros(columns))

    def __call__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
        """Return x @ kernel, plus the bias."""
        # As one matrix: the kernel's gradient would else be summed over two axes, which takes a CPU twice as long.
        product = (x.reshape(-1, x.shape[-1]) @ self.kernel[...]).reshape(*x.shape[:-1], -1)
        return product + self.bias[...] if hasattr(self, "bias") else product


class Norm(nnx.Module):
    """An RMS norm or a layer norm, computed in float32.

    x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich, 2019), or
    (x - mean(x)) / sqrt(var(x) + eps) * scale + bias (Ba et al., 2016).
    """

    def __init__(self, config: TransformerConfig, width: int, kind: str | None = None) -> None:
        """Make a norm that only normalises."""
        self.config = config
        self.scale = nnx.Param(jnp.zeros(width) if config.norm_plus_one else jnp.ones(width))
        if (kind or config.norm) == "layer":
            self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Normalise each row."""
        wide = x.astype(jnp.float32)
        if hasattr(self, "bias"):
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
        scale = self.scale[...].astype(jnp.float32)
        wide = wide * (1 + scale if self.config.norm_plus_one else scale)
        return (wide + self.bias[...] if hasattr(self, "bias") else wide).astype(x.dtype)


class Block(nnx.Module):
    """Attention and an MLP, and what they write added to the residual stream."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Draw the matrices; those that write to the residual are scaled by 1 / sqrt(2 layers)."""
        self.config = config
        queries, keys = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        writes = (2 * config.n_layers) ** -0.5
        self.attn_norm = Norm(config, config.d_model)
        self.w_q = Dense(rngs, config.d_model, queries, bias=config.attn_bias)
        self.w_k = Dense(rngs, config.d_model, keys, bias=config.attn_bias)
        self.w_v = Dense(rngs, config.d_model, keys, bias=config.attn_bias)
        self.w_o = Dense(rngs, queries, config.d_model, bias=config.attn_out_bias, scale=writes)
        if config.qk_norm:
            self.q_norm, self.k_norm = (Norm(config, config.d_head, "rms") for _ in range(2))
        self.mlp_norm = Norm(config, config.d_model)
        if config.gated:
            self.w_gate = Dense(rngs, config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.w_up = Dense(rngs, config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.w_down = Dense(rngs, config.d_mlp, config.d_model, bias=config.mlp_bias, scale=writes)
        if config.output_norms:
            self.attn_out_norm, self.mlp_out_norm = (Norm(config, config.d_model) for _ in range(2))

    def __call__(self, x: Hidden, around: Surroundings, windowed: Bool[Array, ""], tap: Tap) -> Hidden:
        """Run the block, each of its hook points through `tap`.

        Args:
            x: residual stream.
            around: masks and angles.
            windowed: whether this block has the window.
            tap: called with the bare hook name and its activation; gives what to go on with.

        Returns:
            The residual stream after the block.
        """
        before, parallel = self.config.residual != "post_norm", self.config.residual == "parallel"
        x = tap("resid_pre", x)
        heads = self._attend(tap("attn_in", self.attn_norm(x) if before else x), around, windowed)
        written = self.w_o(tap("attn_z", heads))
        if self.config.output_norms:
            written = self.attn_out_norm(tap("attn_out_raw", written))
        middle = x + tap("attn_out", written)
        if not parallel:
            middle = tap("resid_mid", middle if before else self.attn_norm(middle))
        read = tap("mlp_in", self.mlp_norm(x if parallel else middle) if before else middle)
        written = self.w_down(tap("mlp_hidden", self._mlp_hidden(read)))
        if self.config.output_norms:
            written = self.mlp_out_norm(tap("mlp_out_raw", written))
        after = middle + tap("mlp_out", written)
        return tap("resid_post", after if before else self.mlp_norm(after))

    def _attend(
        self, x: Hidden, around: Surroundings, windowed: Bool[Array, ""]
    ) -> Float[Array, "batch position queries"]:
        config = self.config
        query, key, value = (
            made(x).reshape(*x.shape[:2], -1, config.d_head) for made in (self.w_q, self.w_k, self.w_v)
        )
        if config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        mask, rotary = around.of_block(windowed)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        heads = attend(
            query, key, value, mask, causal=config.causal, scale=config.attn_scale, softcap=config.attn_softcap
        )
        return heads.reshape(*x.shape[:2], -1)

    def _mlp_hidden(self, x: Hidden) -> Float[Array, "batch position d_mlp"]:
        """Return what the MLP's last matrix reads: rounded once, as the bend and the product of two are in float32."""
        bent = ACTIVATIONS[self.config.activation]
        up = self.w_up(x).astype(jnp.float32)
        hidden = bent(self.w_gate(x).astype(jnp.float32)) * up if self.config.gated else bent(up)
        return hidden.astype(x.dtype)


class MaskedHead(nnx.Module):
    """What a masked language model does before the output matrix, and the bias after it (Devlin et al., 2019)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Draw the matrix."""
        self.activation = config.activation
        self.dense = Dense(rngs, config.d_model, config.d_model, bias=True)
        self.norm = Norm(config, config.d_model)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, x: Hidden) -> Hidden:
        """Return what the output matrix reads."""
        return self.norm(ACTIVATIONS[self.activation](self.dense(x)))


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm, output matrix."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Draw all weights from the `params` stream of `rngs`."""
        self.config = config

        def table(rows: int, columns: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, columns)))

        self.embed = table(config.vocab_size, config.embed_width)
        if config.positions == "learned":
            self.positions = table(config.max_positions + config.position_offset, config.d_model)
        if config.token_types:
            self.token_types = table(config.token_types, config.d_model)
        if config.embed_width != config.d_model:
            self.project_in = Dense(rngs, config.embed_width, config.d_model)
            self.project_out = Dense(rngs, config.d_model, config.embed_width)
        if config.embed_norm:
            self.embed_norm = Norm(config, config.d_model)
        self.blocks = nnx.vmap(Block, in_axes=(None, 0))(config, rngs.split(config.n_layers))
        if config.final_norm:
            self.final_norm = Norm(config, config.d_model)
        if config.head == "masked":
            self.masked_head = MaskedHead(config, rngs)
        if config.head != "none" and not config.tie_embeddings:
            self.unembed = table(config.embed_width, config.vocab_size)

    def logits(self, x: Hidden, dtype: DTypeLike | None = None) -> Float[Array, "batch position vocab"]:
        """Return the scores of the vocabulary, from where a forward pass ends.

        Args:
            x: the residual stream.
            dtype: type that scores are summed in; that of `x` when None.

        Raises:
            InputError: the model has no head.
        """
        if self.config.head == "none":
            raise InputError("head 'none' makes no logits; load the checkpoint of a model that has one")
        if self.config.head == "masked":
            x = self.masked_head(x)
        if self.config.embed_width != self.config.d_model:
            x = self.project_out(x)
        table = self.embed[...].T if self.config.tie_embeddings else self.unembed[...]
        scores = jnp.matmul(x, table, preferred_element_type=dtype)
        if self.config.head == "masked":
            scores = scores + self.masked_head.bias[...]
        cap = self.config.logit_softcap
        return scores if cap is None else soft_capped(scores, cap)

    def embedded(self, input_ids: Int[Array, "batch position"], position: Int[Array, "batch position"]) -> Hidden:
        """Return what enters the first block."""
        config, x = self.config, self.embed[...][input_ids]
        x = x * jnp.asarray(config.embed_scale, x.dtype)
        if config.embed_width != config.d_model:
            x = self.project_in(x)
        if config.token_types:
            x = x + self.token_types[...][0]
        if config.positions == "learned":
            x = x + self.positions[...][position + config.position_offset]
        return self.embed_norm(x) if config.embed_norm else x
