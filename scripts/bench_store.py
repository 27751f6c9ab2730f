"""Time how fast a store is read, shuffled and not, against TensorStore alone; and how long a trainer waits for it.

Regime: made-up activations of two models in a folder of this run, one store each. Every way of reading reads all rows
once, untimed, and then `passes` times; all ways take turns, and figures are medians over turns, ratios those within a
turn. With `--cold` the files' pages are dropped before each turn, and what is timed is one pass from the opening of the
reader on, which includes its first window. Bytes are those stored; shuffled rows come as float32.

plain     TensorStore alone, slices as large as a shard in order, nothing else
slices    the same in slices of about 8 MiB, whose memory is used again: nothing in Python is faster on a local disk
blocks    `blocks`: rows in order, as float32
shuffled  `shuffled_batches`
pair      `aligned_batches` of both stores; a row counts in each
writing   `StoreWriter`, from the first row to the finished manifest, on disk

Part `waiting` trains an SAE on the first store, in turn with one on a batch that lies in memory: what share of the time
the loop waits for a batch, and how much longer a step takes.
Times drift with the machine; the ratios are what to keep. The last line is JSON.

    python scripts/bench_store.py
    python scripts/bench_store.py --width 2304 --dtype float32 --parts reading
"""

import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import tensorstore
import tyro

from saejax import artifacts
from saejax.activations.reader import WINDOW_ROWS, aligned_batches, blocks, shuffled_batches
from saejax.activations.store import ACTIVATIONS, KIND, Dtype, Store
from saejax.activations.writer import StoreWriter
from saejax.sae.checkpoint import open_checkpoints
from saejax.sae.fit import Member, fit
from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig
from saejax.sae.state import Recipe, initial_state

Part: TypeAlias = Literal["reading", "waiting"]
HOOK = "resid_post.0"
BLOCK, DOCUMENT = 8192, 1024  # rows
SLICE = 8 << 20  # bytes
WARM_UP = 5  # batches: those read ahead of the first step, which is compiled, and two more


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time."""

    rows: int = 524_288
    """Rows of a store."""
    width: int = 512
    """Entries of a row."""
    dtype: Dtype = "bfloat16"
    """How activations are stored."""
    shard_rows: int = 65_536
    """Rows per file."""
    chunk_rows: int = 1024
    """Rows that are read at once."""
    window_rows: int = WINDOW_ROWS
    """Rows that are shuffled among each other."""
    batch: int = 2048
    """Rows of a batch."""
    passes: int = 2
    """Timed passes over a store in a turn."""
    turns: int = 5
    """Turns of each way of reading."""
    cold: bool = False
    """Drop the files' pages before each turn."""
    d_sae: int = 16_384
    """Latents of the SAE in part waiting."""
    k: int = 32
    """Latents kept per row."""
    steps: int = 100
    """Steps of a training run, of which the first are not timed; a window is 64 batches."""
    runs: int = 2
    """Training runs of each kind."""
    parts: tuple[Part, ...] = ("reading", "waiting")
    """What to measure."""
    folder: Path | None = None
    """Where the stores are made, in a folder that goes away after; the system's place for such when not given."""


@dataclasses.dataclass(frozen=True)
class StoreIdentity:
    """What the run directory of a made-up store is named by."""

    name: str
    out: Path


def written(config: BenchConfig, folder: Path, name: str) -> tuple[Store, float]:
    """Make a store, and return the rows that were written in a second."""
    x = np.random.default_rng(0).standard_normal((BLOCK, config.width), np.float32)
    out, told, begun = folder / name, 0, time.perf_counter()
    run, hooks = artifacts.begin(out, KIND, StoreIdentity(name, out)), {HOOK: {"width": config.width}}
    with StoreWriter(run, hooks, config.dtype, config.shard_rows, config.chunk_rows) as writer:
        for start in range(0, config.rows, BLOCK):
            number = np.arange(start, min(start + BLOCK, config.rows), dtype=np.int32)
            document, position = np.divmod(number, DOCUMENT)
            ledger = {"document": document, "position": position, "char_start": position, "char_end": position + 1}
            ledger |= {"token_id": number % 1000, "special": position == 0}
            last = int(document[-1])
            documents = [{"id": f"{ordinal}", "source": "made", "title": ""} for ordinal in range(told, last + 1)]
            writer.append({HOOK: x[: len(number)]}, ledger, documents)
            told = last + 1
        writer.finish()
    return Store.open(out), config.rows / (time.perf_counter() - begun)


def plain(store: Store, rows_per_slice: int) -> Iterator[int]:
    """Read slices in order with TensorStore alone, again and again, and yield how many rows each has."""
    path = f"{store.path}/{ACTIVATIONS}/{HOOK}/"
    array = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}, "open": True}).result()
    for _ in itertools.count():
        for start in range(0, store.rows, rows_per_slice):
            yield len(array[start : min(start + rows_per_slice, store.rows)].read().result())


def ways(config: BenchConfig, x: Store, y: Store) -> dict[str, tuple[int, Callable[[], Iterator[int]]]]:
    """Return the ways of reading: the rows of a pass, and what yields without end how many rows it has read."""
    batch, window, kept = config.batch, config.window_rows, int(x.kept.sum())
    chunk_bytes = config.chunk_rows * config.width * np.dtype(config.dtype).itemsize
    slice_rows, pair = config.chunk_rows * max(SLICE // chunk_bytes, 1), [(x, HOOK), (y, HOOK)]
    return {
        "plain": (x.rows, lambda: plain(x, config.shard_rows)),
        "slices": (x.rows, lambda: plain(x, slice_rows)),
        "blocks": (kept, lambda: (len(rows) for _ in itertools.count() for rows, _ in blocks(x, HOOK))),
        "shuffled": (kept, lambda: map(len, shuffled_batches(x, HOOK, batch, 0, window_rows=window))),
        "pair": (2 * kept, lambda: (2 * len(rows) for rows, _ in aligned_batches(pair, batch, 0, window_rows=window))),
    }


def rows_per_second(config: BenchConfig, rows: int, read: Callable[[], Iterator[int]]) -> float:
    """Return the rows that a way of reading reads in a second; a pass is of so many rows."""
    begun, counts = time.perf_counter(), read()
    if not config.cold:
        count_up_to(rows, counts)
        begun = time.perf_counter()
    found = count_up_to(rows * (1 if config.cold else config.passes), counts)
    return found / (time.perf_counter() - begun)


def count_up_to(rows: int, counts: Iterator[int]) -> int:
    """Take as many counts as add up to so many rows, and return their sum."""
    found = 0
    while found < rows:
        found += next(counts)
    return found


def drop_pages(folder: Path) -> None:
    """Let the system forget what it holds of files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def end_of_reading() -> None:
    """Wait for the threads that still read ahead for a reader that is gone."""
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join()


def reading(config: BenchConfig, folder: Path) -> dict[str, Any]:
    """Let all ways of reading take turns."""
    (x, first), (y, second) = (written(config, folder, name) for name in ("x", "y"))
    every = ways(config, x, y)
    rates: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(config.turns):
        for name, (rows, read) in every.items():
            if config.cold:
                drop_pages(folder)
            rates[name].append(rows_per_second(config, rows, read))
            end_of_reading()
    rates["writing"] = [first, second]
    figures: dict[str, Any] = {}
    print(f"{'':9}{'rows/s':>12}{'MB/s':>8}{'of plain':>10}{'of slices':>11}")
    for name, found in rates.items():
        rate = statistics.median(found)
        megabytes = rate * config.width * np.dtype(config.dtype).itemsize / 1e6
        figures |= {f"{name}_rows_per_second": round(rate), f"{name}_mb_per_second": round(megabytes)}
        line = f"{name:9}{rate:12,.0f}{megabytes:8,.0f}"
        for peer in ("plain", "slices") if name != "writing" else ():
            ratio = statistics.median(ours / theirs for ours, theirs in zip(found, rates[peer], strict=True))
            if name != peer:
                figures[f"{name}_over_{peer}"] = round(ratio, 2)
            line += f"{ratio:{10 if peer == 'plain' else 11}.2f}"
        print(line, flush=True)
    return figures


@dataclasses.dataclass
class Waits:
    """Batches, and how long their reader waited for each."""

    batches: Iterable[np.ndarray]
    waited: list[float] = dataclasses.field(default_factory=list)
    got: list[float] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the batches."""
        batches = iter(self.batches)
        while True:
            asked = time.perf_counter()
            x = next(batches)
            self.got.append(time.perf_counter())
            self.waited.append(self.got[-1] - asked)
            yield x


def trained(config: BenchConfig, batches: Iterable[np.ndarray], x: np.ndarray, folder: Path) -> dict[str, float]:
    """Train an SAE, and return the time of a step and the share of it that the loop waits for a batch."""
    recipe = Recipe(
        steps=config.steps, learning_rate=1e-4, warmup_steps=1, decay_steps=1, aux_k=256, aux_capacity=1024,
        aux_coefficient=1 / 32, dead_window=2**30, precision="float32", impl="jax",
    )  # fmt: skip
    key = jax.random.key(0)
    state = initial_state(initial_sae(SAEConfig(config.width, config.d_sae, config.k), x, key), recipe, key)
    waits = Waits(batches)
    with open_checkpoints(folder, keep=1) as checkpoints:
        member = Member(state, recipe, lambda **_: None, checkpoints)
        fit([member], waits, batch=config.batch, checkpoint_every=config.steps)
    seconds = waits.got[-1] - waits.got[WARM_UP - 1]
    waited = waits.waited[WARM_UP:]
    return {"ms": 1000 * seconds / len(waited), "share": sum(waited) / seconds}


def waiting(config: BenchConfig, folder: Path) -> dict[str, Any]:
    """Train on a store, and in turn on a batch in memory."""
    store, _ = written(config, folder, "trained")
    x = store.read(HOOK, 0, config.batch)
    fed, resident = [], []
    for run in range(config.runs):
        batches = shuffled_batches(store, HOOK, config.batch, run, window_rows=config.window_rows)
        fed.append(trained(config, batches, x, folder / f"fed{run}"))
        del batches  # which ends its threads
        end_of_reading()
        resident.append(trained(config, itertools.repeat(x), x, folder / f"resident{run}"))
    figures = {
        "wait_share": max(run["share"] for run in fed),
        "fed_step_ms": statistics.median(run["ms"] for run in fed),
        "resident_step_ms": statistics.median(run["ms"] for run in resident),
    }
    figures["fed_over_resident"] = statistics.median(
        one["ms"] / other["ms"] for one, other in zip(fed, resident, strict=True)
    )
    print(
        f"a step takes {figures['fed_step_ms']:.0f} ms, {figures['resident_step_ms']:.0f} on a batch in memory; "
        f"{figures['wait_share']:.2%} of the time is waited for batches",
        flush=True,
    )
    return {name: round(value, 5) for name, value in figures.items()}


def main(config: BenchConfig) -> None:
    """Measure the parts asked for, print their figures, and a last line of JSON."""
    parts: dict[Part, Callable[[BenchConfig, Path], dict[str, Any]]] = {"reading": reading, "waiting": waiting}
    figures: dict[str, Any] = {}
    for part in config.parts:
        with tempfile.TemporaryDirectory(dir=config.folder, prefix="bench_store_") as folder:
            figures |= parts[part](config, Path(folder))
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("parts", "folder")}
    print(json.dumps({**settings, **figures}))


if __name__ == "__main__":
    main(tyro.cli(BenchConfig, description=__doc__))
