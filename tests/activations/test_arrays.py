import json
import uuid
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from servers import S3Server

from saejax.activations import arrays
from saejax.activations.arrays import RowArray, RowWriter, chunk_rows_of
from saejax.errors import InputError
from saejax.storage import Folder, Place


def written(place: Place, data: np.ndarray, shard_rows: int = 64, order: int = 1) -> RowArray:
    """Write an array shard by shard, in order or against it, and open it."""
    width = data.shape[1] if data.ndim == 2 else None
    folder = Folder(place)
    array = RowWriter(folder, str(data.dtype), width, shard_rows, chunk_rows_of(shard_rows), compress=False)
    for shard in range(-(-len(data) // shard_rows))[::order]:
        array.write(shard, data[shard * shard_rows :][:shard_rows]).result()
    array.seal(len(data))
    return RowArray(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
@pytest.mark.parametrize("width", [None, 1, 7])
def test_what_is_read_is_what_was_written_to_the_bit(tmp_path: Path, dtype: str, width: int | None) -> None:
    shape = (150,) if width is None else (150, width)
    data = np.random.default_rng(0).normal(0, 100, shape).astype(np.dtype(dtype))
    array = written(tmp_path / "a", data)
    assert array.rows == 150
    assert array.read([(0, 1)]).dtype == data.dtype
    for start, stop in [(0, 150), (0, 64), (63, 65), (70, 71), (128, 150)]:
        assert array.read([(start, stop)]).tobytes() == data[start:stop].tobytes()
    spans = [(130, 150), (5, 6), (64, 128)]
    assert array.read(spans).tobytes() == np.concatenate([data[a:b] for a, b in spans]).tobytes()
    rows = np.array([149, 0, 0, 64, 63])
    assert array.gather(rows).tobytes() == data[rows].tobytes()


@pytest.mark.parametrize("piece_bytes", [1, 3000, 20_000])
def test_rows_come_in_pieces_into_the_place_that_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    """Chunks of 512 bytes: more pieces than are on their way at once, of one chunk and of several."""
    monkeypatch.setattr(arrays, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(arrays, "BYTES_ON_THE_WAY", 4 * piece_bytes)
    data = np.random.default_rng(0).normal(0, 100, (5000, 4)).astype(np.float32)
    array = written(tmp_path / "a", data, shard_rows=32)
    place = array.empty(6000)
    assert place.shape == (6000, 4)
    for spans in ([(0, 5000)], [(low, low + 32) for low in range(4960, -1, -32)], [(3, 3), (31, 33), (40, 4999)], []):
        place[:] = np.nan
        expected = np.concatenate([data[:0], *(data[low:high] for low, high in spans)])
        found = array.read(spans, place)
        assert np.shares_memory(found, place) == bool(spans)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(array.read(spans), expected)
        assert np.isnan(place[len(expected) :]).all()


def test_an_array_is_sharded_and_checksummed_and_keeps_zeros(tmp_path: Path) -> None:
    data = np.zeros((100, 3), np.float32)
    written(tmp_path / "a", data, shard_rows=50)
    (sharding,) = json.loads((tmp_path / "a" / "zarr.json").read_text())["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
    shards = [file for file in (tmp_path / "a" / "c").rglob("*") if file.is_file()]
    assert len(shards) == 2
    assert all(shard.stat().st_size >= 50 * 3 * 4 for shard in shards)
    np.testing.assert_array_equal(RowArray(Folder(tmp_path / "a")).read([(0, 100)]), data)


def test_the_order_in_which_shards_are_written_changes_no_byte(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(0, 1, (150, 3)).astype(np.float32)
    for name, order in (("a", 1), ("b", -1)):
        np.testing.assert_array_equal(written(tmp_path / name, data, order=order).read([(0, 150)]), data)
    files = [sorted(file for file in (tmp_path / name).rglob("*") if file.is_file()) for name in "ab"]
    assert len(files[0]) == 4
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("rows", "chunk"), [(65_536, 1024), (64, 64), (1, 1), (5000, 1000), (1536, 768)])
def test_a_chunk_is_the_largest_divisor_of_a_shard(rows: int, chunk: int) -> None:
    assert chunk_rows_of(rows) == chunk


@pytest.mark.parametrize("place", [0, 700, -30])
def test_a_flipped_byte_is_found(tmp_path: Path, place: int) -> None:
    """Wherever it lies: in the first chunk, in the last, in the shard's index."""
    data = np.arange(256, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(64, 4)
    data = np.concatenate([data, data])
    written(tmp_path / "a", data)
    shard = tmp_path / "a" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    content[place % len(content)] ^= 1
    shard.write_bytes(bytes(content))
    array = RowArray(Folder(tmp_path / "a"), "mend shard {}".format)
    array.read([(0, 64)])
    with pytest.raises(InputError, match=r"a is damaged: .*c/1/0.*; mend shard 1$"):
        array.read([(0, 128)])
    with pytest.raises(InputError, match="is damaged"):
        array.gather(np.arange(128))


@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("cloud", [None, "memory", "s3", "gcs"])
def test_a_damaged_shard_is_named_wherever_the_array_lies(
    cloud: str | None, width: int | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its path may look like a shard's, and errors write it in other letters."""
    if cloud == "memory":
        root = f"memory://{uuid.uuid4()}"
    else:
        root = tmp_path if cloud is None else request.getfixturevalue(cloud).bucket()
    folder = Folder(f"{root}/c/7/c/2024 é: {{shard}}/c/5")
    written(str(folder), np.ones((128,) if width is None else (128, width), np.float32))
    folder.write("c/1" if width is None else "c/1/0", b"short")
    with pytest.raises(InputError, match=r"is damaged: .*; mend shard 1$"):
        RowArray(folder, "mend shard {}".format).read([(0, 128)])


def test_a_right_that_is_lost_is_no_damage(s3: S3Server) -> None:
    """The remedy for damage deletes records of shards."""
    place = f"{s3.bucket()}/run"
    array = written(place, np.ones((128, 2), np.float32))
    with s3.locked():
        for read in (
            lambda: array.read([(0, 128)]),
            lambda: array.gather(np.arange(3)),
            lambda: RowArray(Folder(place)),
        ):
            with pytest.raises(
                InputError, match=f"{place} cannot be read: .*; get the right to it, or other"
            ) as refusal:
                read()
            assert "\n" not in str(refusal.value)
    array.read([(0, 128)])


def test_a_lost_shard_is_no_zeros(tmp_path: Path) -> None:
    written(tmp_path / "a", np.ones((128, 2), np.float32))
    (tmp_path / "a" / "c" / "0" / "0").unlink()
    with pytest.raises(InputError, match=r"is damaged: .*missing"):
        RowArray(Folder(tmp_path / "a")).read([(10, 100)])


def test_an_absent_or_broken_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing is damaged: NOT_FOUND"):
        RowArray(Folder(tmp_path / "nothing"))
    written(tmp_path / "a", np.ones(3, np.int32))
    (tmp_path / "a" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        RowArray(Folder(tmp_path / "a"))
