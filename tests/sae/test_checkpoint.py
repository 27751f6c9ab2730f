import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from saejax.errors import InputError
from saejax.sae.checkpoint import open_checkpoints, saved_steps
from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig, shapes
from saejax.sae.state import Recipe, TrainState, initial_state, workspace
from saejax.sae.step import train_step

SHAPE = SAEConfig(d_model=16, d_sae=48, k=4)
RECIPE = Recipe(30, 3e-3, 5, 10, 8, 48, 1 / 32, dead_window=500, precision="float32", impl="jax")


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    return list(planted.activations(3000, planted.atoms(16, 32), active=3).reshape(30, 100, 16))


def started(batches: list[np.ndarray]) -> TrainState:
    key = jax.random.key(5)
    sae = initial_sae(SHAPE, np.concatenate(batches), key)
    sae = dataclasses.replace(sae, b_enc=sae.b_enc.at[:6].set(-1e3))  # six latents die: AuxK and counters work
    return initial_state(sae, RECIPE, key)


def trained(state: TrainState, batches: list[np.ndarray]) -> TrainState:
    space = workspace(state, len(batches[0]), "jax")
    for x in batches:
        state, space, _ = train_step(state, space, x, RECIPE)
    return state


def assert_same_bits(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (ours.dtype, np.asarray(ours).tobytes()) == (theirs.dtype, np.asarray(theirs).tobytes())


def test_a_resumed_run_is_the_undisturbed_run_to_the_bit(batches, tmp_path):
    """17 steps, a checkpoint, 13 steps from what the disk holds: every array equals 30 steps straight."""
    straight = trained(started(batches), batches)
    half = trained(started(batches), batches[:17])
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(half, 1.0, 0.5)
    of_recipe = jax.eval_shape(lambda sae, key: initial_state(sae, RECIPE, key), shapes(SHAPE), jax.random.key(0))
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(of_recipe)
    assert restored is not None
    assert_same_bits(restored, half)
    assert int(restored.step) == 17
    np.testing.assert_array_equal(restored.key, jax.random.key_data(jax.random.key(5)))
    assert int(np.max(restored.silent)) == RECIPE.dead_window, "nobody is dead: nothing is proved about AuxK"
    assert_same_bits(trained(restored, batches[17:]), straight)


def like(state: TrainState) -> TrainState:
    return jax.eval_shape(lambda: state)


def test_the_last_are_kept_and_the_best_and_the_latest_is_restored(batches, tmp_path):
    state = started(batches)
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(like(state)) is None
        assert checkpoints.best is None
        for x, fvu in zip(batches, [0.5, 0.2, 0.4, 0.3, 0.6], strict=False):
            state = trained(state, [x])
            checkpoints.save(state, fvu, 0.2)
            checkpoints.save(state, fvu, 0.2)
        checkpoints.manager.wait_until_finished()
        assert checkpoints.manager.all_steps() == [2, 4, 5]
        assert checkpoints.best == 2
        restored = checkpoints.restore(like(state))
    assert restored is not None
    assert_same_bits(restored, state)


def test_what_is_written_in_the_background_is_not_what_later_steps_make_of_it(batches, tmp_path):
    """Steps overwrite the state in place while its checkpoint is still being written."""
    state = trained(started(batches), batches[:5])
    expected = jax.tree.map(np.array, state)
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, 1.0, 0.5)
        trained(state, batches[5:])
        restored = checkpoints.restore(jax.eval_shape(lambda: expected))
    assert restored is not None
    assert_same_bits(restored, expected)


@pytest.mark.parametrize("harm", ["a bit is flipped", "metrics are cut short", "metrics are gone"])
def test_a_checkpoint_of_which_a_file_is_damaged_is_named(batches, tmp_path, harm):
    """Of what is altered Orbax says nothing."""
    state = trained(started(batches), batches[:1])
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, 1.0, 0.5)
    metrics, arrays = tmp_path / "1" / "metrics" / "metrics", (tmp_path / "1" / "default").rglob("*")
    if harm == "metrics are gone":
        metrics.unlink()
    elif harm == "metrics are cut short":
        metrics.write_bytes(metrics.read_bytes()[:10])
    else:
        file = max((path for path in arrays if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 8
        file.write_bytes(content)
    message = f"checkpoint {tmp_path}/1 cannot be read .*; delete it to go on from the one before"
    with pytest.raises(InputError, match=message), open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.restore(like(state))


def test_arrays_that_are_lost_and_a_full_disk_are_named_and_earlier_checkpoints_stay(tmp_path):
    script = Path(__file__).with_name("lost_checkpoints.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    for harm in ("cut short", "gone"):
        message = f"checkpoint {tmp_path}/{harm}/0 cannot be read (.*); delete it to go on from the one before"
        assert re.fullmatch(message, report[harm], re.DOTALL)
    assert re.fullmatch(f"{tmp_path}/whole cannot be written: .*; free space and run the command again", report["full"])
    assert report["stays"]


def test_what_is_left_of_one_that_was_being_deleted_does_not_matter(batches, tmp_path):
    state = started(batches)
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for x in batches[:3]:
            state = trained(state, [x])
            checkpoints.save(state, 1.0, 0.5)
    (tmp_path / "2" / "metrics" / "metrics").unlink()
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(like(state))
        assert restored is not None
        assert_same_bits(restored, state)
        for x in batches[3:6]:
            state = trained(state, [x])
            checkpoints.save(state, 0.9, 0.5)
    assert saved_steps(tmp_path)[-2:] == [5, 6]


def test_what_an_interrupted_save_left_is_not_mistaken_for_a_checkpoint(batches, tmp_path):
    state = trained(started(batches), batches[:1])
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, 1.0, 0.5)
    cut_short = tmp_path / "2.orbax-checkpoint-tmp"
    cut_short.mkdir()
    (cut_short / "part").write_bytes(b"half")
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(like(state))
    assert restored is not None
    assert int(restored.step) == 1
    assert jnp.isfinite(restored.sae.W_dec).all()
