"""Trains the models of a config, each in a run directory that transformers can load."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from saejax import artifacts
from saejax.models import weights
from saejax.models.families import family_of
from saejax.models.sample import sample
from saejax.models.train import TokenBatch, mean_loss, step_seconds, train
from saejax.models.transformer import Transformer
from saejax.pretraining.card import model_card
from saejax.pretraining.config import PretrainConfig
from saejax.pretraining.rows import PackedRows, bigram_loss, held_batches, packed_rows, prompts
from saejax.progress import progress
from saejax.report.language_models import draw
from saejax.rng import named_key
from saejax.text.corpus import CorpusConfig, corpus_record, read_documents
from saejax.text.tokens import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, save_tokenizer, train_bpe

KIND = "language_model"
SAMPLES, PROMPT, CONTINUATION, TEMPERATURE = 4, 16, 64, 0.8
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Material:
    """What all models of a config share.

    Attributes:
        tokenizer: the tokenizer.
        folder: where its files lie.
        train: packed training rows.
        held: batches of held-out rows.
        prompts: what samples go on from, held-out text, `[prompt, token]`.
        bigram_loss: loss of a bigram model on the held-out rows, in nats per token.
    """

    tokenizer: Tokenizer
    folder: Path
    train: PackedRows
    held: list[TokenBatch]
    prompts: np.ndarray
    bigram_loss: float


def pretrain(config: PretrainConfig) -> list[Path]:
    """Train the models of a config, each in a run directory that transformers can load.

    Args:
        config: corpus, architecture, schedule and seeds.

    Returns:
        One model folder per seed: weights, tokenizer, model card, manifest, metrics, samples of text and intermediate
        models. `<out>/report.html` shows all of them.

    Raises:
        InputError: the corpus or tokenizer cannot be read, there are not so many devices, or a folder holds another
            run.
    """
    config.hardware()
    corpus = dataclasses.replace(config.corpus, split="train")
    record = corpus_record(corpus)
    runs = {seed: _begin(config.out / f"seed{seed}", config, seed, record) for seed in config.seeds}
    if not all(run.complete for run in runs.values()):
        material = _material(config, corpus)
        for group in config.groups(material.tokenizer.vocab_size):
            left = {seed: runs[seed] for seed in group if not runs[seed].complete}
            if left:
                _train(config, left, material, record)
    folders = [run.path for run in runs.values()]
    LOG.info("loss curves and samples: %s", draw(folders, config.out / "report.html"))
    return folders


def plan(config: PretrainConfig) -> dict[str, str]:
    """Return what a pretraining would cost, from a few timed steps on made-up tokens; nothing is written.

    Args:
        config: the run that is planned.

    Returns:
        Steps, tokens, parameters, minutes and memory, in words.
    """
    groups = config.groups(config.vocab_size)
    models = [Transformer(config.transformer(config.vocab_size), nnx.Rngs(seed)) for seed in groups[0]]
    parameters, steps, seconds = _parameters(models[0]), config.steps, 0.0
    if steps:
        seconds = step_seconds(models, config.schedule(), (config.batch, config.context), config.hardware())
    bound = config.model_bytes(config.vocab_size)
    return {
        "models": f"{len(config.seeds)} of {parameters:,} parameters, {len(groups[0])} at once",
        "steps": f"{steps:,} of {config.batch} rows of {config.context} tokens",
        "tokens": f"{steps * config.batch * config.context:,} per model",
        "minutes": f"{len(groups) * steps * seconds / 60:.1f} at {seconds * 1000:.0f} ms a step",
        "memory": f"{len(groups[0]) * bound / 2**30:.2f} GiB ({bound / 2**30:.2f} per model at once) and 12 bytes per "
                  "token of the corpus",
        "disk": f"{(1 + config.snapshots) * 2 * parameters / 2**20:.0f} MiB per model",
    }  # fmt: skip


def _begin(path: Path, config: PretrainConfig, seed: int, record: dict[str, Any]) -> artifacts.Run:
    return artifacts.begin(path, KIND, dataclasses.replace(config, seeds=(seed,)), {"corpus": record})


def _material(config: PretrainConfig, corpus: CorpusConfig) -> Material:
    folder = config.tokenizer or _trained_tokenizer(config)
    tokenizer = Tokenizer.load(folder)
    source = config.heldout_source or corpus.source
    heldout = dataclasses.replace(corpus, source=source, split="heldout", part=1, parts=1)
    rows, held = (packed_rows(each, tokenizer, config.context, config.data_seed) for each in (corpus, heldout))
    return Material(
        tokenizer, folder, rows, held_batches(held, config.batch),
        prompts(held, SAMPLES, min(PROMPT, config.context // 2)), bigram_loss(rows, held, tokenizer.vocab_size),
    )  # fmt: skip


def _train(config: PretrainConfig, runs: dict[int, artifacts.Run], material: Material, record: dict[str, Any]) -> None:
    """Train some seeds at once."""
    architecture, seeds = config.transformer(material.tokenizer.vocab_size), list(runs)
    models = [Transformer(architecture, nnx.Rngs(params=named_key(seed, "pretraining.init"))) for seed in seeds]

    def snapshot(place: int, step: int, trained: Transformer) -> None:
        path = runs[seeds[place]].path / "snapshots" / f"step{step:06d}"
        _keep(config, seeds[place], _begin(path, config, seeds[place], record), material, step, trained)

    if config.tokens:
        models = train(
            models, lambda step: material.train.batch_at(step, config.batch), config.schedule(),
            runs=list(runs.values()), snapshot=snapshot, snapshot_steps=config.snapshot_steps(),
            hardware=config.hardware(),
        )  # fmt: skip
    for (seed, run), model in zip(runs.items(), models, strict=True):
        _keep(config, seed, run, material, config.steps, model)


def _keep(
    config: PretrainConfig, seed: int, run: artifacts.Run, material: Material, step: int, model: Transformer
) -> None:
    """Write a model, what it says and how good it is."""
    tokenizer, family = material.tokenizer, family_of({"model_type": config.family}, "family")
    # On one device from here on: a file is no place for shards.
    graph, state = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(state, jax.local_devices()[0]))
    weights.save(run.path, model, family=family, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        artifacts.write_bytes(run.path / name, (material.folder / name).read_bytes())
    artifacts.write_json(run.path / "samples.json", _samples(config, seed, material, model))
    facts = {
        "parameters": _parameters(model),
        "step": step,
        "tokens": step * config.batch * config.context,
        "corpus_tokens": len(material.train) * config.context,
        "heldout_loss": round(mean_loss(model, material.held), 4),
        "bigram_loss": round(material.bigram_loss, 4),
    }
    artifacts.write_bytes(run.path / "README.md", model_card(config, seed, facts).encode())
    run.finish(**facts)


def _samples(config: PretrainConfig, seed: int, material: Material, model: Transformer) -> dict[str, Any]:
    begin, decode = material.prompts.shape[1], material.tokenizer.decode
    new = min(CONTINUATION, config.context - begin)
    key = named_key(seed, "pretraining.samples")
    texts = np.asarray(sample(model, material.prompts, key, new=new, temperature=TEMPERATURE))
    pairs = [{"prompt": decode(text[:begin]), "continuation": decode(text[begin:])} for text in texts]
    return {"temperature": TEMPERATURE, "samples": pairs}


def _parameters(model: Transformer) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))


def _trained_tokenizer(config: PretrainConfig) -> Path:
    folder = config.out / "tokenizer"
    if not (folder / TOKENIZER_CONFIG_FILE).exists():
        folder.mkdir(exist_ok=True)
        documents = read_documents(dataclasses.replace(config.corpus, split="train"))
        with progress("training a tokenizer", None):
            save_tokenizer(train_bpe((document.text for document in documents), config.vocab_size), folder)
    return folder
