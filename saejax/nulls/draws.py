"""Null draws as they are made: in memory, and with a folder also on disk, so that an interruption loses little.

A commit is one file `START-STOP.npz` with the cores of re-pairings START to STOP - 1, one array per measure. Which
re-pairings are there is what the file names say: jobs over different ranges may fill one folder, in any order and by
any number of processes, because re-pairing i is the same everywhere.
"""

import re
import time
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from saejax import artifacts

COMMIT_SECONDS = 10.0
CHUNK = re.compile(r"(\d{10})-(\d{10})\.npz")
RESCORED = "rescored"


class Draws:
    """The cores of a range of re-pairings; 9 bytes per re-pairing and measure.

    Attributes:
        first: number of the first re-pairing.
        folder: where draws are committed; None for nowhere.
        cores: one row per measure; NaN where a re-pairing is still missing.
        rescored: whether a core was computed again in float64.
    """

    def __init__(self, names: tuple[str, ...], first: int, stop: int, folder: Path | None = None) -> None:
        """Start a range, with what a folder already has of it.

        Args:
            names: the measures.
            first: number of the first re-pairing.
            stop: number behind the last one.
            folder: an existing folder in which draws are committed; nowhere when None.
        """
        self.first = first
        self.cores: Float[np.ndarray, "measures perm"] = np.full((len(names), stop - first), np.nan)
        self.rescored: Bool[np.ndarray, "measures perm"] = np.zeros(self.cores.shape, bool)
        self._names, self.folder = names, folder
        self._committed, self._open = time.monotonic(), (first, first)
        if folder is not None:
            self._load(folder)

    def __len__(self) -> int:
        """Return the number of re-pairings, made or missing."""
        return self.cores.shape[1]

    @property
    def stop(self) -> int:
        """Number behind the last re-pairing."""
        return self.first + self.cores.shape[1]

    def made(self) -> int:
        """Return how many there are from the first on, without a gap."""
        return self.missing()[0][0] - self.first if self.missing() else len(self)

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges that have no draws yet, in order."""
        absent = np.isnan(self.cores).any(axis=0)
        edges = self.first + np.flatnonzero(np.diff(absent, prepend=False, append=False))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))

    def put(
        self, start: int, cores: Float[np.ndarray, "measures batch"], rescored: Bool[np.ndarray, "measures batch"]
    ) -> bool:
        """Take in consecutive draws, and commit them when the last commit is `COMMIT_SECONDS` ago.

        Args:
            start: number of the first of them.
            cores: their cores.
            rescored: which of them were scored again.

        Returns:
            Whether something was committed.
        """
        if start != self._open[1]:
            self.commit()
            self._open = (start, start)
        stop = start + cores.shape[1]
        self._place(start, cores, rescored)
        self._open = (self._open[0], stop)
        return time.monotonic() - self._committed > COMMIT_SECONDS and self.commit()

    def commit(self) -> bool:
        """Write what was put since the last commit; tell whether that was anything."""
        start, stop = self._open
        self._committed, self._open = time.monotonic(), (stop, stop)
        if self.folder is None or stop == start:
            return False
        part = slice(start - self.first, stop - self.first)
        arrays = dict(zip(self._names, self.cores[:, part], strict=True))
        artifacts.write_npz(self.folder / f"{start:010}-{stop:010}.npz", {**arrays, RESCORED: self.rescored[:, part]})
        return True

    def _place(self, start: int, cores: np.ndarray, rescored: np.ndarray) -> None:
        part = slice(start - self.first, start - self.first + cores.shape[1])
        self.cores[:, part], self.rescored[:, part] = cores, rescored

    def _load(self, folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            named = CHUNK.fullmatch(file.name)
            if named is None:
                continue
            start, stop = (int(group) for group in named.groups())
            low, high = max(start, self.first), min(stop, self.stop)
            if low < high:
                with np.load(file) as chunk:
                    part = slice(low - start, high - start)
                    cores = np.stack([chunk[name] for name in self._names])
                    self._place(low, cores[:, part], chunk[RESCORED][:, part])
