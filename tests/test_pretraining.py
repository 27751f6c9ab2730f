import dataclasses
import html
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from saejax import artifacts, cli
from saejax.errors import InputError
from saejax.models import load, weights
from saejax.models.families import FAMILIES
from saejax.models.train import TokenBatch, mean_loss
from saejax.models.transformer import Transformer
from saejax.pretraining import PretrainConfig, plan, pretrain
from saejax.pretraining.card import command
from saejax.pretraining.rows import PackedRows, held_batches, packed_rows
from saejax.rng import named_key
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
        ({"tokens": -1}, "tokens -1"),
        ({"memory_gib": 0.0}, r"memory_gib 0\.0 must be positive"),
        ({"data": 3}, "batch 8 must be a multiple of the 3 devices"),
        ({"decay": "wsd", "decay_share": 1.0}, "exceed the 40 steps"),
        ({"warmup_steps": 40}, "warmup_steps 40"),
        ({"snapshots": -1}, "snapshots -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict, message: str, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(InputError, match=message):
        config(corpus, tmp_path, **changes)


def test_the_initial_weights_depend_on_the_seed_alone(corpus: Path, tmp_path: Path) -> None:
    shape = config(corpus, tmp_path).transformer(280)
    first, again, other = (
        jax.tree.leaves(nnx.state(Transformer(shape, nnx.Rngs(params=named_key(seed, "pretraining.init")))))
        for seed in (0, 0, 1)
    )
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.ptp(one) == 0 or not np.allclose(one, different)


def test_as_many_seeds_train_at_once_as_memory_holds(corpus: Path, tmp_path: Path) -> None:
    asked = config(corpus, tmp_path, seeds=(5, 6, 7))
    each = asked.model_bytes(280)
    assert asked.groups(280) == [(5,), (6,), (7,)]
    for room, groups in ((0.5, [(5,), (6,), (7,)]), (2.5, [(5, 6), (7,)]), (9.0, [(5, 6, 7)])):
        assert dataclasses.replace(asked, memory_gib=room * each / 2**30).groups(280) == groups
    planned = plan(dataclasses.replace(asked, memory_gib=2.5 * each / 2**30))
    assert planned["models"].endswith("parameters, 2 at once")
    assert "per model at once" in planned["memory"]


def test_seeds_at_once_are_the_seeds_in_turn(made: list[Path], corpus: Path, tmp_path: Path) -> None:
    together = pretrain(config(corpus, tmp_path / "lm", memory_gib=1.0))
    for ours, theirs in zip(together, made, strict=True):
        facts = [artifacts.read_finished(path, "language_model")["facts"] for path in (ours, theirs)]
        assert abs(facts[0]["heldout_loss"] - facts[1]["heldout_loss"]) <= 2e-4
        curves = [[line["loss"] for line in artifacts.read_metrics(path)] for path in (ours, theirs)]
        np.testing.assert_allclose(*curves, rtol=1e-4)


def test_the_report_shows_every_model_and_opens_without_a_network(made: list[Path]) -> None:
    page = (made[0].parent / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=|url\(", own)
    figures = [json.loads(text.replace("&#34;", '"')) for text in re.findall(r"data-figure='(.*?)'", own)]
    for figure, key in zip(figures, ("loss", "heldout_loss"), strict=True):
        assert [trace["name"] for trace in figure["data"]] == ["seed0", "seed1"]
        for trace, path in zip(figure["data"], made, strict=True):
            kept = [*sorted((path / "snapshots").iterdir()), path]
            points = [artifacts.read_finished(each, "language_model")["facts"] for each in kept]
            points = artifacts.read_metrics(path) if key == "loss" else points
            assert [trace["x"], trace["y"]] == [[p["tokens"] for p in points], [p[key] for p in points]]
    for path in made:
        facts = artifacts.read_finished(path, "language_model")["facts"]
        assert f"{facts['heldout_loss']:.4f}" in own
        for text in artifacts.read_json(path / "samples.json")["samples"]:
            assert text["continuation"]
            assert html.escape(text["prompt"].split()[0]) in own


def test_a_snapshot_says_when_it_was_kept_and_how_good_it_was(made: list[Path], corpus: Path) -> None:
    (early, late), tokenizer = sorted((made[0] / "snapshots").iterdir()), Tokenizer.load(made[0])
    held = held_batches(packed_rows(CorpusConfig(str(corpus), split="heldout"), tokenizer, 32, 0), 8)
    losses = []
    for path, step in ((early, 5), (late, 14)):
        facts = artifacts.read_finished(path, "language_model")["facts"]
        assert (facts["step"], facts["tokens"]) == (step, step * 8 * 32)
        assert f"seed 0, after {step} of 40 steps" in (path / "README.md").read_text()
        np.testing.assert_allclose(facts["heldout_loss"], mean_loss(weights.load_weights(path), held), atol=5e-3)
        losses.append(facts["heldout_loss"])
    assert losses[0] > losses[1] > artifacts.read_finished(made[0], "language_model")["facts"]["heldout_loss"]


def test_a_control_has_the_weights_that_were_drawn(made: list[Path], corpus: Path, tmp_path: Path) -> None:
    (control,) = pretrain(config(corpus, tmp_path / "lm", tokens=0, seeds=(7,), tokenizer=made[0]))
    facts = artifacts.read_finished(control, "language_model")["facts"]
    assert abs(facts["heldout_loss"] - np.log(280)) < 0.1
    assert "seed 7, untrained" in (control / "README.md").read_text()
    drawn = Transformer(config(corpus, tmp_path).transformer(280), nnx.Rngs(params=named_key(7, "pretraining.init")))
    for ours, theirs in zip(
        *(jax.tree.leaves(nnx.state(m)) for m in (weights.load_weights(control), drawn)), strict=True
    ):
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype("bfloat16").astype("float32"))


def test_a_card_holds_the_command_that_makes_the_model_again(tmp_path: Path) -> None:
    part = CorpusConfig("my stories.txt", parts=2, part=2)
    asked = PretrainConfig(out=tmp_path, corpus=part, seeds=(2, 3), n_layers=2, decay="wsd", memory_gib=1.5)
    words = shlex.split(command(asked))
    assert words[:5] == ["saejax", "lm", "train", "--out", "OUT"]
    parsed, _ = cli.parse(PretrainConfig, words[3:], "saejax lm train", plannable=True)
    assert dataclasses.replace(parsed, out=tmp_path) == asked
