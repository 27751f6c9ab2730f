"""Small stores with known content, for the tests of this room."""

import dataclasses
from pathlib import Path

import numpy as np

from saejax import artifacts
from saejax.activations.store import KIND, Dtype, Store
from saejax.activations.writer import StoreWriter
from saejax.storage import Folder, Place

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


def write(out: Place, config: MadeConfig, block_rows: int = 40, part: int = 0, parts: int = 1) -> bool:
    """Write a store with hooks of widths 3 and 5 in blocks, or a part of it; tell whether it is complete."""
    run = artifacts.begin(out, KIND, config)
    hooks = {"resid_post.0": {"width": 3}, "mlp_out.0": {"width": 5}}
    writer = StoreWriter(run, hooks, config.dtype, config.shard_rows, part=part, parts=parts)
    narrow, wide = activations(config.rows), activations(config.rows, 5, 0.5)
    columns, records = ledger(config.rows), documents(-(-config.rows // 25))
    told = 0
    for start in range(0, config.rows, block_rows):
        rows = slice(start, min(start + block_rows, config.rows))
        begun = int(columns["document"][rows].max()) + 1
        block = {"resid_post.0": narrow[rows], "mlp_out.0": wide[rows]}
        needed = writer.needs(rows.start, rows.stop)
        of_rows = {name: column[rows] for name, column in columns.items()}
        writer.append(block if needed else None, of_rows, records[told:begun])
        told = max(told, begun)
    return writer.finish()


def made(out: Place, rows: int, **config) -> Store:
    write(out, MadeConfig(rows, **config))
    return Store.open(out)


def files_of(path: Place) -> dict[str, bytes]:
    """Return every file of a store but its manifest and its lock."""
    folder = Folder(path)
    names = [name for name in folder.names() if name != artifacts.MANIFEST and not name.startswith(".writer")]
    return {name: folder.read(name) or b"" for name in names}


def manifest_without_times(path: Place) -> dict:
    times = ("created", "updated", "finished")
    return {key: value for key, value in artifacts.read_manifest(path).items() if key not in times}
