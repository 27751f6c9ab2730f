import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from full_disk import full_disk
from made_stores import (
    MadeConfig,
    activations,
    documents,
    files_of,
    ledger,
    made,
    manifest_without_times,
    write,
)

from saejax import artifacts
from saejax.activations.arrays import RowWriter
from saejax.activations.store import KIND, Dtype, Store, aligned
from saejax.activations.summary import Summary
from saejax.activations.writer import StoreWriter, committed_shards
from saejax.errors import InputError
from saejax.storage import Folder

ROWS = 300  # four whole shards of 64 and a shorter one


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("store") / "run", ROWS)


def writer(out: Path, dtype: Dtype = "float32", shard_rows: int = 64, **kwargs) -> StoreWriter:
    config = MadeConfig(0, shard_rows, dtype)
    run = artifacts.begin(out, KIND, config)
    return StoreWriter(run, {"embed": {"width": 3}}, config.dtype, shard_rows, **kwargs)


def test_activations_come_back_to_the_bit(store: Store) -> None:
    for hook, expected in (("resid_post.0", activations(ROWS)), ("mlp_out.0", activations(ROWS, 5, 0.5))):
        assert store.width(hook) == expected.shape[1]
        for start, stop in ((0, ROWS), (60, 70), (299, 300)):
            found = store.read(hook, start, stop)
            assert found.dtype == np.float32
            assert found.tobytes() == expected[start:stop].tobytes()
        rows = np.array([299, 0, 64, 63, 0])
        assert store.gather(hook, rows).tobytes() == expected[rows].tobytes()


def test_bfloat16_comes_back_as_the_nearest_bfloat16(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1e3, (100, 3)).astype(np.float32)
    x[0] = [3.38e38, -1e-40, -0.0]
    made_writer = writer(tmp_path / "run", "bfloat16")
    made_writer.append({"embed": x}, ledger(100), documents(4))
    made_writer.finish()
    store = Store.open(tmp_path / "run")
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert store.read("embed", 0, 100).tobytes() == expected.tobytes()
    assert store.read_spans("embed", [(0, 100)]).dtype == ml_dtypes.bfloat16
    shards = [tmp_path / "run" / KIND / "embed" / "c" / str(shard) / "0" for shard in range(2)]
    assert sum(shard.stat().st_size for shard in shards) < 100 * 3 * 2 + 300  # two indices and their checksums


def test_the_ledger_tells_every_row(store: Store) -> None:
    expected = ledger(ROWS)
    found, rows = store.ledger(0, ROWS), np.array([250, 3])
    assert set(found) == set(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)
        np.testing.assert_array_equal(store.ledger_of(rows)[name], column[rows])
    assert store.documents == documents(12)
    np.testing.assert_array_equal(store.kept, ~expected["special"])
    np.testing.assert_array_equal(store.kept_rows(), np.flatnonzero(~expected["special"]))


def test_the_manifest_says_what_the_store_is(store: Store) -> None:
    facts = store.manifest["facts"]
    assert store.rows == facts["rows"] == ROWS
    assert store.hooks == ("resid_post.0", "mlp_out.0")
    assert facts["special_rows"] == ledger(ROWS)["special"].sum()
    assert (facts["documents"], facts["dtype"], facts["shard_rows"]) == (12, "float32", 64)
    assert (facts["shards"], facts["chunk_rows"], store.chunk_rows) == (5, 64, 64)


@pytest.mark.parametrize("block_rows", [1, 64, 300])
def test_the_size_of_blocks_changes_nothing(store: Store, tmp_path: Path, block_rows: int) -> None:
    write(tmp_path / "run", MadeConfig(ROWS), block_rows)
    assert files_of(tmp_path / "run") == files_of(store.path)
    assert manifest_without_times(tmp_path / "run") == manifest_without_times(store.path)


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, of: type, method: str, call: int) -> None:
    """Let the given call of a method, counted from 1, and all after it, end the process before it does anything."""
    original, calls = getattr(of, method), itertools.count(1)

    def killed(self, *args, **kwargs):
        if next(calls) >= call:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(of, method, killed)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ((RowWriter, "write"), 1),  # before the first shard
        ((RowWriter, "write"), 2),  # one hook written, the other and the ledger not
        ((RowWriter, "write"), 8 + 5),  # in the ledger of the second shard, behind the records of documents
        ((Folder, "write"), 2 * 2 + 1),  # the data of the third shard are on disk, its documents not
        ((artifacts.Run, "note"), 4),  # the fourth shard is on disk, its record not
        ((RowWriter, "write"), 4 * 8 + 2),  # in the last, shorter shard
        ((RowWriter, "seal"), 1),  # all records stand, the metadata of the arrays not
        ((RowWriter, "seal"), 4),  # some of it stands
        ((artifacts.Run, "finish"), 1),  # all is final, the run is not
    ],
)
def test_an_interrupted_store_ends_the_same(store: Store, tmp_path: Path, method: tuple[type, str], call: int) -> None:
    out, config = tmp_path / "run", MadeConfig(ROWS)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, *method, call)
        with pytest.raises(Killed):
            write(out, config)
    with pytest.raises(InputError, match="unfinished run"):
        Store.open(out)
    assert write(out, config)
    assert files_of(out) == files_of(store.path)
    assert manifest_without_times(out) == manifest_without_times(store.path)


def test_a_shard_is_not_final_before_its_data_are_on_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RowWriter.write
    promise, failed = tensorstore.Promise.new()
    promise.set_exception(Killed())

    def write_or_fail(self: RowWriter, shard: int, data: np.ndarray) -> tensorstore.Future:
        return failed if shard == 2 else original(self, shard, data)

    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", write_or_fail)
        with pytest.raises(Killed):
            write(tmp_path / "run", MadeConfig(ROWS))
    assert committed_shards(Folder(tmp_path / "run")) == {0, 1}
    write(tmp_path / "run", MadeConfig(ROWS))
    assert files_of(tmp_path / "run") == files_of(store.path)


def test_a_killed_process_leaves_what_the_records_say(store: Store, tmp_path: Path) -> None:
    """SIGKILL between the data and the record: nothing is flushed or tidied by Python."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from made_stores import MadeConfig, write
from saejax.storage import Folder
original = Folder.write
def killed(self, name, data):
    if name == "shards/00000002.json":
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, name, data)
Folder.write = killed
write(Path({str(tmp_path / "run")!r}), MadeConfig({ROWS}))
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert committed_shards(Folder(tmp_path / "run")) == {0, 1}
    write(tmp_path / "run", MadeConfig(ROWS))
    assert files_of(tmp_path / "run") == files_of(store.path)
    assert manifest_without_times(tmp_path / "run") == manifest_without_times(store.path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_that_share_a_store_end_in_what_one_writes(
    store: Store, tmp_path: Path, order: tuple[int, int]
) -> None:
    out = tmp_path / "run"
    assert not write(out, MadeConfig(ROWS), part=order[0], parts=2)
    assert committed_shards(Folder(out)) == set(range(order[0], 5, 2))
    with pytest.raises(InputError, match="unfinished run"):
        Store.open(out)
    assert write(out, MadeConfig(ROWS), part=order[1], parts=2)
    assert files_of(out) == files_of(store.path)
    assert manifest_without_times(out) == manifest_without_times(store.path)


def test_what_others_are_to_write_must_not_be_computed(tmp_path: Path) -> None:
    made_writer = writer(tmp_path / "run", part=1, parts=2)
    assert [made_writer.needs(start, start + 32) for start in range(0, 256, 32)] == [False, False, True, True] * 2
    made_writer.append(None, ledger(64), documents(3))
    with pytest.raises(ValueError, match="rows 64 to 128 are needed"):
        made_writer.append(None, ledger(64), documents(3))


def test_the_summary_is_of_the_rows_that_are_no_special_tokens(store: Store) -> None:
    kept = ~ledger(ROWS)["special"]
    for hook, x in (("resid_post.0", activations(ROWS)), ("mlp_out.0", activations(ROWS, 5, 0.5))):
        exact, told = x[kept].astype(np.float64), store.manifest["facts"]["statistics"][hook]
        mean, variance = store.moments(hook)
        np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-12)
        assert told["rows"] == kept.sum() == ROWS - store.manifest["facts"]["special_rows"]
        assert told["mean_norm"] == pytest.approx(np.linalg.norm(exact, axis=1).mean(), rel=1e-12)
        assert told["rms"] == pytest.approx(np.sqrt((exact**2).mean()), rel=1e-12)
        assert told["centred_rms"] == pytest.approx(np.sqrt(exact.var(axis=0).mean()), rel=1e-12)


def test_a_summary_is_sound_where_the_mean_is_far_above_the_spread() -> None:
    x = np.random.default_rng(0).normal(1e6, 1, (5000, 3))
    x[4999], kept = np.nan, np.arange(5000) < 4999
    summary = Summary.empty(3)
    for part in (slice(1), slice(1, 3000), slice(3000, 3000), slice(3000, 5000), slice(4999, 5000)):
        summary.merge(Summary.of(x[part], kept[part]))
    x = x[kept]
    again = Summary.of_record(json.loads(json.dumps(summary.record())))
    np.testing.assert_allclose(again.deviation / again.rows, x.var(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(again.mean, summary.mean)
    assert Summary.empty(3).figures() == {"rows": 0, "mean_norm": None, "rms": None, "centred_rms": None}


def test_a_disk_that_is_full_loses_nothing_that_was_committed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills while the third shard is written."""
    out, original, full = tmp_path / "run", RowWriter.write, contextlib.ExitStack()

    def filling(self: RowWriter, shard: int, data: np.ndarray) -> tensorstore.Future:
        if shard == 2:
            full.enter_context(full_disk(500))
        return original(self, shard, data)

    with monkeypatch.context() as patch, full:
        patch.setattr(RowWriter, "write", filling)
        with pytest.raises(InputError, match=rf"{out} cannot be written: .*; free space and run the command again"):
            write(out, MadeConfig(ROWS))
    assert committed_shards(Folder(out)) == {0, 1}
    write(out, MadeConfig(ROWS))
    assert files_of(out) == files_of(store.path)
    assert manifest_without_times(out) == manifest_without_times(store.path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    x = activations(100)
    x[30, 1] = value
    made_writer = writer(tmp_path / "run")
    made_writer.append({"embed": activations(50)}, ledger(50), documents(2))
    with pytest.raises(InputError, match=f"hook embed is {value} at row 80, which float32 cannot hold"):
        made_writer.append({"embed": x}, ledger(100))


def test_an_activation_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    x = np.full((2, 3), 3.4e38, np.float32)
    with pytest.raises(InputError, match="at row 0, which bfloat16 cannot hold"):
        writer(tmp_path / "narrow", "bfloat16").append({"embed": x}, ledger(2), documents(1))
    writer(tmp_path / "wide").append({"embed": x}, ledger(2), documents(1))


def test_a_store_without_rows_or_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a store without rows"):
        writer(tmp_path / "empty").finish()
    made_writer = writer(tmp_path / "unknown")
    made_writer.append({"embed": activations(60)}, ledger(60), documents(2))
    with pytest.raises(InputError, match="document 2 has rows but no record"):
        made_writer.finish()


def test_what_no_store_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard_rows 0"):
        writer(tmp_path / "a", shard_rows=0)
    run = artifacts.begin(tmp_path / "b", KIND, MadeConfig(0))
    with pytest.raises(InputError, match=r"hooks \{\}"):
        StoreWriter(run, {}, "float32", 64)
    with pytest.raises(InputError, match="chunk_rows 48 must divide shard_rows 64"):
        writer(tmp_path / "c", chunk_rows=48)


def test_all_that_does_not_match_is_said_at_once(store: Store, tmp_path: Path) -> None:
    store.require(hook="mlp_out.0")
    with pytest.raises(InputError) as refusal:
        store.require(model_fingerprint="abc", hook="resid_post.7")
    assert str(refusal.value) == (
        f"store {store.path} is of model None, not abc and has no hook resid_post.7, "
        "only resid_post.0, mlp_out.0; extract one that does"
    )


def test_alignment_is_of_tokens_and_not_of_values(store: Store, tmp_path: Path) -> None:
    other = made(tmp_path / "same", ROWS, shard_rows=100, dtype="bfloat16")
    aligned(store, other)
    with pytest.raises(InputError, match=r"\(300 rows\) and .* \(299 rows\) are of different tokens"):
        aligned(store, made(tmp_path / "shorter", ROWS - 1))


def test_a_directory_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        Store.open(tmp_path)
    artifacts.begin(tmp_path / "sae", "sae", MadeConfig(1)).finish()
    with pytest.raises(InputError, match="'sae' where 'activations' is needed"):
        Store.open(tmp_path / "sae")


def test_damage_is_named_with_the_record_whose_removal_mends_it(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "c" / "7" / "{run}"
    broken = made(out, ROWS)
    shard = out / KIND / "resid_post.0" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(bytes(content))
    record = out / "shards" / "00000001.json"
    with pytest.raises(
        InputError, match=rf"activations/resid_post\.0 is damaged: .*c/1/0.*; delete {re.escape(str(record))} and run"
    ):
        broken.read("resid_post.0", 0, ROWS)
    broken.read("mlp_out.0", 0, ROWS)
    record.unlink()
    artifacts.begin(out, KIND, MadeConfig(ROWS)).reopen()
    assert write(out, MadeConfig(ROWS))
    assert files_of(out) == files_of(store.path)
    assert manifest_without_times(out) == manifest_without_times(store.path)


def test_arrays_of_other_lengths_than_the_manifest_tells_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    made(out, ROWS)
    for name in ("ledger/token_id", f"{KIND}/mlp_out.0"):
        file = out / name / "zarr.json"
        metadata = json.loads(file.read_text())
        metadata["shape"][0] = 64
        file.write_text(json.dumps(metadata))
    with pytest.raises(
        InputError, match=r"300 rows by its manifest, but ledger/token_id has 64, activations/mlp_out\.0"
    ):
        Store.open(out)
