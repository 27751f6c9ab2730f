"""Stores a model's activations: `python scripts/extract.py --help`."""

import tyro

from saejax.activations.extract import ExtractConfig, extract

if __name__ == "__main__":
    print(extract(tyro.cli(ExtractConfig)))
