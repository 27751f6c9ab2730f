"""The null means of the published study say how many components its SVCCA kept."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("published_nulls", ROOT / "scripts" / "published_nulls.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
