"""SAEs that train together are those that train alone, and their table says what they came to."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import planted
import pytest

from saejax import artifacts, cli, sae
from saejax.activations.source import StoredRows
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.sae import train as room
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import train, train_together
from saejax.sweep import SweepConfig, plan, sweep

SEEDS, KS = (0, 3), (2, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SAETrainConfig:
    x = planted.activations(3000, planted.atoms(16, 32), active=3)
    store = planted.store_of(x, tmp_path_factory.mktemp("stores") / "store")
    return SAETrainConfig(
        store=store.path, hook=planted.HOOK, out=tmp_path_factory.mktemp("runs") / "sweep", d_sae=48, k=4, steps=120,
        batch=100, learning_rate=3e-3, warmup_steps=10, decay_steps=20, dead_window=2000, initial_rows=500,
        checkpoint_every=40,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(base: SAETrainConfig) -> tuple[SweepConfig, list[str]]:
    config = SweepConfig(base, seeds=SEEDS, ks=KS)
    return config, sweep(config)


def test_each_is_the_one_trained_alone_to_the_bit(swept: tuple[SweepConfig, list[str]], tmp_path: Path) -> None:
    config, _ = swept
    assert list(config.members()) == ["k2_seed0", "k2_seed3", "k4_seed0", "k4_seed3"]
    for name, member in config.members().items():
        alone = train(dataclasses.replace(member, out=tmp_path / name))
        for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
            assert (member.out / file).read_bytes() == (alone / file).read_bytes(), (name, file)
        assert artifacts.run_fingerprint(member.out) == artifacts.run_fingerprint(alone)
    weights = [np.asarray(sae.load(member.out).W_dec) for member in config.members().values()]
    assert not any(np.array_equal(weights[0], other) for other in weights[1:])


def test_they_share_a_normalisation_and_its_sample(base: SAETrainConfig, tmp_path: Path) -> None:
    whitened = dataclasses.replace(base, normalise="zca", steps=40, out=tmp_path / "sweep")
    config = SweepConfig(whitened, seeds=SEEDS)
    sweep(config)
    for name, member in config.members().items():
        alone = train(dataclasses.replace(member, out=tmp_path / name))
        for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
            assert (member.out / file).read_bytes() == (alone / file).read_bytes(), (name, file)
    ours, theirs = (sae.load(member.out) for member in config.members().values())
    np.testing.assert_array_equal(ours.normalisation.basis, theirs.normalisation.basis)
    assert not np.array_equal(ours.W_dec, theirs.W_dec)


def test_weights_of_l1_are_varied_too_and_thin_the_codes(base: SAETrainConfig, tmp_path: Path) -> None:
    config = SweepConfig(
        dataclasses.replace(base, k=32, steps=200, out=tmp_path / "sweep"), l1_coefficients=(0.05, 0.5, 2.0)
    )
    sweep(config)
    names = ["l1_coefficient0.05", "l1_coefficient0.5", "l1_coefficient2"]
    assert list(config.members()) == names
    alone = train(dataclasses.replace(config.members()[names[1]], out=tmp_path / "alone"))
    for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
        assert (tmp_path / "sweep" / names[1] / file).read_bytes() == (alone / file).read_bytes(), file
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["l1_coefficient"]) for row in rows] == [0.05, 0.5, 2.0]
    l0, fvu = ([float(row[name]) for row in rows] for name in ("l0", "fvu"))
    assert l0 == sorted(l0, reverse=True)
    assert fvu == sorted(fvu)
    assert l0[-1] < 0.7 * l0[0]
    health = artifacts.read_json(alone / "health.json")
    codes = np.asarray(sae.load(alone).encode(Store.open(base.store).read(base.hook, 1, 3000)))
    capped = {line["metric"]: line["value"] for line in health}["capped"]
    assert float(rows[1]["capped"]) == capped == pytest.approx(((codes > 0).sum(axis=1) == 32).mean(), abs=2e-3)
    assert "k 32, L1 0.5" in (tmp_path / "sweep" / "sweep.html").read_text()


def test_names_tell_apart_what_is_varied(base: SAETrainConfig) -> None:
    config = SweepConfig(base, seeds=(20240101, 20240102), learning_rates=(1e-3, 1.0000001e-3, 1.0))
    members = config.members()
    assert len(members) == 6
    assert list(members)[:2] == ["learning_rate0.001_seed20240101", "learning_rate0.001_seed20240102"]
    assert list(members)[-1] == "learning_rate1_seed20240102"
    assert len({member.out for member in members.values()}) == 6


def test_an_sae_that_diverges_leaves_the_others_training(
    base: SAETrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SweepConfig(dataclasses.replace(base, out=tmp_path / "sweep"), learning_rates=(1e6, 3e-3))
    alone = train(dataclasses.replace(base, out=tmp_path / "alone"))
    for _ in range(2):
        printed = sweep(config)
        assert "train into another out, learning_rate below 1000000.0" in caplog.text
        caplog.clear()
        for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
            assert (tmp_path / "sweep" / "learning_rate0.003" / file).read_bytes() == (alone / file).read_bytes(), file
        assert artifacts.read_manifest(tmp_path / "sweep" / "learning_rate1000000")["status"] == "running"
        with (tmp_path / "sweep" / "sweep.csv").open() as file:
            diverged, sound = csv.DictReader(file)
        assert (diverged["fvu"], diverged["l0"]) == ("", "")
        assert float(sound["fvu"]) < 0.5
        assert printed[1].split()[5:] == ["none"] * 4
    with pytest.raises(InputError, match="learning_rate below 1000000.0"):
        sweep(dataclasses.replace(config, learning_rates=(1e6,)))


def broken_off(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Break off the first stream of training at step 90, and return the steps from which streams then begin."""
    reader, starts = StoredRows.batches, []

    def cut_short(self, start_step=0, *part):
        if part:  # initial samples are taken of whole batches
            starts.append(start_step)
        for step, x in enumerate(reader(self, start_step, *part), start_step):
            if step == 90 and starts == [0]:
                raise KeyboardInterrupt
            yield x

    monkeypatch.setattr(StoredRows, "batches", cut_short)
    return starts


def test_a_sweep_that_goes_on_with_one_more_loses_nothing_that_was_saved(
    swept: tuple[SweepConfig, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, _ = swept
    shared, starts = dataclasses.replace(straight.train, out=tmp_path / "sweep"), broken_off(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepConfig(shared, seeds=SEEDS[1:]))
    sweep(SweepConfig(shared, seeds=SEEDS))
    assert starts == [0, 0, 80]
    for seed in SEEDS:
        ours, theirs = tmp_path / "sweep" / f"seed{seed}", straight.train.out / f"k4_seed{seed}"
        assert (ours / "sae.safetensors").read_bytes() == (theirs / "sae.safetensors").read_bytes()


def test_the_table_says_what_was_varied_and_what_came_of_it(swept: tuple[SweepConfig, list[str]]) -> None:
    config, printed = swept
    with (config.train.out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], int(row["k"]), int(row["seed"])) for row in rows] == [
        (f"k{k}_seed{seed}", k, seed) for k in KS for seed in SEEDS
    ]
    for row in rows:
        health = json.loads((config.train.out / row["name"] / "health.json").read_text())
        assert float(row["fvu"]) == {line["metric"]: line["value"] for line in health}["fvu"]
    assert max(float(row["fvu"]) for row in rows[2:]) < min(float(row["fvu"]) for row in rows[:2])
    assert printed[0].split() == [
        "name",
        "k",
        "l1_coefficient",
        "learning_rate",
        "seed",
        "fvu",
        "l0",
        "capped",
        "dead_rate",
    ]
    assert len(printed) == 6
    page = Path(printed[-1]).read_text()
    assert all(row["name"] in page for row in rows)
    assert "L0 against FVU" in page


def test_an_interrupted_sweep_goes_on_where_all_of_them_were_saved(
    swept: tuple[SweepConfig, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a checkpoint more than the other: killed between the two saves."""
    straight, _ = swept
    config = SweepConfig(dataclasses.replace(straight.train, out=tmp_path / "sweep"), seeds=SEEDS)
    starts = broken_off(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    with room.open_checkpoints(tmp_path / "sweep" / "seed3" / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps == [40, 80]
        checkpoints.drop_after(40)
    sweep(config)
    assert starts == [0, 40]
    for seed in SEEDS:
        ours, theirs = tmp_path / "sweep" / f"seed{seed}", straight.train.out / f"k4_seed{seed}"
        for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), (seed, file)


def test_a_complete_sweep_is_found_complete_from_the_command_line(
    swept: tuple[SweepConfig, list[str]], capsys: pytest.CaptureFixture
) -> None:
    config, printed = swept
    given = config.train
    names = ("store", "hook", "out", "d_sae", "k", "steps", "batch", "learning_rate", "warmup_steps", "decay_steps")
    names += ("dead_window", "initial_rows", "checkpoint_every")
    words = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]
    cli.main(["sweep", *words, "--seeds", *map(str, SEEDS), "--ks", *map(str, KS)])
    assert capsys.readouterr().out.splitlines() == printed


def test_one_named_twice_is_refused(base: SAETrainConfig) -> None:
    with pytest.raises(InputError, match="seeds 1, 1 names one twice; name each once"):
        SweepConfig(base, seeds=(1, 1))


def test_saes_that_do_not_share_a_stream_are_refused(base: SAETrainConfig, tmp_path: Path) -> None:
    others = [dataclasses.replace(base, out=tmp_path / "a"), dataclasses.replace(base, out=tmp_path / "b", batch=50)]
    with pytest.raises(InputError, match="train together have one batch, not"):
        train_together(others)
    assert not (tmp_path / "a").exists()


def test_a_plan_counts_all_of_them(base: SAETrainConfig) -> None:
    one, four = plan(SweepConfig(base)), plan(SweepConfig(base, seeds=SEEDS, ks=KS))
    assert (one["SAEs"], four["SAEs"]) == (1, 4)
    assert four["bytes on disk"] == 4 * one["bytes on disk"]
