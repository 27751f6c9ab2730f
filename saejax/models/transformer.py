"""One transformer for every family: a config of it is a family's model, and hook points read and edit its inside.

Parameters are stacked by layer. Neighbouring layers that show the same hook points run under one `scan`, so compile
time does not grow with depth; a forward pass stops after the last hook asked for. A token sees the tokens of its own
segment (document) only, so packed rows need no padding.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.models.attention import Surroundings, attend, rotate
from saejax.models.config import MODEL_HOOKS, TransformerConfig

Hidden: TypeAlias = Float[Array, "batch position d_model"]
Edit: TypeAlias = Callable[[Float[Array, "batch position width"], Bool[Array, "batch position"]], jax.Array]
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
        product = x @ self.kernel[...]
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
        bent = ACTIVATIONS[self.config.activation]
        return bent(self.w_gate(x)) * self.w_up(x) if self.config.gated else bent(self.w_up(x))


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
        """Return the scores of the vocabulary, from where `hidden` ends.

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
        return scores if cap is None else cap * jnp.tanh(scores / cap)

    def hidden(
        self,
        input_ids: Int[Array, "batch position"],
        segment: Int[Array, "batch position"],
        position: Int[Array, "batch position"],
        hooks: tuple[str, ...] = (),
        edits: Mapping[str, Edit] | None = None,
        edited: Bool[Array, "batch position"] | None = None,
        stop: str = "final_norm",
    ) -> tuple[Hidden, dict[str, jax.Array]]:
        """Run the model up to one hook point, show others on the way and change what edits are of.

        Args:
            input_ids: token ids.
            segment: document number within the row, 0 for padding; a token attends within its segment only.
            position: position of each token.
            hooks: hook points to show, as they are after their edit.
            edits: by hook point, what takes its activation and the edited positions, and gives another activation.
            edited: those positions; all tokens when None.
            stop: the last hook point that is needed; blocks after its block do not run. `final_norm` is
                the whole model, of families without one too.

        Returns:
            The residual stream where the pass stopped (normalised if that is after a final norm), and the
            activations by hook.
        """
        edits, found, edited = edits or {}, dict[str, jax.Array](), segment > 0 if edited is None else edited

        def tap(hook: str, value: jax.Array) -> jax.Array:
            if hook in edits:
                value = edits[hook](value, edited).astype(value.dtype)
            if hook in hooks:
                found[hook] = value
            return value

        x = tap("embed", self._embedded(input_ids, position))
        around = Surroundings.of(segment, position, self.config)
        graph, weights = nnx.split(self.blocks)
        windowed = jnp.array(self.config.has_window)
        last = {"embed": 0, "final_norm": self.config.n_layers}.get(stop)
        last = int(stop.rpartition(".")[2]) + 1 if last is None else last

        def block(weights: nnx.State, layer: Int[Array, ""] | int, x: Hidden, tap: Tap) -> Hidden:
            return nnx.merge(graph, weights)(x, around, windowed[layer], tap)

        for layers, shown in runs(hooks, frozenset(edits), last):
            if len(layers) == 1:
                at = layers[0]
                x = block(_of_layer(weights, at), at, x, lambda name, value, at=at: tap(f"{name}.{at}", value))
            else:
                x, seen = _scan(block, weights, layers, shown, x)
                found |= seen
        if self.config.final_norm and stop == "final_norm":
            x = tap("final_norm", self.final_norm(x))
        return x, found

    def _embedded(self, input_ids: Int[Array, "batch position"], position: Int[Array, "batch position"]) -> Hidden:
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


def _of_layer(weights: nnx.State, layer: Int[Array, ""] | int) -> nnx.State:
    return jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False), weights)


def _scan(
    block: Callable[[nnx.State, Int[Array, ""], Hidden, Tap], Hidden], weights: nnx.State, layers: list[int],
    shown: frozenset[str], x: Hidden,
) -> tuple[Hidden, dict[str, jax.Array]]:  # fmt: skip
    """Run neighbouring layers under one loop, and return what they show by hook point."""
    # A slice of the stack would be copied. All of it is not, and then its gradient is not summed over the layers.
    every = len(layers) == len(jax.tree.leaves(weights)[0])

    def step(x: Hidden, given: tuple[Int[Array, ""], nnx.State | None]) -> tuple[Hidden, dict[str, jax.Array]]:
        layer, own = given
        seen: dict[str, jax.Array] = {}

        def tap(name: str, value: jax.Array) -> jax.Array:
            if name in shown:
                seen[name] = value
            return value

        return block(_of_layer(weights, layer) if own is None else own, layer, x, tap), seen

    x, stacked = jax.lax.scan(step, x, (jnp.array(layers), weights if every else None))
    places = list(enumerate(layers))
    return x, {f"{name}.{layer}": stack[at] for name, stack in stacked.items() for at, layer in places}


def runs(hooks: tuple[str, ...], edited: frozenset[str], last: int) -> list[tuple[list[int], frozenset[str]]]:
    """Return the first `last` layers in runs of neighbours that show the same hook points and have no edit.

    A layer with an edit is a run of its own, and so is the last, of which only what is needed is computed.

    Args:
        hooks: hook points that are shown.
        edited: hook points that are edited.
        last: number of layers.

    Returns:
        The layers of each run, and the bare names of the hook points that all of them show.
    """
    bare: dict[int, set[str]] = {layer: set() for layer in range(last)}
    for hook in hooks:
        name, _, layer = hook.partition(".")
        if name not in MODEL_HOOKS:
            bare[int(layer)].add(name)
    alone = {int(hook.partition(".")[2]) for hook in edited if hook not in MODEL_HOOKS}
    keys = [(layer if layer in alone or (layer == last - 1 and bare[layer]) else -1, frozenset(bare[layer]))
            for layer in range(last)]  # fmt: skip
    grouped = itertools.groupby(range(last), key=keys.__getitem__)
    return [(list(layers), shown) for (_, shown), layers in grouped]
