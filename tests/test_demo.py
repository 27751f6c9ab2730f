"""The way from text to p-value on the shipped models, small."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from saejax.demo import DemoConfig, demo
from saejax.errors import InputError
from saejax.universality import CompareConfig, compare, plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoConfig, list[str]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    config = DemoConfig(out=out, tokens=16_384, d_sae=256, k=8, steps=60, permutations=60)
    return config, demo(config)


def test_it_ends_with_a_table_and_the_report(made: tuple[DemoConfig, list[str]]) -> None:
    config, lines = made
    assert lines[-1] == str(config.out / "report.html")
    assert re.split(r"  +", lines[0]) == [
        "arm", "pairs", "n", "measure", "paired", "null mean", "null SD", "z", "calibrated", "p",
    ]  # fmt: skip


def test_json_csv_table_and_draws_agree(made: tuple[DemoConfig, list[str]]) -> None:
    config, lines = made
    folder = config.out / "comparison"
    rows = json.loads((folder / "result.json").read_text())
    with (folder / "result.csv").open() as file:
        assert [float(line["observed"]) for line in csv.DictReader(file)] == [row["observed"] for row in rows]
    with np.load(folder / "draws.npz") as draws:
        for row, line in zip(rows, lines[1:], strict=False):
            assert f"{row['observed']:.4f}" in line
            if row["pairs"] == "all":
                null = draws[f"{row['arm']}/{row['measure']}"]
                assert row["null_mean"] == pytest.approx(null.mean())
                assert row["null_sd"] == pytest.approx(null.std(ddof=1))
                assert row["p_value"] == ((null >= row["observed"]).sum() + 1) / (60 + 1)
    assert {row["arm"] for row in rows} == {"sae", "raw"}
    smallest = min(row["n"] for row in rows)
    assert {row["arm"] for row in rows if row["n"] == smallest} == {"sae", "raw"}


def test_models_of_two_seeds_share_more_than_chance(made: tuple[DemoConfig, list[str]]) -> None:
    rows = json.loads((made[0].out / "comparison" / "result.json").read_text())
    p = {(row["arm"], row["measure"]): row["p_value"] for row in rows if row["pairs"] == "all"}
    assert p["raw", "rsa"] == 1 / 61


def test_documents_drawn_anew_say_how_sure_the_difference_is(made: tuple[DemoConfig, list[str]]) -> None:
    """The difference itself is that of the demo; its interval over documents is new."""
    config = made[0]
    told = json.loads((config.out / "comparison" / "manifest.json").read_text())["config"]
    changed = {"x": Path(told["x"]), "y": Path(told["y"]), "out": config.out / "documents", "document_replicates": 2}
    asked = CompareConfig(**{**told, **changed, "measures": ("svcca",), "difference": ("cka_debiased",)})
    lines = compare(asked)
    before, after = (
        json.loads((config.out / name / "difference.json").read_text()) for name in ("comparison", "documents")
    )
    asked_again = [row for row in before if row["measure"] == "cka_debiased"]
    for old, new in zip(asked_again, after, strict=True):
        assert old["document_se"] is None
        assert new["document_replicates"] == 2
        assert new["document_se"] > 0
        assert new["document_low"] < new["difference"] < new["document_high"]
        assert {**new, **{name: old[name] for name in old if name.startswith("document")}} == old
        assert f"{new['document_low']:.4f} to {new['document_high']:.4f}" in "\n".join(lines)


def test_the_report_opens_without_a_network(made: tuple[DemoConfig, list[str]]) -> None:
    page = (made[0].out / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=", own)
    assert "url(" not in own
    for part in ("Is the similarity more than chance?", "decoder_cosine_p95", 'class="token peak"', "data-figure="):
        assert part in own


def test_the_same_demo_again_is_complete_and_prints_the_same(made: tuple[DemoConfig, list[str]]) -> None:
    config, lines = made
    manifest = (config.out / "comparison" / "manifest.json").read_bytes()
    assert demo(config) == lines
    assert (config.out / "comparison" / "manifest.json").read_bytes() == manifest


def test_a_comparison_can_be_planned_on_its_stages(made: tuple[DemoConfig, list[str]], tmp_path: Path) -> None:
    x, y = (made[0].out / name / "features" for name in ("seed0", "seed1"))
    config = CompareConfig(x=x, y=y, x_raw="mlp_hidden.0", y_raw="mlp_hidden.0", out=tmp_path / "out", permutations=99)
    planned = plan(config)
    assert planned["sae features"] == "256 x 256, in 1 pass over the rows"
    assert planned["raw features"] == "1,024 x 1,024, in 1 pass over the rows"
    assert planned["random pairings"] == f"{2 * (2 * 99 + 20 * 500):,} over 2 measures"
    assert planned["smallest p"] == "0.01 for all pairs, 0.002 in a subset"
    assert not config.out.exists()
    with pytest.raises(InputError, match=r"no hook mlp_hidden\.7"):
        plan(dataclasses.replace(config, x_raw="mlp_hidden.7"))


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="tokens 500"):
        DemoConfig(out=Path("nowhere"), tokens=500)
