import dataclasses
import gc
import itertools
import json
import os
import socket
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import NullResults, draws, merge, permutation_test
from saejax.nulls import permutations as drawing
from saejax.nulls.budget import Budget, Impl, batch_bytes, default_impl
from saejax.nulls.engine import batch_size
from saejax.nulls.inference import count_exceedances, p_value
from saejax.nulls.scoring import COMPILER_OPTIONS, Null
from saejax.nulls.shuffles import Shuffle
from saejax.similarity import MEASURES, Measure, Pair
from saejax.similarity.measure import core_batch
from saejax.similarity.pair import Side

pytestmark = pytest.mark.slow

NAMES = ["svcca", "rsa"]
IMPLS: list[Impl] = ["host", "jax"]


def matrices(seed: int, n: int, dx: int, dy: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Unrelated rows, but for a shared part of the first columns."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, dx)), rng.normal(size=(n, dy))
    width = min(dx, dy)
    y[:, :width] += shared * x[:, :width]
    return x, y


def run(x: np.ndarray, y: np.ndarray, permutations: int = 300, **options: Any) -> NullResults:
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
    for result in run(x, y, count, seed=seed, first=1):  # from 0 on, all would be listed
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
    for result in run(x, y, 50, measures=["svcca", "cca_mean_squared", "pwcca", "gulp"]):
        assert (result.p_value, result.exceedances, result.z) == (1, 50, None)
        assert result.rescored == 0  # known from the shapes, so that no draw needs a second look
        assert (result.draws == result.observed).all()


def test_measures_know_when_they_are_constant() -> None:
    x, y = matrices(5, 8, 20, 2, 0.0)
    for name, measure in MEASURES.items():
        if name in ("knn_jaccard", "rank_similarity", "second_order_cosine"):
            continue
        for pair in (Pair.of(x, y), Pair.of(y, x), Pair.of(y, y)):
            state = measure.prepare_pair(pair)
            cores = [
                measure.core_of(state, perm) for perm in (np.arange(8), np.arange(8)[::-1], np.roll(np.arange(8), 3))
            ]
            assert measure.constant(pair) == (np.ptp(cores) < 1e-9), name


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
    measures, key = [MEASURES[name] for name in NAMES], drawing.key_of(0)
    null = Null.prepare(Pair.of(x, y), Shuffle(300), measures, key, Budget("host", 2**31))
    batch = batch_size(null, 100_000)
    assert batch > 1
    assert batch * null.bytes_each() <= batch_bytes("host", 2**31)
    assert batch_size(null, 10) == 10
    assert batch_size(null, 10, 3) == 3


def test_accelerators_take_all_memory_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = matrices(7, 300, 200, 200, 0.0)
    measures, key = [MEASURES[name] for name in NAMES], drawing.key_of(0)
    null = Null.prepare(Pair.of(x, y), Shuffle(300), measures, key, Budget("jax", 2**29))
    assert null.largest_batch() * null.bytes_each() <= batch_bytes("host", 2**31)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    room = 2**29 - null.state_bytes()
    assert 0 <= room - null.largest_batch() * null.bytes_each() < null.parallel() * null.bytes_each()
    on_host = dataclasses.replace(null, impl="host")
    assert on_host.largest_batch() * null.bytes_each() <= batch_bytes("host", 2**31)


@pytest.mark.parametrize("platform", COMPILER_OPTIONS)
def test_this_jax_knows_the_compiler_options(platform: str) -> None:
    assert jax.jit(lambda x: 2 * x, compiler_options=COMPILER_OPTIONS[platform])(21) == 42


def test_matrices_are_let_go_before_the_first_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what lies in memory while draws are made is what the budget counts."""
    sides: list[weakref.ref[Side]] = []
    wrap, score_range = Side.__init__, Null.score_range

    def kept(self: Side, values: np.ndarray) -> None:
        sides.append(weakref.ref(self))
        wrap(self, values)

    def scored(self: Null, start: int, stop: int) -> Any:
        gc.collect()
        assert len(sides) == 2
        assert [side() for side in sides] == [None, None]
        return score_range(self, start, stop)

    monkeypatch.setattr(Side, "__init__", kept)
    monkeypatch.setattr(Null, "score_range", scored)
    run(*matrices(7, 30, 5, 5, 0.0), 5, measures=list(MEASURES))


def test_states_that_need_more_than_the_memory_are_refused() -> None:
    x, y = matrices(7, 300, 5, 5, 0.0)
    with pytest.raises(InputError) as error:
        run(x, y, measures=["rsa"], memory_gib=1e-4)
    assert str(error.value).startswith("memory 0.0001 GiB is below the 0.")
    assert str(error.value).endswith("of 300 pairs needs; raise memory_gib or ask for fewer measures")


def test_disjoint_ranges_merge_into_the_whole() -> None:
    x, y = matrices(2, 5, 3, 2, 0.5)
    whole = run(x, y, 90)
    parts = [run(x, y, count, first=first) for first, count in ((0, 31), (60, 30), (31, 29))]
    for index, result in enumerate(whole):
        merged = merge([part[index] for part in parts])
        np.testing.assert_allclose(merged.draws, result.draws, atol=1e-6, rtol=0)
        assert merged.exceedances == result.exceedances
        assert merged.p_value == result.p_value


class Interruption(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = matrices(2, 6, 3, 2, 0.5)
    expected = run(x, y, 90)
    score_range, made = Null.score_range, []

    def interrupted(self: Null, start: int, stop: int) -> Any:
        made.append((start, stop))
        if len(made) == 4:
            raise Interruption
        return score_range(self, start, stop)

    monkeypatch.setattr(Null, "score_range", interrupted)
    monkeypatch.setattr(draws, "COMMIT_SECONDS", -1.0)
    with pytest.raises(Interruption):
        run(x, y, 90, batch=20, checkpoint=tmp_path / "run")
    result = run(x, y, 90, batch=16, checkpoint=tmp_path / "run")
    assert made == [(0, 20), (20, 40), (40, 60), (60, 80), (60, 76), (76, 92)]
    assert [each.exceedances for each in result] == [each.exceedances for each in expected]
    for left, right in zip(result, expected, strict=True):
        np.testing.assert_allclose(left.draws, right.draws, atol=1e-6, rtol=0)
    longer = run(x, y, 120, checkpoint=tmp_path / "run")
    assert made[6][0] == 90
    assert longer[0].exceedances == run(x, y, 120)[0].exceedances


def test_moments_so_far_lie_beside_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two of five batches, and at the end; one measure is a distance."""
    x, y = matrices(2, 12, 3, 2, 0.5)
    options = {"measures": ["procrustes", "rsa"], "batch": 20}
    score_range = Null.score_range

    def interrupted(self: Null, start: int, stop: int) -> Any:
        if start == 40:
            raise Interruption
        return score_range(self, start, stop)

    def assert_so_far(permutations: int) -> None:
        running = json.loads((tmp_path / "run" / "running-0000000000-0000000090.json").read_text())
        for result in run(x, y, permutations, **options):
            so_far = running[result.measure]
            assert (so_far["permutations"], so_far["exceedances"]) == (permutations, result.exceedances)
            assert so_far["mean"] == pytest.approx(result.null_mean, abs=1e-6)
            assert so_far["sd"] == pytest.approx(result.null_sd, abs=1e-6)

    with monkeypatch.context() as patched:
        patched.setattr(Null, "score_range", interrupted)
        patched.setattr(draws, "COMMIT_SECONDS", -1.0)
        with pytest.raises(Interruption):
            run(x, y, 90, checkpoint=tmp_path / "run", **options)
    assert_so_far(40)
    run(x, y, 90, checkpoint=tmp_path / "run", **options)
    assert_so_far(90)


def test_a_checkpoint_of_another_null_is_refused(tmp_path: Path) -> None:
    x, y = matrices(2, 6, 3, 2, 0.5)
    run(x, y, 10, checkpoint=tmp_path / "run")
    with pytest.raises(InputError, match="holds another run \\(seed 5 there, 6 now\\)"):
        run(x, y, 10, seed=6, checkpoint=tmp_path / "run")
    with pytest.raises(InputError, match=r"holds another run \(inputs\.y [0-9a-f]{64} there"):
        run(x, y[::-1], 10, checkpoint=tmp_path / "run")


TWO_PROCESSES = """
import json, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
from saejax.nulls import permutation_test
from saejax.nulls.scoring import Null
made = []
score_range = Null.score_range
def spy(self, start, stop):
    made.append(start)
    return score_range(self, start, stop)
Null.score_range = spy
x, y = np.load(sys.argv[1])["x"], np.load(sys.argv[1])["y"]
results = permutation_test(x, y, measures=["svcca", "rsa"], scheme="uniform", permutations=101, seed=5, batch=16,
                           checkpoint=None if sys.argv[4] == "-" else __import__("pathlib").Path(sys.argv[4]))
with open(sys.argv[5], "w") as file:
    json.dump({"made": made, "exceedances": [r.exceedances for r in results],
               "draws": [r.draws.tolist() for r in results]}, file)
"""


def two_processes(folder: Path, checkpoint: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [folder / f"{process}.json" for process in (0, 1)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(folder / "matrices.npz"), str(port), str(process), checkpoint,
             str(outs[process])],
            env={**os.environ, "JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip
    for process in started:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    return [json.loads(out.read_text()) for out in outs]


def test_two_processes_count_as_one_does(tmp_path: Path) -> None:
    """Each draws its half, both return the whole; a checkpoint of one process is taken over by two."""
    x, y = matrices(2, 5, 3, 2, 0.5)
    np.savez(tmp_path / "matrices.npz", x=x, y=y)
    alone = run(x, y, 101)
    run(x, y, 30, checkpoint=tmp_path / "run")
    for checkpoint, starts in (("-", [0, 16, 32, 48]), (str(tmp_path / "run"), [30, 46])):
        first, second = two_processes(tmp_path, checkpoint)
        assert first["made"] == starts
        assert second["made"] == [50, 66, 82, 98]
        for told in (first, second):
            assert told["exceedances"] == [result.exceedances for result in alone]
            np.testing.assert_allclose(told["draws"], [result.draws for result in alone], atol=1e-6, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_sizes_that_float32_cannot_hold_leave_counts_alone(impl: Impl) -> None:
    """Beside a matrix of 1e60, one of 1e-60 moves no size-and-shape distance; angles see no size."""
    x, y = matrices(12, 20, 4, 3, 0.3)
    plain = run(x, y, 50, measures=["procrustes", "procrustes_size_and_shape"], impl=impl)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far = run(x * 1e-60, y * 1e60, 50, measures=["procrustes", "procrustes_size_and_shape"], impl=impl)
    assert [each.exceedances for each in far] == [each.exceedances for each in plain]
    assert far[0].z == pytest.approx(plain[0].z, rel=1e-4)
    assert far[1].z is None


def test_host_is_the_default_on_a_cpu() -> None:
    assert default_impl() == ("host" if jax.default_backend() == "cpu" else "jax")


@pytest.mark.parametrize("impl", IMPLS)
def test_draws_that_float32_cannot_tell_are_scored_in_float64(impl: Impl) -> None:
    """One row of each side outweighs the others: float32 is off by up to 1e-2 of a debiased CKA."""
    x, y = matrices(11, 40, 6, 5, 0.0)
    x[3] *= 1000
    y[7] *= 1000
    result = run(x, y, 60, measures=["cka_debiased"], impl=impl)[0]
    measure = MEASURES["cka_debiased"]
    state = measure.prepare(x, y)
    perms = drawing.on_host(drawing.key_of(5), drawing.as_indices(0, 60), 40)
    expected = [measure.score_exact(state, perm) for perm in perms]
    np.testing.assert_allclose(result.draws, expected, atol=50 * measure.tolerance, rtol=0)
    assert result.rescored > 30
