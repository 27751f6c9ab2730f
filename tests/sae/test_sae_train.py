import dataclasses
import json

import numpy as np
import planted
import pytest

from saejax import artifacts, sae
from saejax.errors import InputError
from saejax.sae import train as room
from saejax.sae.train import SAETrainConfig, fit, plan, train

ROWS = 3000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    x = planted.activations(ROWS, planted.atoms(16, 32), active=3)
    return planted.store_of(x, tmp_path_factory.mktemp("stores") / "store")


def config_of(store, out, **changes) -> SAETrainConfig:
    given = {
        "d_sae": 48, "k": 4, "steps": 120, "batch": 100, "learning_rate": 3e-3, "warmup_steps": 10, "decay_steps": 20,
        "dead_window": 2000, "initial_rows": 500, "checkpoint_every": 40,
    }  # fmt: skip
    return SAETrainConfig(store=store.path, hook=planted.HOOK, out=out, **{**given, **changes})


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sae"
    return train(config_of(store, out))


def test_a_run_leaves_an_sae_its_health_and_its_curve(finished, store):
    facts = artifacts.read_finished(finished, "sae")["facts"]
    assert facts["model_fingerprint"] == store.manifest["facts"]["model_fingerprint"]
    assert facts["sae"] == {"d_model": 16, "d_sae": 48, "k": 4}
    lines = artifacts.read_metrics(finished)
    assert [line["step"] for line in lines] == [50, 100, 120]
    assert set(lines[0]) == {"step", "fvu", "aux", "l0", "dead", "learning_rate"}
    health = {row["metric"]: row for row in json.loads((finished / "health.json").read_text())}
    kept = int(store.kept.sum())
    assert f"{kept:,} tokens" in health["dead_rate"]["unit"]
    x = store.gather(planted.HOOK, store.kept_rows()).astype(np.float64)
    loaded = sae.load(finished)
    error = x - np.asarray(loaded.decode(loaded.encode(x.astype(np.float32))), np.float64)
    expected = np.sum(error**2) / np.sum((x - x.mean(axis=0)) ** 2)
    assert health["fvu"]["value"] == pytest.approx(expected, rel=1e-4)
    assert expected < 0.5


def test_the_same_command_finds_a_complete_run_complete(finished, store):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert train(config_of(store, finished)) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_configuration_is_refused(finished, store):
    with pytest.raises(InputError, match="holds another run .k 4 there, 5 now."):
        train(config_of(store, finished, k=5))


@pytest.mark.parametrize("killed_at", [20, 110])
def test_a_killed_run_goes_on_to_the_same_result_to_the_bit(finished, store, tmp_path, monkeypatch, killed_at):
    """Killed before the first checkpoint, and behind a line of the log that the last checkpoint does not know."""
    reader = room.shuffled_batches

    def cut_short(store, hook, batch, seed, start_step=0):
        for step, x in enumerate(reader(store, hook, batch, seed, start_step), start_step):
            if step == killed_at:
                raise KeyboardInterrupt
            yield x

    config = config_of(store, tmp_path / "sae")
    with monkeypatch.context() as patch:
        patch.setattr(room, "shuffled_batches", cut_short)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert artifacts.read_manifest(config.out)["status"] == "running"
    starts = []
    monkeypatch.setattr(room, "shuffled_batches", lambda *a: starts.append(a[-1]) or reader(*a))
    assert train(config) == config.out
    assert starts[-1] == killed_at // 40 * 40
    for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
        assert (config.out / file).read_bytes() == (finished / file).read_bytes(), file
    assert artifacts.run_fingerprint(config.out) == artifacts.run_fingerprint(finished)


def test_special_tokens_take_no_part(finished, store):
    """They lie at 1000 in every dimension: one of them in the sample would have blown up the scale."""
    loaded = sae.load(finished)
    x = store.gather(planted.HOOK, store.kept_rows()).astype(np.float64) * float(loaded.scale)
    rms = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    assert rms == pytest.approx(np.sqrt(16), rel=0.05)


def test_a_plan_writes_nothing(store, tmp_path):
    planned = plan(config_of(store, tmp_path / "sae"))
    assert not (tmp_path / "sae").exists()
    kept = int(store.kept.sum())
    assert planned["rows per epoch"] == kept
    assert planned["epochs"] == round(120 * 100 / kept, 2)
    assert planned["bytes of parameters"] == 4 * (2 * 16 * 48 + 48 + 16 + 1)
    assert planned["bytes of parameters and optimiser"] >= 3 * planned["bytes of parameters"]


def test_batches_that_run_out_are_an_error(store, tmp_path):
    config = config_of(store, tmp_path / "sae")
    recipe = config.recipe(16)
    state = room._initial(config, recipe, store)
    few = [np.ones((100, 16), np.float32)] * 3
    with pytest.raises(ValueError, match="ended after step 3 of 120"):
        fit(state, recipe, few, batch=100, log=lambda **_: None, save=lambda _: None, checkpoint_every=1000)


def test_a_loss_that_is_no_number_ends_the_run_with_the_remedy(store, tmp_path):
    config = config_of(store, tmp_path / "sae")
    recipe = config.recipe(16)
    state = room._initial(config, recipe, store)
    bad = [np.full((100, 16), np.nan, np.float32)] * 120
    with pytest.raises(InputError, match=r"FVU is nan at step 50; lower learning_rate 0\.003"):
        fit(state, recipe, bad, batch=100, log=lambda **_: None, save=lambda _: None, checkpoint_every=1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 49}, "k 49 is larger than d_sae 48; lower k or raise d_sae"),
        ({"k": 0}, "k 0; give at least 1"),
        ({"steps": -5, "warmup_steps": 0, "decay_steps": 0}, "steps -5; give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate 0.0; give a positive number"),
        ({"aux_k": 100}, "aux_k 100 is larger than d_sae 48; lower aux_k or raise d_sae"),
        ({"aux_capacity": 4096}, "aux_capacity 4096; give at most 2048"),
        ({"aux_k": 9, "aux_capacity": 8}, "aux_k 9 is larger than aux_capacity 8; lower aux_k"),
        ({"aux_coefficient": float("nan")}, "aux_coefficient nan; give at least 0"),
        ({"steps": 25}, "warmup_steps 10 + decay_steps 20 exceed steps 25; lower them or raise steps"),
        ({"batch": 0, "seed": -1}, "batch 0; give at least 1; seed -1; give at least 0"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(store, tmp_path, changes, message):
    with pytest.raises(InputError) as refusal:
        config_of(store, tmp_path / "sae", **changes)
    assert str(refusal.value) == message


def test_what_the_store_cannot_give_is_refused_before_anything_is_written(store, tmp_path):
    out = tmp_path / "sae"
    for config, message in (
        (
            dataclasses.replace(config_of(store, out), hook="resid_post.7"),
            r"has no hook resid_post\.7, only resid_post\.0",
        ),
        (
            config_of(store, out, batch=ROWS),
            "batch 3000 is larger than the store's 2812 rows; lower it or extract more",
        ),
        (dataclasses.replace(config_of(store, out), store=tmp_path), r"holds no manifest\.json"),
    ):
        for verb in (train, plan):
            with pytest.raises(InputError, match=message):
                verb(config)
    assert not out.exists()


def test_defaults_follow_the_width_of_the_hook(store, tmp_path):
    recipe = config_of(store, tmp_path, learning_rate=None, d_sae=2**14, k=8).recipe(d_model=100)
    assert recipe.aux_k == 50
    assert recipe.learning_rate == pytest.approx(4e-4)
    assert config_of(store, tmp_path, aux_k=7).recipe(100).aux_k == 7
    assert config_of(store, tmp_path, d_sae=2**14, aux_capacity=30).recipe(100).aux_k == 30
