"""What ships is what its cards say: size, provenance, and how far below a bigram model it is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from saejax import artifacts, pretraining
from saejax.demo import MODELS, shipped
from saejax.models.train import mean_loss
from saejax.models.weights import load_weights
from saejax.pretraining import PretrainConfig
from saejax.text.corpus import CorpusConfig, corpus_record
from saejax.text.tokens import Tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_small_and_described(name: str) -> None:
    folder = shipped(name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 8_000_000
    facts = artifacts.read_finished(folder, "language_model")["facts"]
    assert facts["tokens"] >= 20_000_000
    assert facts["bigram_loss"] - facts["heldout_loss"] >= 0.4
    assert f"{facts['heldout_loss']:.3f}" in (folder / "README.md").read_text()


def test_the_shipped_models_read_the_shipped_corpus_in_one_order_with_one_tokenizer() -> None:
    manifests = [artifacts.read_finished(shipped(name), "language_model") for name in MODELS]
    configs = [{**manifest["config"], "seeds": None} for manifest in manifests]
    assert configs[0] == configs[1]
    assert [manifest["config"]["seeds"] for manifest in manifests] == [[0], [1]]
    for manifest in manifests:
        assert manifest["inputs"]["corpus"] == corpus_record(CorpusConfig(split="train"))
    hashes = {hashlib.sha256((shipped(name) / "tokenizer.json").read_bytes()).hexdigest() for name in MODELS}
    assert len(hashes) == 1


@pytest.mark.slow
def test_the_cards_losses_are_those_of_the_files(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(shipped("seed0"))
    config = PretrainConfig(out=tmp_path)
    train_rows = pretraining._packed(CorpusConfig(split="train"), tokenizer, config)
    held_rows = pretraining._packed(CorpusConfig(split="heldout"), tokenizer, config)
    baseline = pretraining._bigram_loss(train_rows, held_rows, tokenizer.vocab_size)
    for name in MODELS:
        facts = artifacts.read_finished(shipped(name), "language_model")["facts"]
        loss = mean_loss(load_weights(shipped(name)), pretraining._held_batches(held_rows, config.batch))
        np.testing.assert_allclose(facts["bigram_loss"], baseline, atol=1e-3)
        np.testing.assert_allclose(facts["heldout_loss"], loss, atol=5e-3)
        assert baseline - loss >= 0.4
