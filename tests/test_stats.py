"""The statistics of a store: which rows count, what is written, and what the page shows."""

import html
import json
import re
from pathlib import Path
from typing import Any

import made_stores
import numpy as np
import planted
import pytest

from saejax import artifacts, cli
from saejax import stats as room
from saejax.activations.filters import RowFilter
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.stats import StatsConfig, stats

ROWS = 300
HOOKS = {"resid_post.0": made_stores.activations(ROWS), "mlp_out.0": made_stores.activations(ROWS, 5, 0.5)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_stores.made(tmp_path_factory.mktemp("stores") / "store", ROWS)


@pytest.fixture(scope="module")
def outlying(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store of which dimensions 7 and 20 stand out and row 77 is a hundred times as long as the others."""
    x = np.random.default_rng(0).normal(size=(600, 32))
    x[:, 7] += 12
    x[:, 20] *= 15
    x[77] *= 100
    return planted.store_of(x.astype(np.float32), tmp_path_factory.mktemp("stores") / "outlying")


def records_of(out: Path) -> dict[str, dict[str, Any]]:
    return json.loads((out / "statistics.json").read_text())


def figures_of(page: str) -> list[dict[str, Any]]:
    """Return the figures as a browser reads them, where NaN is no number."""
    found = re.findall(r"data-figure='([^']*)'", page)
    return [json.loads(html.unescape(figure), parse_constant=lambda name: pytest.fail(name)) for figure in found]


@pytest.mark.parametrize("rows", [RowFilter(), RowFilter(first_position=3, last_document=9)], ids=["all", "filtered"])
def test_special_tokens_and_rows_left_out_do_not_count(store: Store, rows: RowFilter, tmp_path: Path) -> None:
    stats(StatsConfig(store.path, tmp_path / "out", rows=rows))
    records = records_of(tmp_path / "out")
    assert list(records) == list(HOOKS)
    for hook, x in HOOKS.items():
        kept = x[rows.kept(store, hook)].astype(np.float64)
        norms = np.linalg.norm(kept, axis=1)
        record = records[hook]
        assert (record["rows"], record["d_model"], record["zero_rows"]) == (*kept.shape, int(np.sum(norms == 0)))
        assert record["rms"] == pytest.approx(np.sqrt(np.mean(kept**2)))
        assert record["norm_p95"] == pytest.approx(np.quantile(norms, 0.95))
        assert record["norm_max_over_median"] == pytest.approx(norms.max() / np.median(norms))
        assert record["norm_of_mean"] == pytest.approx(np.linalg.norm(kept.mean(axis=0)))
        assert record["participation_ratio"] == pytest.approx(1)  # rows lie on a line
        assert record["components_99"] == 1
        with np.load(tmp_path / "out" / f"{hook}.npz") as arrays:
            np.testing.assert_allclose(arrays["mean"], kept.mean(axis=0))
            np.testing.assert_allclose(arrays["variance"], kept.var(axis=0))
            assert arrays["norm_counts"].sum() == np.sum(norms > 0)
            assert len(arrays["spectrum"]) == kept.shape[1]


def test_the_page_holds_every_hook_and_its_numbers(store: Store, tmp_path: Path) -> None:
    printed = cli.run(["stats", "--store", str(store.path), "--out", str(tmp_path / "out")])
    page = Path(printed[-1]).read_text()
    assert printed[0].startswith("hook ")
    assert len(figures_of(page)) == 4 + 4 * len(HOOKS)
    for line, (hook, record) in zip(printed[1:-1], records_of(tmp_path / "out").items(), strict=True):
        assert line.split()[:3] == [hook, str(record["rows"]), str(record["d_model"])]
        section = page[page.index(f'<h2 id="{hook}">') :]
        for name in ("norm_p01", "norm_p50", "norm_max", "norm_of_mean", "sd_min", "sd_max"):
            assert f"<td>{record[name]:.4g}</td>" in section, name
        for name, form in (("rms", ".4g"), ("mean_cosine", ".4f"), ("participation_ratio", ".1f")):
            assert f"<td>{record[name]:{form}}</td>" in page, name


def test_the_page_says_which_rows_were_read(store: Store, tmp_path: Path) -> None:
    for rows, told in (
        (RowFilter(first_position=1), "all but special tokens, first_position 1<"),
        (RowFilter(first_position=1, specials=True), ">all, first_position 1<"),
    ):
        stats(StatsConfig(store.path, tmp_path / str(rows.specials), ("mlp_out.0",), rows=rows))
        assert told in (tmp_path / str(rows.specials) / "report.html").read_text()


def test_one_hook_alone_is_not_set_beside_others(store: Store, tmp_path: Path) -> None:
    stats(StatsConfig(store.path, tmp_path / "out", ("mlp_out.0",)))
    assert list(records_of(tmp_path / "out")) == ["mlp_out.0"]
    assert len(figures_of((tmp_path / "out" / "report.html").read_text())) == 4


def test_outlier_dimensions_are_named_and_marked(outlying: Store, tmp_path: Path) -> None:
    printed = stats(StatsConfig(outlying.path, tmp_path / "out"))
    record = records_of(tmp_path / "out")[planted.HOOK]
    outliers = {outlier["dimension"]: outlier for outlier in record["outlier_dimensions"]}
    assert set(outliers) == {7, 20}
    assert outliers[7]["mean_z"] > 3
    assert outliers[20]["sd_z"] > 3
    assert 0.9 < outliers[7]["cosine"] / record["mean_cosine"] < 1.1
    assert printed[1].endswith(" ".join(map(str, outliers)))
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f'<td class="text">{dimension}</td>' in page for dimension in outliers)
    assert [figure["data"][1]["x"] for figure in figures_of(page)[2:]] == [list(outliers)] * 2


def test_a_row_of_a_hundred_times_the_norm_counts_unless_it_is_left_out(outlying: Store, tmp_path: Path) -> None:
    stats(StatsConfig(outlying.path, tmp_path / "all"))
    stats(StatsConfig(outlying.path, tmp_path / "some", rows=RowFilter(max_norm=20.0)))
    every, some = (records_of(tmp_path / name)[planted.HOOK] for name in ("all", "some"))
    assert every["rows"] == some["rows"] + 1
    assert every["norm_max_over_median"] > 50 > 10 > some["norm_max_over_median"]
    assert "max_norm 20.0" in (tmp_path / "some" / "report.html").read_text()


def test_what_does_not_exist_is_null_and_a_dash(tmp_path: Path) -> None:
    store = planted.store_of(np.zeros((40, 12), np.float32), tmp_path / "store")
    printed = stats(StatsConfig(store.path, tmp_path / "out"))
    record = records_of(tmp_path / "out")[planted.HOOK]
    absent = {name for name, value in record.items() if value is None}
    assert absent == {"norm_max_over_median", "mean_share", "mean_cosine", "kurtosis_median", "participation_ratio",
                      "components_50", "components_90", "components_99"}  # fmt: skip
    assert record["zero_rows"] == 37
    assert record["outlier_dimensions"] == []
    assert printed[1].split().count("none") == 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<td>—</td>") == len(absent)
    assert len(figures_of(page)) == 4


def test_an_interrupted_run_goes_on_with_the_next_hook_and_a_complete_one_measures_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = StatsConfig(store.path, tmp_path / "straight")
    lines = stats(straight)
    measure, done = room.measure, []

    def stopping(store: Store, hook: str, rows: RowFilter) -> Any:
        done.append(hook)
        if done == list(HOOKS):
            raise KeyboardInterrupt
        return measure(store, hook, rows)

    monkeypatch.setattr(room, "measure", stopping)
    config = StatsConfig(store.path, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        stats(config)
    assert artifacts.read_manifest(config.out)["status"] == "running"
    assert stats(config)[:-1] == lines[:-1]
    assert done == [*HOOKS, "mlp_out.0"]
    manifest = (config.out / artifacts.MANIFEST).read_bytes()
    monkeypatch.setattr(artifacts, "_now", lambda: "later")
    assert stats(config)[:-1] == lines[:-1]
    assert len(done) == 3
    assert (config.out / artifacts.MANIFEST).read_bytes() == manifest
    for file in ("statistics.json", "mlp_out.0.npz"):
        assert (config.out / file).read_bytes() == (straight.out / file).read_bytes()


def test_bad_input_is_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="has no hook resid_post.7, only resid_post.0, mlp_out.0; extract one"):
        stats(StatsConfig(store.path, out, ("resid_post.0", "resid_post.7")))
    with pytest.raises(InputError, match="no row of store .* is left"):
        stats(StatsConfig(store.path, out, rows=RowFilter(first_position=25, max_norm=2.0)))
    assert not made_stores.write(tmp_path / "cut", made_stores.MadeConfig(ROWS), part=1, parts=2)
    with pytest.raises(InputError, match="unfinished run"):
        stats(StatsConfig(tmp_path / "cut", out))
    with pytest.raises(InputError, match="hooks a, a names one twice; name each once"):
        StatsConfig(store.path, out, ("a", "a"))
    assert not out.exists()
