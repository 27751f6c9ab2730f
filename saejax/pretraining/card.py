"""The model card: what a model is, the command that makes it again, and how good it is."""

import dataclasses
import shlex
from typing import Any

from saejax.pretraining.config import PretrainConfig
from saejax.text.corpus import CorpusConfig

DECAYS = {"cosine": "cosine decay", "wsd": "a constant rate before an exponential decay (WSD)"}


def model_card(config: PretrainConfig, seed: int, facts: dict[str, Any]) -> str:
    """Write what a model is, how it was made and how good it is, in Markdown.

    Args:
        config: of the run that made it.
        seed: of its initial weights.
        facts: what the run's manifest says of it.
    """
    products = "" if config.precision == "float32" else f", products in {config.precision},"
    of = f" of `{config.heldout_source}`" if config.heldout_source else ""
    made = "trained" if config.tokens else "drawn"
    phase, blocks = _phase(config, facts), f"{config.n_layers} block{'s' if config.n_layers > 1 else ''}"
    return (
        f"# A {config.n_layers}-layer language model, seed {seed}{phase}\n\n"
        f"Architecture {config.family}: {blocks}, d_model {config.d_model}, {config.n_heads} heads, "
        f"MLP of {config.d_mlp}, {facts['parameters']:,} parameters, {made} in float32{products} and stored in "
        "bfloat16. Made to study features, not to write.\n\n"
        f"- {_training(config, facts)}\n"
        f"- Loss on held-out documents{of}: {facts['heldout_loss']:.3f} nats per token; an interpolated "
        f"absolute-discounting bigram model fitted on the training tokens reaches {facts['bigram_loss']:.3f}.\n"
        f"- Made by\n\n```sh\n{command(dataclasses.replace(config, seeds=(seed,)))}\n```\n"
    )


def command(config: PretrainConfig) -> str:
    """Return the command line of a config, `--out` left to be named; options at their defaults are left out."""
    return f"saejax lm train --out OUT {' '.join(_options(config))}".strip()


def _phase(config: PretrainConfig, facts: dict[str, Any]) -> str:
    if not config.tokens:
        return ", untrained"
    return "" if facts["step"] == config.steps else f", after {facts['step']:,} of {config.steps:,} steps"


def _training(config: PretrainConfig, facts: dict[str, Any]) -> str:
    if not config.tokens:
        return "A control: its weights are as they were drawn, and have seen no text."
    part = f"part {config.corpus.part} of {config.corpus.parts} of the " if config.corpus.parts > 1 else "the "
    snapshot = "" if facts["step"] == config.steps else f"Kept as `snapshots/step{facts['step']:06d}` of a longer run. "
    return (
        f"{snapshot}Trained by `saejax lm train` on {facts['tokens']:,} tokens ({part}train split of corpus "
        f"`{config.corpus.source}` holds {facts['corpus_tokens']:,}), context {config.context}, AdamW with peak rate "
        f"{config.learning_rate} and {DECAYS[config.decay]}, data order {config.data_seed}. `manifest.json` holds the "
        "configuration."
    )


def _options(config: PretrainConfig | CorpusConfig, prefix: str = "") -> list[str]:
    words = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if isinstance(value, CorpusConfig):
            words += _options(value, f"{name}.")
        elif field.name != "out" and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *(shlex.quote(str(each)) for each in values)]
    return words
