"""How long one re-pairing takes: the null engine against scoring every re-pairing from scratch, in the same run.

Regime: unit-norm rows of two matrices that share a part, one re-pairing after another, all cores. From scratch means
what a first script does: centre, decompose and correlate anew (SVCCA, numpy), all distances and their ranks anew (RSA,
scipy). The engine's figures are for whole batches, permutations drawn and counted in, after one batch to compile;
`prepare` is what it does once. The last line is JSON.

python scripts/bench_null.py                                   the demo's size
python scripts/bench_null.py --n 4000 --dx 512 --dy 768        the size of a published comparison
"""

import dataclasses
import json
import time
from collections.abc import Callable

import numpy as np
import scipy.stats
import tyro
from scipy.spatial.distance import pdist

from saejax.nulls.engine import Impl, Null
from saejax.nulls.permutations import as_indices, key_of, on_host
from saejax.similarity import MEASURES

IMPLS: tuple[Impl, ...] = ("host", "jax")


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    n: int = 600
    """Pairs."""
    dx: int = 256
    """Columns of the first matrix."""
    dy: int = 256
    """Columns of the second matrix."""
    seconds: float = 10.0
    """Time to spend on each figure, at least one batch or re-pairing."""
    seed: int = 0
    """Seed of the matrices and re-pairings."""


def svcca_from_scratch(x: np.ndarray, y: np.ndarray) -> float:
    """Return SVCCA with 99 % of the variance, by three decompositions."""
    bases = []
    for matrix in (x, y):
        left, values, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
        kept = np.searchsorted(np.cumsum(values**2), 0.99 * np.sum(values**2)) + 1
        bases.append(left[:, :kept])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


def rsa_from_scratch(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Spearman correlation of all correlation distances."""
    ranks = [scipy.stats.rankdata(pdist(matrix, "correlation")) for matrix in (x, y)]
    return float(np.corrcoef(ranks)[0, 1])


FROM_SCRATCH: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "svcca": svcca_from_scratch,
    "rsa": rsa_from_scratch,
}


def matrices(config: BenchConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return unit-norm rows whose variances fall by a factor e over the columns, and that share a part."""
    rng = np.random.default_rng(config.seed)
    rows = []
    shared = rng.normal(size=(config.n, max(config.dx, config.dy)))
    for width in (config.dx, config.dy):
        values = (rng.normal(size=(config.n, width)) + 0.3 * shared[:, :width]) * np.exp(-np.arange(width) / width)
        rows.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    return rows[0], rows[1]


def repeat(work: Callable[[], object], seconds: float) -> float:
    """Return the mean time of a call, in seconds, over as many calls as fit in `seconds`."""
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < seconds:
        work()
        calls += 1
    return (time.perf_counter() - started) / calls


def main(config: BenchConfig) -> None:
    """Measure, print a line per measure and way, and a last line of JSON."""
    x, y = matrices(config)
    rng = np.random.default_rng(config.seed)
    figures: dict[str, dict[str, float]] = {}
    for name, measure in MEASURES.items():
        scratch = repeat(lambda name=name: FROM_SCRATCH[name](x, y[rng.permutation(config.n)]), config.seconds)
        figures[name] = {"from_scratch_ms": 1000 * scratch}
        print(f"{name:<6} from scratch {1000 * scratch:10.3f} ms per re-pairing")
        for impl in IMPLS:
            started = time.perf_counter()
            null = Null.prepare(x, y, [measure], key_of(config.seed), impl)
            batch = null.batch_size(256 if impl == "host" else 32)
            null.score_range(0, batch)
            prepare = time.perf_counter() - started
            each = repeat(lambda null=null, batch=batch: null.score_range(0, batch), config.seconds) / batch
            error = abs(float(null.score_range(0, batch)[0][0]) - null_score(null, measure.reference, x, y))
            figures[name] |= {f"{impl}_ms": 1000 * each, f"{impl}_ratio": scratch / each, f"{impl}_error": error}
            print(f"{'':<6} impl {impl:<7} {1000 * each:10.3f} ms, {scratch / each:8.0f} times as fast, off by "
                  f"{error:.1e}; prepared and compiled in {prepare:.1f} s")  # fmt: skip
    print(json.dumps({**dataclasses.asdict(config), **figures}))


def null_score(null: Null, reference: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> float:
    """Return the definition's score of the first re-pairing."""
    return reference(x, y[on_host(null.key, as_indices(0, 1), null.n)[0]])


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
