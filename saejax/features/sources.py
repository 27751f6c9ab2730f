"""What can be paired: features with a value on every row of a corpus, read block by block.

Two kinds: the codes of an SAE (a finished run of `saejax encode`), sparse; and a hook of an activation store
whose coordinates are taken as features themselves, such as MLP neurons, dense. Both leave out rows of special
tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax import artifacts
from saejax.activations.reader import blocks
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.codes import NO_CODE, Codes, csr_of
from saejax.features.examples import Examples, TopExamples
from saejax.storage import Place, referred

KIND = "features"
ROWS_PER_BLOCK = 8192
Block: TypeAlias = scipy.sparse.csr_array | np.ndarray


@runtime_checkable
class RowSource(Protocol):
    """Features with a value on every row of a corpus, to correlate.

    Two sources with the same `ledger_sha256` have the same rows in the same order, and equal `rows_per_block`
    gives both the same blocks.
    """

    @property
    def name(self) -> str:
        """What errors call the source."""
        ...

    @property
    def d(self) -> int:
        """Number of features."""
        ...

    @property
    def rows(self) -> int:
        """Store rows, those of special tokens included."""
        ...

    @property
    def ledger_sha256(self) -> str:
        """Hash of the ledger of the rows."""
        ...

    @property
    def store(self) -> Place:
        """The activation store whose ledger tells the text of every row."""
        ...

    def blocks(self, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[Block]:
        """Yield `[block, d]` of so many consecutive store rows each, less those of special tokens."""
        ...


@runtime_checkable
class CodeSource(RowSource, Protocol):
    """The same, of which one can ask where a feature fires, and what it writes."""

    def top_examples(self, features: Int[np.ndarray, "features"], examples: int) -> Examples:
        """Return the rows on which each of some features is largest."""
        ...

    def values(self, feature: int, rows: Int[np.ndarray, "some"]) -> Float[np.ndarray, "some"]:
        """Return one feature's values on any rows, which may be those of special tokens."""
        ...

    def decoder_rows(self) -> Float[np.ndarray, "d d_model"]:
        """Return what each feature writes into the model: its direction in `d_model`."""
        ...


class FeatureCodes:
    """The codes of an SAE over a store: a finished run of kind "features"."""

    has_decoder_rows = True

    def __init__(self, path: Path) -> None:
        """Open a finished run; see `open`."""
        facts = artifacts.read_finished(path, KIND)["facts"]
        self.path = path
        self.name = str(path)
        self.d: int = facts["d_sae"]
        self.rows: int = facts["rows"]
        self.ledger_sha256: str = facts["ledger_sha256"]
        self.store = referred(facts["store"], path)
        self._codes = Codes(path / "codes")

    @classmethod
    def open(cls, path: Path) -> "FeatureCodes":
        """Open a finished run.

        Args:
            path: the run directory.

        Raises:
            InputError: it is absent, unfinished or another kind of run.
        """
        return cls(path)

    def blocks(self, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[scipy.sparse.csr_array]:
        """Yield the codes of consecutive rows without special tokens, float32 `[block, d]`."""
        for start in range(0, self.rows, rows_per_block):
            values, indices = self._codes.read(start, min(start + rows_per_block, self.rows))
            kept = indices[:, 0] != NO_CODE
            yield csr_of(values[kept], indices[kept], self.d)

    def statistics(self) -> dict[str, np.ndarray]:
        """Return the arrays of `features.npz`, see `saejax.features.encode`."""
        with np.load(self.path / "features.npz") as file:
            return dict(file)

    def top_examples(self, features: Int[np.ndarray, "features"], examples: int) -> Examples:
        """Return the rows on which each of some features is largest, as the encoding pass found them.

        Args:
            features: feature numbers.
            examples: examples per feature.

        Raises:
            InputError: the run kept fewer.
        """
        statistics = self.statistics()
        kept = statistics["top_rows"].shape[1]
        if examples > kept:
            raise InputError(f"{self.path} keeps {kept} examples per feature, not {examples}; encode with more")
        return Examples(statistics["top_rows"][features, :examples], statistics["top_values"][features, :examples])

    def values(self, feature: int, rows: Int[np.ndarray, "some"]) -> Float[np.ndarray, "some"]:
        """Return one feature's values on any rows; 0 on special tokens."""
        values, indices = self._codes.gather(rows)
        return np.where(indices == feature, values, 0).sum(axis=1, dtype=np.float32)

    def decoder_rows(self) -> Float[np.ndarray, "d d_model"]:
        """Return the decoder rows of the SAE, float32."""
        return np.load(self.path / "decoder.npy")


class RawHook:
    """The coordinates of a store's hook taken as features."""

    EXAMPLE_ROWS = 1024  # rows searched for top examples at a time: few, so that the first ones raise the bar

    def __init__(self, path: Place, hook: str) -> None:
        """Open a hook of a store; see `open`."""
        self._store = Store.open(path)
        self._store.require(hook=hook)
        self.hook = hook
        self.name = f"{path} ({hook})"
        self.d: int = self._store.width(hook)
        self.rows: int = self._store.rows
        self.ledger_sha256: str = self._store.manifest["facts"]["ledger_sha256"]
        self.store = referred(str(path), ".")
        self.has_decoder_rows = self._store.has_decoder_rows(hook)

    @classmethod
    def open(cls, path: Place, hook: str) -> "RawHook":
        """Open a hook of a finished store.

        Args:
            path: the store.
            hook: the hook, for example `mlp_hidden.0`.

        Raises:
            InputError: the store is absent or unfinished, or lacks the hook.
        """
        return cls(path, hook)

    def blocks(self, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[Float[np.ndarray, "_ d"]]:
        """Yield the activations of consecutive rows without special tokens, float32 `[block, d]`."""
        for _, x in blocks(self._store, self.hook, rows_per_block):
            yield x

    def top_examples(self, features: Int[np.ndarray, "features"], examples: int) -> Examples:
        """Return the rows on which each of some features is largest, from a pass over the store.

        Args:
            features: feature numbers.
            examples: examples per feature.
        """
        top = TopExamples(len(features), examples)
        for numbers, x in blocks(self._store, self.hook, self.EXAMPLE_ROWS):
            x = x[:, features]
            row, feature = np.nonzero(x > top.thresholds)
            top.add(feature, numbers[row], x[row, feature])
        return top.result()

    def values(self, feature: int, rows: Int[np.ndarray, "some"]) -> Float[np.ndarray, "some"]:
        """Return one coordinate's activations on any rows."""
        return self._store.gather(self.hook, rows)[:, feature]

    def decoder_rows(self) -> Float[np.ndarray, "d d_model"]:
        """Return the rows of the matrix through which the coordinates write into the model, float32.

        Raises:
            InputError: the hook's coordinates are no neurons with such a matrix.
        """
        return self._store.decoder_rows(self.hook)
