import itertools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from made_stores import activations, ledger, made

from saejax.activations.reader import blocks, documents_per_batch, paired_blocks, shuffled_batches
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
    assert all(rows.max(initial=0) < (number + 1) * rows_per_block for number, (rows, _) in enumerate(found))


def test_paired_blocks_are_of_the_same_rows(store: Store, tmp_path: Path) -> None:
    other = made(tmp_path / "same", ROWS, shard_rows=100)
    found = list(paired_blocks(store, HOOK, other, "mlp_out.0", 170))
    rows, x, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(rows, KEPT)
    np.testing.assert_array_equal(x, activations(ROWS)[KEPT])
    np.testing.assert_array_equal(y, activations(ROWS, 5, 0.5)[KEPT])
    with pytest.raises(InputError, match="are of different tokens"):
        paired_blocks(store, HOOK, made(tmp_path / "shorter", 900), HOOK)


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


def test_no_more_than_two_windows_are_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a window is read, at most the one that is being served is alive."""
    original, changed, alive = Store.read_spans, threading.Condition(), []

    def gone(number: int) -> None:
        with changed:
            alive.remove(number)
            changed.notify()

    def counted(self: Store, hook: str, spans: list[tuple[int, int]]) -> np.ndarray:
        rows = original(self, hook, spans)
        with changed:
            assert changed.wait_for(lambda: len(alive) <= 1, 10), f"{len(alive)} windows besides a new one"
            alive.append(id(rows))
            weakref.finalize(rows, gone, id(rows))
        return rows

    monkeypatch.setattr(Store, "read_spans", counted)
    rows_of(store, 20, 200)
    assert len(alive) <= 2


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
