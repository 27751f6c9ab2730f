import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from saejax import universality
from saejax.errors import InputError
from saejax.features.examples import Examples
from saejax.features.pairing import Pairing
from saejax.universality import Arm, CompareConfig, arm_differences, difference_lines, paired_arm, score_arms

MEASURES = ("svcca", "rsa")


def config(tmp_path: Path, **changes: object) -> CompareConfig:
    fields = {
        "x": tmp_path / "x", "y": tmp_path / "y", "x_raw": "mlp_hidden.0", "y_raw": "mlp_hidden.0",
        "out": tmp_path / "out", "permutations": 99, "subsamples": 5, "subsample_permutations": 40, "seed": 3,
    }  # fmt: skip
    return CompareConfig(**{**fields, **changes})  # type: ignore[arg-type]


def arm(name: str, n: int, shared: float, seed: int) -> Arm:
    """Rows of two models that share a part of their geometry, in bases of their own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 12))
    sides = [shared * common @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + rng.normal(size=(n, 12)) for _ in "xy"]
    ids = np.arange(n)
    return Arm(name, Pairing(ids, ids, np.ones(n)), *sides)


def test_arms_are_compared_at_the_smaller_ones_size(tmp_path: Path) -> None:
    rows, draws = score_arms([arm("sae", 90, 2.0, 0), arm("raw", 40, 2.0, 1)], config(tmp_path))
    assert [(row["arm"], row["pairs"], row["n"], row["measure"]) for row in rows] == [
        ("sae", "all", 90, "svcca"), ("sae", "all", 90, "rsa"), ("raw", "all", 40, "svcca"), ("raw", "all", 40, "rsa"),
        ("sae", "5 subsets", 40, "svcca"), ("sae", "5 subsets", 40, "rsa"),
    ]  # fmt: skip
    assert {name: len(array) for name, array in draws.items()} == {
        "sae/svcca": 99, "sae/rsa": 99, "raw/svcca": 99, "raw/rsa": 99,
        "sae/svcca/subset_z": 5, "sae/rsa/subset_z": 5,
    }  # fmt: skip


def test_z_falls_with_n_where_the_geometry_is_the_same(tmp_path: Path) -> None:
    """Why the arms are matched: one population, and z of all pairs is far above z of a subset."""
    rows, _ = score_arms([arm("sae", 160, 2.0, 0), arm("raw", 40, 2.0, 0)], config(tmp_path))
    z = {(row["arm"], row["pairs"]): row["z"] for row in rows if row["measure"] == "rsa"}
    assert z["sae", "all"] > 1.5 * z["sae", "5 subsets"]
    assert z["sae", "5 subsets"] == pytest.approx(z["raw", "all"], rel=0.5)


def test_features_with_several_partners_are_held_against_their_mean(tmp_path: Path) -> None:
    """And are counted once, in the null of all pairs and in subsets."""
    one, other = arm("sae", 60, 2.0, 0), arm("raw", 30, 2.0, 1)
    rng = np.random.default_rng(2)
    partners = np.sort(rng.integers(0, 60, size=45))
    x_ids, y_ids = np.concatenate([np.arange(60), partners]), np.arange(105)
    extra = one.y_rows[partners] + 0.5 * rng.normal(size=(45, 12))
    hubs = Arm("sae", Pairing(x_ids, y_ids, np.ones(105)), one.x_rows[x_ids], np.concatenate([one.y_rows, extra]))
    rows, _ = score_arms([hubs, other], config(tmp_path))
    assert [(row["pairs"], row["n"], row["scheme"]) for row in rows if row["measure"] == "rsa"] == [
        ("all", 60, "collapse"), ("all", 30, "uniform"), ("5 subsets", 30, "collapse"),
    ]  # fmt: skip
    assert rows[0]["rows"] == 105
    means = np.stack([np.concatenate([one.y_rows, extra])[x_ids == i].mean(axis=0) for i in range(60)])
    collapsed = Arm("sae", Pairing(np.arange(60), np.arange(60), np.ones(60)), one.x_rows, means)
    expected, _ = score_arms([collapsed, other], config(tmp_path))
    for row, plain in zip(rows, expected, strict=True):
        assert row["observed"] == pytest.approx(plain["observed"])
        assert row["z"] == pytest.approx(plain["z"], abs=1e-3)
    assert CompareConfig(tmp_path, tmp_path, "a", "b", tmp_path, method="many_to_one").method == "many_to_one"


def test_nulls_keep_to_the_memory_that_is_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="memory 0.0001 GiB is below .* raise memory_gib"):
        score_arms([arm("sae", 40, 2.0, 0)], config(tmp_path, memory_gib=1e-4))


def test_arms_of_one_size_need_no_subsets(tmp_path: Path) -> None:
    rows, _ = score_arms([arm("sae", 40, 2.0, 0), arm("raw", 40, 0.0, 1)], config(tmp_path))
    assert {row["pairs"] for row in rows} == {"all"}


def test_a_planted_match_is_found_and_none_is_not(tmp_path: Path) -> None:
    rows, _ = score_arms([arm("sae", 60, 2.0, 0), arm("raw", 60, 0.0, 5)], config(tmp_path))
    p = {(row["arm"], row["measure"]): row["p_value"] for row in rows}
    assert p["sae", "svcca"] == p["sae", "rsa"] == 1 / 100
    assert min(p["raw", "svcca"], p["raw", "rsa"]) > 0.05


def test_the_seed_decides_every_draw(tmp_path: Path) -> None:
    arms = [arm("sae", 50, 1.0, 0), arm("raw", 30, 1.0, 1)]
    first, again, other = (score_arms(arms, config(tmp_path, seed=seed))[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other


class Planted:
    """A source whose features fire on known rows."""

    def __init__(self, values: np.ndarray) -> None:
        self.name, self.d, self.rows = "planted", values.shape[1], len(values)
        self.ledger_sha256, self.store = "0" * 64, Path("nowhere")
        self._values = values

    def blocks(self, rows_per_block: int = 64) -> Iterator[np.ndarray]:
        for start in range(0, self.rows, rows_per_block):
            yield self._values[start : start + rows_per_block]

    def top_examples(self, features: np.ndarray, examples: int) -> Examples:
        raise AssertionError("a comparison shows no text")

    def values(self, feature: int, rows: np.ndarray) -> np.ndarray:
        return self._values[rows, feature]

    def decoder_rows(self) -> np.ndarray:
        return np.arange(self.d, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)


def test_decoder_rows_follow_the_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.exponential(size=(300, 20)).astype(np.float32)
    order = rng.permutation(20)
    made = paired_arm("sae", Planted(codes), Planted(codes[:, order]), config(tmp_path))
    np.testing.assert_array_equal(order[made.pairing.y_ids], made.pairing.x_ids)
    np.testing.assert_array_equal(made.x_rows[:, 0], made.pairing.x_ids)
    np.testing.assert_array_equal(made.y_rows[:, 0], made.pairing.y_ids)


def test_too_few_pairs_are_refused_with_the_remedy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = (Planted(rng.exponential(size=(300, 20)).astype(np.float32)) for _ in "xy")
    with pytest.raises(InputError, match=r"raw arm has 0 pairs with correlation 0\.9 or more; lower minimum"):
        paired_arm("raw", x, y, config(tmp_path, minimum_correlation=0.9))


def test_csv_and_table_hold_the_numbers_of_the_json(tmp_path: Path) -> None:
    rows, _ = score_arms([arm("sae", 50, 1.0, 0), arm("raw", 30, 1.0, 1)], config(tmp_path))
    rows = json.loads(json.dumps(rows))
    read = list(csv.DictReader(universality.to_csv(rows).splitlines()))
    assert len(read) == len(rows)
    for row, line in zip(rows, read, strict=True):
        for key, value in row.items():
            assert line[key] == ("" if value is None else str(value))
    lines = universality.table(rows)
    assert len(lines) == 1 + len(rows)
    assert f"{rows[0]['observed']:.4f}" in lines[1]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.slow
def test_the_difference_of_arms_has_an_interval(tmp_path: Path) -> None:
    """Arms that match alike do not differ, whatever z of 120 and of 40 pairs says; one that matches more does."""
    asked = config(tmp_path, replicates=20)
    alike, unlike = (
        arm_differences([arm("sae", 120, 2.0, 0), arm("raw", 40, shared, 1)], {}, asked) for shared in (2.0, 0.5)
    )
    assert [record["measure"] for record in alike] == ["cka_debiased", "rsa"]
    for same, other in zip(alike, unlike, strict=True):
        assert same["n"] == other["n"] == 40
        assert same["low"] < 0 < same["high"]
        assert 0 < other["low"] < other["difference"] < other["high"]
        assert other["document_se"] is None
    lines = difference_lines(unlike)
    assert len(lines) == 3
    assert f"{unlike[0]['low']:.4f} to {unlike[0]['high']:.4f}" in lines[1]
    assert "documents" not in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"permutations": 1}, "permutations 1"), ({"subsamples": 0}, "subsamples 0"),
     ({"minimum_correlation": 1.0}, r"minimum_correlation 1\.0"), ({"replicates": 1}, "replicates 1"),
     ({"document_replicates": 1}, "document_replicates 1"), ({"difference": ("cca",)}, "cca"),
     ({"measures": ("rsa", "rsa")}, "distinct")],
)  # fmt: skip
def test_a_comparison_without_a_null_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        config(tmp_path, **changes)
