"""A run over two processes on loopback is the run of one, and ends in both when one is told to."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest

from saejax import artifacts, sae
from saejax.sae.checkpoint import open_checkpoints
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import train

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> SAETrainConfig:
    """Return the config of a finished run on one device, whose lanes are one for each of two processes."""
    x = planted.activations(3000, planted.atoms(16, 32), active=3)
    store = planted.store_of(x, tmp_path_factory.mktemp("stores") / "store")
    config = SAETrainConfig(
        store=store.path, hook=planted.HOOK, out=tmp_path_factory.mktemp("runs") / "sae", d_sae=48, k=4, steps=120,
        batch=100, learning_rate=3e-3, warmup_steps=10, decay_steps=20, dead_window=2000, initial_rows=500,
        checkpoint_every=40, lanes=2,
    )  # fmt: skip
    train(config)
    return config


def started(config: SAETrainConfig, data: int = 2, failing: int = -1) -> list[subprocess.Popen]:
    """Start both processes of two devices, rows spread over the two processes and latents over the devices of each, or
    latents over all; one of them may fail.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = (int, float, str, Path)
    fields: dict[str, Any] = {name: value for name, value in vars(config).items() if isinstance(value, plain)}
    given = json.dumps({**fields, "data": data, "latent": 4 // data}, default=str)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(process), given, str(failing)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """Wait for both, and return what they said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("data", [2, 1])
def test_two_processes_train_what_one_trains(alone: SAETrainConfig, tmp_path: Path, data: int) -> None:
    config = dataclasses.replace(alone, out=tmp_path / "sae")
    ended(started(config, data))
    ours, theirs = sae.load(config.out), sae.load(alone.out)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-3, err_msg=name)
    ours, theirs = artifacts.read_metrics(config.out), artifacts.read_metrics(alone.out)
    for line, of_one in zip(ours, theirs, strict=True):
        assert line == pytest.approx(of_one, rel=2e-3)
    health = [artifacts.read_json(out / "health.json") for out in (config.out, alone.out)]
    fvu = [{line["metric"]: line["value"] for line in table}["fvu"] for table in health]
    assert fvu[0] == pytest.approx(fvu[1], rel=2e-3)
    ours, theirs = (artifacts.read_finished(out, "sae")["facts"] for out in (config.out, alone.out))
    assert ours["measured_rows"] == theirs["measured_rows"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_process_fails_the_other_ends_too(alone: SAETrainConfig, tmp_path: Path, failing: int) -> None:
    processes = started(dataclasses.replace(alone, out=tmp_path / "sae"), failing=failing)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert ("saejax: its store is damaged", "RuntimeError: its store is damaged")[failing] in said[failing]
    assert processes[failing].returncode == (2, 1)[failing]
    assert processes[1 - failing].returncode != 0


@pytest.mark.slow
def test_sigterm_to_one_process_ends_both_after_the_same_step(alone: SAETrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(alone, out=tmp_path / "sae", steps=20_000, checkpoint_every=100_000)
    processes = started(config)
    deadline = time.monotonic() + 200
    while not any(line["step"] >= 100 for line in artifacts.read_metrics(config.out)):
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        assert all(process.poll() is None for process in processes), ended(processes)
    processes[1].send_signal(signal.SIGTERM)
    steps = {match[1] for said in ended(processes) for match in re.finditer(r"step (\d+) of 20000 is saved", said)}
    assert len(steps) == 1
    with open_checkpoints(config.out / "checkpoints", keep=2) as checkpoints:
        assert [str(checkpoints.steps[-1])] == list(steps)
