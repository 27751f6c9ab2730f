"""Writes the tables of hook points into `saejax/models/hook_points.md`, from what the families say.

python scripts/hook_points.py
"""

import dataclasses
from pathlib import Path

import tyro

from saejax import artifacts
from saejax.models.hook_table import tables

START, END = "<!-- made by scripts/hook_points.py -->", "<!-- end -->"


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the tables go."""

    page: Path = Path("saejax/models/hook_points.md")
    """A page with the two lines that mark their place."""


def main(config: Config) -> None:
    """Write the tables between the lines that mark their place."""
    before, rest = config.page.read_text().split(START)
    after = rest.split(END)[1]
    artifacts.write_bytes(config.page, f"{before}{START}\n\n{tables()}\n\n{END}{after}".encode())
    print(config.page)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
