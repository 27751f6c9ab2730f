"""Extraction that is cut, shared out, or goes to a bucket ends in the same bytes as one that is left alone."""

import contextlib
import dataclasses
import os
import pickle
import random
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_extractions import HOOKS, made_config
from made_stores import files_of, manifest_without_times
from servers import S3Server

from saejax.activations.extract import ExtractConfig, extract
from saejax.activations.reader import shuffled_batches
from saejax.activations.store import Store
from saejax.activations.writer import committed_shards
from saejax.errors import InputError
from saejax.features.encode import EncodeConfig, encode
from saejax.features.sources import FeatureCodes
from saejax.models import LanguageModel
from saejax.sae import load
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import train
from saejax.storage import Folder

KILLS, SHARDS = 10, 13


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """An extraction of twelve shards and a shorter one that is done."""
    config = made_config(tmp_path_factory.mktemp("extract"))
    config = dataclasses.replace(config, context=8, batch=4, shard_tokens=32)
    extract(config)
    return config


def ended_the_same(config: ExtractConfig, made: ExtractConfig) -> None:
    assert files_of(config.out) == files_of(made.out)
    manifests = [manifest_without_times(place) for place in (config.out, made.out)]
    executions = [manifest.pop("execution") for manifest in manifests]
    assert manifests[0] == manifests[1]
    assert config.processes > 1 or executions[0] == executions[1]


@pytest.mark.slow
def test_an_extraction_killed_at_ten_random_moments_ends_the_same(made: ExtractConfig, tmp_path: Path) -> None:
    """Each process is killed by the system's timer, set by one of the first batches; the next finds what it left."""
    config = dataclasses.replace(made, out=tmp_path / "run")
    script = f"""
import os, pickle, signal, sys
from saejax.activations.extract import extract
from saejax.activations.writer import committed_shards
from saejax.models import LanguageModel
from saejax.storage import Folder
from transformers import LlamaConfig

config = pickle.loads(bytes.fromhex("{pickle.dumps(config).hex()}"))
original = LanguageModel.activations
for batch, seconds in zip(map(int, sys.argv[1::2]), map(float, sys.argv[2::2])):
    left = [batch]
    def timed(self, *args):
        left[0] -= 1
        if left[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, unhandled: the process ends at once
        return original(self, *args)
    LanguageModel.activations = timed
    child = os.fork()  # the parent only imports, once for all of them
    if child == 0:
        extract(config)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
    draw = random.Random(0)
    moments = [str(part) for _ in range(KILLS) for part in (draw.randint(1, 2), draw.uniform(1e-6, 0.003))]
    ended = subprocess.run(
        [sys.executable, "-c", script, *moments], env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True,
        text=True, check=True, timeout=300,
    )  # fmt: skip
    codes = [os.waitstatus_to_exitcode(int(status)) for status in ended.stdout.split()]
    assert len(codes) == KILLS
    assert set(codes) <= {-signal.SIGALRM, 0}
    assert codes == [-signal.SIGALRM] * KILLS, codes
    extract(config)
    ended_the_same(config, made)


def test_processes_that_share_an_extraction_end_in_what_one_writes(
    made: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs the model on the rows of its own shards alone, and the last to end completes the store."""
    batches, original = [], LanguageModel.activations

    def counted(self: LanguageModel, *args):
        batches[-1] += 1
        return original(self, *args)

    monkeypatch.setattr(LanguageModel, "activations", counted)
    config = dataclasses.replace(made, out=tmp_path / "run", processes=3)
    for process in (2, 0, 1):
        with pytest.raises(InputError, match="no manifest|unfinished"):
            Store.open(tmp_path / "run")
        batches.append(0)
        extract(dataclasses.replace(config, process=process))
    assert sum(batches) == SHARDS  # here a batch is a shard
    assert batches == [4, 5, 4]
    ended_the_same(config, made)


def test_a_process_that_never_came_is_made_up_for_by_another_number_of_them(
    made: ExtractConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(made, out=tmp_path / "run")
    extract(dataclasses.replace(config, processes=3, process=1))
    extract(config)
    ended_the_same(config, made)


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_a_store_in_a_bucket_is_that_on_the_disk(
    made: ExtractConfig, cloud: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """And an SAE trained on it is the same to the bit."""
    config = dataclasses.replace(made, out=f"{request.getfixturevalue(cloud).bucket()}/runs/store")
    extract(config)
    ended_the_same(config, made)
    extract(config)  # complete
    places = {"bucket": config.out, "disk": made.out}
    found, expected = (Store.open(place) for place in places.values())
    for hook in HOOKS:
        np.testing.assert_array_equal(found.read(hook, 0, found.rows), expected.read(hook, 0, expected.rows))
    np.testing.assert_array_equal(found.decoder_rows("mlp_hidden.0"), expected.decoder_rows("mlp_hidden.0"))
    ours, theirs = (shuffled_batches(store, HOOKS[0], 64, seed=0) for store in (found, expected))
    for _ in range(10):
        np.testing.assert_array_equal(next(ours), next(theirs))
    shape: dict[str, Any] = {
        "d_sae": 16,
        "k": 2,
        "steps": 20,
        "batch": 32,
        "warmup_steps": 1,
        "decay_steps": 1,
        "initial_rows": 64,
    }
    configs = [SAETrainConfig(place, HOOKS[0], tmp_path / name, **shape) for name, place in places.items()]
    saes = [load(train(config)) for config in configs]
    np.testing.assert_array_equal(saes[0].W_dec, saes[1].W_dec)
    codes = [encode(EncodeConfig(place, tmp_path / name, tmp_path / f"{name}_codes")) for name, place in places.items()]
    sources = [FeatureCodes.open(path) for path in codes]
    assert sources[0].store == config.out
    for one, other in zip(sources[0].blocks(), sources[1].blocks(), strict=True):
        np.testing.assert_array_equal(one.toarray(), other.toarray())


def test_a_store_in_memory_is_that_on_the_disk(made: ExtractConfig) -> None:
    config = dataclasses.replace(made, out=f"memory://{uuid.uuid4()}/store")
    extract(config)
    ended_the_same(config, made)


def test_an_extraction_into_a_bucket_goes_on_where_it_lost_its_right(
    made: ExtractConfig, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(made, out=f"{s3.bucket()}/store")
    original, locked = LanguageModel.activations, contextlib.ExitStack()
    calls = iter(range(SHARDS))

    def locking(self: LanguageModel, *args):
        if next(calls) == 6:
            locked.enter_context(s3.locked())
        return original(self, *args)

    with monkeypatch.context() as patch, locked:
        patch.setattr(LanguageModel, "activations", locking)
        with pytest.raises(InputError, match=r"cannot be (written|read): .*; get the right to it"):
            extract(config)
    assert 0 < len(committed_shards(Folder(config.out))) < SHARDS
    extract(config)
    ended_the_same(config, made)


@pytest.mark.parametrize(
    ("processes", "message"),
    [(1, "run is being written by another process"), (2, "by one process of 2, and this is one of 1; wait until")],
)
def test_a_second_extraction_into_one_store_is_refused_and_the_first_goes_on(
    made: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, message: str
) -> None:
    config = dataclasses.replace(made, out=tmp_path / "run")
    original, refusals = LanguageModel.activations, []

    def tried_meanwhile(self: LanguageModel, *args):
        if not refusals:
            refusals.append("")
            with pytest.raises(InputError, match=message) as refusal:
                extract(config)
            refusals.append(str(refusal.value))
        return original(self, *args)

    monkeypatch.setattr(LanguageModel, "activations", tried_meanwhile)
    for process in reversed(range(processes)):
        extract(dataclasses.replace(config, processes=processes, process=process))
    assert len(refusals) == 2
    ended_the_same(dataclasses.replace(config, processes=processes), made)


def test_in_a_bucket_the_last_extraction_takes_over(
    made: ExtractConfig, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(made, out=f"{s3.bucket()}/store")
    original, calls = LanguageModel.activations, []

    def taken_over(self: LanguageModel, *args):
        calls.append(1)
        if len(calls) == 6:
            extract(config)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "activations", taken_over)
        with pytest.raises(InputError, match="was taken over by another process; leave it to that one"):
            extract(config)
    ended_the_same(config, made)


def test_a_lost_shard_alone_is_made_again(made: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the error about the damage says: remove the shard's record, and run the same command."""
    config, out = dataclasses.replace(made, out=tmp_path / "run"), tmp_path / "run"
    extract(config)
    (out / "activations" / HOOKS[0] / "c" / "3" / "0").unlink()
    (out / "ledger" / "token_id" / "c" / "5").write_bytes(b"short")
    store = Store.open(out)
    for read, shard in ((lambda: store.read(HOOKS[0], 0, store.rows), 3), (lambda: store.ledger(0, store.rows), 5)):
        with pytest.raises(InputError) as refusal:
            read()
        record = next(word for word in str(refusal.value).split() if word.endswith(".json"))
        assert record == str(out / "shards" / f"{shard:08d}.json")
        Path(record).unlink()
    original, calls = LanguageModel.activations, []

    def counted(self: LanguageModel, *args):
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(LanguageModel, "activations", counted)
    extract(config)
    assert len(calls) == 2
    ended_the_same(config, made)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_tokens": 5}, "chunk_tokens 5 must divide shard_tokens 32"),
        ({"processes": 0}, "processes 0 is below 1"),
        ({"processes": 2, "process": 2}, "process 2 of 2 processes does not exist"),
    ],
)
def test_parts_that_do_not_exist_are_refused(made: ExtractConfig, fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(made, **fields)
