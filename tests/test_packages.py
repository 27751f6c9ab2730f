"""What a wheel holds: an installation in place finds files that it would lack."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder(package: str) -> Path:
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def test_every_folder_of_modules_is_installed() -> None:
    made = {file.parent for room in ("saejax", "kernels") for file in (ROOT / room).rglob("*.py")}
    assert {folder(package) for package in SETUPTOOLS["packages"]} == made | {ROOT / "checkpoints"}


def test_every_other_file_is_installed_but_pages_to_read() -> None:
    taken = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in folder(package).glob(pattern)
    }
    beside = {file for file in (ROOT / "saejax").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in beside - taken if file.suffix not in (".py", ".md")} == set()
    assert taken - set((ROOT / "checkpoints").rglob("*")) <= beside
