"""Train the models that ship beside `seed0` and `seed1`, and put them into `checkpoints/`.

From the root of the repository; killed, it goes on where it was. One model takes half an hour on two CPU cores, that of
two layers an hour; the re-initialised one takes a minute. `other_data` reads the GNU Collaborative International
Dictionary of English (Debian's package dict-gcide), of which nothing is in the embedded corpus.

    python scripts/train_checkpoints.py --only reinitialised
"""

import dataclasses
import gzip
import json
import shutil
import string
from pathlib import Path
from typing import Literal, get_args

import tyro

from saejax.cli import run

Name = Literal["reinitialised", "phases", "other_data", "two_layer"]
CHECKPOINTS = Path("checkpoints")
DICTIONARY = Path("runs/gcide.jsonl.gz")
DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
TOKENIZER = ["--tokenizer", str(CHECKPOINTS / "seed0")]
OPTIONS: dict[Name, list[str]] = {
    "reinitialised": ["--seeds", "7", "--tokens", "0", *TOKENIZER],
    "phases": ["--seeds", "0"],
    "other_data": [
        "--seeds",
        "2",
        "--corpus.source",
        str(DICTIONARY),
        "--heldout-source",
        "embedded",
        *TOKENIZER,
    ],
    "two_layer": ["--seeds", "0", "--n-layers", "2", *TOKENIZER],
}
SOURCES: dict[str, str] = {
    "other_data": "Text: the GNU Collaborative International Dictionary of English, GPL 2 or later, as in Debian.",
}
SHIPPED = ("README.md", "config.json", "manifest.json", "metrics.jsonl", "model.safetensors", "samples.json",
           "tokenizer.json", "tokenizer_config.json")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
    """Which models to train."""

    out: Path = Path("runs/checkpoints")
    """Directory for their runs."""
    only: tuple[Name, ...] = get_args(Name)
    """Names of the models."""
    dictionary: Path = Path("/usr/share/dictd/gcide")
    """The dictionary's files without `.dict.dz` and `.index`, in the format of dictd."""


def main(config: CheckpointsConfig) -> None:
    """Train the models and copy what ships of them."""
    if "other_data" in config.only and not DICTIONARY.exists():
        write_dictionary(config.dictionary)
    for name in config.only:
        (folder,) = map(Path, run(["lm", "train", "--out", str(config.out / name), *OPTIONS[name]]))
        if name == "phases":
            for phase in sorted((folder / "snapshots").iterdir()):
                ship(phase, f"seed0_{phase.name}")
            curves = [losses(each) for each in (folder, CHECKPOINTS / "seed0")]
            apart = max(abs(one - other) for one, other in zip(*curves, strict=True))
            print(f"the loss curve is that of seed0 within {apart:.1e} nats")
        else:
            ship(folder, name)


def losses(folder: Path) -> list[float]:
    """Return the loss curve of a run."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_dictionary(files: Path) -> None:
    """Write the entries of a dictionary as documents, each line of the index being headword, place and length."""

    def number(word: str) -> int:
        return sum(DIGITS.index(digit) * 64**place for place, digit in enumerate(reversed(word)))

    with gzip.open(f"{files}.dict.dz") as packed:
        content = packed.read()
    index = [line.split("\t") for line in Path(f"{files}.index").read_text().splitlines()]
    spans = {(number(start), number(length)) for word, start, length, *_ in index if not word.startswith("00-")}
    DICTIONARY.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(DICTIONARY, "wb", mtime=0) as out:
        for start, length in sorted(spans):
            paragraphs = content[start : start + length].decode(errors="replace").split("\n\n")
            text = "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()
            out.write((json.dumps({"text": text}) + "\n").encode())


def ship(folder: Path, name: str) -> None:
    """Copy a model folder into `checkpoints/`."""
    (CHECKPOINTS / name).mkdir(exist_ok=True)
    for file in SHIPPED:
        if (folder / file).exists():
            shutil.copy(folder / file, CHECKPOINTS / name / file)
    if name in SOURCES:
        with (CHECKPOINTS / name / "README.md").open("a") as card:
            card.write(f"\n{SOURCES[name]}\n")
    print(CHECKPOINTS / name)


if __name__ == "__main__":
    main(tyro.cli(CheckpointsConfig))
