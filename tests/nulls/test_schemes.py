from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from saejax.errors import InputError
from saejax.nulls.arrangement import Arrangement, Told
from saejax.nulls.schemes import arrange, find_scheme
from saejax.similarity import Pair

RNG = np.random.default_rng(0)
ROWS, OTHERS = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
HUBS = np.array([0, 1, 2, 1, 1, 0])  # which feature each row is, where features repeat
REPEATED = ROWS[HUBS]


def arranged(scheme: str, x: np.ndarray = ROWS, y: np.ndarray = OTHERS, **told: Any) -> Arrangement:
    return arrange(Pair.of(x, y), scheme, Told(**told))


def refusal(scheme: str, x: np.ndarray = ROWS, y: np.ndarray = OTHERS, **told: Any) -> str:
    with pytest.raises(InputError) as error:
        arranged(scheme, x, y, **told)
    return str(error.value)


def assert_matrices(found: Arrangement, x: np.ndarray, y: np.ndarray) -> None:
    np.testing.assert_allclose(found.pair.x.values, x, rtol=1e-13)
    np.testing.assert_allclose(found.pair.y.values, y, rtol=1e-13)


def test_an_unknown_scheme_is_named_beside_those_that_exist() -> None:
    known = "uniform, collapse, blocks, representative, strata, stimulus, stimulus_blocks"
    with pytest.raises(InputError, match=rf"^scheme 'bootstrap' is unknown; choose one of {known}$"):
        find_scheme("bootstrap")


@pytest.mark.parametrize(("x", "told"), [(ROWS, {}), (ROWS, {"x_ids": np.arange(6)}), (REPEATED, {"x_ids": "abcdef"})])
def test_one_to_one_pairs_may_be_shuffled(x: np.ndarray, told: dict[str, Any]) -> None:
    for scheme, more in (("uniform", {}), ("strata", {"row_labels": [0, 0, 0, 1, 1, 1]})):
        found = arranged(scheme, x, OTHERS, **{side: list(ids) for side, ids in told.items()}, **more)
        assert_matrices(found, x, OTHERS)
        assert (found.rows, found.repeats, found.shuffle.n, found.shuffle.together) == (6, 0, 6, 1)
    assert arranged("uniform").shuffle.plain


def test_repeated_ids_are_refused() -> None:
    assert refusal("uniform", y_ids=np.array([4, 9, 7, 9, 9, 7])) == (
        "y_ids names feature 9 for rows 1 and 3 (3 repeats in all); scheme uniform re-pairs single features: keep one "
        "pair of each, as pairing by mutual_best or one_to_one does, or choose scheme collapse, which re-pairs each "
        "feature with all its partners"
    )


def test_equal_rows_without_ids_are_refused() -> None:
    assert refusal("strata", ROWS[[0, 1, 2, 1, 1, 5]], row_labels=[0, 0, 0, 1, 1, 1]) == (
        "rows 1 and 3 of x are equal (2 repeats in all); scheme strata re-pairs single features: keep one pair of "
        "each, as pairing by mutual_best or one_to_one does, or choose scheme collapse, which re-pairs each feature "
        "with all its partners, or give x_ids if they are different features"
    )


def test_zero_and_minus_zero_are_one_value() -> None:
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0], [4.0, 3.0]])
    assert "rows 0 and 1 of y are equal" in refusal("uniform", ROWS[:4], rows)


@pytest.mark.parametrize("scheme", ["uniform", "collapse"])
def test_every_row_needs_an_id(scheme: str) -> None:
    assert refusal(scheme, x_ids=np.arange(5)) == "x_ids has 5 ids for 6 rows of x; give one id per row"
    assert refusal(scheme, y_ids=np.arange(6)[:, None]) == "y_ids has shape (6, 1); give one per row"


def test_ids_may_be_layers_and_features() -> None:
    arranged("uniform", x_ids=[(layer, feature) for layer in (0, 1) for feature in (4, 9, 7)])
    assert refusal("uniform", y_ids=[(0, 4)] * 6).startswith(
        "y_ids names feature (0, 4) for rows 0 and 1 (5 repeats in all)"
    )


def test_scalars_of_any_library_name_features() -> None:
    """Those of torch in a list are told apart by where they lie in memory."""
    repeated = [3, 1, 4, 1, 5, 9]
    for ids in (list(np.array(repeated)), jnp.array(repeated), list(torch.tensor(repeated)), tuple(repeated)):
        assert refusal("uniform", y_ids=ids).startswith("y_ids names feature 1 for rows 1 and 3")


@pytest.mark.parametrize("ids", [[1, 2, np.nan, 4, 5, 6], np.array([1, 2, np.nan, 4, 5, 6])])
def test_what_names_no_feature_is_refused(ids: Any) -> None:
    assert refusal("uniform", x_ids=ids) == "x_ids has nan for row 2, which names no feature; give a number or a word"
    assert (
        refusal("strata", row_labels=ids)
        == "row_labels has nan for row 2, which names no group; give a number or a word"
    )


@pytest.mark.parametrize(("scheme", "more"), [("uniform", {}), ("strata", {"row_labels": [0, 0, 0, 1, 1, 1]})])
def test_accepted_repeats_are_shuffled_singly_and_counted(scheme: str, more: dict[str, Any]) -> None:
    found = arranged(scheme, REPEATED, OTHERS[[0, 1, 2, 3, 4, 4]], duplicates="accept", **more)
    assert_matrices(found, REPEATED, OTHERS[[0, 1, 2, 3, 4, 4]])
    assert (found.repeats, found.shuffle.n) == (3, 6)
    assert arranged("uniform", duplicates="accept").repeats == 0
    assert refusal("uniform", duplicates="allow") == "duplicates 'allow' must be one of refuse, accept"


def clusters_of(n: int, sizes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(n), sizes))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("hub_side", ["x", "y"])
def test_collapse_holds_each_feature_against_the_mean_of_its_partners(told: bool, hub_side: str) -> None:
    features = clusters_of(5, (1, 4, 2, 1, 3))
    hubs, partners = RNG.normal(size=(5, 3)), RNG.normal(size=(11, 4))
    rows = hubs[features]
    order = list(dict.fromkeys(features.tolist()))
    means = np.stack([partners[features == feature].mean(axis=0) for feature in order])
    ids = {f"{hub_side}_ids": [f"f{feature}" for feature in features]} if told else {}
    if hub_side == "x":
        assert_matrices(found := arranged("collapse", rows, partners, **ids), hubs[order], means)
    else:
        assert_matrices(found := arranged("collapse", partners, rows, **ids), means, hubs[order])
    assert (found.rows, found.shuffle.n, found.shuffle.plain, found.repeats) == (11, 5, True, 0)


def test_collapse_of_single_features_changes_nothing() -> None:
    assert_matrices(arranged("collapse"), ROWS, OTHERS)


@pytest.mark.parametrize("scheme", ["collapse", "blocks", "representative"])
def test_schemes_of_many_to_one_refuse_what_has_no_units(scheme: str) -> None:
    twice = np.array([0, 1, 2, 3, 4, 4])
    message = refusal(scheme, REPEATED, OTHERS[twice])
    assert message == (
        "rows 1 and 3 of x are equal, and rows 4 and 5 of y are equal: features repeat on both sides, so neither has "
        "units; pair many_to_one, one_to_one or mutual_best"
    )
    assert "or choose scheme collapse" not in refusal("uniform", REPEATED, OTHERS[twice])
    assert refusal(scheme, REPEATED) == "x and y have 3 features in 6 rows; give at least 4"
    assert refusal(scheme, x_ids=[0, 1, 2, 3, 4, 1]) == (
        "x_ids names feature 1 for rows 1 and 5, which differ; give every feature its own row wherever it stands"
    )
    assert refusal(scheme, duplicates="accept") == (
        f"duplicates 'accept' has no meaning under scheme {scheme}; leave it out"
    )


def test_strata_keep_pairs_among_those_of_their_label() -> None:
    found = arranged("strata", row_labels=["b", "a", "b", "c", "a", "b"])
    assert found.shuffle.strata is not None
    assert found.shuffle.strata.tolist() == [0, 1, 0, 2, 1, 0]
    assert (found.fixed, found.shuffle.count) == (1, 12)


def test_strata_without_choice_are_refused() -> None:
    assert refusal("strata", row_labels=range(6)) == (
        "row_labels are 6 different ones for 6 pairs, which leaves none to re-pair; widen the strata"
    )
    assert refusal("strata", row_labels=["all"] * 6) == (
        "row_labels are all 'all'; give at least two strata, or choose scheme uniform"
    )
    assert refusal("strata", row_labels=[0, 1]) == "row_labels has 2 labels for 6 rows; give one per row"
    assert refusal("strata") == (
        "scheme strata needs row_labels, one per row: a pair, whose features may go with those of pairs of its label"
    )
    assert refusal("uniform", row_labels=range(6)) == (
        "scheme uniform has no use for row_labels; leave them out, or choose one of strata, stimulus, stimulus_blocks"
    )


DOCUMENTS = np.array(["d", "a", "b", "a", "c", "b", "d", "d"])


def test_stimuli_are_pooled_by_document() -> None:
    x, y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    found = arranged("stimulus", x, y, row_labels=DOCUMENTS)
    assert_matrices(found, *(np.stack([m[DOCUMENTS == name].mean(axis=0) for name in "dabc"]) for m in (x, y)))
    assert (found.rows, found.shuffle.n, found.shuffle.plain) == (8, 4, True)


def test_blocks_of_stimuli_move_whole() -> None:
    x, y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    labels = np.array([7, 3, 3, 5, 5, 7, 1, 1])
    found = arranged("stimulus_blocks", x, y, row_labels=labels)
    order = [0, 5, 1, 2, 3, 4, 6, 7]
    assert_matrices(found, x[order], y[order])
    assert (found.rows, found.shuffle.n, found.shuffle.together, found.shuffle.count) == (8, 8, 2, 24)


def test_stimuli_that_are_no_units_are_refused() -> None:
    x, y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    assert refusal("stimulus_blocks", x, y, row_labels=DOCUMENTS) == (
        "document 'd' has 3 rows and 'a' has 2; blocks that are exchanged whole are equally long: cut them, or choose "
        "scheme stimulus, which takes their means"
    )
    for scheme, message in (
        ("stimulus", "row_labels name 2 documents; give at least 4"),
        ("stimulus_blocks", "row_labels name 2 documents; give at least 4"),
    ):
        assert refusal(scheme, x, y, row_labels=[0, 1] * 4) == message
        assert refusal(scheme, x, y, row_labels=DOCUMENTS, x_ids=range(8)) == (
            "x_ids name features, and rows are stimuli here; give row_labels alone"
        )


def test_what_identifies_an_arrangement_is_all_that_decides_its_null() -> None:
    x, y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
    found = [
        arranged("uniform", x, y), arranged("strata", x, y, row_labels=[0, 0, 0, 0, 1, 1, 1, 1]),
        arranged("strata", x, y, row_labels=[0, 0, 0, 1, 1, 1, 1, 1]),
        arranged("stimulus_blocks", x, y, row_labels=[0, 0, 1, 1, 2, 2, 3, 3]),
    ]  # fmt: skip
    assert set(found[0].digests()) == {"x", "y"}
    twice = RNG.normal(size=(5, 3))[[0, 1, 2, 3, 4, 4, 4, 0]]
    last = np.concatenate([y[:7], y[7:] + 1])
    for scheme in ("blocks", "representative"):
        found += [arranged(scheme, twice, each) for each in (y, last)]
        found.append(arranged(scheme, twice, y, x_ids=[0, 1, 2, 3, 4, 5, 4, 0]))
    assert len({str(each.digests()) for each in found}) == 4 + 6
