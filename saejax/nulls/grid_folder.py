"""The run directory of a grid of nulls: results as cells finish, and what has failed.

    results.jsonl    one line per cell and measure
    failures.jsonl   one line per cell, or measure of a cell, that could not be scored
    draws/CELL.npz   null draws of a cell, one array per measure
    partial/         draws of the cells that are being scored

Lines are appended when the draws that they are about lie on disk. So an interruption cuts at most the last line short,
and what has a whole line is done. Several processes of one job append to files of their own, `results-1.jsonl` and so
on; reading joins them.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from saejax import artifacts, mesh
from saejax.errors import InputError
from saejax.nulls.arrangement import Arrangement, Told
from saejax.nulls.cells import Cell
from saejax.nulls.multiplicity import LEVEL, corrected, correction_line
from saejax.nulls.results import NullResults, Results, table
from saejax.nulls.selection import check_pairing

KIND = "null grid"
RESULTS, FAILURES, DRAWS, PARTIAL = "results", "failures", "draws", "partial"


@dataclasses.dataclass(frozen=True)
class GridIdentity:
    """What all cells of a grid have in common."""

    measures: tuple[str, ...]
    """Measures, in order."""
    permutations: int
    """Random re-pairings of each cell."""
    rank_bits: int | None
    """Bits of ranks, where given."""
    scheme: str
    """Which re-pairings are equally likely."""
    duplicates: str
    """Whether features in several pairs are refused or accepted."""
    seed: int
    """Seed of the re-pairings."""
    coupled: str | None = None
    """Side by whose features cells draw alike, where they do."""
    stop_after: int | None = None
    """Exceedances at which the test of a result stops, where it does."""


class GridResults(Results[dict[str, Any]]):
    """One record per cell and measure: the cell's name and labels, and the fields of `NullResult`; prints as a table.

    Attributes:
        failures: cell, labels, measure and error of what could not be scored; the measure is None where it is the
            whole cell.
        path: the run directory, where the draws are.
        coupled: side by whose features cells drew alike, where they did.
        permutations: re-pairings of each result, which a sequential test may not have used up.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        failures: Sequence[dict[str, Any]],
        path: Path,
        coupled: str | None,
        permutations: int,
    ) -> None:
        """Keep records in their order."""
        super().__init__(records)
        self.failures, self.path, self.coupled, self.permutations = list(failures), path, coupled, permutations

    def records(self) -> list[dict[str, Any]]:
        """Return the records."""
        return list(self)

    def lines(self) -> list[str]:
        """Return the lines of the table, and what was corrected and what failed."""
        corrections = {record["correction"] for record in self if "correction" in record}
        lines = [correction_line(self, each) for each in corrections]
        return [*table(self, ("cell", "measure")), *lines, *map(failure_line, self.failures)]

    def corrected(self, correction: str, level: float = LEVEL) -> "GridResults":
        """Correct p for the number of results, those of all cells and measures together.

        Args:
            correction: `holm`, `min_p` or `max_t` for the chance of any false rejection, `benjamini_hochberg` for the
                share of false ones among all; `min_p` and `max_t` use how results depend on each other, of a grid
                whose cells are coupled.
            level: what a corrected p is to be held against.

        Returns:
            The same results with `p_corrected`; `p_floor`, the smallest that one could be if no other were small; and
            `correction`.

        Raises:
            InputError: there is one result, draws are too few for any to reach the level, or cells are not coupled.
        """
        draws = None if self.coupled is None else self._draws
        records = corrected(self, correction, level, draws, self.permutations)
        return GridResults(records, self.failures, self.path, self.coupled, self.permutations)

    def _draws(self, record: dict[str, Any]) -> Float[np.ndarray, "perm"]:
        """Return the draws of a result."""
        with np.load(self.path / record["draws"]) as kept:
            return kept[record["measure"]]


def arranged(cell: Cell, identity: GridIdentity) -> Arrangement:
    """Return what the scheme of a grid makes of a cell.

    Raises:
        InputError: its pairs are not exchangeable as the scheme says.
    """
    sets = {"x": cell.x_set, "y": cell.y_set}
    coupled = None if identity.coupled is None else (identity.coupled, sets[identity.coupled])
    told = Told(cell.x_ids, cell.y_ids, cell.row_labels, identity.duplicates, coupled)
    return check_pairing(cell.x, cell.y, (), identity.scheme, told)


def failure_line(failure: dict[str, Any]) -> str:
    """Say in one line which cell failed and why."""
    return f"cell {failure['cell']} failed: {failure['error']}"


class GridFolder:
    """An open run directory of a grid.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, identity: GridIdentity) -> None:
        """Open a directory; new, interrupted or complete.

        Args:
            path: the directory.
            identity: what all cells have in common.

        Raises:
            InputError: it holds something else.
        """
        self.path = path
        self._process, self._identity = jax.process_index(), identity
        self._run = mesh.in_turn("grid opened", functools.partial(self._open, identity))
        self._done: dict[str, list[dict[str, Any]]] = {}
        for record in _read(path, RESULTS):
            self._done.setdefault(record["cell"], []).append(record)
        mesh.barrier("grid read")

    def _open(self, identity: GridIdentity) -> artifacts.Run:
        run = artifacts.begin(self.path, KIND, identity)
        if self._process == 0:
            (self.path / DRAWS).mkdir(exist_ok=True)
            self._tidy()
        return run

    def lacking(self, cell: Cell) -> list[str]:
        """Return the measures that a cell has no result of.

        Raises:
            InputError: results of a cell of that name and other matrices are there.
        """
        done = self._done.get(cell.name, [])
        for name, digest in arranged(cell, self._identity).digests().items() if done else ():
            if done[0].get(name := f"{name}_sha256") != digest:
                raise InputError(
                    f"--out {self.path} holds results of cell {cell.name!r} with other matrices ({name} "
                    f"{done[0].get(name)} there, {digest} now); name a new directory"
                )
        return [name for name in self._identity.measures if name not in {record["measure"] for record in done}]

    def partial(self, cell: Cell, digest: dict[str, str], measures: Sequence[str]) -> Path:
        """Return a folder for the draws of one cell while it is scored."""
        what = artifacts.fingerprint([digest, list(measures)])[:16]
        folder = self.path / PARTIAL / f"{cell.file_name}-{what}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, cell: Cell, digest: dict[str, str], results: NullResults) -> None:
        """Keep results of a cell, beside those of other measures that are there."""
        file = self.path / DRAWS / f"{cell.file_name}.npz"
        draws = {result.measure: result.draws for result in results}
        if cell.name in self._done:
            with np.load(file) as kept:
                draws = {**kept, **draws}
        artifacts.write_npz(file, draws)
        where = file.relative_to(self.path).as_posix()
        digests = {f"{name}_sha256": sha256 for name, sha256 in digest.items()}
        records = [{**cell.described(), **result.record(), "draws": where, **digests} for result in results]
        self._append(RESULTS, records)
        self._done.setdefault(cell.name, []).extend(records)
        shutil.rmtree(self.partial(cell, digest, [result.measure for result in results]))

    def fail(self, cell: Cell, measure: str | None, error: Exception) -> None:
        """Keep the reason why a cell, or a measure of it, could not be scored."""
        reason = " ".join(str(error).split())
        self._append(FAILURES, [{**cell.described(), "measure": measure, "error": reason}])

    def finish(self, order: Mapping[str, int]) -> GridResults:
        """Mark the grid complete and return all that it holds, once every process is here.

        Args:
            order: place of each cell, by name; others come last.
        """
        mesh.barrier("grid scored")
        results = load_grid(self.path)
        for records in (results, results.failures):
            records.sort(key=lambda record: order.get(record["cell"], len(order)))
        if self._process == 0:
            cells = {record["cell"] for record in results}
            shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
            self._run.finish(cells=len(cells), failed=len(results.failures))
        mesh.barrier("grid complete")
        return results

    def _append(self, kind: str, records: list[dict[str, Any]]) -> None:
        name = f"{kind}.jsonl" if self._process == 0 else f"{kind}-{self._process}.jsonl"
        with (self.path / name).open("a") as file:
            file.write("".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
            file.flush()
            os.fsync(file.fileno())

    def _tidy(self) -> None:
        """Drop lines that were cut short, and failures, which are tried again."""
        for file in _files(self.path, FAILURES):
            file.unlink()
        for file in _files(self.path, RESULTS):
            text = file.read_text()
            if not text.endswith("\n"):
                artifacts.write_bytes(file, text[: text.rfind("\n") + 1].encode())


def load_grid(path: Path | str) -> GridResults:
    """Read what the run directory of a grid holds, finished or not.

    Args:
        path: the directory.

    Raises:
        InputError: it holds no grid.
    """
    path = Path(path)
    manifest = artifacts.read_manifest(path)
    if manifest["kind"] != KIND:
        raise InputError(f"{path} holds a run of kind {manifest['kind']!r} where {KIND!r} is needed")
    results, failures = (list(_read(path, kind)) for kind in (RESULTS, FAILURES))
    return GridResults(results, failures, path, manifest["config"]["coupled"], manifest["config"]["permutations"])


def _read(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    for file in _files(path, kind):
        yield from _lines(file)


def _files(path: Path, kind: str) -> list[Path]:
    return sorted([*path.glob(f"{kind}.jsonl"), *path.glob(f"{kind}-*.jsonl")])


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return what a file of lines holds; a last line that was cut short is left out.

    Raises:
        InputError: another line is damaged.
    """
    try:
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    except json.JSONDecodeError as error:
        raise InputError(f"{file} has a line that is not JSON ({error}); remove that line and run again") from None
