import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from made_stores import made

from saejax.activations import reader
from saejax.activations.filters import RowFilter
from saejax.activations.lanes import Batch
from saejax.activations.source import open_source
from saejax.sae.placement import AHEAD, placed_batches

HOOK, WIDTH = "resid_post.0", 3
BATCH, WINDOW = 38, 256


def bytes_of(read: list[weakref.ref], shape: tuple[int, ...]) -> int:
    """Return the bytes of what was read and of what lies on devices in that shape, which may share memory."""
    jax.block_until_ready(jax.live_arrays())
    jax.device_put(0.0)  # JAX lets go of what it has copied when it is called again
    held = {x.ctypes.data: x.nbytes for x in (there() for there in read) if x is not None}
    held |= {x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays() if x.shape == shape}
    return sum(held.values())


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_more_batches_are_held_than_are_counted(lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a trainer that has put some on its device; what a batch is made of comes to it, and a step that still runs."""
    store = made(tmp_path / "run", 1000)
    read: list[weakref.ref] = []
    another, original = threading.Condition(), reader.batches_of

    def noted(*given) -> Iterator[Batch]:
        for rows, (x,) in original(*given):
            with another:
                read.append(weakref.ref(x))
                another.notify()
            yield rows, [x]

    monkeypatch.setattr(reader, "batches_of", noted)
    rows = open_source(store.path, HOOK, RowFilter(), batch=BATCH, seed=0, window_rows=WINDOW, lanes=lanes)
    batches, most = rows.batches(), 0
    for step, x in enumerate(itertools.islice(placed_batches(batches, BATCH, None), 20), 1):
        with another:
            assert another.wait_for(lambda step=step: len(read) == lanes * (step + AHEAD + 1), 10)
        most = max(most, bytes_of(read, x.shape))
    batches.close()
    windows = 2 * WINDOW * (4 * WIDTH + 24) + store.rows
    assert 4 <= most / (4 * BATCH * WIDTH) <= (rows.held_bytes - windows) / (4 * BATCH * WIDTH) - 2
