"""Activations that no disk need hold: the model runs while its rows are read.

A run of kind "live" is a manifest alone, which names model, hooks and corpus as that of a store does. The corpus is
read again and again; of the rows that are kept, in its order, so many at a time make a window, whose rows are served
in a random order. The order is a function of the seed, so a run resumes at any step: the text before it is read again,
which is cheap, and the model runs from the window of that step on. Lanes (`saejax.activations.lanes`) deal the model's
batches out in turn: the model runs on those of the lanes that are read.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from saejax import artifacts
from saejax.activations.extractor import ActivationsConfig, Extractor, flat
from saejax.activations.filters import RowFilter
from saejax.activations.index_permutation import IndexPermutation
from saejax.activations.lanes import ALL, Batch, side_by_side
from saejax.activations.prefetch import prefetch
from saejax.activations.reader import Window, batches_of
from saejax.activations.source import LIVE, held_bytes
from saejax.errors import InputError
from saejax.storage import Place
from saejax.text.corpus import CorpusConfig


@dataclasses.dataclass(frozen=True)
class LiveConfig(ActivationsConfig):
    """Which activations to compute while an SAE trains on them, of which model, on which text; nothing is stored."""


def record(config: LiveConfig) -> Place:
    """Write down what a live source is; no activation is computed.

    Args:
        config: model, hooks and corpus.

    Returns:
        The run directory.

    Raises:
        InputError: what the config names cannot be used.
    """
    extractor = Extractor.open(config)
    run = artifacts.begin(config.out, LIVE, config, extractor.inputs())
    if not run.complete:
        run.finish(**extractor.facts(), hooks=extractor.hooks(), dtype=config.dtype)
    return config.out


@dataclasses.dataclass(frozen=True)
class LiveRows:
    """Rows of one hook of a model that runs while they are read; a `saejax.activations.source.BatchSource`.

    Memory: the model, two of its batches for each lane, and `held_bytes`.

    Attributes:
        extractor: the model and its text.
        facts: what the manifest says of both.
        hook: whose activations.
        filter: which rows are read.
        batch: rows in a batch.
        seed: decides the order.
        window_rows: rows that are shuffled among each other, those of all lanes together.
        lanes: parts of a batch that are read apart.
    """

    extractor: Extractor
    facts: Mapping[str, Any]
    hook: str
    filter: RowFilter
    batch: int
    seed: int
    window_rows: int
    lanes: int

    @classmethod
    def of(
        cls, place: Place, hook: str, rows: RowFilter, *, batch: int, seed: int, window_rows: int, lanes: int
    ) -> "LiveRows":
        """Load the model of a live source.

        Raises:
            InputError: the source lacks the hook; its model, tokenizer or corpus is not there, or not what it was.
        """
        manifest = artifacts.read_finished(place, LIVE)
        if hook not in manifest["facts"]["hooks"]:
            raise InputError(f"{place} has no hook {hook}, only {', '.join(manifest['facts']['hooks'])}; name one")
        extractor = Extractor.open(config_of(manifest, place))
        changed = [name for name, value in extractor.inputs().items() if value != manifest["inputs"][name]]
        if changed:
            raise InputError(f"{place} was recorded with another {', '.join(changed)}; record it again elsewhere")
        window_rows = max(window_rows, batch) // lanes * lanes
        return cls(extractor, manifest["facts"], hook, rows, batch, seed, window_rows, lanes)

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.extractor.model.width(self.hook)

    @property
    def rows(self) -> None:
        """Rows of an epoch, which nobody has counted."""
        return None

    @property
    def held_bytes(self) -> int:
        """Bytes as `saejax.activations.source.held_bytes` counts them; the model comes to it."""
        return held_bytes(self.width, self.extractor.config.dtype, self.window_rows, self.batch, self.lanes)

    def batches(self, start_step: int = 0, part: slice = ALL) -> Generator[Float32[np.ndarray, "_ width"], None, None]:
        """Yield a part of the rows of each batch without end, from that of a step on, counted from 0."""
        each = self.batch // self.lanes

        def of_lane(lane: int) -> Iterator[Batch]:
            return prefetch(batches_of(prefetch(self._windows(lane, start_step * each)), each))

        return (x for _, (x,) in side_by_side(of_lane, self.batch, self.lanes, part))

    def measured(
        self, rows_per_block: int, trained: int, share: int = 0, of: int = 1
    ) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """Yield the rows of a window that comes after `trained` rows: the SAE has not seen them in this epoch. A share
        is that of some lanes.
        """
        size = self.window_rows // self.lanes
        for lane in range(self.lanes * share // of, self.lanes * (share + 1) // of):
            order, _, (rows,) = next(self._windows(lane, -(-trained // self.window_rows) * size))
            for start in range(0, size, rows_per_block):
                yield rows[order[start : start + rows_per_block]].astype(np.float32)

    def mixing(self) -> tuple[float, None]:
        """Measure from how many documents a batch of the first window comes; what is ideal needs the whole corpus."""
        each, size = self.batch // self.lanes, self.window_rows // self.lanes

        def of_lane(lane: int) -> Iterator[Batch]:
            found = (columns["document"][kept] for _, columns, kept in self._texts(lane))
            documents = np.concatenate(list(_up_to(size, found)))
            order = IndexPermutation(size, (self.seed, lane))(np.arange(size))
            return ((documents[order[start : start + each]], []) for start in range(0, size - each + 1, each))

        batches = side_by_side(of_lane, self.batch, self.lanes)
        return float(np.mean([len(np.unique(documents)) for documents, _ in batches])), None

    def _windows(self, lane: int, first: int) -> Iterator[Window]:
        """Yield windows of a lane, from its place `first` on; rows are numbered within their window."""
        size, limit = self.window_rows // self.lanes, self._norm_limit()
        # Which rows have a large norm is known to the model alone.
        number = 0 if limit is not None else first // size
        passed = first - number * size
        window, filled = self._empty(size), 0
        for x in self._activations(number * size, lane):
            x = x if limit is None else x[_norms(x) <= limit]
            while len(x):
                taken, x = x[: size - filled], x[size - filled :]
                window[filled : filled + len(taken)] = taken
                filled += len(taken)
                if filled == size:
                    shuffle = IndexPermutation(size, (self.seed, lane + self.lanes * number))
                    order = shuffle(np.arange(min(passed, size), size))
                    passed = max(passed - filled, 0)
                    if len(order):
                        yield order, order, [window]
                        window = self._empty(size)
                    number, filled = number + 1, 0

    def _activations(self, skipped: int, lane: int | None) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """Yield the activations of the rows that are kept behind the first `skipped`, whatever their norm."""
        for rows, _, kept in prefetch(self._texts(lane)):
            count = int(kept.sum())
            if count <= skipped:
                skipped -= count
                continue
            x = flat(rows, self.extractor.compute(rows, (self.hook,)))[self.hook][kept][skipped:]
            if not np.isfinite(x).all():
                raise InputError(f"hook {self.hook} gives NaN or infinity; check the model's weights")
            skipped = 0
            yield x

    def _texts(
        self, lane: int | None
    ) -> Iterator[tuple[Any, dict[str, Shaped[np.ndarray, "rows"]], Bool[np.ndarray, "rows"]]]:
        """Yield the batches of the model, of a lane or all, with their ledger and which rows are kept, epoch after
        epoch.
        """
        for _ in itertools.count():
            found = 0
            for number, rows in enumerate(self.extractor.rows()):
                if lane is None or number % self.lanes == lane:
                    columns = rows.ledger()
                    kept = self.filter.within(columns)
                    found += int(kept.sum())
                    yield rows, columns, kept
            if not found:
                of_lane = "" if self.lanes == 1 else f" to one of {self.lanes} lanes"
                raise InputError(f"no row of {self.extractor.config.corpus.source} is left by {self.filter}{of_lane}")

    def _norm_limit(self) -> float | None:
        """Return the largest norm that is kept, from the median of the first window before any is left out."""
        if self.filter.max_norm is None:
            return None
        norms = np.concatenate([_norms(x) for x in _up_to(self.window_rows, self._activations(0, None))])
        return self.filter.max_norm * float(np.median(norms))

    def _empty(self, rows: int) -> Float[np.ndarray, "rows width"]:
        return np.empty((rows, self.width), np.dtype(self.extractor.config.dtype))


def config_of(manifest: Mapping[str, Any], place: Place) -> LiveConfig:
    """Return the config of a live source from its manifest.

    Args:
        manifest: its manifest.
        place: where it lies.
    """
    told: dict[str, Any] = {**manifest["config"], "out": place}
    told |= {"model": Path(told["model"]), "hooks": tuple(told["hooks"]), "corpus": CorpusConfig(**told["corpus"])}
    return LiveConfig(**told)


def _norms(x: Float32[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows"]:
    return np.linalg.norm(x, axis=1)


def _up_to(rows: int, blocks: Iterator[Shaped[np.ndarray, "rows *width"]]) -> Iterator[Shaped[np.ndarray, "_ *width"]]:
    """Yield blocks until they have so many rows, the last one cut."""
    for block in blocks:
        yield block[:rows]
        rows -= len(block)
        if rows <= 0:
            return
