"""Sources, stores and SAEs with known content, for the tests of this room."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from saejax import artifacts
from saejax.activations.store import KIND, Store
from saejax.activations.writer import StoreWriter
from saejax.features.examples import Examples
from saejax.features.sources import Block
from saejax.sae.normalisation import Normalisation
from saejax.sae.params import SAE, SAEConfig, save

HOOK = "resid_post.0"


@dataclasses.dataclass
class ArraySource:
    """A source in memory: an array, given out dense or sparse."""

    array: np.ndarray
    sparse: bool = False
    name: str = "array"
    ledger_sha256: str = "a" * 64
    store: Path = Path()

    @property
    def d(self) -> int:
        return self.array.shape[1]

    @property
    def rows(self) -> int:
        return len(self.array)

    def blocks(self, rows_per_block: int = 8192) -> Iterator[Block]:
        for start in range(0, self.rows, rows_per_block):
            block = self.array[start : start + rows_per_block]
            yield scipy.sparse.csr_array(block) if self.sparse else block

    def top_examples(self, features: np.ndarray, examples: int) -> Examples:
        raise NotImplementedError

    def values(self, feature: int, rows: np.ndarray) -> np.ndarray:
        return self.array[rows, feature]

    def decoder_rows(self) -> np.ndarray:
        raise NotImplementedError


def sparse_codes(rows: int, d: int, seed: int, density: float = 0.3) -> np.ndarray:
    """Return non-negative codes, most of them zero."""
    rng = np.random.default_rng(seed)
    return (rng.random((rows, d)) * (rng.random((rows, d)) < density)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class MadeConfig:
    """Identity of a made run."""

    name: str
    out: Path = Path()


def made_store(
    out: Path, x: np.ndarray, special: np.ndarray, hook: str = HOOK, model: str = "m0", documents: int = 1
) -> Store:
    """Write a store of some documents of nearly equal length, with one hook."""
    run = artifacts.begin(out, KIND, MadeConfig(model))
    writer = StoreWriter(run, {hook: {"width": x.shape[1]}}, "float32", 64)
    number = np.arange(len(x), dtype=np.int32)
    columns = {
        "document": (number.astype(np.int64) * documents // len(x)).astype(np.int32),
        "position": number,
        "char_start": number,
        "char_end": number + 1,
        "token_id": number,
        "special": special,
    }
    writer.append({hook: x}, columns, [{"id": f"d{i}", "source": "made", "title": "made"} for i in range(documents)])
    writer.finish(model=model, model_fingerprint=model)
    return Store.open(out)


def made_sae(out: Path, sae: SAE, hook: str = HOOK, model: str = "m0") -> SAE:
    """Write a finished SAE run."""
    run = artifacts.begin(out, "sae", MadeConfig(f"{model} {hook}"))
    run.finish(**save(sae, run.path), hook=hook, model=model, model_fingerprint=model)
    return sae


def reading_sae(d: int, k: int) -> SAE:
    """Return the SAE whose codes are the k largest coordinates of a row, where positive."""
    eye = jnp.eye(d)
    zeros = jnp.zeros(d)
    unscaled = Normalisation("scalar", scale=jnp.ones(()))
    return SAE(W_enc=eye, b_enc=zeros, W_dec=eye, b_dec=zeros, normalisation=unscaled, config=SAEConfig(d, d, k))


def read_codes(x: np.ndarray, k: int) -> np.ndarray:
    """Return the dense codes of `reading_sae`, by sorting; entries of a row must differ."""
    threshold = np.sort(x, axis=1)[:, -k, None]
    return np.where((x >= threshold) & (x > 0), x, 0)


def some_special(rows: int) -> np.ndarray:
    return np.arange(rows) % 9 == 0
