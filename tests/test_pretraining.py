import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from saejax import artifacts
from saejax.errors import InputError
from saejax.models import load, weights
from saejax.models.families import FAMILIES
from saejax.models.train import TokenBatch
from saejax.models.transformer import Transformer
from saejax.pretraining import PackedRows, PretrainConfig, pretrain
from saejax.text.corpus import CorpusConfig
from saejax.text.tokens import Tokenizer

WORDS = "the cat sat on a mat and the dog ran to the red house by the old river".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    lines = [{"id": f"d{i}", "text": " ".join(rng.choice(WORDS, 40))} for i in range(300)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(corpus: Path, out: Path, **changes: object) -> PretrainConfig:
    small = PretrainConfig(
        out=out, corpus=CorpusConfig(str(corpus)), vocab_size=280, d_model=16, n_heads=2, d_mlp=32, context=32,
        batch=8, tokens=8 * 32 * 40, warmup_steps=5, learning_rate=1e-2, seeds=(0, 1), snapshots=2,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pretrain(config(corpus, tmp_path_factory.mktemp("lm") / "out"))


def test_seeds_share_everything_but_their_weights(made: list[Path]) -> None:
    first, second = made
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    ours, theirs = (np.asarray(load(path).run(np.arange(5)[None]).logits) for path in made)
    assert not np.allclose(ours, theirs)
    facts = [artifacts.read_finished(path, "language_model")["facts"] for path in made]
    assert facts[0]["bigram_loss"] == facts[1]["bigram_loss"]


def test_a_trained_model_has_learned_its_corpus(made: list[Path]) -> None:
    for path in made:
        facts = artifacts.read_finished(path, "language_model")["facts"]
        assert facts["heldout_loss"] < np.log(280) - 1
        assert f"{facts['heldout_loss']:.3f}" in (path / "README.md").read_text()


@pytest.mark.parametrize("family", [name for name in FAMILIES if "bert" not in name])
def test_a_model_of_any_family_is_one_of_transformers(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shape = PretrainConfig(out=tmp_path, family=family, d_model=32, n_heads=2, n_layers=2, d_mlp=40, context=32)
    model = Transformer(shape.transformer(50), nnx.Rngs(params=0))
    weights.save(tmp_path, model, family=FAMILIES[family], bos_id=0, eos_id=1, dtype="float32")
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path), np.arange(32)[None]
    assert type(theirs).__name__ == FAMILIES[family].architecture
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(load(tmp_path).run(ids).logits, expected, atol=1e-4 * np.abs(expected).max())
    assert (model.config.n_layers, model.config.d_mlp, model.config.max_positions) == (2, 40, 32)


def test_families_that_learn_no_prediction_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^family: model_type mamba is not supported; supported are gpt2, opt"):
        PretrainConfig(out=tmp_path, family="mamba")
    with pytest.raises(InputError, match="^family bert sees later tokens, so it cannot learn to predict them"):
        PretrainConfig(out=tmp_path, family="bert").transformer(50)


def test_transformers_loads_model_and_tokenizer_and_agrees(made: list[Path]) -> None:
    torch = pytest.importorskip("torch", reason="the parity check needs the extra `test`")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "the red cat ran by the house"
    ids = Tokenizer.load(made[0]).encode([text])[0][0]
    assert AutoTokenizer.from_pretrained(made[0])(text)["input_ids"] == ids.tolist()
    theirs = AutoModelForCausalLM.from_pretrained(made[0], dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids[None].astype(np.int64))).logits.numpy()
    ours = np.asarray(load(made[0]).run(ids[None]).logits)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_intermediate_models_are_kept_and_differ(made: list[Path]) -> None:
    kept = sorted((made[0] / "snapshots").iterdir())
    assert [path.name for path in kept] == ["step000005", "step000014"]
    early, late = (np.asarray(load(path).run(np.arange(5)[None]).logits) for path in (kept[0], made[0]))
    assert not np.allclose(early, late)


def test_a_complete_run_is_left_alone_and_another_config_refused(made: list[Path], corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for folder in made for path in folder.rglob("*") if path.is_file()}
    assert pretrain(config(corpus, made[0].parent)) == made
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(InputError, match=r"learning_rate 0\.01 there, 0\.02 now"):
        pretrain(config(corpus, made[0].parent, learning_rate=0.02))


def test_an_epoch_takes_every_row_once_and_the_next_in_another_order() -> None:
    ids = np.arange(10, dtype=np.int32)[:, None]
    rows = PackedRows(TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids)), data_seed=3)
    seen = np.concatenate([rows.batch_at(step, 4).input_ids[:, 0] for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 30, "n_heads": 4}, "d_model 30"),
        ({"seeds": ()}, r"seeds \(\)"),
        ({"seeds": (1, 1)}, "distinct"),
        ({"tokens": 0}, "tokens 0"),
        ({"warmup_steps": 40}, "warmup_steps 40"),
        ({"snapshots": -1}, "snapshots -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict, message: str, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(InputError, match=message):
        config(corpus, tmp_path, **changes)


def test_the_initial_weights_depend_on_the_seed_alone(corpus: Path, tmp_path: Path) -> None:
    from flax import nnx

    from saejax.models.transformer import Transformer
    from saejax.rng import named_key

    shape = config(corpus, tmp_path).transformer(280)
    first, again, other = (
        jax.tree.leaves(nnx.state(Transformer(shape, nnx.Rngs(params=named_key(seed, "pretraining.init")))))
        for seed in (0, 0, 1)
    )
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.ptp(one) == 0 or not np.allclose(one, different)
