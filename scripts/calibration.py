"""Do all measures keep their level under all schemes? The table of `saejax/nulls/calibration.md`, made anew.

    python scripts/calibration.py

tests 500 simulated pairings without a match for every measure, scheme and world (seeds 0 to 499, 40 rows, 99
re-pairings; some hours on two cores, resumable), and writes the shares that were rejected into the page. The last
line is JSON: the number of cases, and the smallest p of the tests that a valid scheme keeps its level, with what it
should be above.
"""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import tyro

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls.calibration import LEVELS, calibrate
from saejax.nulls.worlds import WORLDS
from saejax.progress import progress
from saejax.similarity import MEASURES

PAGE = Path(__file__).parents[1] / "saejax" / "nulls" / "calibration.md"
START, END = "<!-- made by scripts/calibration.py -->", "<!-- end -->"
VALID = (
    ("uniform", "independent"),
    ("uniform", "clustered"),
    ("strata", "frequency"),
    ("collapse", "hubs"),
    ("blocks", "hubs"),
    ("representative:picks=5", "hubs"),
    ("stimulus", "texts"),
    ("stimulus_blocks", "texts"),
)
NAIVE = (("uniform", "hubs"), ("uniform", "frequency"), ("uniform", "texts"))
SLOW = {"representative:picks=5": 1, "blocks": 2}
NEIGHBOURS = ("knn_jaccard", "rank_similarity", "second_order_cosine")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is simulated, and where it goes."""

    replicates: int = 500
    """Pairings of each world."""
    permutations: int = 99
    """Re-pairings of each."""
    level: float = 0.01
    """Chance that a right engine fails one of all tests."""
    processes: int = 1
    """Cases at a time, each on one core: rows are few, and threads cost more than they gain."""
    out: Path = Path("runs/calibration.json")
    """Cases as they are done; the same call goes on from them."""
    page: Path = PAGE
    """The page that the tables are written into."""


def measures() -> list[str]:
    """Return every measure, with three neighbours where neighbours are asked for: ten texts have no ten."""
    return [f"{name}:k=3" if name in NEIGHBOURS else name for name in MEASURES]


def case(scheme: str, world: str, measure: str, config: Config) -> dict[str, Any]:
    """Return what comes of one measure under one scheme in one world."""
    duplicates = "accept" if (scheme, world) == ("uniform", "hubs") else "refuse"
    try:
        found = calibrate(
            WORLDS[world], measures=[measure], scheme=scheme, seeds=range(config.replicates), duplicates=duplicates,
            permutations=config.permutations,
        )[0]  # fmt: skip
    except InputError as error:
        return {"refused": str(error)}
    excess = {f"excess_{level:g}": found.excess_p(level) for level in LEVELS}
    return {**found.record(), **excess}


def cases() -> Iterator[tuple[str, str, str]]:
    """Yield scheme, world and measure of every case, the slow ones last."""
    for scheme, world in sorted((*VALID, *NAIVE), key=lambda each: SLOW.get(each[0], 0)):
        for measure in measures():
            yield scheme, world, measure


def table(done: dict[str, dict[str, Any]], columns: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the lines of a table: shares rejected at .01 and .05, by measure, in percent; of columns that are done."""
    columns = tuple(each for each in columns if all(f"{' '.join(each)} {name}" in done for name in measures()))
    if not columns:
        return []
    heads = [f"`{scheme}`, {world}" for scheme, world in columns]
    lines = ["| measure | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for measure in measures():
        cells = [_cell(done[f"{scheme} {world} {measure}"]) for scheme, world in columns]
        lines.append(f"| `{measure}` | " + " | ".join(cells) + " |")
    return lines


def _cell(record: dict[str, Any]) -> str:
    return "refused" if "refused" in record else f"{100 * record['at_0.01']:.1f} / {100 * record['at_0.05']:.1f}"


def smallest(done: dict[str, dict[str, Any]]) -> tuple[float, int]:
    """Return the smallest p of all tests that a valid scheme keeps its level, and their number."""
    found = [
        value
        for scheme, world in VALID
        for measure in measures()
        for name, value in done.get(f"{scheme} {world} {measure}", {}).items()
        if name.startswith(("excess_", "uniform_p"))
    ]
    return min(found), len(found)


def write_page(done: dict[str, dict[str, Any]], page: Path) -> None:
    """Write the tables into the page, between the lines that mark their place."""
    before, rest = page.read_text().split(START)
    after = rest.split(END)[1]
    naive = ["The naive shuffle of single rows, where these are no units:", "", *table(done, NAIVE), ""]
    made = "\n".join([START, "", *table(done, VALID), "", *(naive if table(done, NAIVE) else []), END])
    artifacts.write_bytes(page, f"{before}{made}{after}".encode())


def outcomes(left: list[tuple[str, str, str]], config: Config) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """Yield cases and what comes of them, as they are done."""
    if config.processes == 1:
        yield from ((each, case(*each, config)) for each in left)
        return
    os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(config.processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(case, *each, config): each for each in left}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def main(config: Config) -> None:
    """Do what is left of the cases, and write the page."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(config.out.read_text()) if config.out.exists() else {}
    left = [each for each in cases() if " ".join(each) not in done]
    with progress("calibration", total=len(left)) as advance:
        for each, record in outcomes(left, config):
            done[" ".join(each)] = record
            artifacts.write_bytes(config.out, json.dumps(done, indent=1).encode())
            advance()
    write_page(done, config.page)
    least, count = smallest(done)
    print(config.page)
    print(json.dumps({"cases": len(done), "tests": count, "smallest_p": least, "bound": config.level / count}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
