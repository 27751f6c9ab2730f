"""The activation store: vectors at hook points of one model, one row per token of a corpus, with a ledger.

A store is a run directory of kind "activations":

    manifest.json            model, hooks, corpus, dtype, rows, statistics, ledger_sha256
    activations/HOOK/        [rows, width], bfloat16 or float32, one zarr3 array per hook
    ledger/                  which token each row is
    shards/NUMBER.json       of each shard: its rows, the documents that begin in it, sums of its activations
    statistics/HOOK.npy      [2, width], mean and variance of each dimension; special tokens do not count
    decoder/HOOK.npy         [width, d_model], what the hook's neurons write, for hooks that have such a matrix

It lies on a disk, in a bucket of S3 or GCS, or in memory (`saejax.storage`).
"""

import io
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from saejax.activations.arrays import RowArray
from saejax.activations.ledger import COLUMNS, Ledger
from saejax.artifacts import read_finished
from saejax.errors import InputError
from saejax.storage import Folder, Place

KIND = "activations"
ACTIVATIONS, LEDGER, RECORDS, STATISTICS, DECODER = "activations", "ledger", "shards", "statistics", "decoder"
"""Names of what lies in a store."""
Dtype: TypeAlias = Literal["bfloat16", "float32"]


class Store:
    """A finished store, for reading."""

    def __init__(self, path: Place) -> None:
        """Open a store; see `open`."""
        self.path = path
        self.manifest = read_finished(path, KIND)
        facts = self.manifest["facts"]
        self.rows: int = facts["rows"]
        self.hooks: tuple[str, ...] = tuple(facts["hooks"])
        self.chunk_rows: int = facts["chunk_rows"]
        self._shards: int = facts["shards"]
        self._folder = Folder(path)
        remedy = partial(_remedy, path)
        self._ledger = Ledger(self._folder / LEDGER, remedy)
        self._arrays = {hook: RowArray(self._folder / ACTIVATIONS / hook, remedy) for hook in self.hooks}
        lengths = {f"{LEDGER}/{name}": rows for name, rows in self._ledger.rows.items()}
        lengths |= {f"{ACTIVATIONS}/{hook}": array.rows for hook, array in self._arrays.items()}
        wrong = [f"{name} has {rows}" for name, rows in lengths.items() if rows != self.rows]
        if wrong:
            raise InputError(
                f"store {path} is of {self.rows} rows by its manifest, but {', '.join(wrong)}; delete it and "
                "extract it again"
            )

    @classmethod
    def open(cls, path: Place) -> "Store":
        """Open a finished store.

        Args:
            path: where it is.

        Raises:
            InputError: it is absent, unfinished, damaged, or another kind of run; or its arrays are not of the rows
                that the manifest tells.
        """
        return cls(path)

    def width(self, hook: str) -> int:
        """Return the number of entries of a row at a hook."""
        return self.manifest["facts"]["hooks"][hook]["width"]

    def require(self, *, model_fingerprint: str | None = None, hook: str | None = None) -> None:
        """Make sure that the store is what its reader takes it for.

        Args:
            model_fingerprint: hash of the weights of the model that the activations must be of.
            hook: a hook that the store must have.

        Raises:
            InputError: it is not, in one line with everything that does not match.
        """
        facts = self.manifest["facts"]
        wrong = []
        if model_fingerprint is not None and facts.get("model_fingerprint") != model_fingerprint:
            wrong.append(f"is of model {facts.get('model_fingerprint')}, not {model_fingerprint}")
        if hook is not None and hook not in self.hooks:
            wrong.append(f"has no hook {hook}, only {', '.join(self.hooks)}")
        if wrong:
            raise InputError(f"store {self.path} {' and '.join(wrong)}; extract one that does")

    def read(self, hook: str, start: int, stop: int) -> Float32[np.ndarray, "rows width"]:
        """Return the activations of the rows from `start` to `stop`, special tokens included.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._arrays[hook].read([(start, stop)]).astype(np.float32, copy=False)

    def read_spans(
        self, hook: str, spans: Sequence[tuple[int, int]], place: Float[np.ndarray, "most_rows width"] | None = None
    ) -> Float[np.ndarray, "rows width"]:
        """Return the rows of some spans `(start, stop)`, one after the other, in the stored dtype.

        Args:
            hook: whose activations.
            spans: which rows.
            place: memory that they are to lie in, as `empty` returns it; new memory when not given.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._arrays[hook].read(spans, place)

    def empty(self, hook: str, rows: int) -> Float[np.ndarray, "rows width"]:
        """Return memory for so many rows of a hook, in the stored dtype; what it holds is of no meaning."""
        return self._arrays[hook].empty(rows)

    def gather(self, hook: str, rows: Int[np.ndarray, "rows"]) -> Float32[np.ndarray, "rows width"]:
        """Return the activations of any rows; scattered rows cost the reading of a chunk each.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._arrays[hook].gather(rows).astype(np.float32, copy=False)

    def ledger(self, start: int, stop: int, names: Sequence[str] = tuple(COLUMNS)) -> dict[str, np.ndarray]:
        """Return columns of `saejax.activations.ledger.COLUMNS` for the rows from `start` to `stop`.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._ledger.read(start, stop, names)

    def ledger_of(self, rows: Int[np.ndarray, "rows"]) -> dict[str, np.ndarray]:
        """Return the columns of any rows.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._ledger.gather(rows)

    def has_decoder_rows(self, hook: str) -> bool:
        """Tell whether the store keeps what each neuron of a hook writes into the model."""
        return self._folder.read(f"{DECODER}/{hook}.npy") is not None

    def decoder_rows(self, hook: str) -> Float32[np.ndarray, "width d_model"]:
        """Return what each neuron of a hook writes into the model: the rows of the matrix behind it.

        Raises:
            InputError: the hook's entries are no neurons with a direction of their own.
        """
        rows = self._folder.read(f"{DECODER}/{hook}.npy")
        if rows is None:
            raise InputError(f"hook {hook} of store {self.path} has no output matrix; name an mlp_hidden hook")
        return np.load(io.BytesIO(rows))

    def moments(self, hook: str) -> Float64[np.ndarray, "2 width"]:
        """Return mean and variance of each dimension of a hook, over the rows that are no special tokens.

        Raises:
            InputError: the file is absent.
        """
        name = f"{STATISTICS}/{hook}.npy"
        content = self._folder.read(name)
        if content is None:
            raise InputError(f"{self.path}/{name} does not exist; delete the store and extract it again")
        return np.load(io.BytesIO(content))

    @cached_property
    def documents(self) -> list[dict[str, str]]:
        """Records of the documents by ordinal: `id`, `source`, `title`."""
        return self._ledger.documents(self._shards)

    @cached_property
    def kept(self) -> Bool[np.ndarray, "rows"]:
        """Which rows are no special tokens; stays in memory, 1 byte a row."""
        return ~self._ledger.read(0, self.rows, ["special"])["special"]

    def kept_rows(self) -> Int[np.ndarray, "kept"]:
        """Return the numbers of the rows that are no special tokens; 8 bytes a row."""
        return np.flatnonzero(self.kept)


def _remedy(path: Place, shard: int) -> str:
    return f"delete {path}/{RECORDS}/{shard:08d}.json and run its command again, which makes that shard anew"


def write_decoder(folder: Folder, hook: str, rows: Float32[np.ndarray, "width d_model"]) -> None:
    """Keep what a hook's neurons write beside their activations.

    Args:
        folder: the store's.
        hook: the hook.
        rows: one row per neuron.
    """
    content = io.BytesIO()
    np.save(content, rows)
    folder.write(f"{DECODER}/{hook}.npy", content.getvalue())


def aligned(x: Store, y: Store) -> None:
    """Make sure that two stores have the same token of the same document on every row.

    Raises:
        InputError: they differ in corpus, tokenizer or number of rows.
    """
    if x.manifest["facts"]["ledger_sha256"] != y.manifest["facts"]["ledger_sha256"]:
        raise InputError(
            f"stores {x.path} ({x.rows} rows) and {y.path} ({y.rows} rows) are of different tokens; "
            "extract both from one corpus with one tokenizer, or import both under one --text"
        )
