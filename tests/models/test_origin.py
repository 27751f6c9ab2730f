import dataclasses
from pathlib import Path

import pytest

from saejax import artifacts
from saejax.models.origin import Origin, origin

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int


def test_a_snapshot_of_the_hub_cache_names_its_repository_and_commit(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "blob").touch()
    (snapshot / "model.gguf").symlink_to(tmp_path / "blob")
    expected = Origin("HuggingFaceTB/SmolLM2-135M", COMMIT)
    assert origin(snapshot) == origin(snapshot / "model.gguf") == expected


def test_a_folder_that_the_hub_client_filled_notes_its_commit(tmp_path: Path) -> None:
    notes = tmp_path / "smollm" / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{COMMIT}\nad33e57e2ad58d36b5e6df3b9b4d0d1ab5ab3a8e\n1731948000.1\n")
    assert origin(tmp_path / "smollm") == Origin("smollm", COMMIT)


def test_a_fetched_folder_names_its_package(tmp_path: Path) -> None:
    artifacts.begin(tmp_path / "real", "model", Config(0)).finish(source="package==1.2")
    assert origin(tmp_path / "real") == Origin("real", "package==1.2")


def test_trained_models_differ_in_revision_as_their_runs_do(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        artifacts.begin(tmp_path / name, "language_model", Config(seed)).finish()
    revisions = [origin(tmp_path / name).revision for name in "abc"]
    assert revisions[0] == revisions[1] != revisions[2]
    assert revisions[0] == artifacts.run_fingerprint(tmp_path / "a")


@pytest.mark.parametrize("manifest", [None, "[]", '{"files": []}', '{"kind": "activations"}'])
def test_a_folder_of_unknown_origin_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str | None
) -> None:
    (tmp_path / "plain").mkdir()
    if manifest:
        (tmp_path / "plain" / "manifest.json").write_text(manifest)
    monkeypatch.chdir(tmp_path / "plain")
    assert origin(Path(".")) == origin(tmp_path / "plain" / ".." / "plain") == Origin("plain", None)
