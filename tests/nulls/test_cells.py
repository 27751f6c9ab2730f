import dataclasses
from typing import Any

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.nulls import Cell, NullResult, Subspace, layer_cells

X = {3: np.arange(20.0).reshape(10, 2), 4: np.arange(24.0).reshape(12, 2)}
Y = {"b1": np.arange(27.0).reshape(9, 3)}
PAIRS = {(3, "b1"): ([9, 0, 4, 2], [8, 1, 0, 3]), (4, "b1"): (np.array([11, 5]), np.array([2, 7]))}


def test_a_grid_is_layers_by_layers_by_subspaces() -> None:
    months = Subspace(x={3: [4, 9, 5], 4: {5}})
    cells = list(layer_cells(X, Y, PAIRS, {"months": months}))
    assert [cell.name for cell in cells] == ["3-b1-all", "3-b1-months", "4-b1-all", "4-b1-months"]
    whole, part = cells[:2]
    assert whole.described() == {"cell": "3-b1-all", "x_layer": 3, "y_layer": "b1", "subspace": "all"}
    np.testing.assert_array_equal(whole.x, X[3][[9, 0, 4, 2]])
    np.testing.assert_array_equal(whole.y, Y["b1"][[8, 1, 0, 3]])
    assert np.asarray(whole.x_ids).tolist() == [9, 0, 4, 2]
    np.testing.assert_array_equal(part.x, X[3][[9, 4]])
    np.testing.assert_array_equal(part.y, Y["b1"][[8, 0]])
    assert np.asarray(cells[3].y_ids).tolist() == [7]


def test_a_subspace_of_both_sides_holds_pairs_with_both_features_in_it() -> None:
    either = {"x": Subspace(x={3: [9, 0], 4: []}), "y": Subspace(y={"b1": [1, 0]})}
    both = Subspace(x={3: [9, 0], 4: []}, y={"b1": [1, 0]})
    cells = {cell.name: cell for cell in layer_cells(X, Y, PAIRS, {**either, "both": both})}
    assert [np.asarray(cells[f"3-b1-{name}"].x_ids).tolist() for name in ("x", "y", "both")] == [[9, 0], [0, 4], [0]]
    assert len(cells["4-b1-both"].x) == 0


def test_without_subspaces_there_are_all_pairs() -> None:
    assert [cell.labels["subspace"] for cell in layer_cells(X, Y, PAIRS)] == ["all", "all"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {(5, "b1"): ([1], [1])}}, r"pairs name layer 5 of x, and x_rows has \[3, 4\]; add its matrix"),
        ({"pairs": {(3, "b2"): ([1], [1])}}, r"pairs name layer 'b2' of y, and y_rows has \['b1'\]; add its matrix"),
        ({"pairs": {(3, "b1"): ([1, 10], [1, 2])}}, "x id 10 is no row of layer 3, which has 10; rows are numbered"),
        ({"pairs": {(3, "b1"): ([1, 2], [1, -1])}}, "y id -1 is no row of layer 'b1', which has 9"),
        ({"pairs": {(3, "b1"): ([1, 2], [1])}}, r"pairs \(3, 'b1'\) have 2 x ids and 1 y ids; give as many of each"),
        ({"pairs": {(3, "b1"): ([0.5], [1])}}, r"pairs \(3, 'b1'\): x ids are not a list of whole numbers"),
        ({"subspaces": {"all": Subspace(x={3: [], 4: []})}}, "subspace 'all' is the name of all pairs"),
        ({"subspaces": {"none": Subspace()}}, "subspace 'none' names no features; give those of x, of y, or of both"),
        ({"subspaces": {"one": Subspace(x={3: [1]})}}, "subspace 'one' does not tell its features of layer 4 of x"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_cell(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x_rows": X, "y_rows": Y, "pairs": PAIRS, **change}
    with pytest.raises(InputError, match=message):
        layer_cells(**given)


def test_every_name_has_a_file_of_its_own() -> None:
    names = ["3-4-months", "a/b", "a_b", "../up", ".hidden", "-dash", "Zürich", "m" * 300, "m" * 301, "svcca:k=3 x"]
    files = [Cell(name, [], []).file_name for name in names]
    assert files[0] == "3-4-months"
    assert len(set(files)) == len(names)
    assert all(file.isascii() and "/" not in file and file[0] not in ".-" and len(file) < 130 for file in files)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("", {}, "cell '' has no name"),
        ("c", {"n": 3}, "cell 'c': label 'n' is a column of every result; name it otherwise"),
        ("c", {"layer": 0.5}, "cell 'c': label 'layer' is 0.5; give a word or a whole number"),
    ],
)
def test_what_cannot_stand_in_a_table_is_refused(name: str, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cell(name, [], [], labels)


def test_labels_are_plain_json_values() -> None:
    described = Cell("c", [], [], {"layer": np.int64(3)}).described()
    assert type(described["layer"]) is int
    columns = {field.name for field in dataclasses.fields(NullResult)}
    assert not columns & set(described)
