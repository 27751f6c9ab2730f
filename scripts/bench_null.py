"""How long one re-pairing takes: the null engine against competent direct recomputation, in the same run.

Regime: unit-norm float32 rows that share a part, all cores, permutations drawn and counted in, start-up excluded (one
batch compiles and warms up). What is compared is timed by turns, so that what else the machine does meets both; figures
are ratios of medians. Five parts:

speed    n = 4,000, d = 512 and 768. Direct means what a careful script does anew for each pairing. SVCCA: both
         centred matrices decomposed, 99 % kept, covariances, inverse square roots, singular values. RSA: a
         correlation matrix by one product each, scipy's spearmanr; and a numpy loop that ranks once and indexes
         B[p][:, p]. Quadratic measures: one matrix product alone, of the bases as they are, in turn with the engine.
million  10^6 re-pairings of RSA on 300 pairs, the whole test with everything; and the cost per re-pairing as their
         number grows.
bounds   impl jax: how many draws a certificate leaves open, at z near 0, 3 and 30; n = 400 and 4,000.
growth   milliseconds per re-pairing from n = 256 to the largest, and from d = 32 to 2,048, drawn as a figure.
device   10,000 re-pairings of SVCCA and RSA together on a GPU or TPU, all but preparing and compiling counted in.

The last line is JSON.

python scripts/bench_null.py                                  speed, million and bounds: about eight minutes
python scripts/bench_null.py --parts growth --memory-gib 8    up to n = 32,768: about seven minutes more
python scripts/bench_null.py --parts device                                                     n = 4,000
python scripts/bench_null.py --parts device --n 32768 --dx 2304 --dy 2304 --memory-gib 24       the largest
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import scipy.linalg
import scipy.stats
import tyro

from saejax.nulls import permutation_test
from saejax.nulls.budget import Budget, Impl
from saejax.nulls.draws import Draws
from saejax.nulls.engine import batch_size
from saejax.nulls.permutations import as_indices, key_of, on_host
from saejax.nulls.scoring import Null
from saejax.nulls.shuffles import Shuffle
from saejax.nulls.stacks import Stack, fill
from saejax.similarity import Pair, find_measure
from saejax.similarity.distances import Rows
from saejax.similarity.ranks import exact_ranks

Part = Literal["speed", "million", "bounds", "growth", "device"]
DEVICE_PERMUTATIONS = 10_000
SPINNING = 0.1  # seconds
GROWTH_N, GROWTH_D = 4096, 256  # what stays while the other grows


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    parts: tuple[Part, ...] = ("speed", "million", "bounds")
    """Which parts."""
    n: int = 4000
    """Pairs in parts speed and device."""
    dx: int = 512
    """Columns of the first matrix."""
    dy: int = 768
    """Columns of the second matrix."""
    seconds: float = 10.0
    """Time to spend on each figure of the engine, at least one batch."""
    permutations: int = 1_000_000
    """Re-pairings in part million."""
    largest: int = 32_768
    """Most pairs in part growth."""
    memory_gib: float = 2.0
    """Memory for the engine, in GiB; ranks of 32,768 pairs take 4."""
    out: Path = Path("runs/bench_null.html")
    """The figure of part growth."""
    seed: int = 0
    """Seed of the matrices and re-pairings."""


def matrices(n: int, dx: int, dy: int, seed: int, shared: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Return unit-norm float32 rows whose variances fall by a factor e over the columns, and that share a part."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, max(dx, dy)))
    rows = []
    for width in (dx, dy):
        values = (rng.normal(size=(n, width)) + shared * common[:, :width]) * np.exp(-np.arange(width) / width)
        rows.append((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))
    return rows[0], rows[1]


def direct_svcca(x: np.ndarray, y: np.ndarray) -> float:
    """Return SVCCA as its text states it, by decompositions and covariances."""
    kept = []
    for matrix in (x, y):
        left, values, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
        variance = np.cumsum(values**2)
        count = np.searchsorted(variance, 0.99 * variance[-1]) + 1
        kept.append(left[:, :count] * values[:count])
    whitened = []
    for scores in kept:
        values, vectors = scipy.linalg.eigh(scores.T @ scores)
        whitened.append(vectors / np.sqrt(values) @ vectors.T)
    product = whitened[0] @ (kept[0].T @ kept[1]) @ whitened[1]
    return float(np.linalg.svd(product, compute_uv=False).mean())


def direct_rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Spearman correlation of all correlations of rows."""
    above = np.triu_indices(len(x), 1)
    correlations = []
    for matrix in (x, y):
        rows = matrix - matrix.mean(axis=1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        correlations.append((rows @ rows.T)[above])
    found: Any = scipy.stats.spearmanr(*correlations)
    return float(found.statistic)


def seconds_per_call(work: Callable[[], object], seconds: float) -> float:
    """Return the mean time of a call over as many calls as fit in a time, at least one."""
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < seconds:
        work()
        calls += 1
    return (time.perf_counter() - started) / calls


def seconds_in_turn(one: Callable[[], object], other: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the median times of two calls, made by turns: what else the machine does meanwhile meets both.

    Between them is time for the threads of OpenBLAS, which spin after their last product, to leave the cores.
    """
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    while not times[0] or time.perf_counter() - started < seconds:
        for work, taken in zip((one, other), times, strict=True):
            time.sleep(SPINNING)
            before = time.perf_counter()
            work()
            taken.append(time.perf_counter() - before)
    return statistics.median(times[0]), statistics.median(times[1])


def prepared(
    x: np.ndarray, y: np.ndarray, names: list[str], config: BenchConfig, impl: Impl = "host"
) -> tuple[Null, int, float]:
    """Return a null that has scored one batch, the size of its batches, and the time until then."""
    started = time.perf_counter()
    memory = int(config.memory_gib * 2**30)
    measures, key = [find_measure(name) for name in names], key_of(config.seed)
    null = Null.prepare(Pair.of(x, y), Shuffle(len(x)), measures, key, Budget(impl, memory))
    batch = batch_size(null, 256)
    null.score_range(0, batch)
    return null, batch, time.perf_counter() - started


def engine_seconds(x: np.ndarray, y: np.ndarray, names: list[str], config: BenchConfig) -> tuple[float, float]:
    """Return the time of one re-pairing in batches, and that of everything before the second batch."""
    null, batch, before = prepared(x, y, names, config)
    return seconds_per_call(lambda: null.score_range(0, batch), config.seconds) / batch, before


def speed(config: BenchConfig) -> dict[str, Any]:
    """Compare the engine with direct recomputation at one size."""
    x, y = matrices(config.n, config.dx, config.dy, config.seed)
    perms = on_host(key_of(config.seed), as_indices(0, 8), config.n)
    turns = iter(np.tile(perms, (1000, 1)))
    figures: dict[str, Any] = {}
    for name, direct in (("svcca", direct_svcca), ("rsa", direct_rsa)):
        null, batch, before = prepared(x, y, [name], config)
        taken, anew = seconds_in_turn(
            lambda null=null, batch=batch: null.score_range(0, batch),
            lambda direct=direct: direct(x, y[next(turns)]),
            config.seconds,
        )
        each = taken / batch
        figures[name] = {"direct_ms": 1e3 * anew, "engine_ms": 1e3 * each, "ratio": anew / each, "before_s": before}
    a, b = (exact_ranks(Rows.of(matrix.astype(np.float64), "correlation")).matrix for matrix in (x, y))
    loop = seconds_per_call(lambda: np.vdot(a, b[p := next(turns)][:, p]), config.seconds)
    figures["rsa"] |= {"numpy_loop_ms": 1e3 * loop, "numpy_loop_ratio": 1e3 * loop / figures["rsa"]["engine_ms"]}
    pair = Pair.of(x, y)
    left, right = (np.ascontiguousarray(side.left, np.float32) for _, side in pair.sides)
    for names in (
        ["cka"],
        ["rsa_pearson"],
        ["cka_debiased"],
        ["svcca", "cca_mean_squared", "linear_regression", "cka"],
    ):
        null, batch, _ = prepared(x, y, names, config)

        def products(count: int = batch) -> None:
            for _ in range(count):
                np.matmul(left.T, right)

        taken, product = seconds_in_turn(
            lambda null=null, batch=batch: null.score_range(0, batch), products, config.seconds
        )
        figures["+".join(names)] = {
            "product_ms": 1e3 * product / batch, "engine_ms": 1e3 * taken / batch, "ratio": taken / product,
        }  # fmt: skip
    return figures


def million(config: BenchConfig) -> dict[str, Any]:
    """Time whole tests of RSA on 300 pairs, at growing numbers of re-pairings."""
    x, y = matrices(300, 64, 64, config.seed)
    figures = {}
    for permutations in (1000, config.permutations // 100, config.permutations // 10, config.permutations):
        started = time.perf_counter()
        permutation_test(x, y, measures=["rsa"], scheme="uniform", permutations=permutations, seed=config.seed)
        elapsed = time.perf_counter() - started
        figures[str(permutations)] = {"seconds": elapsed, "ms_per_permutation": 1e3 * elapsed / permutations}
    return figures


def bounds(config: BenchConfig) -> dict[str, Any]:
    """Count the draws that certified bounds leave open, where the observed score is near, off and far off the null."""
    figures = {}
    for (n, dx, dy), permutations, shares in (
        ((400, 64, 48), 2000, (0.0, 0.33, 0.8)),
        ((4000, 512, 768), 200, (0.0, 0.2, 0.4)),
    ):
        for wanted, shared in zip((0, 3, 30), shares, strict=True):
            result = permutation_test(
                *matrices(n, dx, dy, config.seed, shared), measures=["svcca"], scheme="uniform",
                permutations=permutations, seed=1, impl="jax",
            )[0]  # fmt: skip
            share = result.rescored / permutations
            figures[f"n = {n}, z about {wanted}"] = {"z": result.z, "share_rescored": share}
    return figures


def growth(config: BenchConfig) -> dict[str, Any]:
    """Time single measures as n grows at d = 256, and as d grows at n = 4,096, and draw the figure."""
    import plotly.subplots

    figure = plotly.subplots.make_subplots(
        cols=2, shared_yaxes=True, subplot_titles=[f"d = {GROWTH_D:,}", f"n = {GROWTH_N:,}"]
    )
    sizes = [2**power for power in range(8, 16) if 2**power <= config.largest]
    widths = [2**power for power in range(5, 12)]
    figures: dict[str, Any] = {}
    for name, colour in (("svcca", "#2456b8"), ("cka", "#c2571a"), ("rsa", "#3c8a4e")):
        for col, places in enumerate(([(n, GROWTH_D) for n in sizes], [(GROWTH_N, d) for d in widths]), 1):
            times = {}
            for n, d in places:
                x, y = matrices(n, d, d, config.seed)
                each, _ = engine_seconds(x, y, [name], dataclasses.replace(config, seconds=min(config.seconds, 3.0)))
                times[n if col == 1 else d] = 1e3 * each
                print(f"growth {name} n = {n} d = {d}: {1e3 * each:.3f} ms")
            figures[f"{name} by {'n' if col == 1 else 'd'}"] = times
            figure.add_scatter(
                x=list(times), y=list(times.values()), name=name, mode="lines+markers", line_color=colour,
                showlegend=col == 1, row=1, col=col,
            )  # fmt: skip
    figure.update_xaxes(type="log", title="pairs", col=1).update_xaxes(type="log", title="columns", col=2)
    figure.update_yaxes(type="log").update_yaxes(title="ms per re-pairing", col=1)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.update_layout(template="plotly_white", title="Cost of one re-pairing").write_html(config.out)
    return figures


def device(config: BenchConfig) -> dict[str, Any]:
    """Time SVCCA and RSA together on an accelerator, draws settled as in a test."""
    if jax.default_backend() == "cpu":
        raise SystemExit("part device needs a GPU or a TPU, and JAX sees none; leave it out of parts")
    names = ("svcca", "rsa")
    x, y = matrices(config.n, config.dx, config.dy, config.seed)
    null, batch, before = prepared(x, y, list(names), config, "jax")
    started = time.perf_counter()
    fill(Stack.of([null]), [Draws(names, 0, DEVICE_PERMUTATIONS)], batch, lambda count: None)
    seconds = time.perf_counter() - started
    kind = jax.devices()[0].device_kind
    print(f"device {kind}, {len(jax.local_devices())} of them, batches of {batch}")
    per_draw = 1e3 * seconds / DEVICE_PERMUTATIONS
    return {f"n = {config.n}": {"seconds": seconds, "ms_per_permutation": per_draw, "before_s": before}}


def main(config: BenchConfig) -> None:
    """Measure the parts asked for, print their figures, and a last line of JSON."""
    parts: dict[Part, Callable[[BenchConfig], dict[str, Any]]] = {
        "speed": speed, "million": million, "bounds": bounds, "growth": growth, "device": device,
    }  # fmt: skip
    figures = {}
    for part in config.parts:
        figures[part] = parts[part](config)
        for name, values in figures[part].items():
            print(part, name, {key: float(f"{value:.4g}") for key, value in values.items()})
    print(json.dumps({**dataclasses.asdict(config), "out": str(config.out), **figures}))


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
