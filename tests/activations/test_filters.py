import dataclasses
from pathlib import Path

import numpy as np
import pytest
from made_stores import activations, ledger, made

from saejax.activations.filters import RowFilter
from saejax.activations.store import Store
from saejax.errors import InputError

ROWS, HOOK = 1000, "resid_post.0"
COLUMNS = ledger(ROWS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("store") / "run", ROWS)


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (RowFilter(), np.ones(ROWS, bool)),
        (RowFilter(first_position=3), COLUMNS["position"] >= 3),
        (RowFilter(first_position=2, last_position=2), COLUMNS["position"] == 2),
        (RowFilter(first_document=10, last_document=12), np.isin(COLUMNS["document"], [10, 11, 12])),
        (RowFilter(last_position=8, first_document=39), (COLUMNS["position"] <= 8) & (COLUMNS["document"] == 39)),
    ],
)
@pytest.mark.parametrize("specials", [False, True])
def test_rows_in_the_ranges_are_left_without_specials_unless_they_are_asked_for(
    store: Store, rows: RowFilter, left: np.ndarray, specials: bool
) -> None:
    left, rows = left if specials else left & ~COLUMNS["special"], dataclasses.replace(rows, specials=specials)
    np.testing.assert_array_equal(rows.kept(store, HOOK), left)
    np.testing.assert_array_equal(rows.within(COLUMNS), left)


@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize("hook", [HOOK, "mlp_out.0"])
def test_norms_are_held_against_the_median_of_what_is_left(store: Store, hook: str, specials: bool) -> None:
    x = activations(ROWS) if hook == HOOK else activations(ROWS, 5, 0.5)
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    within = (specials | ~COLUMNS["special"]) & (COLUMNS["document"] >= 20)
    expected = within & (norms <= 1.2 * np.median(norms[within]))
    assert 0 < expected.sum() < within.sum()
    rows = RowFilter(first_document=20, max_norm=1.2, specials=specials)
    np.testing.assert_array_equal(rows.kept(store, hook), expected)


def test_a_filter_that_leaves_nothing_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="no row of store .* is left by RowFilter.first_position=25.*; leave out less"):
        RowFilter(first_position=25).kept(store, HOOK)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first_position": -1}, "first_position -1; give at least 0"),
        ({"first_document": 3, "last_document": 2}, "last_document 2 is before first_document 3; raise it"),
        ({"max_norm": 0.5}, "max_norm 0.5; give at least 1, the median"),
        ({"max_norm": float("nan")}, "max_norm nan; give at least 1, the median"),
    ],
)
def test_ranges_without_a_row_are_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        RowFilter(**given)
    assert str(refusal.value) == message


def test_the_store_is_as_it_was(store: Store, tmp_path: Path) -> None:
    before = store.kept.copy()
    for specials in (False, True):
        RowFilter(first_position=5, max_norm=1.5, specials=specials).kept(store, HOOK)
    np.testing.assert_array_equal(store.kept, before)
