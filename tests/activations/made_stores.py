"""Small stores with known content, for the tests of this room."""

import dataclasses
from pathlib import Path

import numpy as np

from saejax import artifacts
from saejax.activations.store import KIND, Dtype, Store, StoreWriter

SPECIAL_EVERY = 10


@dataclasses.dataclass(frozen=True)
class MadeConfig:
    """What `write` makes: the identity of its run."""

    rows: int
    shard_rows: int = 64
    dtype: Dtype = "float32"
    out: Path = Path()


def activations(rows: int, width: int = 3, offset: float = 0.0) -> np.ndarray:
    """Return rows that tell their own number in every entry."""
    return (np.arange(rows)[:, None] + np.arange(width) / 8 + offset).astype(np.float32)


def ledger(rows: int, tokens_per_document: int = 25) -> dict[str, np.ndarray]:
    """Return documents of equal length in which the first token, and every tenth, is special."""
    number = np.arange(rows, dtype=np.int32)
    position = number % tokens_per_document
    return {
        "document": number // tokens_per_document,
        "position": position,
        "char_start": 4 * position,
        "char_end": 4 * position + 4,
        "token_id": (7 * number) % 101,
        "special": position % SPECIAL_EVERY == 0,
    }


def documents(count: int) -> list[dict[str, str]]:
    return [{"id": f"d{i}", "source": "made", "title": f"Title {i}"} for i in range(count)]


def write(out: Path, config: MadeConfig, block_rows: int = 40, stop_at: int | None = None) -> None:
    """Write a store with hooks of widths 3 and 5 in blocks; raise KeyboardInterrupt before row `stop_at`."""
    run = artifacts.begin(out, KIND, config)
    hooks = {"resid_post.0": {"width": 3}, "mlp_out.0": {"width": 5}}
    writer = StoreWriter(run, hooks, config.dtype, config.shard_rows)
    narrow, wide = activations(config.rows), activations(config.rows, 5, 0.5)
    columns, records = ledger(config.rows), documents(-(-config.rows // 25))
    told = writer.documents
    for start in range(writer.rows, config.rows, block_rows):
        if stop_at is not None and start >= stop_at:
            raise KeyboardInterrupt
        rows = slice(start, min(start + block_rows, config.rows))
        begun = int(columns["document"][rows].max()) + 1
        block = {"resid_post.0": narrow[rows], "mlp_out.0": wide[rows]}
        writer.append(block, {name: column[rows] for name, column in columns.items()}, records[told:begun])
        told = max(told, begun)
    writer.finish()


def made(out: Path, rows: int, **config) -> Store:
    write(out, MadeConfig(rows, **config))
    return Store.open(out)


def files_of(path: Path) -> dict[str, bytes]:
    """Return every file of a store but its manifest."""
    found = [file for file in path.rglob("*") if file.is_file() and file.name != artifacts.MANIFEST]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def manifest_without_times(path: Path) -> dict:
    return {key: value for key, value in artifacts.read_manifest(path).items() if key not in ("created", "finished")}
