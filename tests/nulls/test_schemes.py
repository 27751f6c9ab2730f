from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from saejax.errors import InputError
from saejax.nulls.schemes import SCHEMES, find_scheme

ROWS = np.random.default_rng(0).normal(size=(6, 3))
REPEATED = ROWS[[0, 1, 2, 1, 1, 5]]
CHECK = SCHEMES["uniform"].check


def test_an_unknown_scheme_is_named_beside_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"^scheme 'bootstrap' is unknown; choose one of uniform$"):
        find_scheme("bootstrap")


def test_one_to_one_pairs_may_be_shuffled() -> None:
    CHECK(ROWS, None, "x")
    CHECK(ROWS, np.arange(6), "x")
    CHECK(REPEATED, ["a", "b", "c", "d", "e", "f"], "x")


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(InputError) as error:
        CHECK(ROWS, np.array([4, 9, 7, 9, 9, 7]), "y")
    assert str(error.value) == (
        "y_ids names feature 9 for rows 1 and 3 (3 repeats in all); scheme uniform re-pairs single features: keep one "
        "pair of each, as pairing by mutual_best or one_to_one does"
    )


def test_equal_rows_without_ids_are_refused() -> None:
    with pytest.raises(InputError) as error:
        CHECK(REPEATED, None, "x")
    assert str(error.value) == (
        "rows 1 and 3 of x are equal (2 repeats in all); scheme uniform re-pairs single features: keep one pair of "
        "each, as pairing by mutual_best or one_to_one does, or give x_ids if they are different features"
    )


def test_zero_and_minus_zero_are_one_value() -> None:
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0]])
    with pytest.raises(InputError, match="rows 0 and 1 of y are equal"):
        CHECK(rows, None, "y")


def test_every_row_needs_an_id() -> None:
    with pytest.raises(InputError, match=r"^x_ids has 5 ids for 6 rows of x; give one id per row$"):
        CHECK(ROWS, np.arange(5), "x")


def test_ids_may_be_layers_and_features_but_no_matrix() -> None:
    CHECK(ROWS, [(layer, feature) for layer in (0, 1) for feature in (4, 9, 7)], "x")
    with pytest.raises(InputError, match=r"^y_ids names feature \(0, 4\) for rows 0 and 1 \(5 repeats in all\)"):
        CHECK(ROWS, [(0, 4)] * 6, "y")
    with pytest.raises(InputError, match=r"^x_ids has shape \(6, 1\); give one id per row$"):
        CHECK(ROWS, np.arange(6)[:, None], "x")


def test_scalars_of_any_library_name_features() -> None:
    """Those of torch in a list are told apart by where they lie in memory."""
    repeated = [3, 1, 4, 1, 5, 9]
    for ids in (list(np.array(repeated)), jnp.array(repeated), list(torch.tensor(repeated)), tuple(repeated)):
        with pytest.raises(InputError, match="^y_ids names feature 1 for rows 1 and 3"):
            CHECK(ROWS, ids, "y")


@pytest.mark.parametrize("ids", [[1, 2, np.nan, 4, 5, 6], np.array([1, 2, np.nan, 4, 5, 6])])
def test_what_names_no_feature_is_refused(ids: Any) -> None:
    with pytest.raises(InputError, match=r"^x_ids has nan for row 2, which names no feature; give a number or a"):
        CHECK(ROWS, ids, "x")
