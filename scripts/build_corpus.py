"""Builds the embedded corpus: `python scripts/build_corpus.py --sources FOLDER --out FILE`."""

import tyro

from saejax.text.curation import curate

if __name__ == "__main__":
    for source, (documents, characters) in tyro.cli(curate).items():
        print(f"{source:16} {documents:8,} documents {characters:12,} characters")
