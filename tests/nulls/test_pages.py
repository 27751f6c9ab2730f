"""The pages that a newcomer decides from name what there is."""

import re
from pathlib import Path

from saejax.nulls import SCHEMES
from saejax.similarity import MEASURES, find_measure

PAGES = Path(__file__).parents[2] / "saejax" / "nulls"


def table(page: str, head: str) -> list[list[str]]:
    """Return the cells of the rows of the table whose head begins so."""
    rows = page[page.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_scheme_is_in_the_table() -> None:
    rows = table((PAGES / "choosing.md").read_text(), "Your pairs")
    assert [row[1].strip("`") for row in rows] == list(SCHEMES)


def test_measures_in_the_table_exist() -> None:
    rows = table((PAGES / "choosing.md").read_text(), "You ask")
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[1])]
    assert len({find_measure(name).name for name in named}) == len(named) > len(MEASURES) / 2


def test_files_that_pages_point_to_are_there() -> None:
    for page in PAGES.glob("*.md"):
        for name in re.findall(r"`(saejax/[\w/.]+)`", page.read_text()):
            assert (PAGES.parents[1] / name).exists(), name
    for name in re.findall(r"\]\((\w[^)]*\.md)\)", (PAGES.parents[1] / "README.md").read_text()):
        assert (PAGES.parents[1] / name).exists(), name
