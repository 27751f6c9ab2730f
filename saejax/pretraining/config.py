"""What `saejax lm train` is asked."""

import dataclasses
import math
from pathlib import Path
from typing import get_args

import numpy as np

from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.families import family_of, read_config, size_fields
from saejax.models.schedule import Decay, Schedule
from saejax.models.sharding import model_mesh
from saejax.models.train import Hardware, Precision, step_bytes
from saejax.text.corpus import CorpusConfig

NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """What `saejax lm train` makes: one model per seed, in `<out>/seed<n>`, and a page about all of them."""

    out: Path
    """Directory for the tokenizer, one folder per seed, and report.html."""
    corpus: CorpusConfig = CorpusConfig()
    """Text to train on; its train split is used."""
    heldout_source: str | None = None
    """Source of the text whose whole held-out split the reported loss is of; that of the corpus when not given."""
    tokenizer: Path | None = None
    """Folder of an existing tokenizer; without it a BPE tokenizer is trained on the corpus."""
    vocab_size: int = 4096
    """Size of the trained tokenizer's vocabulary, in tokens."""
    family: str = "llama"
    """Architecture, as `config.json` names it: gpt2, opt, gpt_neox, llama, mistral, qwen2, qwen3, gemma, gemma2, ..."""
    d_model: int = 256
    """Width of the residual stream."""
    n_layers: int = 1
    """Number of blocks."""
    n_heads: int = 4
    """Attention heads per block."""
    d_mlp: int = 1024
    """Width of the MLP's hidden layer."""
    context: int = 256
    """Length of a packed row, in tokens."""
    batch: int = 16
    """Packed rows in one step."""
    tokens: int = 20_000_000
    """Tokens to train on; more than the corpus holds means further epochs in another order. 0 leaves the weights as
    they are drawn: a control."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 200
    """Steps over which the learning rate grows from 0."""
    decay: Decay = "cosine"
    """How it falls to a tenth: "cosine" from the warm-up on, or "wsd", which stays at the peak before it decays."""
    decay_share: float = 0.2
    """Share of the steps over which "wsd" decays; the last ones."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices."""
    precision: Precision = "float32"
    """Type of the inputs of matrix products; with "bfloat16" weights, moments, norms and loss are float32 still."""
    seeds: tuple[int, ...] = (0,)
    """Root seeds of the initial weights; one model each."""
    data_seed: int = 0
    """Seed of the order of the rows, shared by all models."""
    snapshots: int = 4
    """Number of intermediate models to keep, at log-spaced steps."""
    memory_gib: float | None = None
    """Memory per device, in GiB, in which several seeds train at once: as many as fit, at least one. In turn when not
    given, which is faster on CPUs; an accelerator is idle for most of a small model's step unless several share it."""
    data: int = 1
    """Devices over which the rows of a batch are spread: 1, or all there are."""

    def __post_init__(self) -> None:
        """Refuse sizes that no run can have."""
        least = {"vocab_size": 1, "context": 2, "batch": 1, "tokens": 0, "snapshots": 0, "data": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} {getattr(self, name)} must be at least {smallest}")
        family_of({"model_type": self.family}, "family")
        if self.d_model % self.n_heads:
            raise InputError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds {self.seeds} must be distinct, and at least one")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision {self.precision!r} must be one of {', '.join(get_args(Precision))}")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise InputError(f"memory_gib {self.memory_gib} must be positive; leave it out to train seeds in turn")
        if self.batch % self.data:
            raise InputError(f"batch {self.batch} must be a multiple of the {self.data} devices of data")
        if self.tokens:
            self.schedule()

    @property
    def steps(self) -> int:
        """Optimiser steps: as many as hold `tokens`."""
        return math.ceil(self.tokens / (self.batch * self.context))

    def schedule(self) -> Schedule:
        """Return the optimiser's schedule.

        Raises:
            InputError: there is none in so few steps.
        """
        return Schedule(self.steps, self.warmup_steps, self.learning_rate, self.weight_decay,
                        decay=self.decay, decay_share=self.decay_share)  # fmt: skip

    def snapshot_steps(self) -> tuple[int, ...]:
        """Return the steps after which a model is kept: log-spaced between the warm-up's length and the end."""
        if not self.steps:
            return ()
        marks = np.geomspace(max(self.warmup_steps, 1), self.steps, self.snapshots + 1)[:-1]
        return tuple(sorted({round(mark) for mark in marks}))

    def transformer(self, vocab_size: int) -> TransformerConfig:
        """Return the architecture for a tokenizer of `vocab_size` tokens."""
        family = family_of({"model_type": self.family}, "family")
        sizes = {"vocab_size": vocab_size, "d_model": self.d_model, "n_layers": self.n_layers,
                 "n_heads": self.n_heads, "d_mlp": self.d_mlp, "max_positions": self.context}  # fmt: skip
        heads = {"n_kv_heads": self.n_heads, "d_head": self.d_model // self.n_heads}
        sizes |= {name: size for name, size in heads.items() if name in family.sizes}
        config = read_config(family, size_fields(family, sizes))
        if not config.causal:
            raise InputError(
                f"family {self.family} sees later tokens, so it cannot learn to predict them; name another"
            )
        return dataclasses.replace(config, norm_eps=NORM_EPS, tie_embeddings=True, attn_scale=None)

    def hardware(self) -> Hardware:
        """Return how steps are computed.

        Raises:
            InputError: `data` is neither 1 nor the number of devices.
        """
        return Hardware(self.precision, model_mesh(self.data, 1) if self.data > 1 else None)

    def model_bytes(self, vocab_size: int) -> int:
        """Bound what one model takes on each device while it is trained, in bytes."""
        return step_bytes(self.transformer(vocab_size), (self.batch // self.data, self.context))

    def groups(self, vocab_size: int) -> list[tuple[int, ...]]:
        """Return the seeds that train together, in turn: as many at once as `memory_gib` holds."""
        room = 1 if self.memory_gib is None else int(self.memory_gib * 2**30 // self.model_bytes(vocab_size))
        at_once = max(room, 1)
        return [self.seeds[start : start + at_once] for start in range(0, len(self.seeds), at_once)]
