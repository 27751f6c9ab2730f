from pathlib import Path

import numpy as np
import pytest
from made_sources import HOOK, made_sae, made_store, read_codes, reading_sae, some_special

from saejax.activations.store import write_decoder
from saejax.errors import InputError
from saejax.features.encode import EncodeConfig, encode
from saejax.features.sources import CodeSource, FeatureCodes, RawHook
from saejax.storage import Folder

ROWS, D, K = 150, 9, 3


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, D)).astype(np.float32)


@pytest.fixture
def sources(tmp_path: Path, x: np.ndarray) -> tuple[FeatureCodes, RawHook]:
    made_store(tmp_path / "store", x, some_special(ROWS))
    made_sae(tmp_path / "sae", reading_sae(D, K))
    out = encode(EncodeConfig(tmp_path / "store", tmp_path / "sae", tmp_path / "codes", examples=4))
    return FeatureCodes.open(out), RawHook.open(tmp_path / "store", HOOK)


def test_both_kinds_give_the_same_rows_in_the_same_blocks(sources: tuple[FeatureCodes, RawHook], x: np.ndarray) -> None:
    codes, raw = sources
    assert isinstance(codes, CodeSource)
    assert isinstance(raw, CodeSource)
    assert codes.ledger_sha256 == raw.ledger_sha256
    assert codes.store == raw.store
    assert codes.rows == raw.rows == ROWS
    assert codes.d == raw.d == D
    kept = ~some_special(ROWS)
    for start, of_codes, of_raw in zip(range(0, ROWS, 40), codes.blocks(40), raw.blocks(40), strict=True):
        rows = np.flatnonzero(kept[start : start + 40]) + start
        np.testing.assert_array_equal(of_raw, x[rows])
        np.testing.assert_array_equal(of_codes.toarray(), read_codes(x, K)[rows])
        assert of_codes.nnz == np.count_nonzero(read_codes(x, K)[rows])


def test_values_are_those_of_the_rows_asked_for(sources: tuple[FeatureCodes, RawHook], x: np.ndarray) -> None:
    codes, raw = sources
    rows = np.array([17, 3, 17, 149, 8])
    np.testing.assert_array_equal(raw.values(5, rows), x[rows, 5])
    np.testing.assert_array_equal(codes.values(5, rows), read_codes(x, K)[rows, 5])
    assert codes.values(5, np.flatnonzero(some_special(ROWS))).sum() == 0


def test_top_examples_are_the_largest_rows_without_special_tokens(
    sources: tuple[FeatureCodes, RawHook], x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, raw = sources
    monkeypatch.setattr(RawHook, "EXAMPLE_ROWS", 16)
    kept, features = np.flatnonzero(~some_special(ROWS)), np.array([7, 0, 4])
    made_store(tmp_path / "below", x - 10, some_special(ROWS))
    below = RawHook.open(tmp_path / "below", HOOK)
    for source, values in ((codes, read_codes(x, K)), (raw, x), (below, x - 10)):
        found = source.top_examples(features, 3)
        expected = kept[np.argsort(-values[kept][:, features], axis=0, kind="stable")[:3].T]
        np.testing.assert_array_equal(found.rows, expected)
        np.testing.assert_array_equal(found.values, values[expected, features[:, None]])
    with pytest.raises(InputError, match="keeps 4 examples per feature, not 5"):
        codes.top_examples(features, 5)


def test_a_features_run_finds_its_store_after_both_have_moved(
    sources: tuple[FeatureCodes, RawHook], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "store").rename(moved / "store")
    (tmp_path / "codes").rename(moved / "codes")
    assert FeatureCodes.open(moved / "codes").store == (moved / "store").resolve()


def test_decoder_rows_of_a_hook_are_those_that_its_store_keeps(
    sources: tuple[FeatureCodes, RawHook], tmp_path: Path
) -> None:
    raw = sources[1]
    with pytest.raises(InputError, match=f"hook {HOOK} .* has no output matrix"):
        raw.decoder_rows()
    rows = np.random.default_rng(1).standard_normal((D, 6)).astype(np.float32)
    write_decoder(Folder(tmp_path / "store"), HOOK, rows)
    np.testing.assert_array_equal(raw.decoder_rows(), rows)


def test_what_is_no_source_is_refused(sources: tuple[FeatureCodes, RawHook], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no hook mlp_out.0, only resid_post.0"):
        RawHook.open(tmp_path / "store", "mlp_out.0")
    with pytest.raises(InputError, match="'activations' where 'features' is needed"):
        FeatureCodes.open(tmp_path / "store")
