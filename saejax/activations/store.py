"""The activation store: vectors at hook points of one model, one row per token of a corpus, with a ledger.

A store is a run directory of kind "activations":

    manifest.json        model, hooks, corpus, dtype, rows, ledger_sha256
    activations/HOOK/    [rows, width], bfloat16 or float32, one zarr3 array per hook
    ledger/              which token each row is
    decoder/HOOK.npy     [width, d_model], what the hook's neurons write, for hooks that have such a matrix

Rows are committed shard by shard. A shard is final once `rows` in the manifest covers it; what lies behind is
written again by the run that resumes. So an interruption loses at most one shard and leaves no trace.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from saejax.activations.arrays import RowArray, chunk_rows_of
from saejax.activations.ledger import COLUMNS, Columns, DocumentRecord, Ledger
from saejax.artifacts import Run, read_finished, write_npy
from saejax.errors import InputError

KIND = "activations"
DECODER = "decoder"
Dtype: TypeAlias = Literal["bfloat16", "float32"]


class StoreWriter:
    """Writes a store from blocks of any size; holds one shard of every hook in memory."""

    def __init__(self, run: Run, hooks: Mapping[str, Mapping[str, Any]], dtype: Dtype, shard_rows: int) -> None:
        """Begin a store, or go on behind its last committed shard.

        Args:
            run: an open run directory of kind `KIND` that is not complete.
            hooks: for each hook its `width` and whatever else the manifest is to say about it.
            dtype: how activations are stored.
            shard_rows: rows per file and per commit.

        Raises:
            InputError: no hook, or a width or shard below 1.
        """
        if not hooks or min(shard_rows, *(facts["width"] for facts in hooks.values())) < 1:
            raise InputError(f"no store has hooks {dict(hooks)} and shard_rows {shard_rows}; give positive ones")
        facts = run.manifest["facts"]
        self._run = run
        self._shard_rows = shard_rows
        self.rows: int = facts.get("rows", 0)
        """Rows that are final on disk."""
        self.documents: int = facts.get("documents", 0)
        """Documents whose records are final on disk."""
        self._ledger = Ledger.create(run.path / "ledger", shard_rows, self.documents)
        self._arrays: dict[str, RowArray] = {}
        self._shard: dict[str, np.ndarray] = {}
        for hook, facts_of_hook in hooks.items():
            path, width = run.path / KIND / hook, facts_of_hook["width"]
            self._arrays[hook] = RowArray.create(path, dtype, width, shard_rows, compress=False)
            self._shard[hook] = np.empty((shard_rows, width), self._arrays[hook].dtype)
        self._columns = {name: np.empty(shard_rows, np.dtype(dtype)) for name, dtype in COLUMNS.items()}
        self._records: list[DocumentRecord] = []
        self._filled = 0
        run.note(
            rows=self.rows,
            documents=self.documents,
            hooks={hook: dict(facts_of_hook) for hook, facts_of_hook in hooks.items()},
            dtype=dtype,
            shard_rows=shard_rows,
        )

    def append(
        self,
        block: Mapping[str, Float32[np.ndarray, "rows _"]],
        ledger: Columns,
        documents: Sequence[DocumentRecord] = (),
    ) -> None:
        """Add rows behind the last ones; every full shard is committed.

        Args:
            block: activations of each hook.
            ledger: all columns of `saejax.activations.ledger.COLUMNS`; ordinals of documents count from 0
                and ascend.
            documents: records of the next documents, in order, at least up to that of the last row.

        Raises:
            InputError: NaN or infinity, or a value too large for the dtype.
        """
        for hook, x in block.items():
            self._require_finite(hook, x)
        self._records += documents
        rows = len(ledger["document"])
        done = 0
        while done < rows:
            count = min(rows - done, self._shard_rows - self._filled)
            to, of = slice(self._filled, self._filled + count), slice(done, done + count)
            for hook, shard in self._shard.items():
                shard[to] = block[hook][of]
            for name, column in self._columns.items():
                column[to] = ledger[name][of]
            self._filled += count
            done += count
            if self._filled == self._shard_rows:
                self._commit()

    def finish(self, **facts: Any) -> None:
        """Commit the last, shorter shard, hash the ledger and mark the run complete.

        Raises:
            InputError: no row was ever appended.
        """
        if self._filled:
            self._commit()
        if not self.rows:
            raise InputError(f"{self._run.path} would be a store without rows; give a corpus with tokens")
        special = self._ledger.read(0, self.rows, ["special"])["special"]
        self._run.finish(special_rows=int(special.sum()), ledger_sha256=self._ledger.sha256(self.rows), **facts)

    def _commit(self) -> None:
        """Write the shard, wait until it is on disk, and only then let the manifest say so."""
        count = self._filled
        columns = {name: column[:count] for name, column in self._columns.items()}
        begun = int(columns["document"].max()) + 1 - self.documents
        if begun > len(self._records):
            raise InputError(
                f"document {self.documents + len(self._records)} has rows but no record; append its record"
            )
        writes = [array.write(self.rows, self._shard[hook][:count]) for hook, array in self._arrays.items()]
        writes += self._ledger.write(self.rows, columns, self._records[:begun])
        for write in writes:
            write.result()
        self.rows += count
        self.documents += begun
        self._run.note(rows=self.rows, documents=self.documents)
        self._records = self._records[begun:]
        self._filled = 0

    def _require_finite(self, hook: str, x: Float32[np.ndarray, "rows _"]) -> None:
        dtype = self._shard[hook].dtype
        limit = float(jnp.finfo(dtype).max)
        if not x.size or max(x.max(), -x.min()) <= limit:
            return
        row, column = np.argwhere(~(np.abs(x) <= limit))[0]
        raise InputError(
            f"hook {hook} is {x[row, column]} at row {self.rows + self._filled + row}, "
            f"which {dtype} cannot hold; check the model's weights"
        )


class Store:
    """A finished store, for reading."""

    def __init__(self, path: Path) -> None:
        """Open a store; see `open`."""
        self.path = path
        self.manifest = read_finished(path, KIND)
        facts = self.manifest["facts"]
        self.rows: int = facts["rows"]
        self.hooks: tuple[str, ...] = tuple(facts["hooks"])
        self.chunk_rows: int = chunk_rows_of(facts["shard_rows"])
        self._ledger = Ledger.open(path / "ledger")
        self._arrays = {hook: RowArray.open(path / KIND / hook) for hook in self.hooks}

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open a finished store.

        Raises:
            InputError: it is absent, unfinished, damaged, or another kind of run.
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
        return self._arrays[hook].read([(start, stop)]).astype(np.float32)

    def read_spans(self, hook: str, spans: Sequence[tuple[int, int]]) -> Float[np.ndarray, "rows width"]:
        """Return the rows of some spans `(start, stop)`, one after the other, in the stored dtype.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._arrays[hook].read(spans)

    def gather(self, hook: str, rows: Int[np.ndarray, "rows"]) -> Float32[np.ndarray, "rows width"]:
        """Return the activations of any rows; scattered rows cost the reading of a chunk each.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return self._arrays[hook].gather(rows).astype(np.float32)

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

    def decoder_rows(self, hook: str) -> Float32[np.ndarray, "width d_model"]:
        """Return what each neuron of a hook writes into the model: the rows of the matrix behind it.

        Raises:
            InputError: the hook's entries are no neurons with a direction of their own.
        """
        path = self.path / DECODER / f"{hook}.npy"
        if not path.exists():
            raise InputError(f"hook {hook} of store {self.path} has no output matrix; name an mlp_hidden hook")
        return np.load(path)

    @cached_property
    def documents(self) -> list[dict[str, str]]:
        """Records of the documents by ordinal: `id`, `source`, `title`."""
        return self._ledger.documents()

    @cached_property
    def kept(self) -> Bool[np.ndarray, "rows"]:
        """Which rows are no special tokens; stays in memory, 1 byte a row."""
        return ~self._ledger.read(0, self.rows, ["special"])["special"]

    def kept_rows(self) -> Int[np.ndarray, "kept"]:
        """Return the numbers of the rows that are no special tokens; 8 bytes a row."""
        return np.flatnonzero(self.kept)


def write_decoder(path: Path, hook: str, rows: Float32[np.ndarray, "width d_model"]) -> None:
    """Keep what a hook's neurons write beside their activations.

    Args:
        path: the store's directory.
        hook: the hook.
        rows: one row per neuron.
    """
    (path / DECODER).mkdir(exist_ok=True)
    write_npy(path / DECODER / f"{hook}.npy", rows)


def aligned(x: Store, y: Store) -> None:
    """Make sure that two stores have the same token of the same document on every row.

    Raises:
        InputError: they differ in corpus, tokenizer or number of rows.
    """
    if x.manifest["facts"]["ledger_sha256"] != y.manifest["facts"]["ledger_sha256"]:
        raise InputError(
            f"stores {x.path} ({x.rows} rows) and {y.path} ({y.rows} rows) are of different tokens; "
            "extract both from one corpus with one tokenizer"
        )
