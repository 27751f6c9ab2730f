import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sources import HOOK, ArraySource, made_sae, made_store, reading_sae, some_special, sparse_codes

from saejax.activations.store import write_decoder
from saejax.artifacts import read_manifest
from saejax.errors import InputError
from saejax.features.encode import EncodeConfig, encode
from saejax.features.matching import Method
from saejax.features.pairing import PairConfig, Pairing, correlation_pairs, pair, plan
from saejax.storage import Folder

METHODS: list[Method] = ["many_to_one", "mutual_best", "one_to_one"]
ROWS, D = 600, 20


def pairs(x: ArraySource, y: ArraySource, method: Method, minimum: float = -1.0, **options: Any) -> Pairing:
    return correlation_pairs(x, y, method=method, minimum_correlation=minimum, **{"memory_gib": 1.0, **options})


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, a noisy copy of it with its columns shuffled, and the y column of every x column."""
    rng = np.random.default_rng(seed)
    x = sparse_codes(ROWS, D, seed)
    order = rng.permutation(D)
    y = np.maximum(x[:, order] * rng.uniform(0.6, 1.4, (ROWS, D)), 0).astype(np.float32)
    return x, y, np.argsort(order)


def assert_same(found: Pairing, expected: Pairing, atol: float = 0) -> None:
    np.testing.assert_array_equal(found.x_ids, expected.x_ids)
    np.testing.assert_array_equal(found.y_ids, expected.y_ids)
    np.testing.assert_allclose(found.correlation, expected.correlation, atol=atol, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("x_sparse", "y_sparse"), [(True, True), (False, False), (True, False)])
def test_planted_pairs_are_recovered(method: Method, x_sparse: bool, y_sparse: bool) -> None:
    x, y, y_of_x = planted()
    found = pairs(ArraySource(x, x_sparse), ArraySource(y, y_sparse), method, minimum=0.5)
    np.testing.assert_array_equal(found.x_ids, np.arange(D))
    np.testing.assert_array_equal(found.y_ids, y_of_x)
    exact = [np.corrcoef(x[:, i], y[:, j])[0, 1] for i, j in zip(found.x_ids, found.y_ids, strict=True)]
    np.testing.assert_allclose(found.correlation, exact, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
def test_neither_block_nor_slab_changes_the_pairs(method: Method, sparse: bool) -> None:
    x, y = (ArraySource(sparse_codes(ROWS, D, seed), sparse) for seed in (0, 1))
    whole = pairs(x, y, method)
    assert len(whole.x_ids) > 3
    for rows_per_block in (7, 100, 10_000):
        assert_same(pairs(x, y, method, rows_per_block=rows_per_block), whole, atol=1e-13)
    if method != "one_to_one":
        for x_features in (3, 19):
            few = 16 * D * x_features / 2**30
            assert_same(pairs(x, y, method, memory_gib=few), whole, atol=1e-13)


def test_many_to_one_has_hubs_and_gives_every_y_feature_its_best_x() -> None:
    x, y, y_of_x = planted()
    y = np.concatenate([y, y[:, y_of_x[[4]]] * 2, y[:, y_of_x[[4]]] + 1], axis=1)
    found = pairs(ArraySource(x), ArraySource(y), "many_to_one", minimum=0.5)
    assert sorted(found.y_ids) == list(range(D + 2))
    assert np.bincount(found.x_ids, minlength=D).tolist() == [1] * 4 + [3] + [1] * (D - 5)
    np.testing.assert_array_equal(np.lexsort((found.y_ids, found.x_ids)), np.arange(D + 2))
    one_to_one = pairs(ArraySource(x), ArraySource(y), "mutual_best", minimum=0.5)
    assert len(set(one_to_one.x_ids)) == len(one_to_one.x_ids) == D


def test_mutual_best_is_the_same_from_either_side() -> None:
    x, y = (ArraySource(sparse_codes(ROWS, D, seed), True) for seed in (0, 1))
    found, back = pairs(x, y, "mutual_best"), pairs(y, x, "mutual_best")
    order = np.argsort(back.y_ids)
    assert 3 < len(order) < D
    assert_same(found, Pairing(back.y_ids[order], back.x_ids[order], back.correlation[order]), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
def test_features_that_never_vary_are_never_paired(method: Method, sparse: bool) -> None:
    x, y = sparse_codes(ROWS, D, 0), sparse_codes(ROWS, D, 1)
    x[:, 0], x[:, 7], y[:, 0], y[:, 3] = 0, 0.3, 0, 1e4
    found = pairs(ArraySource(x, sparse), ArraySource(y, sparse), method)
    assert not {0, 7} & set(found.x_ids)
    assert not {0, 3} & set(found.y_ids)
    if method != "mutual_best":
        assert len(found.y_ids) == D - 2
    assert np.isfinite(found.correlation).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_cut_comes_after_matching(method: Method) -> None:
    x, y = (ArraySource(sparse_codes(ROWS, D, seed), True) for seed in (0, 1))
    whole = pairs(x, y, method)
    middle = float(np.median(whole.correlation))
    cut = pairs(x, y, method, minimum=middle)
    assert 0 < len(cut.x_ids) < len(whole.x_ids)
    assert_same(cut, whole.at_least(middle))
    assert cut.correlation.min() >= middle
    lowest = float(whole.correlation.min())
    assert_same(pairs(x, y, method, minimum=lowest), whole)
    assert len(pairs(x, y, method, minimum=0.999).x_ids) == 0


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        x, y = (ArraySource(sparse_codes(rows, 300, seed, density=0.05), True) for seed in (0, 1))
        tracemalloc.start()
        pairs(x, y, "mutual_best", memory_gib=0.0005, rows_per_block=100)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(1600) < 1.1 * peak(200)


def test_one_to_one_says_what_memory_it_needs() -> None:
    x, y = (ArraySource(sparse_codes(ROWS, D, seed)) for seed in (0, 1))
    needed = 16 * D * D / 2**30
    assert len(pairs(x, y, "one_to_one", memory_gib=needed).x_ids) == D
    with pytest.raises(InputError, match=r"below the 6e-06 that one_to_one needs for 20 x 20 features"):
        pairs(x, y, "one_to_one", memory_gib=0.9 * needed)


def test_sides_of_different_tokens_are_refused() -> None:
    x = ArraySource(sparse_codes(ROWS, D, 0), name="left")
    y = ArraySource(sparse_codes(ROWS, D, 1), name="right", ledger_sha256="b" * 64)
    with pytest.raises(InputError, match="^left and right hold different tokens"):
        pairs(x, y, "mutual_best")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores and features runs over the same tokens, planted to match; special rows hold huge values."""
    folder = tmp_path_factory.mktemp("runs")
    x, y, _ = planted()
    special = some_special(ROWS)
    for name, values in (("x", x), ("y", y)):
        for kind, filler in (("", 1e20), ("_plain", 0)):
            store = folder / f"store_{name}{kind}"
            made_store(store, np.where(special[:, None], np.float32(filler), values), special)
            if not (folder / f"sae_{name}").exists():
                made_sae(folder / f"sae_{name}", reading_sae(D, 12))
            encode(EncodeConfig(store, folder / f"sae_{name}", folder / f"codes_{name}{kind}"))
    return folder


def read_pairs(path: Path) -> Pairing:
    with np.load(path / "pairs.npz") as file:
        return Pairing(**file)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raw", [False, True])
def test_pair_writes_the_planted_pairs_and_special_tokens_change_nothing(
    runs: Path, tmp_path: Path, method: Method, raw: bool
) -> None:
    kind, hook = ("store", HOOK) if raw else ("codes", None)
    found, plain = (
        pair(
            PairConfig(
                x=runs / f"{kind}_x{end}", x_hook=hook, y=runs / f"{kind}_y{end}", y_hook=hook,
                out=tmp_path / f"out{end}", method=method,
            )
        )
        for end in ("", "_plain")
    )  # fmt: skip
    np.testing.assert_array_equal(read_pairs(found).x_ids, np.arange(D))
    np.testing.assert_array_equal(read_pairs(found).y_ids, planted()[2])
    assert_same(read_pairs(found), read_pairs(plain))
    facts = read_manifest(found)["facts"]
    expected = {"x_alive": D, "y_alive": D, "matched": D, "pairs": D, "largest_hub": 1}
    assert {key: facts[key] for key in expected} == expected
    assert facts["mean_correlation"] == pytest.approx(read_pairs(found).correlation.mean())
    assert (found / "x_rows.npy").exists() == (not raw)


def test_pair_writes_the_decoder_rows_of_the_pairs(runs: Path, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((D, 7)).astype(np.float32)
    neurons = made_store(tmp_path / "neurons", planted()[1], some_special(ROWS), hook="mlp_hidden.0")
    write_decoder(Folder(neurons.path), "mlp_hidden.0", matrix)
    out = pair(PairConfig(runs / "codes_x", neurons.path, tmp_path / "out", y_hook="mlp_hidden.0"))
    found = read_pairs(out)
    for side, written, ids in (("x", np.eye(D, dtype=np.float32), found.x_ids), ("y", matrix, found.y_ids)):
        rows = np.load(out / f"{side}_rows.npy")
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, written[ids])


def test_a_complete_pairing_is_left_alone_and_another_is_refused(runs: Path, tmp_path: Path) -> None:
    config = PairConfig(runs / "codes_x", runs / "codes_y", tmp_path / "out")
    written = (pair(config) / "pairs.npz").stat().st_mtime_ns
    assert (pair(config) / "pairs.npz").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="minimum_correlation 0.1 there, 0.2 now"):
        pair(PairConfig(runs / "codes_x", runs / "codes_y", tmp_path / "out", minimum_correlation=0.2))


@pytest.mark.parametrize(("memory_gib", "passes"), [(1.0, "1 pass"), (16 * D * 5 / 2**30, f"{-(-D // 5)} passes")])
def test_a_plan_tells_rows_and_passes_and_writes_nothing(
    runs: Path, tmp_path: Path, memory_gib: float, passes: str
) -> None:
    config = PairConfig(runs / "codes_x", runs / "store_y", tmp_path / "out", y_hook=HOOK, memory_gib=memory_gib)
    planned = plan(config)
    assert planned["rows"] == str(ROWS)
    assert planned["features"] == f"{D} x {D}, in {passes} over the rows"
    assert planned["minutes"] == "0.0 to correlate"
    assert not config.out.exists()


def test_no_pair_above_the_minimum_is_a_result_too(runs: Path, tmp_path: Path) -> None:
    out = pair(PairConfig(runs / "codes_x", runs / "codes_y", tmp_path / "out", minimum_correlation=0.9999))
    assert len(read_pairs(out).x_ids) == 0
    assert np.load(out / "x_rows.npy").shape == (0, D)
    facts = read_manifest(out)["facts"]
    assert (facts["matched"], facts["pairs"], facts["largest_hub"], facts["mean_correlation"]) == (
        D,
        0,
        0,
        None,
    )


def test_bad_input_is_refused_before_anything_is_written(runs: Path, tmp_path: Path) -> None:
    made_store(tmp_path / "longer", sparse_codes(ROWS + 1, D, 0), some_special(ROWS + 1))
    for verb in (pair, plan):
        with pytest.raises(InputError, match=r"codes_x and .*longer \(resid_post.0\) hold different tokens"):
            verb(PairConfig(runs / "codes_x", tmp_path / "longer", tmp_path / "out", y_hook=HOOK))
    with pytest.raises(InputError, match="'activations' where 'features' is needed"):
        pair(PairConfig(runs / "store_x", runs / "codes_y", tmp_path / "out"))
    with pytest.raises(InputError, match="no hook mlp_hidden.0"):
        pair(PairConfig(runs / "store_x", runs / "codes_y", tmp_path / "out", x_hook="mlp_hidden.0"))
    with pytest.raises(InputError, match=r"minimum_correlation 1.0 must be .*; memory_gib 0.0 must be above 0"):
        PairConfig(tmp_path, tmp_path, tmp_path / "out", minimum_correlation=1.0, memory_gib=0.0)
    assert not (tmp_path / "out").exists()
