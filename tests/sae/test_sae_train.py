import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import planted
import pytest

from saejax import artifacts, sae
from saejax.activations.filters import RowFilter
from saejax.activations.source import StoredRows
from saejax.errors import InputError, Preempted
from saejax.sae import fit as fit_room
from saejax.sae import train as room
from saejax.sae.checkpoint import open_checkpoints
from saejax.sae.config import SAETrainConfig
from saejax.sae.fit import Member, fit
from saejax.sae.placement import AHEAD
from saejax.sae.train import plan, train

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
    assert facts["sae"] == {"d_model": 16, "d_sae": 48, "k": 4, "activation": "topk"}
    lines = artifacts.read_metrics(finished)
    assert [line["step"] for line in lines] == [50, 100, 120]
    assert set(lines[0]) == {"step", "fvu", "aux", "l0", "dead", "learning_rate"}
    health = {row["metric"]: row for row in json.loads((finished / "health.json").read_text())}
    kept = int(store.kept.sum())
    assert facts["rows"] == kept
    assert artifacts.read_manifest(finished)["execution"]["impl"] == "jax", "which kernels ran is not recorded"
    assert facts["documents_per_batch"] == facts["documents_per_batch_if_shuffled"] == 1, "the store has one document"
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


def test_how_often_a_run_logs_and_saves_changes_nothing(finished, store, tmp_path, monkeypatch):
    """In dictionary_learning logging moved the dead counters and the threshold."""
    monkeypatch.setattr(fit_room, "LOG_EVERY", 7)
    config = config_of(store, tmp_path / "sae", checkpoint_every=11)
    train(config)
    assert (config.out / "sae.safetensors").read_bytes() == (finished / "sae.safetensors").read_bytes()
    assert [line["step"] for line in artifacts.read_metrics(config.out)] == [*range(7, 120, 7), 120]


def test_an_approximate_search_logs_its_recall_and_finds_all_where_it_is_exact(finished, store, tmp_path):
    out = train(config_of(store, tmp_path / "sae", recall=0.9))
    assert [line["recall"] for line in artifacts.read_metrics(out)] == [1.0] * 3
    np.testing.assert_allclose(sae.load(out).W_dec, sae.load(finished).W_dec, atol=1e-3)


def test_a_deterministic_run_is_the_same_on_a_device_where_all_are(finished, store, tmp_path, monkeypatch):
    """And it does take the other step."""
    taken, original = [], fit_room.repeatable_step
    monkeypatch.setattr(fit_room, "repeatable_step", lambda *args: taken.append(1) or original(*args))
    out = train(config_of(store, tmp_path / "sae", deterministic=True))
    assert (out / "sae.safetensors").read_bytes() == (finished / "sae.safetensors").read_bytes()
    assert len(taken) == 120


def test_another_configuration_is_refused(finished, store):
    with pytest.raises(InputError, match="holds another run .k 4 there, 5 now."):
        train(config_of(store, finished, k=5))


@pytest.mark.parametrize("killed_at", [20, 110])
def test_a_killed_run_goes_on_to_the_same_result_to_the_bit(finished, store, tmp_path, monkeypatch, killed_at):
    """Killed before the first checkpoint, and behind a line of the log that the last checkpoint does not know."""
    reader, starts = StoredRows.batches, []

    def cut_short(self, start_step=0, *part):
        for step, x in enumerate(reader(self, start_step, *part), start_step):
            if step == killed_at:
                raise KeyboardInterrupt
            yield x

    config = config_of(store, tmp_path / "sae")
    with monkeypatch.context() as patch:
        patch.setattr(StoredRows, "batches", cut_short)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert artifacts.read_manifest(config.out)["status"] == "running"
    monkeypatch.setattr(StoredRows, "batches", lambda self, *a: starts.append(a) or reader(self, *a))
    assert train(config) == config.out
    assert starts[-1][0] == killed_at // 40 * 40
    for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
        assert (config.out / file).read_bytes() == (finished / file).read_bytes(), file
    assert artifacts.run_fingerprint(config.out) == artifacts.run_fingerprint(finished)


@pytest.mark.parametrize("kind", ["none", "layer_norm", "standardise", "zca"])
def test_a_killed_run_of_any_normalisation_goes_on_to_the_same_result_to_the_bit(store, tmp_path, monkeypatch, kind):
    short = {"normalise": kind, "steps": 40, "checkpoint_every": 15}
    straight = train(config_of(store, tmp_path / "straight", **short))
    config, reader = config_of(store, tmp_path / "killed", **short), StoredRows.batches
    with monkeypatch.context() as patch:
        patch.setattr(
            StoredRows, "batches", lambda self, *start: (x for x in itertools.islice(reader(self, *start), 35))
        )
        with pytest.raises(ValueError, match="ended after step 35 of 40"):
            train(config)
    assert train(config) == config.out
    for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
        assert (config.out / file).read_bytes() == (straight / file).read_bytes(), file
    facts = artifacts.read_finished(straight, "sae")["facts"]
    assert facts["normalisation"] == sae.load(straight).normalisation.kind == kind
    health = {row["metric"]: row for row in json.loads((straight / "health.json").read_text())}
    x, loaded = store.gather(planted.HOOK, store.kept_rows()), sae.load(straight)
    error = np.float64(x) - np.asarray(loaded.decode(loaded.encode(x), like=x), np.float64)
    expected = np.sum(error**2) / np.sum((np.float64(x) - np.float64(x).mean(axis=0)) ** 2)
    assert health["fvu"]["value"] == pytest.approx(expected, rel=1e-4)
    assert expected < 0.9


def test_special_tokens_take_no_part(finished, store):
    """They lie at 1000 in every dimension: one of them in the sample would have blown up the scale."""
    loaded = sae.load(finished)
    x = store.gather(planted.HOOK, store.kept_rows()).astype(np.float64) * float(loaded.normalisation.scale)
    rms = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    assert rms == pytest.approx(np.sqrt(16), rel=0.05)


def test_rows_that_are_left_out_take_no_part(store, tmp_path):
    """The first thousand rows alone are as good as a store of them."""
    config = config_of(store, tmp_path / "sae", rows=RowFilter(last_position=999))
    facts = artifacts.read_finished(train(config), "sae")["facts"]
    assert facts["rows"] == int(store.kept[:1000].sum())
    health = {row["metric"]: row for row in json.loads((config.out / "health.json").read_text())}
    x = store.read(planted.HOOK, 0, 1000)[store.kept[:1000]].astype(np.float64)
    loaded = sae.load(config.out)
    error = x - np.asarray(loaded.decode(loaded.encode(x.astype(np.float32))), np.float64)
    expected = np.sum(error**2) / np.sum((x - x.mean(axis=0)) ** 2)
    assert health["fvu"]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_plan_writes_nothing(store, tmp_path):
    planned = plan(config_of(store, tmp_path / "sae"))
    assert "deterministic" not in planned
    repeatable = plan(config_of(store, tmp_path / "sae", deterministic=True))
    assert re.fullmatch(r"\d+\.\d\d times as long as without", repeatable["deterministic"])
    assert not (tmp_path / "sae").exists()
    kept = int(store.kept.sum())
    assert planned["rows per epoch"] == kept
    assert planned["epochs"] == round(120 * 100 / kept, 2)
    assert planned["bytes of parameters"] == 4 * (2 * 16 * 48 + 48 + 16 + 1)
    assert planned["bytes of parameters and optimiser"] >= 3 * planned["bytes of parameters"]


def fitted(config: SAETrainConfig, store, batches, folder) -> list[dict]:
    """Fit made-up batches of 100 rows, and return what was logged."""
    recipe, lines = config.recipe(16), []
    state = room._initial(config, recipe, room.source(config), None)
    with open_checkpoints(folder, keep=2) as checkpoints:
        member = Member(state, recipe, lambda **line: lines.append(line), checkpoints)
        fit([member], batches, batch=100, checkpoint_every=20)
    return lines


def test_batches_that_run_out_are_an_error(store, tmp_path):
    few = [np.ones((100, 16), np.float32)] * 3
    with pytest.raises(ValueError, match="ended after step 3 of 120"):
        fitted(config_of(store, tmp_path / "sae"), store, few, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_with_the_remedy(store, tmp_path):
    bad = [np.full((100, 16), np.nan, np.float32)] * 120
    with pytest.raises(InputError, match=r"FVU is nan at step 20; no checkpoint was saved yet; train .* below 0\.003"):
        fitted(config_of(store, tmp_path / "sae"), store, bad, tmp_path)


@pytest.mark.parametrize(("poison", "named"), [(np.nan, "nan"), (1e9, "inf|[0-9.e+]+")])
def test_a_run_that_diverges_names_its_last_good_checkpoint_and_saves_nothing_after_it(store, tmp_path, poison, named):
    """The batch after step 40 is poisoned: what is saved is of step 40 and before, and finite."""
    good = planted.activations(4500, planted.atoms(16, 32), active=3).reshape(45, 100, 16)
    batches = [*good[:40], np.full((100, 16), poison, np.float32), *[good[40]] * 79]
    with pytest.raises(InputError, match=f"FVU is ({named}) at step [0-9]+; the last good checkpoint is 40; train"):
        fitted(config_of(store, tmp_path / "sae"), store, batches, tmp_path)
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.manager.all_steps() == [20, 40]


def test_a_state_that_is_not_finite_is_not_saved_though_its_loss_was(store, tmp_path):
    """Weights break in the update; the loss that is known then is from before it."""
    config = config_of(store, tmp_path / "sae")
    recipe = config.recipe(16)
    state = room._initial(config, recipe, room.source(config), None)
    broken = dataclasses.replace(state.weights, b_enc=state.weights.b_enc.at[3].set(np.inf))
    with open_checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        member = Member(dataclasses.replace(state, weights=broken), recipe, print, checkpoints, [jnp.array(0.5)])
        with pytest.raises(InputError, match="FVU is nan at step 7; no checkpoint was saved yet; train into"):
            member.save(7)
        assert checkpoints.steps == []


def run_cli(config: SAETrainConfig, devices: int = 1) -> subprocess.Popen:
    """Start `saejax train` on some virtual devices."""
    words = ["store", "hook", "out", "d_sae", "k", "steps", "batch", "learning_rate", "warmup_steps", "decay_steps"]
    words += ["dead_window", "initial_rows", "checkpoint_every", "data", "latent"]
    options = [f"--{word.replace('_', '-')}={getattr(config, word)}" for word in words]
    command = [sys.executable, "-m", "saejax.cli", "train", *options]
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def until_step(config: SAETrainConfig, step: int, process: subprocess.Popen) -> None:
    """Wait until a running command has logged a step."""
    deadline = time.monotonic() + 200
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        if any(line["step"] >= step for line in artifacts.read_metrics(config.out)):
            return
    raise AssertionError(process.communicate()[1])


def test_sigterm_saves_and_ends_well_and_the_same_command_goes_on(store, tmp_path):
    long = {"steps": 20_000, "checkpoint_every": 100_000}
    config = config_of(store, tmp_path / "sae", **long)
    process = run_cli(config)
    until_step(config, 200, process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    saved = re.search(r"saejax: told to end; step (\d+) of 20000 is saved, and the same command goes on", told)
    assert saved, told
    with open_checkpoints(config.out / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.steps[-1] == int(saved[1]) >= 200
    assert artifacts.read_manifest(config.out)["status"] == "running"


def test_sigterm_ends_a_run_that_waits_for_a_batch(finished, store, tmp_path, monkeypatch):
    """A window of a live source may take longer than a scheduler waits."""
    config, reader = config_of(store, tmp_path / "sae"), StoredRows.batches

    def stuck(self, *start):
        for step, x in enumerate(reader(self, *start)):
            if step == 57:
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("it waited for the batch")
            yield x

    with monkeypatch.context() as patch:
        patch.setattr(StoredRows, "batches", stuck)
        with pytest.raises(Preempted, match=f"told to end; step {57 - AHEAD} of 120 is saved, and the same"):
            train(config)
    assert train(config) == config.out
    assert (config.out / "sae.safetensors").read_bytes() == (finished / "sae.safetensors").read_bytes()
    assert artifacts.read_metrics(config.out) == artifacts.read_metrics(finished)


def test_sigterm_ends_a_run_that_measures_or_has_not_begun(finished, store, tmp_path, monkeypatch):
    config = config_of(store, tmp_path / "sae")

    def told(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    for function, message in (("initial_sae", "before the first step"), ("measure", "was measured; it is trained")):
        with monkeypatch.context() as patch:
            patch.setattr(room, function, told)
            with pytest.raises(Preempted, match=message):
                train(config)
    assert artifacts.read_manifest(config.out)["status"] == "running"
    assert train(config) == config.out
    assert (config.out / "sae.safetensors").read_bytes() == (finished / "sae.safetensors").read_bytes()


def test_two_commands_do_not_train_one_run(store, tmp_path):
    config = config_of(store, tmp_path / "sae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "noticed", lambda: train(config))
        with pytest.raises(InputError, match=f"{config.out} is being written by another process"):
            train(config)


def test_a_run_that_explodes_before_its_first_line_is_stopped(store, tmp_path):
    """The FVU of the untrained SAE is what it is held against."""
    good = planted.activations(4500, planted.atoms(16, 32), active=3).reshape(45, 100, 16)
    with pytest.raises(InputError, match="FVU is [0-9.]+ at step 20; no checkpoint was saved yet"):
        fitted(config_of(store, tmp_path / "sae"), store, [*good[:5], *(100 * good[5:])], tmp_path)


def test_the_lowest_fvu_is_kept_with_a_checkpoint(finished):
    with open_checkpoints(finished / "checkpoints", keep=2) as checkpoints:
        found = checkpoints.lowest
    assert found == min(line["fvu"] for line in artifacts.read_metrics(finished) if line["step"] <= 120)


def test_a_process_without_a_device_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(room.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="data 1 x latent 1 leaves 1 of 2 processes without a device; raise them to"):
        room.step_mesh(1, 1)


def test_a_run_goes_on_on_another_number_of_devices_with_the_same_rows(finished, store, tmp_path):
    """On 2 x 2, then on 1 x 8, then on one: the curve is that of one device, but for the rounding of float32."""
    config = config_of(store, tmp_path / "sae")
    for steps, data, latent in ((50, 2, 2), (100, 1, 8)):
        process = run_cli(dataclasses.replace(config, data=data, latent=latent), devices=8)
        until_step(config, steps, process)
        process.kill()
        process.communicate()
        assert artifacts.read_manifest(config.out)["execution"]["latent"] == latent
    assert train(config) == config.out
    for ours, theirs in zip(artifacts.read_metrics(config.out), artifacts.read_metrics(finished), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    assert not np.array_equal(sae.load(config.out).W_dec, sae.load(finished).W_dec), "it ran on one device all along"


@pytest.mark.slow
def test_a_command_killed_at_any_moment_ends_as_an_undisturbed_one(store, tmp_path):
    """Killed at three random moments, most of them while a checkpoint is written in the background."""
    changes = {"steps": 600, "checkpoint_every": 15}
    straight = train(config_of(store, tmp_path / "straight", **changes))
    config, rng = config_of(store, tmp_path / "killed", **changes), np.random.default_rng(0)
    for target in sorted(rng.integers(1, 500, 3)):
        process = run_cli(config)
        until_step(config, int(target), process)
        process.kill()
        process.communicate()
    assert train(config) == config.out
    for file in ("sae.safetensors", "metrics.jsonl", "health.json"):
        assert (config.out / file).read_bytes() == (straight / file).read_bytes(), file
    assert artifacts.run_fingerprint(config.out) == artifacts.run_fingerprint(straight)


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
        ({"l1_coefficient": -1.0}, "l1_coefficient -1.0; give at least 0"),
        ({"l1_coefficient": math.inf}, "l1_coefficient inf; give a finite number"),
        ({"steps": 25}, "warmup_steps 10 + decay_steps 20 exceed steps 25; lower them or raise steps"),
        ({"batch": 90, "data": 4}, "batch 90 is no multiple of data 4; change one of them"),
        ({"latent": 5}, "d_sae 48 is no multiple of latent 5; change one of them"),
        ({"recall": 1.0}, "recall 1.0; give a share between 0 and 1, or leave it out to find all"),
        ({"recall": 0.9, "impl": "tpu"}, "recall is not for impl tpu, whose kernel finds all; leave one of them out"),
        ({"seed": 2**32}, "seed 4294967296; give at most 4294967295"),
        ({"data_seed": 2**63}, "data_seed 9223372036854775808; give at most 9223372036854775807"),
        ({"dead_window": 10**10}, "dead_window 10000000000; give at most 2147483547"),
        ({"batch": 0, "seed": -1}, "batch 0; give at least 1; seed -1; give at least 0"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(store, tmp_path, changes, message):
    with pytest.raises(InputError) as refusal:
        config_of(store, tmp_path / "sae", **changes)
    assert str(refusal.value) == message


def test_more_devices_than_there_are_is_refused_before_anything_is_written(store, tmp_path):
    for verb in (train, plan):
        with pytest.raises(InputError, match="data 4 x latent 2 needs 8 devices; there are 1"):
            verb(config_of(store, tmp_path / "sae", data=4, latent=2))
    assert not (tmp_path / "sae").exists()


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
        (
            config_of(store, out, normalise="zca", initial_rows=16),
            "zca needs more sampled rows than the 16 dimensions, and has 16; raise initial_rows",
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
