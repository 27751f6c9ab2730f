"""What ships is what its cards say: size, provenance, and how far below a bigram model it is."""

import hashlib
from typing import Any

import numpy as np
import pytest

from saejax import artifacts
from saejax.demo import MODELS, shipped
from saejax.models.train import mean_loss
from saejax.models.weights import load_weights
from saejax.pretraining.rows import bigram_loss, held_batches, packed_rows
from saejax.text.corpus import CorpusConfig, corpus_record
from saejax.text.tokens import Tokenizer

SHIPPED = sorted(path.parent.name for path in shipped("seed0").parent.glob("*/manifest.json"))
FEW_ROWS = 128


def config_of(name: str) -> dict[str, Any]:
    return {"heldout_source": None} | artifacts.read_finished(shipped(name), "language_model")["config"]


def facts_of(name: str) -> dict[str, Any]:
    return artifacts.read_finished(shipped(name), "language_model")["facts"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_and_described(name: str) -> None:
    folder, facts = shipped(name), facts_of(name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 8_000_000
    assert f"{facts['heldout_loss']:.3f}" in (folder / "README.md").read_text()
    if facts["tokens"] >= 20_000_000:
        assert facts["bigram_loss"] - facts["heldout_loss"] >= 0.4
    if not facts["tokens"]:
        assert abs(facts["heldout_loss"] - np.log(4096)) < 0.1


@pytest.mark.parametrize("name", SHIPPED)
def test_transformers_loads_a_shipped_model(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(shipped(name))("To be, or not to be", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(shipped(name), dtype=torch.float32)(ids).logits
    assert logits.shape == (*ids.shape, 4096)
    assert bool(torch.isfinite(logits).all())


def test_the_shipped_models_read_the_shipped_corpus_in_one_order_with_one_tokenizer() -> None:
    manifests = [artifacts.read_finished(shipped(name), "language_model") for name in MODELS]
    configs = [{**manifest["config"], "seeds": None} for manifest in manifests]
    assert configs[0] == configs[1]
    assert [manifest["config"]["seeds"] for manifest in manifests] == [[0], [1]]
    record = corpus_record(CorpusConfig(split="train"))
    for manifest in manifests:
        told = manifest["inputs"]["corpus"]
        assert {name: record[name] for name in told} == told
    hashes = {hashlib.sha256((shipped(name) / "tokenizer.json").read_bytes()).hexdigest() for name in SHIPPED}
    assert len(hashes) == 1


@pytest.mark.slow
def test_the_cards_losses_are_those_of_the_files() -> None:
    """Of one model on all rows that the card speaks of; of others by how far from it they are on some of the rows.

    Rows are as hard for one model as for another, so the difference on 128 rows is that on 1,024 within 0.1 nats. A
    model that knows other text finds others hard, and reads all.
    """
    tokenizer = Tokenizer.load(shipped("seed0"))
    train_rows, held_rows = (
        packed_rows(CorpusConfig(split=split), tokenizer, context=256, data_seed=0) for split in ("train", "heldout")
    )
    baseline = bigram_loss(train_rows, held_rows, tokenizer.vocab_size)
    first = load_weights(shipped("seed0"))
    np.testing.assert_allclose(facts_of("seed0")["bigram_loss"], baseline, atol=1e-3)
    whole = mean_loss(first, held_batches(held_rows, 16))
    np.testing.assert_allclose(facts_of("seed0")["heldout_loss"], whole, atol=5e-3)
    assert baseline - whole >= 0.4
    few = held_batches(held_rows, 16, FEW_ROWS)
    base = mean_loss(first, few)
    for name in SHIPPED:
        model, card = load_weights(shipped(name)), facts_of(name)["heldout_loss"]
        if config_of(name)["heldout_source"]:
            np.testing.assert_allclose(card, mean_loss(model, held_batches(held_rows, 16)), atol=5e-3, err_msg=name)
        else:
            np.testing.assert_allclose(card - whole, mean_loss(model, few) - base, atol=0.1, err_msg=name)
