"""Writes an activation store, shard by shard, so that an interruption loses at most the shards that are begun.

A shard is final when its record `shards/NUMBER.json` stands, which is written when all else of it is on disk. Shards
depend on nothing but their rows: they may be written in any order, by several processes that share them out, and a
lost one alone is made again. The metadata of the arrays and the facts of the manifest come when all shards stand.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Shaped

from saejax import artifacts
from saejax.activations.arrays import RowWriter, chunk_rows_of
from saejax.activations.ledger import COLUMNS, Columns, DocumentRecord, Ledger, LedgerWriter
from saejax.activations.store import ACTIVATIONS, KIND, LEDGER, RECORDS, STATISTICS, Dtype
from saejax.activations.summary import Summary
from saejax.artifacts import Run
from saejax.errors import InputError
from saejax.storage import Folder, Place


def begin_store(out: Place, config: Any, inputs: Mapping[str, Any]) -> Run:
    """Open the run directory of a store; a complete one that has lost the record of a shard is open again.

    Args:
        out: where the store goes.
        config: the frozen config dataclass that is the run's identity.
        inputs: provenance of what the run reads.

    Returns:
        The open run.

    Raises:
        InputError: as `saejax.artifacts.begin`.
    """
    run = artifacts.begin(out, KIND, config, inputs)
    lost = run.complete and len(committed_shards(run.folder)) < run.manifest["facts"]["shards"]
    return run.reopen() if lost else run


@dataclasses.dataclass
class _Shard:
    """Rows of one shard on their way to the disk."""

    activations: dict[str, Shaped[np.ndarray, "shard_rows width"]]
    columns: dict[str, Shaped[np.ndarray, "shard_rows"]]


class StoreWriter:
    """Writes a store from a stream of blocks of any size; holds two shards of every hook in memory.

    As a context it waits at the end for the shard that is being committed, however it ends.
    """

    def __init__(
        self,
        run: Run,
        hooks: Mapping[str, Mapping[str, Any]],
        dtype: Dtype,
        shard_rows: int,
        chunk_rows: int | None = None,
        *,
        part: int = 0,
        parts: int = 1,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin a store, or go on with the shards that have no record yet.

        Args:
            run: an open run directory of kind `saejax.activations.store.KIND` that is not complete.
            hooks: for each hook its `width` and whatever else the manifest is to say about it.
            dtype: how activations are stored.
            shard_rows: rows per file and per commit.
            chunk_rows: rows that are read at once; the largest divisor of `shard_rows` up to 1,024 when None.
            part: which shards are written here: those whose number leaves this remainder.
            parts: the divisor, the number of processes that share the store.
            still_ours: called before each commit; raises where another process has taken over.

        Raises:
            InputError: no hook, or a width, shard or chunk that no store has.
        """
        if not hooks or min(shard_rows, *(facts["width"] for facts in hooks.values())) < 1:
            raise InputError(f"no store has hooks {dict(hooks)} and shard_rows {shard_rows}; give positive ones")
        chunk_rows = chunk_rows_of(shard_rows) if chunk_rows is None else chunk_rows
        if chunk_rows < 1 or shard_rows % chunk_rows:
            raise InputError(f"chunk_rows {chunk_rows} must divide shard_rows {shard_rows}")
        self._run, self._shard_rows, self._still_ours = run, shard_rows, still_ours
        self._part, self._parts = part, parts
        self._facts = {"hooks": {hook: dict(facts) for hook, facts in hooks.items()}, "dtype": dtype}
        self._facts |= {"shard_rows": shard_rows, "chunk_rows": chunk_rows}
        self._ledger = LedgerWriter(run.folder / LEDGER, shard_rows, chunk_rows)
        self._arrays = {
            hook: RowWriter(
                run.folder / ACTIVATIONS / hook, dtype, facts["width"], shard_rows, chunk_rows, compress=False
            )
            for hook, facts in hooks.items()
        }
        self._widths = {hook: facts["width"] for hook, facts in hooks.items()}
        self._committed = committed_shards(run.folder)
        self._filling, self._spare = self._buffers(), self._buffers()
        self._records: list[DocumentRecord] = []
        self._documents = 0
        """Documents that begin in earlier shards."""
        self._last_document = -1
        self._row = 0
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commit: Future[None] | None = None

    def __enter__(self) -> "StoreWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the commit that has begun."""
        self._commits.shutdown()

    @property
    def committed_rows(self) -> int:
        """Rows of the shards that are written here and stand, taken as full."""
        return sum(shard % self._parts == self._part for shard in self._committed) * self._shard_rows

    def needs(self, start: int, stop: int) -> bool:
        """Tell whether a row from `start` to `stop` belongs to a shard that is to be written here."""
        return any(map(self._is_ours, range(start // self._shard_rows, -(-stop // self._shard_rows))))

    def append(
        self,
        block: Mapping[str, Float32[np.ndarray, "rows _"]] | None,
        ledger: Columns,
        documents: Sequence[DocumentRecord] = (),
    ) -> None:
        """Pass the next rows; every full shard is committed while the next is filled.

        Args:
            block: activations of each hook; None where none of the rows is needed.
            ledger: all columns of `saejax.activations.ledger.COLUMNS`; ordinals of documents count from 0
                and ascend.
            documents: records of the next documents, in order, at least up to that of the last row.

        Raises:
            InputError: NaN or infinity, a value too large for the dtype, or what was written cannot be.
        """
        rows = len(ledger["document"])
        if block is None and self.needs(self._row, self._row + rows):
            raise ValueError(f"rows {self._row} to {self._row + rows} are needed and have no activations")
        for hook, x in (block or {}).items():
            self._require_finite(hook, x)
        self._records += documents
        done = 0
        while done < rows:
            shard, filled = divmod(self._row, self._shard_rows)
            count = min(rows - done, self._shard_rows - filled)
            if block is not None and self._is_ours(shard):
                to, of = slice(filled, filled + count), slice(done, done + count)
                for hook, buffer in self._filling.activations.items():
                    buffer[to] = block[hook][of]
                for name, column in self._filling.columns.items():
                    column[to] = ledger[name][of]
            self._last_document = int(ledger["document"][done + count - 1])
            self._row += count
            done += count
            if filled + count == self._shard_rows:
                self._end_shard(shard, self._shard_rows)

    def finish(self, **facts: Any) -> bool:
        """Commit the last, shorter shard; where all shards stand, hash the ledger and mark the run complete.

        Args:
            facts: what else the manifest is to say.

        Returns:
            Whether the run is complete; other processes still write where it is not.

        Raises:
            InputError: no row was ever appended, or what was written cannot be.
        """
        shard, filled = divmod(self._row, self._shard_rows)
        if filled:
            self._end_shard(shard, filled)
        self._wait()
        if not self._row:
            raise InputError(f"{self._run.folder} would be a store without rows; give a corpus with tokens")
        folder, shards = self._run.folder, -(-self._row // self._shard_rows)
        if len(committed_shards(folder)) < shards:
            return False
        for hook, array in self._arrays.items():
            with folder.explained(f"{ACTIVATIONS}/{hook}", "written"):
                array.seal(self._row)
        with folder.explained(LEDGER, "written"):
            self._ledger.seal(self._row)
        records = [json.loads(folder.read(record_name(shard)) or b"") for shard in range(shards)]
        statistics = {hook: self._summarised(hook, records) for hook in self._arrays}
        self._still_ours()
        self._run.finish(
            **self._facts,
            rows=self._row,
            shards=shards,
            documents=sum(record["documents"] for record in records),
            special_rows=self._row - next(iter(statistics.values()))["rows"],
            ledger_sha256=Ledger(folder / LEDGER).sha256(self._row, shards),
            statistics=statistics,
            **facts,
        )
        return True

    def _is_ours(self, shard: int) -> bool:
        return shard % self._parts == self._part and shard not in self._committed

    def _end_shard(self, shard: int, rows: int) -> None:
        """Hand a full shard to the thread that commits it, when it has committed the one before."""
        begun = self._last_document + 1 - self._documents
        if begun > len(self._records):
            raise InputError(
                f"document {self._documents + len(self._records)} has rows but no record; append its record"
            )
        records, self._records = self._records[:begun], self._records[begun:]
        self._documents += begun
        if self._is_ours(shard):
            self._wait()
            self._commit = self._commits.submit(self._write, shard, self._filling, rows, records)
            self._filling, self._spare = self._spare, self._filling
            self._committed = self._committed | {shard}

    def _wait(self) -> None:
        if self._commit is not None:
            self._commit.result()
            self._commit = None

    def _write(self, shard: int, held: _Shard, rows: int, documents: Sequence[DocumentRecord]) -> None:
        """Write a shard, wait until it is on disk, and only then its record."""
        self._still_ours()
        folder = self._run.folder
        columns = {name: column[:rows] for name, column in held.columns.items()}
        with folder.explained("", "written"):
            writes = [array.write(shard, held.activations[hook][:rows]) for hook, array in self._arrays.items()]
            writes += self._ledger.write(shard, columns, documents)
            kept = ~columns["special"]
            with ThreadPoolExecutor(thread_name_prefix="statistics") as threads:
                of_hooks = threads.map(lambda x: Summary.of(x[:rows], kept), held.activations.values())
                statistics = dict(zip(held.activations, of_hooks, strict=True))
            for write in writes:
                write.result()
        if self._part == 0:
            self._run.note()
        record = {
            "rows": rows,
            "documents": len(documents),
            "statistics": {hook: summary.record() for hook, summary in statistics.items()},
        }
        folder.write(record_name(shard), json.dumps(record).encode())

    def _summarised(self, hook: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Merge the statistics of all shards, and keep those of every dimension beside the arrays."""
        whole = Summary.empty(self._widths[hook])
        for record in records:
            whole.merge(Summary.of_record(record["statistics"][hook]))
        content = io.BytesIO()
        np.save(content, np.stack([whole.mean, whole.deviation / max(whole.rows, 1)]))
        self._run.folder.write(f"{STATISTICS}/{hook}.npy", content.getvalue())
        return whole.figures()

    def _buffers(self) -> _Shard:
        return _Shard(
            {
                hook: np.empty((self._shard_rows, width), self._arrays[hook].dtype)
                for hook, width in self._widths.items()
            },
            {name: np.empty(self._shard_rows, np.dtype(dtype)) for name, dtype in COLUMNS.items()},
        )

    def _require_finite(self, hook: str, x: Float32[np.ndarray, "rows _"]) -> None:
        dtype = self._arrays[hook].dtype
        limit = float(jnp.finfo(dtype).max)
        if not x.size or max(x.max(), -x.min()) <= limit:
            return
        row, column = np.argwhere(~(np.abs(x) <= limit))[0]
        raise InputError(
            f"hook {hook} is {x[row, column]} at row {self._row + row}, "
            f"which {dtype} cannot hold; check the model's weights, or the file that is imported"
        )


def record_name(shard: int) -> str:
    """Return the name of a shard's record."""
    return f"{RECORDS}/{shard:08d}.json"


def committed_shards(folder: Folder) -> frozenset[int]:
    """Return the numbers of the shards that are final.

    Args:
        folder: the store's.
    """
    return frozenset(int(name.removesuffix(".json")) for name in (folder / RECORDS).names())
