import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.nulls import load, merge, permutation_test, verb
from saejax.nulls.verb import NullConfig, null, plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5))
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    np.save(tmp_path / "y.npy", (0.4 * x + rng.normal(size=(20, 5))).astype(np.float32))
    return tmp_path


def config(folder: Path, **options: Any) -> NullConfig:
    given = {"x": folder / "x.npy", "y": folder / "y.npy", "scheme": "uniform", "out": folder / "result.json",
             "permutations": 60, "seed": 3, **options}  # fmt: skip
    return NullConfig(**given)


def test_result_is_a_list_of_records_with_the_draws_beside_it(folder: Path) -> None:
    lines = null(config(folder))
    rows = json.loads((folder / "result.json").read_text())
    matrices = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    results = permutation_test(*matrices, measures=["svcca", "rsa"], scheme="uniform", permutations=60, seed=3)
    assert rows == [result.record() for result in results]
    with np.load(folder / "result.npz") as draws:
        assert sorted(draws) == ["rsa", "svcca"]
        for result in results:
            np.testing.assert_array_equal(draws[result.measure], result.draws)
    assert lines[-1] == str(folder / "result.json")
    assert [line.split()[0] for line in lines[:3]] == ["measure", "svcca", "rsa"]
    manifest = json.loads((folder / "result.manifest.json").read_text())
    assert (manifest["status"], manifest["impl"], manifest["config"]["seed"]) == ("complete", "host", 3)


def test_parts_of_a_run_merge_into_the_whole(folder: Path) -> None:
    null(config(folder))
    null(config(folder, out=folder / "left.json", permutations=25))
    null(config(folder, out=folder / "right.json", first=25, permutations=35))
    whole, left, right = (load(folder / name) for name in ("result.json", "left.json", "right.json"))
    for each, *parts in zip(whole, left, right, strict=True):
        merged = merge(parts)
        assert (merged.exceedances, merged.permutations) == (each.exceedances, each.permutations)
        np.testing.assert_allclose(merged.draws, each.draws, atol=1e-6, rtol=0)


def test_ids_tell_features_apart(folder: Path) -> None:
    """Equal rows of two features may be re-paired singly; one feature in two pairs may not."""
    x = np.load(folder / "x.npy")
    x[7] = x[3]
    np.save(folder / "x.npy", x)
    with pytest.raises(InputError, match="rows 3 and 7 of x are equal .* or give x_ids if they are different"):
        null(config(folder))
    np.save(folder / "ids.npy", np.array([f"L3/{row}" for row in range(20)]))
    null(config(folder, x_ids=folder / "ids.npy"))
    manifest = json.loads((folder / "result.manifest.json").read_text())
    assert sorted(manifest["inputs"]) == ["x", "x_ids", "y"]
    np.save(folder / "ids.npy", np.arange(20) % 19)
    with pytest.raises(InputError, match="holds another run .*x_ids [0-9a-f]{64} there"):
        null(config(folder, x_ids=folder / "ids.npy"))
    with pytest.raises(InputError, match="y_ids names feature 0 for rows 0 and 19"):
        plan(config(folder, y_ids=folder / "ids.npy", x=folder / "y.npy", out=folder / "other.json"))


def test_rows_have_labels_where_the_scheme_asks_for_them(folder: Path) -> None:
    labels = np.array(list("aabbbccdddddeeeeefgg"))
    np.save(folder / "labels.npy", labels)
    options: dict[str, Any] = {"scheme": "strata", "row_labels": folder / "labels.npy"}
    assert plan(config(folder, **options))["rows"] == "20 pairs"
    lines = null(config(folder, **options))
    assert lines[3] == "1 of 20 pairs are alone in their stratum and stayed as they are"
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    alone = permutation_test(
        x, y, measures=["svcca", "rsa"], scheme="strata", row_labels=labels, permutations=60, seed=3
    )
    assert [each.exceedances for each in load(folder / "result.json")] == [each.exceedances for each in alone]
    with pytest.raises(InputError, match=r"holds another run \(scheme strata there, stimulus now"):
        null(config(folder, **{**options, "scheme": "stimulus"}))
    with pytest.raises(InputError, match="^scheme strata needs row_labels, one per row: a pair, whose features may go"):
        plan(config(folder, scheme="strata", out=folder / "other.json"))
    with pytest.raises(InputError, match="^scheme 'bins' is unknown; choose one of uniform, collapse, blocks"):
        config(folder, scheme="bins")


@pytest.mark.parametrize("scheme", ["collapse", "blocks", "representative:picks=3"])
def test_many_to_one_pairings_are_re_paired_by_feature(folder: Path, scheme: str) -> None:
    x = np.load(folder / "x.npy")
    np.save(folder / "x.npy", x[np.arange(20) // 3])
    with pytest.raises(InputError, match="rows 0 and 1 of x are equal .* or choose scheme collapse"):
        null(config(folder))
    assert plan(config(folder, scheme=scheme))["smallest p"] == "0.016"  # 60 of 7! re-pairings
    lines = null(config(folder, scheme=scheme, measures=("cka",)))
    assert f"scheme {scheme} exchanged 7 units, made of 20 pairs" in lines
    lines = null(config(folder, duplicates="accept", measures=("cka",), out=folder / "naive.json"))
    assert "p is no valid one: 13 of 20 pairs repeat a feature, and were shuffled singly" in lines


def test_same_run_again_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = null(config(folder))
    monkeypatch.setattr(verb, "permutation_test", None)
    again = null(config(folder))
    assert again == [*first[:-1], f"{folder / 'result.json'} is complete: nothing was left to do"]


def test_an_interrupted_run_starts_again(folder: Path) -> None:
    null(config(folder))
    written = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    null(config(folder))
    assert (folder / "result.json").read_text() == written


def test_another_run_is_refused_and_the_difference_printed(folder: Path) -> None:
    null(config(folder))
    written = (folder / "result.json").read_bytes()
    with pytest.raises(InputError) as error:
        null(config(folder, permutations=70, seed=4))
    assert str(error.value) == (
        f"out {folder / 'result.json'} holds another run (permutations 60 there, 70 now; seed 3 there, 4 now); name a "
        "new file"
    )
    np.save(folder / "y.npy", np.load(folder / "y.npy")[::-1])
    with pytest.raises(InputError, match=r"holds another run \(y [0-9a-f]{64} there, [0-9a-f]{64} now\)"):
        null(config(folder))
    assert (folder / "result.json").read_bytes() == written


def test_a_file_of_other_origin_is_left_alone(folder: Path) -> None:
    (folder / "result.json").write_text("mine")
    with pytest.raises(InputError, match=r"result.json exists and has no result.manifest.json; name a new file"):
        null(config(folder))
    assert (folder / "result.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "block"}, "scheme 'block' is unknown; choose one of uniform"),
        ({"measures": ("ckk",)}, "measure 'ckk' is unknown; choose among svcca"),
        ({"permutations": 0}, "permutations 0 must be at least 1"),
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"first": -1}, r"permutations -1 to 59 must lie between 0 and 2\^32"),
        ({"memory_gib": 0.0}, "memory_gib 0.0 must be above 0"),
        ({"x_ids": Path("ids.npz")}, "x_ids ids.npz must end in .npy"),
        ({"out": Path("result.npz")}, "out result.npz must end in .json"),
    ],
)
def test_bad_options_are_refused_at_once(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(folder, **options)


def test_bad_files_are_refused_and_nothing_is_written(folder: Path) -> None:
    (folder / "text.npy").write_text("1 2 3")
    np.save(folder / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.save(folder / "short.npy", np.ones((3, 2)))
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:200])
    before = sorted(folder.iterdir())
    for name, message in [
        ("absent.npy", r"x .*absent.npy does not exist; name a .npy, .npz, .safetensors file"),
        ("text.npy", r"x .*text.npy is not a .npy file of numbers; write one with numpy.save"),
        ("objects.npy", r"x .*objects.npy is not a .npy file of numbers"),
        ("cut.npy", r"x .*cut.npy is not a .npy file of numbers"),
        ("short.npy", "x has 3 rows and y 20"),
    ]:
        for function in (null, plan):
            with pytest.raises(InputError, match=message):
                function(config(folder, x=folder / name))
    assert sorted(folder.iterdir()) == before


def test_plan_says_what_a_run_costs_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    told = plan(config(folder, permutations=999_999))
    assert sorted(folder.iterdir()) == before
    assert told["rows"] == "20 pairs"
    assert told["smallest p"] == "1e-06"
    assert told["bytes"] == "15,999,984 of null draws"
    assert float(told["minutes"].split()[0]) >= 0
    for key in ("permutations", "memory", "impl"):
        assert told[key]


def test_smallest_p_of_few_rows_is_one_over_the_number_of_pairings(folder: Path) -> None:
    for side in "xy":
        np.save(folder / f"{side}.npy", np.load(folder / f"{side}.npy")[:4])
    assert plan(config(folder, permutations=999_999))["smallest p"] == f"{1 / 24:.2g}"
