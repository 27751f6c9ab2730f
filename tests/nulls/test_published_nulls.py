"""The null means of the published study say how many components its SVCCA kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_scripts import script_of


@pytest.fixture(scope="module")
def script() -> Any:
    return script_of("published_nulls")


def test_one_component_was_kept(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures" / "nulls.html"
    script.main(script.Config(out=out))
    ratios = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(each["cells"] for each in ratios.values()) == 467
    assert len(ratios) == 5
    for each in ratios.values():
        assert each["to_one_component"] == pytest.approx(1, abs=0.1)
        assert each["to_many_components"] < 0.2
    assert "one component: sqrt(2" in out.read_text()
