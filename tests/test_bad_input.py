"""Every way of the issue's list in which a user can be wrong: one line, the value and the remedy, exit code 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from saejax import cli
from saejax.demo import shipped

SEED0, SEED1 = shipped("seed0"), shipped("seed1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, two stores and an SAE of the first, made by the verbs themselves."""
    root = tmp_path_factory.mktemp("world")
    lines = [{"id": f"d{i}", "text": f"The {i}th document speaks of rivers, kings and tables."} for i in range(60)]
    (root / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "hollow.jsonl").write_text(
        json.dumps({"id": "full", "text": "words"}) + "\n" + '{"id": "e", "text": " "}\n'
    )
    for name, model in (("store0", SEED0), ("store1", SEED1)):
        cli.main(extract(root, model, root / name))
    cli.main(train(root, root / "sae0"))
    return root


def extract(root: Path, model: Path, out: Path, source: str = "text.jsonl", hook: str = "resid_post.0") -> list[str]:
    return ["extract", "--model", str(model), "--hooks", hook, "--corpus.source", str(root / source), "--out", str(out)]


def train(root: Path, out: Path, **changes: object) -> list[str]:
    options = {
        "store": root / "store0", "hook": "resid_post.0", "d-sae": 32, "k": 4, "steps": 4, "batch": 64,
        "warmup-steps": 1, "decay-steps": 1, "out": out,
    }  # fmt: skip
    return ["train", *(word for name, value in {**options, **changes}.items() for word in (f"--{name}", str(value)))]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must be refused and return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith("saejax: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_model_folder_without_weights(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(SEED0, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    line = refused(extract(world, bare, tmp_path / "out"), capsys)
    assert str(bare) in line
    assert "no weights" in line
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_matches_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(extract(world, SEED0, tmp_path / "out", source="*.txt"), capsys)
    assert "*.txt" in line
    assert not (tmp_path / "out").exists()


def test_an_empty_document(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(extract(world, SEED0, tmp_path / "out", source="hollow.jsonl"), capsys)
    assert "hollow.jsonl" in line
    assert "2" in line
    assert not (tmp_path / "out").exists()


def test_a_hook_that_the_model_lacks(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(extract(world, SEED0, tmp_path / "out", hook="resid_post.7"), capsys)
    assert "resid_post.7" in line
    assert "resid_mid" in line
    assert not (tmp_path / "out").exists()


def test_an_sae_of_another_models_store(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encode", "--store", str(world / "store1"), "--sae", str(world / "sae0"), "--out", str(tmp_path / "out")]
    line = refused(words, capsys)
    assert "store1" in line
    assert not (tmp_path / "out").exists()


def test_more_active_latents_than_there_are(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(train(world, tmp_path / "out", k=33), capsys)
    assert "k 33" in line
    assert "d_sae 32" in line
    assert not (tmp_path / "out").exists()


def test_more_lanes_than_the_store_has_chunks(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(train(world, tmp_path / "out", lanes=64), capsys)
    assert "lanes 64 are more than the chunks" in line
    assert not (tmp_path / "out").exists()


def test_an_output_directory_of_another_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (world / "sae0").rglob("*") if path.is_file()}
    line = refused(train(world, world / "sae0", k=5), capsys)
    assert "k 4 there, 5 now" in line
    assert str(world / "sae0") in line
    assert {path: path.read_bytes() for path in before} == before


def test_the_same_config_again_leaves_everything_alone(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "sae0").rglob("*")}
    cli.main(train(world, world / "sae0"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


GOOD = np.random.default_rng(0).normal(size=(12, 5))
HOLED = np.where(np.arange(60).reshape(12, 5) == 17, np.nan, GOOD)


@pytest.mark.parametrize(
    ("x", "y", "parts"),
    [
        (GOOD, GOOD[:11], ("12", "11")),
        (HOLED, GOOD, ("nan", "row 3", "column 2")),
        (GOOD, np.ones((12, 5)), ("y is constant",)),
        (GOOD, GOOD[[0] * 2 + list(range(2, 12))], ("repeat",)),
        (GOOD[:2], GOOD[:2], ("2 rows",)),
        (GOOD[0], GOOD, ("(5,)",)),
    ],
    ids=["row counts", "nan", "constant", "repeated row", "two pairs", "vector"],
)
def test_matrices_without_an_answer(
    x: np.ndarray, y: np.ndarray, parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    line = refused(
        ["null", "--x", str(tmp_path / "x.npy"), "--y", str(tmp_path / "y.npy"), "--scheme", "uniform", "--measures",
         "svcca", "rsa", "--permutations", "99", "--seed", "0", "--out", str(tmp_path / "r.json")],
        capsys,
    )  # fmt: skip
    for part in parts:
        assert part in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]
