"""What a transformer is: its shape, and the choices in which families differ.

One stack runs all families, so a family is a set of values here. Fields that are no size have the value of Llama as
their default.
"""

import dataclasses
import math
from typing import Literal, get_args

from saejax.errors import InputError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Norm = Literal["rms", "layer"]
Residual = Literal["pre_norm", "post_norm", "parallel"]
Positions = Literal["rotary", "learned"]
Head = Literal["linear", "masked", "none"]
RopeScaling = Literal["none", "linear", "llama3"]

BLOCK_HOOKS = ("resid_pre", "attn_in", "attn_z", "attn_out_raw", "attn_out", "resid_mid", "mlp_in", "mlp_hidden",
               "mlp_out_raw", "mlp_out", "resid_post")  # fmt: skip
MODEL_HOOKS = ("embed", "final_norm")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., "RoFormer", 2021): the angle of entry i at position p is p theta^(-2 i / width).

    Attributes:
        theta: base of the angles.
        fraction: share of a head's entries that are turned; the first ones.
        scaling: how angles are stretched for longer texts: `linear` divides them by `factor`; `llama3` divides those
            that turn fewer than `low` times within `original` positions, leaves those that turn more than `high`
            times, and blends between.
        factor: by which angles are divided.
        low: turns below which an angle is divided; of `llama3`.
        high: turns above which it is left; of `llama3`.
        original: positions that the model was first trained on; of `llama3`.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def __post_init__(self) -> None:
        """Refuse angles that do not exist."""
        if self.scaling not in get_args(RopeScaling):
            raise InputError(f"rope scaling {self.scaling!r} must be one of {', '.join(get_args(RopeScaling))}")
        if not 0 < self.fraction <= 1:
            raise InputError(f"rope fraction {self.fraction} must lie above 0, at most 1")
        for name in ("theta", "factor", "original"):
            if getattr(self, name) <= 0:
                raise InputError(f"rope {name} {getattr(self, name)} must be positive")
        if self.scaling == "llama3" and not 0 < self.low < self.high:
            raise InputError(f"rope low {self.low} must lie above 0, below high {self.high}")

    def frequencies(self, d_head: int) -> tuple[float, ...]:
        """Return the angle per position of each pair of entries that is turned."""
        width = int(d_head * self.fraction)
        plain = [self.theta ** (-2 * i / width) for i in range(width // 2)]
        return tuple(self._stretched(frequency) for frequency in plain)

    def _stretched(self, frequency: float) -> float:
        if self.scaling == "none":
            return frequency
        if self.scaling == "linear":
            return frequency / self.factor
        turns = self.original * frequency / (2 * math.pi)
        kept = min(max((turns - self.low) / (self.high - self.low), 0.0), 1.0)
        return kept * frequency + (1 - kept) * frequency / self.factor


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
        max_positions: longest sequence that the model was made for, in tokens.
        d_embed: width of the embedding; a matrix takes it to `d_model`, and another back, where it is another.
        embed_scale: factor of the embedding.
        embed_norm: whether the embedding is normalised.
        token_types: rows of a table of token types, the first of which is added to every token; 0 is none.
        positions: whether positions turn queries and keys, or have a learned vector each.
        position_offset: row of the table of learned vectors that position 0 has.
        rope: the rotary angles.
        rope_local: those of blocks with a window; as `rope` when None.
        causal: whether a token sees no later ones.
        window: tokens that a token of a block with a window sees, itself counted.
        windowed: whether each block has that window; none has when empty.
        attn_scale: factor of the attention scores; 1 / sqrt(d_head) when None.
        attn_softcap: c of c tanh(score / c), which bounds the attention scores; no bound when None.
        attn_bias: whether queries, keys and values have biases.
        attn_out_bias: whether the attention's output has one.
        qk_norm: whether queries and keys are RMS-normalised, each head by itself.
        activation: the MLP's nonlinearity.
        gated: whether it multiplies a second product (SwiGLU and kin).
        mlp_bias: whether the MLP's matrices have biases.
        norm: kind of the norms; a layer norm has a bias.
        norm_eps: constant added to the mean square or variance in norms.
        norm_plus_one: whether norms multiply by 1 + scale instead of scale.
        residual: `pre_norm`: x + f(norm(x)), twice. `post_norm`: norm(x + f(x)), twice. `parallel`: x + attention of
            one norm + MLP of another, at once.
        output_norms: whether what attention and MLP write is normalised too.
        final_norm: whether a norm follows the last block.
        head: what makes logits: a matrix, a masked language model's dense layer, norm, matrix and bias, or nothing.
        tie_embeddings: whether the output matrix is the embedding's transpose.
        logit_softcap: c of c tanh(logit / c); no bound when None.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    max_positions: int = 2048
    d_embed: int | None = None
    embed_scale: float = 1.0
    embed_norm: bool = False
    token_types: int = 0
    positions: Positions = "rotary"
    position_offset: int = 0
    rope: Rope = Rope()
    rope_local: Rope | None = None
    causal: bool = True
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    attn_scale: float | None = None
    attn_softcap: float | None = None
    attn_bias: bool = False
    attn_out_bias: bool = False
    qk_norm: bool = False
    activation: Activation = "silu"
    gated: bool = True
    mlp_bias: bool = False
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_plus_one: bool = False
    residual: Residual = "pre_norm"
    output_norms: bool = False
    final_norm: bool = True
    head: Head = "linear"
    tie_embeddings: bool = True
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no model can be."""
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "max_positions"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} {getattr(self, name)} must be positive")
        for name in ("d_embed", "window", "attn_scale", "attn_softcap", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} {value} must be positive, or None")
        if self.norm_eps <= 0:
            raise InputError(f"norm_eps {self.norm_eps} must be positive")
        for name, kind in KINDS.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} {getattr(self, name)!r} must be one of {', '.join(get_args(kind))}")
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.windowed and (len(self.windowed) != self.n_layers or self.window is None):
            raise InputError(f"windowed names {len(self.windowed)} blocks of {self.n_layers}; give all, and a window")
        for rope in (self.rope, self.rope_local):
            turned = int(self.d_head * rope.fraction) if rope and self.positions == "rotary" else 2
            if turned % 2 or not turned:
                raise InputError(
                    f"d_head {self.d_head} turns {turned} entries, which must be even: angles come in pairs"
                )

    @property
    def has_window(self) -> tuple[bool, ...]:
        """Whether each block has a window."""
        return self.windowed or (False,) * self.n_layers

    @property
    def embed_width(self) -> int:
        """Width of the embedding."""
        return self.d_embed or self.d_model

    @property
    def block_hooks(self) -> tuple[str, ...]:
        """Hook points of a block, in the order in which a forward pass meets them.

        A block whose attention and MLP run in parallel has no `resid_mid`; `*_out_raw` is another thing than `*_out`
        only where outputs are normalised.
        """
        absent = {"resid_mid"} if self.residual == "parallel" else set()
        absent |= set() if self.output_norms else {"attn_out_raw", "mlp_out_raw"}
        return tuple(hook for hook in BLOCK_HOOKS if hook not in absent)

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points of the model, in the order in which a forward pass meets them."""
        inside = (f"{name}.{layer}" for layer in range(self.n_layers) for name in self.block_hooks)
        return ("embed", *inside, *(("final_norm",) if self.final_norm else ()))

    def hook_width(self, hook: str) -> int:
        """Return the number of entries that one token has at a hook point.

        Raises:
            InputError: the model has no such hook.
        """
        name = self.require_hooks((hook,))[0].partition(".")[0]
        return {"attn_z": self.n_heads * self.d_head, "mlp_hidden": self.d_mlp}.get(name, self.d_model)

    def require_hooks(self, hooks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the hooks as given.

        Raises:
            InputError: the model lacks one of them.
        """
        known = set(self.hooks)
        unknown = [hook for hook in hooks if hook not in known]
        if unknown:
            ends = " and ".join(hook for hook in MODEL_HOOKS if hook in known)
            raise InputError(
                f"hook {', '.join(unknown)} is not in this model; it has {ends}, and {', '.join(self.block_hooks)} "
                f"with .0 to .{self.n_layers - 1} behind"
            )
        return hooks


KINDS = {"positions": Positions, "activation": Activation, "norm": Norm, "residual": Residual, "head": Head}
