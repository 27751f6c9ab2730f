"""Activations with a known dictionary, and stores of them, for the tests of this room."""

import dataclasses
from pathlib import Path

import numpy as np

from saejax import artifacts
from saejax.activations.store import KIND, Store
from saejax.activations.writer import StoreWriter

HOOK = "resid_post.0"


def atoms(d_model: int, count: int, seed: int = 0) -> np.ndarray:
    """Return unit vectors in random directions."""
    rows = np.random.default_rng(seed).normal(size=(count, d_model))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def activations(rows: int, dictionary: np.ndarray, active: int, seed: int = 1, offset: float = 3.0) -> np.ndarray:
    """Return sums of `active` random atoms with weights from 1 to 2, moved off the origin."""
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((rows, len(dictionary))), axis=1)[:, :active]
    weights = rng.uniform(1, 2, size=(rows, active))
    return (np.einsum("rk,rkd->rd", weights, dictionary[chosen]) + offset).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
    """Identity of a made store."""

    rows: int
    out: Path = Path()


def store_of(x: np.ndarray, out: Path, model: str = "made", hook: str = HOOK) -> Store:
    """Write a store of one hook in which every 16th row is a special token, far from all others."""
    rows = len(x)
    special = np.arange(rows) % 16 == 0
    x = np.where(special[:, None], np.float32(1000), x)
    number = np.arange(rows, dtype=np.int32)
    ledger = {
        "document": np.zeros(rows, np.int32),
        "position": number,
        "char_start": number,
        "char_end": number + 1,
        "token_id": number % 7,
        "special": special,
    }
    run = artifacts.begin(out, KIND, PlantedConfig(rows))
    writer = StoreWriter(run, {hook: {"width": x.shape[1]}}, "float32", shard_rows=256)
    writer.append({hook: x}, ledger, [{"id": "d", "source": "made", "title": "Made"}])
    writer.finish(model=model, model_fingerprint=artifacts.fingerprint(model))
    return Store.open(out)
