"""Train the models that ship beside `seed0` and `seed1`, and put them into `checkpoints/`.

From the root of the repository; killed, it goes on where it was. One model takes three quarters of an hour on two CPU
cores, that of two layers twice as long; the re-initialised one takes a minute. `other_data` reads the GNU Collaborative
International Dictionary of English, of which nothing is in the embedded corpus: put it at `runs/gcide.jsonl.gz`, a line
`{"text": ...}` for each entry.

    python scripts/train_checkpoints.py --only reinitialised
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Literal, get_args

import tyro

from saejax.cli import run

Name = Literal["reinitialised", "phases", "other_data", "two_layer"]
CHECKPOINTS = Path("checkpoints")
TOKENIZER = ["--tokenizer", str(CHECKPOINTS / "seed0")]
OPTIONS: dict[Name, list[str]] = {
    "reinitialised": ["--seeds", "7", "--tokens", "0", *TOKENIZER],
    "phases": ["--seeds", "0"],
    "other_data": [
        "--seeds",
        "2",
        "--corpus.source",
        "runs/gcide.jsonl.gz",
        "--heldout-source",
        "embedded",
        *TOKENIZER,
    ],
    "two_layer": ["--seeds", "0", "--n-layers", "2", *TOKENIZER],
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


def main(config: CheckpointsConfig) -> None:
    """Train the models and copy what ships of them."""
    for name in config.only:
        (folder,) = map(Path, run(["lm", "train", "--out", str(config.out / name), *OPTIONS[name]]))
        if name == "phases":
            for phase in sorted((folder / "snapshots").iterdir()):
                ship(phase, f"seed0_{phase.name}")
            weights = [(each / "model.safetensors").read_bytes() for each in (folder, CHECKPOINTS / "seed0")]
            print(f"trained to the end, they are seed0 to the bit: {weights[0] == weights[1]}")
        else:
            ship(folder, name)


def ship(folder: Path, name: str) -> None:
    """Copy a model folder into `checkpoints/`."""
    (CHECKPOINTS / name).mkdir(exist_ok=True)
    for file in SHIPPED:
        if (folder / file).exists():
            shutil.copy(folder / file, CHECKPOINTS / name / file)
    print(CHECKPOINTS / name)


if __name__ == "__main__":
    main(tyro.cli(CheckpointsConfig))
