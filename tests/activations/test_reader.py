import itertools
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from made_stores import activations, ledger, made

from saejax.activations.index_permutation import IndexPermutation
from saejax.activations.lanes import ALL
from saejax.activations.reader import aligned_batches, blocks, documents_per_batch, paired_blocks, shuffled_batches
from saejax.activations.store import KIND, Store
from saejax.errors import InputError

ROWS = 1000
KEPT = np.flatnonzero(~ledger(ROWS)["special"])
HOOK = "resid_post.0"
WINDOW = 256  # rows: four of the store's chunks of 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("store") / "run", ROWS)


def rows_of(store: Store, batch: int, steps: int, *, seed: int = 0, start: int = 0, window: int = WINDOW) -> np.ndarray:
    """Return the row numbers of some steps, which the first column of the hook tells."""
    batches = shuffled_batches(store, HOOK, batch, seed, start, window_rows=window)
    return np.array([x[:, 0] for x in itertools.islice(batches, steps)]).astype(int)


def test_a_batch_holds_whole_rows(store: Store) -> None:
    expected = activations(ROWS)
    for x in itertools.islice(shuffled_batches(store, HOOK, 32, 0, window_rows=WINDOW), 40):
        assert x.shape == (32, 3)
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, expected[x[:, 0].astype(int)])


@pytest.mark.parametrize("window", [64, 256, 300, 100_000])
@pytest.mark.parametrize("batch", [1, 20, 880])
def test_every_epoch_has_every_kept_row_once(store: Store, batch: int, window: int) -> None:
    assert len(KEPT) == 880
    rows = rows_of(store, batch, 2 * len(KEPT) // batch, window=window).reshape(2, -1)
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), KEPT)
    assert (rows[0] == rows[1]).mean() < 0.02


def test_the_rows_of_one_chunk_come_in_a_new_order_every_epoch(tmp_path: Path) -> None:
    store = made(tmp_path / "run", 60)
    epochs = rows_of(store, len(store.kept_rows()), 4)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_span_two_windows_and_two_epochs(store: Store) -> None:
    rows = rows_of(store, 7, 880).reshape(-1)
    np.testing.assert_array_equal(np.sort(rows.reshape(7, 880)), np.tile(KEPT, (7, 1)))


@pytest.mark.parametrize("start", [1, 5, 43, 44, 45, 137, 10_000])
def test_a_step_is_a_function_of_the_seed_and_its_number(store: Store, start: int) -> None:
    if start < 1000:
        later = rows_of(store, 20, 50, start=start)
        np.testing.assert_array_equal(later, rows_of(store, 20, start + 50)[start:])
    at_once = rows_of(store, 20, 4, start=start)
    np.testing.assert_array_equal(at_once[2:], rows_of(store, 20, 2, start=start + 2))


def test_seeds_give_different_orders(store: Store) -> None:
    orders = [tuple(rows_of(store, 20, 2, seed=seed).ravel()) for seed in range(10)]
    assert len(set(orders)) == 10


def test_the_hook_and_the_dtype_do_not_change_the_order(store: Store, tmp_path: Path) -> None:
    narrow = made(tmp_path / "run", ROWS, dtype="bfloat16")
    first = next(shuffled_batches(store, "mlp_out.0", 100, 3))
    np.testing.assert_array_equal(first[:, 0] - 0.5, next(shuffled_batches(store, HOOK, 100, 3))[:, 0])
    np.testing.assert_allclose(next(shuffled_batches(narrow, "mlp_out.0", 100, 3)), first, rtol=1 / 256)


def test_a_window_mixes_text_from_all_over_the_store(tmp_path: Path) -> None:
    """Rows of one batch come from many chunks, and neighbours in it are no neighbours in the corpus."""
    store = made(tmp_path / "run", 6400, shard_rows=640)
    assert store.chunk_rows == 640
    rows = rows_of(store, 100, 20, window=3200)
    assert all(len(np.unique(batch // 640)) == 5 for batch in rows)
    flat = rows.ravel()
    assert (np.abs(np.diff(flat)) < 10).mean() < 0.02
    assert abs(np.corrcoef(flat[:-1] % 640, flat[1:] % 640)[0, 1]) < 4 / np.sqrt(len(flat))


def in_lanes(store: Store, lanes: int, steps: int, part: slice = ALL, start: int = 0, batch: int = 20) -> np.ndarray:
    """Return the row numbers of some steps."""
    batches = aligned_batches([(store, HOOK)], batch, 3, start, window_rows=512, lanes=lanes, part=part)
    found = list(itertools.islice(batches, steps))
    for rows, (x,) in found:
        np.testing.assert_array_equal(x[:, 0], rows)
    return np.array([rows for rows, _ in found])


@pytest.mark.parametrize("lanes", [2, 4, 5])
def test_lanes_have_every_row_once_per_epoch_between_them(store: Store, lanes: int) -> None:
    """The chunks of an epoch are dealt out; no lane waits for another, so each ends it at a step of its own."""
    rows = in_lanes(store, lanes, 4 * len(KEPT) // 20).reshape(-1, lanes, 20 // lanes)
    served = [rows[:, lane].ravel() for lane in range(lanes)]
    of_chunk = np.bincount(KEPT // store.chunk_rows)
    for epoch in range(3):
        chunks = IndexPermutation(len(of_chunk), (3, epoch))(np.arange(len(of_chunk)))
        counts = [of_chunk[chunks[lane::lanes]].sum() for lane in range(lanes)]
        assert len(set(counts)) > 1
        of_epoch = np.concatenate([of_lane[:count] for of_lane, count in zip(served, counts, strict=True)])
        np.testing.assert_array_equal(np.sort(of_epoch), KEPT)
        served = [of_lane[count:] for of_lane, count in zip(served, counts, strict=True)]


@pytest.mark.parametrize("start", [0, 5, 60, 500])
@pytest.mark.parametrize("part", [slice(0, 10), slice(10, 20), slice(5, 15), slice(7, 8)])
def test_a_part_of_lanes_is_that_of_their_batches(store: Store, part: slice, start: int) -> None:
    for lanes in (1, 2, 4):
        whole = in_lanes(store, lanes, 50, start=start)
        np.testing.assert_array_equal(in_lanes(store, lanes, 50, part, start), whole[:, part])
        later = in_lanes(store, lanes, 10, part, start + 40)
        np.testing.assert_array_equal(later, whole[40:, part])


def test_of_lanes_no_more_is_read_than_the_part_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 880 rows, half of each batch for an epoch: half of the chunks, and the two windows that are read ahead."""
    spans: list[tuple[int, int]] = []
    original = Store.read_spans

    def noted(self: Store, hook: str, wanted: list[tuple[int, int]], into: Any = None) -> np.ndarray:
        spans.extend(wanted)
        return original(self, hook, wanted, into)

    monkeypatch.setattr(Store, "read_spans", noted)
    in_lanes(store, 2, 44, slice(0, 10))
    assert sum(stop - start for start, stop in spans) <= ROWS / 2 + 3 * 256
    spans.clear()
    in_lanes(store, 1, 44, slice(0, 10))
    assert sum(stop - start for start, stop in spans) >= ROWS


def test_lanes_are_not_shuffled_alike(tmp_path: Path) -> None:
    """Else rows of one place in their chunks would meet in all lanes of a batch, and places are positions in a text."""
    store = made(tmp_path / "run", 6400, shard_rows=128)
    assert store.chunk_rows == 128
    rows = in_lanes(store, 2, 100, batch=40)
    same = rows[:, :20] % store.chunk_rows == rows[:, 20:] % store.chunk_rows
    assert same.mean() < 0.03


def test_lanes_that_cannot_be_are_refused(store: Store) -> None:
    for batch, lanes, window, message in (
        (20, 3, 512, "batch 20 is no multiple of lanes 3, from 1 on; change one of them"),
        (20, 0, 512, "batch 20 is no multiple of lanes 0"),
        (20, 4, 255, "window_rows 255 is too low; they are from 0 and from 256, a chunk of each lane"),
        (20, 20, 1280, "lanes 20 are more than the chunks of 64 rows of the store; lower lanes"),
    ):
        with pytest.raises(InputError, match=message):
            aligned_batches([(store, HOOK)], batch, 0, window_rows=window, lanes=lanes)


def test_a_hook_or_a_batch_that_is_not_there_is_refused_at_once(store: Store) -> None:
    with pytest.raises(InputError, match=r"has no hook resid_post\.1"):
        shuffled_batches(store, "resid_post.1", 10, 0)
    with pytest.raises(InputError, match="batch 881 is not from 1 to the store's 880 rows"):
        shuffled_batches(store, HOOK, 881, 0)
    with pytest.raises(InputError, match="window_rows 63 is too low"):
        shuffled_batches(store, HOOK, 10, 0, window_rows=63)
    with pytest.raises(InputError, match=r"has no hook mlp_out\.3"):
        blocks(store, "mlp_out.3")


def test_damage_is_raised_where_batches_are_used(tmp_path: Path) -> None:
    store = made(tmp_path / "run", ROWS)
    shard = tmp_path / "run" / KIND / HOOK / "c" / "15" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"resid_post\.0 is damaged"):
        for _ in itertools.islice(shuffled_batches(store, HOOK, 20, 0, window_rows=64), 44):
            pass
    with pytest.raises(InputError, match=r"resid_post\.0 is damaged"):
        list(blocks(store, HOOK, 100))


@pytest.mark.parametrize("rows_per_block", [1, 64, 130, 5000])
def test_blocks_are_the_kept_rows_in_order(store: Store, rows_per_block: int) -> None:
    found = list(blocks(store, HOOK, rows_per_block))
    assert len(found) == -(-ROWS // rows_per_block)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), KEPT)
    np.testing.assert_array_equal(np.concatenate([x for _, x in found]), activations(ROWS)[KEPT])
    assert all(set(rows // rows_per_block) <= {number} for number, (rows, _) in enumerate(found))
    shares = [list(blocks(store, HOOK, rows_per_block, share=share, of=3)) for share in range(3)]
    np.testing.assert_array_equal(np.concatenate([rows for share in shares for rows, _ in share]), KEPT)
    assert all(abs(len(share) - len(found) / 3) < 3 + len(found) / 10 for share in shares)


def test_paired_blocks_are_of_the_same_rows(store: Store, tmp_path: Path) -> None:
    other = made(tmp_path / "same", ROWS, shard_rows=100)
    found = list(paired_blocks(store, HOOK, other, "mlp_out.0", 170))
    rows, x, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(rows, KEPT)
    np.testing.assert_array_equal(x, activations(ROWS)[KEPT])
    np.testing.assert_array_equal(y, activations(ROWS, 5, 0.5)[KEPT])
    with pytest.raises(InputError, match="are of different tokens"):
        paired_blocks(store, HOOK, made(tmp_path / "shorter", 900), HOOK)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of the same tokens with other chunks, in another dtype."""
    return made(tmp_path_factory.mktemp("other") / "run", ROWS, shard_rows=300, dtype="bfloat16")


@pytest.mark.parametrize("start", [0, 5, 43, 44, 1000])
def test_aligned_batches_are_of_the_same_rows_in_the_order_of_the_first(store: Store, other: Store, start: int) -> None:
    """Of two stores and of two hooks of one, over windows and epochs, from any step on."""
    streams = [(store, HOOK), (other, "mlp_out.0"), (store, "mlp_out.0")]
    narrow, wide = activations(ROWS), activations(ROWS, 5, 0.5)
    found = list(itertools.islice(aligned_batches(streams, 20, 3, start, window_rows=WINDOW), 50))
    alone = shuffled_batches(store, HOOK, 20, 3, start, window_rows=WINDOW)
    for (rows, (x, y, z)), of_first in zip(found, alone, strict=False):
        np.testing.assert_array_equal(x, of_first)
        np.testing.assert_array_equal(x, narrow[rows])
        np.testing.assert_array_equal(y, wide[rows].astype(ml_dtypes.bfloat16).astype(np.float32))
        np.testing.assert_array_equal(z, wide[rows])
        assert {batch.dtype for batch in (x, y, z)} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(store.ledger_of(rows)["token_id"], other.ledger_of(rows)["token_id"])


def test_the_first_stream_decides_the_order_and_a_filter_holds_for_all(store: Store, other: Store) -> None:
    kept = store.kept.copy()
    kept[100:400] = False
    streams = [(other, HOOK), (store, HOOK)]
    batches = itertools.islice(aligned_batches(streams, int(kept.sum()), 0, kept=kept, window_rows=300), 2)
    alone = shuffled_batches(other, HOOK, int(kept.sum()), 0, kept=kept, window_rows=300)
    for (rows, (x, y)), of_first in zip(batches, alone, strict=False):
        np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(kept))
        np.testing.assert_array_equal(x, of_first)
        np.testing.assert_array_equal(y, activations(ROWS)[rows])


def test_streams_that_are_not_aligned_are_refused_at_once(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are of different tokens"):
        aligned_batches([(store, HOOK), (made(tmp_path / "shorter", 900), HOOK)], 20, 0)
    with pytest.raises(InputError, match=r"has no hook mlp_out\.3"):
        aligned_batches([(store, HOOK), (store, "mlp_out.3")], 20, 0)
    with pytest.raises(InputError, match="there is no stream to read"):
        aligned_batches([], 20, 0)


def test_damage_in_one_stream_is_raised_where_batches_are_used(store: Store, tmp_path: Path) -> None:
    damaged = made(tmp_path / "run", ROWS)
    shard = tmp_path / "run" / KIND / "mlp_out.0" / "c" / "3" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    before = set(threading.enumerate())
    with pytest.raises(InputError, match=r"mlp_out\.0 is damaged"):
        list(itertools.islice(aligned_batches([(store, HOOK), (damaged, "mlp_out.0")], 20, 0, window_rows=64), 44))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_reading_stops_with_its_reader(store: Store) -> None:
    before = set(threading.enumerate())
    batches = shuffled_batches(store, HOOK, 20, 0)
    next(batches)
    ours = [thread for thread in threading.enumerate() if thread not in before]
    assert len(ours) == 2
    del batches
    for thread in ours:
        thread.join(10)
        assert not thread.is_alive()


def test_windows_take_turns_in_two_places(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is read over the one before the last, of which no row is still to be served."""
    expected, places, original = rows_of(store, 20, 200), set(), Store.read_spans
    again = Store.open(store.path)  # threads of the reader above may still read from its own

    def read_over(self: Store, hook: str, spans: list[tuple[int, int]], place: np.ndarray) -> np.ndarray:
        place[:] = -1
        if self is again:
            assert len(place) == WINDOW
            places.add(place.ctypes.data)
        return original(self, hook, spans, place)

    monkeypatch.setattr(Store, "read_spans", read_over)
    np.testing.assert_array_equal(rows_of(again, 20, 200), expected)
    assert len(places) == 2


def test_rows_that_are_not_kept_are_neither_shuffled_nor_read_in_blocks(store: Store) -> None:
    """Whole chunks, whole windows and single rows are left out."""
    kept = store.kept.copy()
    kept[128:448] = kept[700:703] = False
    expected = np.flatnonzero(kept)
    batches = shuffled_batches(store, HOOK, 13, 1, kept=kept, window_rows=128)
    rows = np.concatenate([x[:, 0] for x in itertools.islice(batches, len(expected))]).astype(int)
    for epoch in rows.reshape(13, -1):
        np.testing.assert_array_equal(np.sort(epoch), expected)
    read = [(number, x[:, 0]) for number, x in blocks(store, HOOK, 100, kept=kept)]
    assert [number for number, (rows, _) in enumerate(read) if not len(rows)] == [2, 3]
    np.testing.assert_array_equal(np.concatenate([number for number, _ in read]), expected)
    np.testing.assert_array_equal(np.concatenate([x for _, x in read]).astype(int), expected)


@pytest.mark.parametrize(("window", "documents"), [(64, 6.0), (100_000, 20.0)])
def test_mixing_is_how_many_documents_meet_in_a_batch(store: Store, window: int, documents: float) -> None:
    """A chunk of 64 rows holds parts of 3 or 4 documents of 25; a batch of 32 rows spans two windows at most."""
    found, if_shuffled = documents_per_batch(store, 32, 0, window_rows=window)
    batches = np.array([rows_of(store, 32, 20, window=window)])[0]
    assert found == np.mean([len(np.unique(rows // 25)) for rows in batches])
    share = np.bincount(KEPT // 25) / len(KEPT)
    drawn = np.random.default_rng(0).choice(len(share), (4000, 32), p=share)
    assert if_shuffled == pytest.approx(np.mean([len(set(batch)) for batch in drawn]), rel=0.01)
    assert (found < documents) == (window == 64)
    assert found <= 1.1 * if_shuffled
