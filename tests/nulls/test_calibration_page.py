"""The page on calibration says what its script found, and what it found is that valid schemes keep their level."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from made_scripts import ROOT, script_of

PAGE = ROOT / "saejax" / "nulls" / "calibration.md"


@pytest.fixture(scope="module")
def script() -> Any:
    return script_of("calibration")


def tables(page: str) -> list[list[list[str]]]:
    """Return the cells of every table of a page, by row, the head first."""
    found = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in each.splitlines()] for each in found]


def test_every_share_of_the_page_is_one_that_chance_gives(script: Any) -> None:
    valid, naive = tables(PAGE.read_text())
    shares = [
        [float(share) / 100 for share in cell.split(" / ")]
        for row in valid[2:] for cell in row[1:] if cell != "refused"
    ]  # fmt: skip
    assert [row[0].strip("`") for row in valid[2:]] == script.measures()
    assert len(shares) > 90
    for row in shares:
        for share, level in zip(row, (0.01, 0.05), strict=True):
            assert scipy.stats.binom.sf(round(500 * share) - 1, 500, level) > 0.01 / (2 * len(shares))
    inflated = [float(cell.split(" / ")[1]) for row in naive[2:] for cell in row[1:] if cell != "refused"]
    assert sorted(inflated)[len(inflated) // 10] > 15  # percent, where 5 are allowed; nine in ten are above


def test_the_script_writes_its_page(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(script, "measures", lambda: ["cka", "knn_jaccard:k=3"])
    monkeypatch.setattr(script, "VALID", (("collapse", "hubs"), ("uniform", "independent")))
    monkeypatch.setattr(script, "NAIVE", (("uniform", "hubs"),))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.START}\nold\n{script.END}\nafter\n")
    config = script.Config(replicates=20, permutations=19, out=tmp_path / "runs" / "cases.json", page=page)
    script.main(config)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["cases"], last["tests"]) == (6, 16)
    assert last["smallest_p"] > last["bound"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    valid, naive = tables(text)
    assert valid[0] == ["measure", "`collapse`, hubs", "`uniform`, independent"]
    assert naive[3][1] == "refused"  # equal rows have no nearest neighbours
    assert float(naive[2][1].split(" / ")[1]) > 50
    # What is done is not done again.
    monkeypatch.setattr(script, "calibrate", lambda *_, **__: pytest.fail("done before"))
    script.main(config)
    assert page.read_text() == text
