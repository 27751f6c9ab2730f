"""A live source gives what a store of the same rows would give in the same order, and an SAE trains on it as on one."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_extractions import HOOKS, made_config

from saejax import artifacts
from saejax.activations.extract import ExtractConfig, extract
from saejax.activations.extractor import Extractor
from saejax.activations.filters import RowFilter
from saejax.activations.index_permutation import IndexPermutation
from saejax.activations.lanes import ALL
from saejax.activations.live import LiveConfig, LiveRows, record
from saejax.activations.source import open_source
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.models import LanguageModel
from saejax.sae import load
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import plan, train
from saejax.storage import Folder
from saejax.sweep import SweepConfig, sweep

BATCH, WINDOW, SEED = 24, 100, 3
FILTERS = (
    RowFilter(),
    RowFilter(first_position=2, last_position=30, last_document=7),
    RowFilter(max_norm=1.1),
    RowFilter(last_position=20, specials=True),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LiveConfig:
    """A live source of ten documents, recorded."""
    folder = tmp_path_factory.mktemp("live")
    told = made_config(folder)
    fields = {field.name: getattr(told, field.name) for field in dataclasses.fields(LiveConfig)}
    config = LiveConfig(**{**fields, "out": folder / "source"})
    record(config)
    return config


@pytest.fixture(scope="module")
def store(config: LiveConfig) -> Store:
    """The store of the same rows."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(LiveConfig)}
    return Store.open(extract(ExtractConfig(**{**fields, "out": Path(config.out).parent / "store"}, shard_tokens=128)))


def source(config: LiveConfig, rows: RowFilter = FILTERS[0], **changed: Any) -> LiveRows:
    given = {"batch": BATCH, "seed": SEED, "window_rows": WINDOW, **changed}
    opened = open_source(config.out, HOOKS[0], rows, **given)
    assert isinstance(opened, LiveRows)
    return opened


def expected(store: Store, rows: RowFilter, opened: LiveRows, lane: int = 0) -> Iterator[np.ndarray]:
    """Windows of the rows that are kept, epoch after epoch, each in its own order, cut into batches."""
    x, lanes = store.read(HOOKS[0], 0, store.rows), opened.lanes
    kept = dataclasses.replace(rows, max_norm=None).kept(store, HOOKS[0])
    norms = np.linalg.norm(x, axis=1)
    if rows.max_norm is not None:
        kept = kept & (norms <= rows.max_norm * np.median(norms[kept][:WINDOW]))
        assert kept.any()
    of_batch = [len(packed.ledger()["special"]) for packed in opened.extractor.rows()]
    kept = kept & (np.repeat(np.arange(len(of_batch)), of_batch) % lanes == lane)
    endless, size = (row for _ in itertools.count() for row in x[kept]), WINDOW // lanes
    served = (
        row
        for window in itertools.count()
        for row in np.stack(list(itertools.islice(endless, size)))[
            IndexPermutation(size, (SEED, lanes * window + lane))(np.arange(size))
        ]
    )
    for _ in itertools.count():
        yield np.stack(list(itertools.islice(served, BATCH // lanes)))


@pytest.mark.parametrize("rows", FILTERS)
@pytest.mark.parametrize("start", [0, 1, 11, 40])
def test_batches_are_those_of_the_stored_rows(config: LiveConfig, store: Store, rows: RowFilter, start: int) -> None:
    """From any step on, over epochs: 388 rows are 16 batches."""
    opened = source(config, rows)
    wanted = itertools.islice(expected(store, rows, opened), start, start + 20)
    for found, batch in zip(opened.batches(start), wanted, strict=False):
        np.testing.assert_allclose(found, batch, rtol=0, atol=1e-5 * np.abs(batch).max())


@pytest.mark.parametrize("rows", FILTERS)
@pytest.mark.parametrize("start", [0, 1, 17])
def test_lanes_have_batches_of_the_model_in_turn(
    config: LiveConfig, store: Store, rows: RowFilter, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half a window, and the model does not run for one that is not read."""
    opened = source(config, rows, lanes=2)
    of_lanes = [expected(store, rows, opened, lane) for lane in (0, 1)]
    wanted = [np.concatenate(halves) for halves in itertools.islice(zip(*of_lanes, strict=True), start, start + 20)]
    for found, batch in zip(opened.batches(start), wanted, strict=False):
        np.testing.assert_allclose(found, batch, rtol=0, atol=1e-5 * np.abs(batch).max())
    compute, ran = Extractor.compute, []
    monkeypatch.setattr(Extractor, "compute", lambda *given: ran.append(given[1]) or compute(*given))
    for found, batch in zip(opened.batches(start, slice(12, 24)), wanted, strict=False):
        np.testing.assert_allclose(found, batch[12:], rtol=0, atol=1e-5 * np.abs(batch).max())
    of_first = [packed.batch.input_ids.tolist() for packed in opened.extractor.rows()][::2]
    seen = [packed.batch.input_ids.tolist() for packed in ran]
    assert seen
    assert any(batch in of_first for batch in seen) == (rows.max_norm is not None), "the median is of all lanes"


def test_nothing_but_the_manifest_is_on_the_disk(config: LiveConfig) -> None:
    for _ in itertools.islice(source(config).batches(), 20):
        pass
    assert Folder(config.out).names() == ["manifest.json"]


def test_the_model_runs_on_what_is_wanted_and_at_most_two_windows_ahead(
    config: LiveConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, rows, opened = LanguageModel.activations, [], source(config)

    def counted(self: LanguageModel, input_ids, segment, *args):
        rows.append(int((segment > 0).sum()))
        return original(self, input_ids, segment, *args)

    monkeypatch.setattr(LanguageModel, "activations", counted)
    batches = opened.batches(16)  # 384 rows are served: the fourth window is to be filled again
    next(batches)
    assert sum(rows) <= 3 * WINDOW + 2 * 64
    rows.clear()
    for _ in itertools.islice(batches, 50):
        pass
    assert sum(rows) <= 50 * BATCH + 3 * WINDOW + 2 * 64


def test_mixing_is_that_of_the_batches(config: LiveConfig, store: Store) -> None:
    document = store.ledger(0, store.rows, ["document"])["document"][store.kept][:WINDOW]
    served = document[IndexPermutation(WINDOW, (SEED, 0))(np.arange(WINDOW))]
    counts = [len(np.unique(served[start : start + BATCH])) for start in range(0, 96, BATCH)]
    assert source(config).mixing() == (np.mean(counts), None)


class Killed(Exception):
    """Stands for the end of the process."""


def sae_config(config: LiveConfig, out: Path, **changed: Any) -> SAETrainConfig:
    given: dict[str, Any] = {
        "d_sae": 16,
        "k": 2,
        "steps": 40,
        "batch": BATCH,
        "initial_rows": 64,
        "window_rows": WINDOW,
    }
    given |= {"warmup_steps": 2, "decay_steps": 2, "checkpoint_every": 10}
    return SAETrainConfig(config.out, HOOKS[0], out, **{**given, **changed})


def test_an_sae_trains_on_it_and_a_killed_one_ends_the_same(
    config: LiveConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(train(sae_config(config, tmp_path / "whole")))
    original = LiveRows.batches

    def cut_short(self: LiveRows, start_step: int = 0, part: slice = ALL) -> Iterator[np.ndarray]:
        for step, batch in enumerate(original(self, start_step, part), start_step):
            if step == 27:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(LiveRows, "batches", cut_short)
        with pytest.raises(Killed):
            train(sae_config(config, tmp_path / "killed"))
    again = load(train(sae_config(config, tmp_path / "killed")))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    facts, manifest = artifacts.read_finished(tmp_path / "whole", "sae")["facts"], artifacts.read_manifest(config.out)
    assert facts["model_fingerprint"] == manifest["facts"]["model_fingerprint"]
    assert (facts["rows"], facts["measured_rows"], facts["d_model"]) == (None, WINDOW, 8)
    assert facts["documents_per_batch"] > 1


def test_health_is_measured_on_rows_behind_those_of_training(config: LiveConfig, store: Store) -> None:
    trained = 7 * BATCH  # ends within the second window
    found = np.concatenate(list(source(config).measured(30, trained)))
    x = store.read(HOOKS[0], 0, store.rows)[store.kept]
    third = x[2 * WINDOW : 3 * WINDOW][IndexPermutation(WINDOW, (SEED, 2))(np.arange(WINDOW))]
    np.testing.assert_allclose(found, third, rtol=0, atol=1e-5 * np.abs(x).max())


def test_a_sweep_says_on_how_many_rows_it_was_measured(config: LiveConfig, tmp_path: Path) -> None:
    *_, page = sweep(SweepConfig(sae_config(config, tmp_path / "sweep"), seeds=(0, 1)))
    assert f"none of the\n{WINDOW} rows that were read" in Path(page).read_text()


def test_a_plan_counts_no_epochs(config: LiveConfig, tmp_path: Path) -> None:
    planned = plan(sae_config(config, tmp_path / "sae"))
    assert "epochs" not in planned
    assert "if all rows" not in planned["documents per batch"]
    assert not (tmp_path / "sae").exists()


def test_what_is_not_what_it_was_is_refused(config: LiveConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no hook embed, only resid_post\.1, mlp_hidden\.0; name one"):
        open_source(config.out, "embed", RowFilter(), batch=BATCH, seed=0, window_rows=WINDOW)
    with pytest.raises(InputError, match="run of kind 'live' where 'activations' is needed"):
        Store.open(config.out)
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(config.corpus.source, corpus)
    moved = dataclasses.replace(
        config, corpus=dataclasses.replace(config.corpus, source=str(corpus)), out=tmp_path / "source"
    )
    record(moved)
    with corpus.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match="was recorded with another corpus; record it again"):
        source(moved)
    with pytest.raises(InputError, match="holds another run"):
        record(dataclasses.replace(config, tokens=64))


def test_filters_that_leave_nothing_are_refused_and_not_waited_for(config: LiveConfig) -> None:
    with pytest.raises(InputError, match=r"no row of .* is left by RowFilter\(first_position=1000"):
        next(source(config, RowFilter(first_position=1000)).batches())


def test_activations_that_are_no_numbers_are_refused(config: LiveConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LanguageModel.activations

    def broken(self: LanguageModel, *args):
        return {hook: x.at[1, 3, 5].set(np.nan) for hook, x in original(self, *args).items()}

    monkeypatch.setattr(LanguageModel, "activations", broken)
    with pytest.raises(InputError, match=r"hook resid_post\.1 gives NaN or infinity"):
        next(source(config).batches())
