import dataclasses
import itertools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import NullResult, permutation_test
from saejax.nulls import permutations as drawing
from saejax.nulls.engine import batch_size
from saejax.nulls.inference import count_exceedances, p_value
from saejax.nulls.scoring import BATCH_BYTES, Impl, Null, default_impl
from saejax.similarity import MEASURES, Measure, Pair
from saejax.similarity.measure import core_batch

NAMES = ["svcca", "rsa"]
IMPLS: list[Impl] = ["host", "jax"]


def matrices(seed: int, n: int, dx: int, dy: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Unrelated rows, but for a shared part of the first columns."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, dx)), rng.normal(size=(n, dy))
    width = min(dx, dy)
    y[:, :width] += shared * x[:, :width]
    return x, y


def run(x: np.ndarray, y: np.ndarray, permutations: int = 300, **options: Any) -> list[NullResult]:
    chosen = {"measures": NAMES, "scheme": "uniform", "seed": 5, **options}
    return permutation_test(x, y, permutations=permutations, **chosen)


@pytest.mark.parametrize("impl", IMPLS)
def test_draw_i_is_the_definition_on_permutation_i(impl: Impl) -> None:
    x, y = matrices(0, 30, 8, 6, 0.2)
    for result in run(x, y, 12, impl=impl):
        perms = drawing.on_host(drawing.key_of(5), drawing.as_indices(0, 12), 30)
        measure = MEASURES[result.measure]
        expected = [measure.reference(x, y[perm]) for perm in perms]
        np.testing.assert_allclose(result.draws, expected, atol=measure.tolerance / 2, rtol=0)
        assert result.observed == pytest.approx(measure.reference(x, y), abs=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_batch_size_changes_no_count(impl: Impl) -> None:
    x, y = matrices(1, 20, 5, 4, 0.05)
    whole = run(x, y, 100, impl=impl)
    for batch in (1, 7, 64, 1000):
        for result, other in zip(whole, run(x, y, 100, impl=impl, batch=batch), strict=True):
            assert other.exceedances == result.exceedances
            np.testing.assert_allclose(other.draws, result.draws, atol=1e-6, rtol=0)


def test_a_shorter_run_is_the_start_of_a_longer_one() -> None:
    x, y = matrices(1, 20, 5, 4, 0.05)
    for short, long in zip(run(x, y, 40), run(x, y, 90), strict=True):
        np.testing.assert_allclose(short.draws, long.draws[:40], atol=1e-6, rtol=0)


def test_implementations_count_alike_among_ties() -> None:
    """Five rows have 120 pairings, so that scores tie with the observed one all the time."""
    x, y = matrices(2, 5, 3, 2, 0.5)
    host, on_device = run(x, y, 600, impl="host"), run(x, y, 600, impl="jax")
    assert [result.exceedances for result in host] == [result.exceedances for result in on_device]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_rows_against_all_120_pairings(seed: int) -> None:
    x, y = matrices(seed, 5, 3, 2, 0.5)
    count = 4000
    for result in run(x, y, count, seed=seed):
        reference = MEASURES[result.measure].reference
        scores = np.array([reference(x, y[list(perm)]) for perm in itertools.permutations(range(5))])
        exact = float(np.mean(scores >= result.observed - 1e-12))
        error = 4 * scores.std() / np.sqrt(count)
        assert result.null_mean == pytest.approx(scores.mean(), abs=error)
        assert result.null_sd == pytest.approx(scores.std(), rel=0.1)
        assert scipy.stats.binomtest(result.exceedances, count, exact).pvalue > 1e-3
        assert exact >= 1 / 120


@pytest.mark.parametrize("name", NAMES)
def test_p_is_uniform_when_the_pairing_means_nothing(name: str) -> None:
    """Independent matrices with clusters of rows on both sides, all replicates in one vmapped program."""
    measure, replicates, n, m = MEASURES[name], 400, 12, 59
    rng = np.random.default_rng(3)
    states, perms = [], []
    for replicate in range(replicates):
        x, y = (rng.normal(size=(n, 3)) + 3 * rng.normal(size=(3, 3))[rng.integers(3, size=n)] for _ in range(2))
        states.append(measure.prepare(x, y))
        perms.append(drawing.on_host(drawing.key_of(replicate), drawing.as_indices(0, m), n))
    with_identity = np.concatenate([np.tile(np.arange(n), (replicates, 1, 1)), np.array(perms)], axis=1)
    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
        scores = jax.jit(jax.vmap(jax.vmap(measure.score, in_axes=(None, 0))))(stacked, jnp.asarray(with_identity))
    sign = 1 if measure.larger_is_more_similar else -1
    p = np.array([p_value(count_exceedances(sign * row[1:], sign * float(row[0])), m) for row in np.asarray(scores)])
    spread_out = p - rng.random(replicates) / (m + 1)  # p takes m + 1 values; this makes it continuous
    assert scipy.stats.kstest(spread_out, "uniform").pvalue > 0.01
    for level in (0.05, 0.1):
        assert scipy.stats.binomtest(int(np.sum(p <= level)), replicates, level).pvalue > 0.01


def test_a_planted_pairing_is_found() -> None:
    x, y = matrices(4, 60, 10, 8, 1.0)
    for result in run(x, y, 400):
        assert result.exceedances == 0
        assert result.p_value == 1 / 401
        assert result.p_low == 0
        assert result.z is not None
        assert result.z > 5


def test_a_saturated_measure_says_nothing() -> None:
    """Where kx is n - 1, every pairing has SVCCA 1: p is 1 and there is no z."""
    x, y = matrices(5, 6, 20, 2, 0.0)
    result = run(x, y, 50, measures=["svcca"])[0]
    assert (result.p_value, result.exceedances, result.z) == (1, 50, None)


def shifted(by: float) -> Measure:
    """RSA with a fast way on the host that is off."""
    rsa = MEASURES["rsa"]
    return dataclasses.replace(
        rsa, core_batch=lambda own, values, perms: np.asarray(core_batch(rsa, own, values, perms).low) + by
    )


def test_measures_may_disagree_with_their_definition_only_by_raising(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = matrices(6, 20, 4, 4, 0.0)
    monkeypatch.setitem(MEASURES, "rsa", shifted(2e-6))
    with pytest.raises(ArithmeticError, match="rsa of the observed pairing has core .* farther apart than its tol"):
        run(x, y, 10, measures=["rsa"], impl="host")


def test_draws_within_tolerance_are_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast way that is off by less than its tolerance changes no count, though it moves most draws."""
    x, y = matrices(2, 5, 3, 2, 0.5)
    expected = run(x, y, 300, measures=["rsa"], impl="host")[0]
    for off in (shifted(-8e-7), shifted(8e-7)):
        monkeypatch.setitem(MEASURES, "rsa", off)
        result = run(x, y, 300, measures=["rsa"], impl="host")[0]
        assert result.exceedances == expected.exceedances
        assert np.mean(np.abs(result.draws - expected.draws) > 5e-7) > 0.5


def test_default_batches_stay_within_memory() -> None:
    x, y = matrices(7, 300, 200, 200, 0.0)
    null = Null.prepare(Pair.of(x, y), [MEASURES[name] for name in NAMES], drawing.key_of(0), "host", 2**31)
    batch = batch_size(null, 100_000)
    assert 1 < batch < 1024
    assert batch * null.bytes_each() <= BATCH_BYTES
    assert batch_size(null, 10) == 10
    assert batch_size(null, 10, 3) == 3


def test_states_that_need_more_than_the_memory_are_refused() -> None:
    x, y = matrices(7, 300, 5, 5, 0.0)
    with pytest.raises(InputError) as error:
        run(x, y, measures=["rsa"], memory_gib=1e-4)
    assert str(error.value).startswith("memory 0.0001 GiB is below the 0.")
    assert str(error.value).endswith("of 300 pairs need; raise memory_gib or leave out the measures that read them")


EIGHT_DEVICES = """
import json, sys
import jax, numpy as np
from saejax.nulls import permutation_test
from saejax.nulls.scoring import Null
sharded = []
score = Null.score
def spy(self, perms):
    sharded.append(len({shard.device for shard in perms.addressable_shards}) if isinstance(perms, jax.Array) else 0)
    return score(self, perms)
Null.score = spy
x, y = np.load(sys.argv[1])["x"], np.load(sys.argv[1])["y"]
results = permutation_test(x, y, measures=["svcca", "rsa"], scheme="uniform", permutations=101, seed=5, impl="jax")
json.dump({"devices": len(jax.devices()), "sharded": max(sharded), "exceedances": [r.exceedances for r in results],
           "means": [r.null_mean for r in results]}, sys.stdout)
"""


def test_eight_devices_count_as_one_does(tmp_path: Any) -> None:
    """A batch spread over devices, of a number of permutations that they do not divide, with ties."""
    x, y = matrices(2, 5, 3, 2, 0.5)
    np.savez(tmp_path / "matrices.npz", x=x, y=y)
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, str(tmp_path / "matrices.npz")], capture_output=True, text=True,
        check=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, timeout=300,
    )  # fmt: skip
    told = json.loads(done.stdout)
    here = run(x, y, 101, impl="host")
    assert (told["devices"], told["sharded"]) == (8, 8)
    assert told["exceedances"] == [result.exceedances for result in here]
    np.testing.assert_allclose(told["means"], [result.null_mean for result in here], atol=1e-6)


def test_host_is_the_default_on_a_cpu() -> None:
    assert default_impl() == ("host" if jax.default_backend() == "cpu" else "jax")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["svcca", "ckk"]}, "measure 'ckk' is unknown; choose among svcca"),
        ({"measures": []}, r"measures \[\] must be distinct, and at least one of svcca"),
        ({"measures": ["rsa", "rsa"]}, r"measures \['rsa', 'rsa'\] must be distinct"),
        ({"scheme": "block"}, "scheme 'block' is unknown; choose one of uniform"),
        ({"permutations": 0}, "permutations 0 must be at least 1"),
        ({"seed": -3}, "seed -3 must be at least 0"),
        ({"batch": 0}, "batch 0 must be at least 1"),
        ({"x_ids": [0] * 8}, "x_ids names feature 0 for rows 0 and 1"),
        ({"y_ids": [0, 1]}, "y_ids has 2 ids for 8 rows of y"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    x, y = matrices(8, 8, 3, 3, 0.0)
    with pytest.raises(InputError, match=message):
        run(x, y, **options)


def test_bad_matrices_die_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without correlations is found before the first, slower measure is prepared."""
    x, y = matrices(8, 8, 3, 3, 0.0)
    y[3] = 0.5

    def work(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setitem(MEASURES, "svcca", dataclasses.replace(MEASURES["svcca"], own=work))
    with pytest.raises(InputError, match="rsa: row 3 of y is constant"):
        run(x, y)
