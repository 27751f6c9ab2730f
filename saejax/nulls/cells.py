"""The cells of a grid: which pairs of which two matrices, for every pair of layers and every subspace.

A subspace, or category, is a set of features: of the first model, of the second, or of both. Its cell holds the pairs
whose features lie in it. So all cells of two layers are cut from one pairing; a pairing that was made within a
category, from its features alone, is a `Cell` of its own.
"""

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from saejax.errors import InputError
from saejax.nulls.identity import Ids
from saejax.nulls.results import NullResult

Label: TypeAlias = Any  # a word or a whole number; keys of a Mapping are invariant, so neither type would do
ALL = "all"
DIGESTS = {"x_sha256", "y_sha256", "shuffle_sha256", "names_sha256"}
CORRECTED = {"p_corrected", "p_floor", "correction"}
COLUMNS = {"cell", "error", "draws", *DIGESTS, *CORRECTED, *(field.name for field in dataclasses.fields(NullResult))}
LONGEST_FILE_NAME = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Two matrices with paired rows, one null test of a grid.

    Attributes:
        name: what it is called in results; its own within a grid.
        x: `[n, dx]`, whatever `permutation_test` reads.
        y: `[n, dy]`; row i is paired with row i of x.
        labels: what tells it from the others, kept with its results: layers, subspace.
        x_ids: which feature each row of x is; without ids, features are told apart by their rows.
        y_ids: the same for y.
        row_labels: one per row, where the scheme needs them.
        x_set: name of what the ids of x are of, a layer for instance: cells with the same set and id have the same
            feature, and draw alike where they are coupled by x.
        y_set: the same for y.
    """

    name: str
    x: Any = dataclasses.field(repr=False)
    y: Any = dataclasses.field(repr=False)
    labels: Mapping[str, Label] = dataclasses.field(default_factory=dict)
    x_ids: Ids | None = dataclasses.field(default=None, repr=False)
    y_ids: Ids | None = dataclasses.field(default=None, repr=False)
    row_labels: Ids | None = dataclasses.field(default=None, repr=False)
    x_set: Label | None = None
    y_set: Label | None = None

    def __post_init__(self) -> None:
        """Refuse what could not stand in a table of results."""
        if not self.name:
            raise InputError("cell '' has no name; give each cell of a grid its own")
        for label, value in self.labels.items():
            if label in COLUMNS:
                raise InputError(f"cell {self.name!r}: label {label!r} is a column of every result; name it otherwise")
            if not isinstance(value, str | int | np.integer):
                raise InputError(f"cell {self.name!r}: label {label!r} is {value!r}; give a word or a whole number")

    def described(self) -> dict[str, str | int]:
        """Return name and labels as plain JSON values."""
        plain = {label: value if isinstance(value, str) else int(value) for label, value in self.labels.items()}
        return {"cell": self.name, **plain}

    @property
    def file_name(self) -> str:
        """The name where it can name a file; else what can of it, and eight digits of its hash."""
        safe = re.sub(r"[^\w.,=+-]", "_", self.name, flags=re.ASCII)[:LONGEST_FILE_NAME]
        if safe == self.name and safe[0] not in ".-":
            return safe
        return f"cell_{safe}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Subspace:
    """A set of features, by layer.

    Attributes:
        x: feature ids of the first model, by its layer; None where the subspace says nothing about them.
        y: the same for the second model.
    """

    x: Mapping[Label, Collection[int]] | None = None
    y: Mapping[Label, Collection[int]] | None = None


def layer_cells(
    x_rows: Mapping[Label, Any],
    y_rows: Mapping[Label, Any],
    pairs: Mapping[tuple[Label, Label], tuple[Any, Any]],
    subspaces: Mapping[str, Subspace] | None = None,
) -> Iterator[Cell]:
    """Make the cells of (layers of x) x (layers of y) x (all pairs and every subspace), one at a time.

    Args:
        x_rows: by layer of the first model, a matrix with one row per feature, such as the decoder of its SAE.
        y_rows: the same for the second model.
        pairs: by layer of x and of y, which feature of x is paired with which of y: two equally long lists of ids.
            Every entry is a cell, and one more for each subspace.
        subspaces: by name, the features that belong to it.

    Returns:
        Cells named `X-Y-SUBSPACE` with the labels `x_layer`, `y_layer` and `subspace`; `all` is the subspace of all
        pairs. One that holds too few pairs to be scored is made all the same, and reported when it fails.

    Raises:
        InputError: a layer has no matrix, an id no row, ids are not paired, or a subspace does not tell its features
            of a layer. Before the first cell is made.
    """
    sides = {"x": x_rows, "y": y_rows}
    subspaces = subspaces or {}
    if ALL in subspaces:
        raise InputError(f"subspace {ALL!r} is the name of all pairs; name it otherwise")
    for layers, ids in pairs.items():
        _check_ids(layers, ids, sides)
        for name, subspace in subspaces.items():
            _check_subspace(name, subspace, layers)
    return _cells(sides, pairs, subspaces)


def _cells(
    sides: Mapping[str, Mapping[Label, Any]],
    pairs: Mapping[tuple[Label, Label], tuple[Any, Any]],
    subspaces: Mapping[str, Subspace],
) -> Iterator[Cell]:
    for layers, ids in pairs.items():
        x_ids, y_ids = (np.asarray(each, np.int64) for each in ids)
        for name in (ALL, *subspaces):
            kept = np.ones(len(x_ids), bool) if name == ALL else _members(subspaces[name], layers, (x_ids, y_ids))
            yield Cell(
                name=f"{layers[0]}-{layers[1]}-{name}",
                x=np.asarray(sides["x"][layers[0]])[x_ids[kept]],
                y=np.asarray(sides["y"][layers[1]])[y_ids[kept]],
                labels={"x_layer": layers[0], "y_layer": layers[1], "subspace": name},
                x_ids=x_ids[kept],
                y_ids=y_ids[kept],
                x_set=layers[0],
                y_set=layers[1],
            )


def _members(subspace: Subspace, layers: tuple[Label, Label], ids: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Say which pairs have both features in a subspace."""
    kept = np.ones(len(ids[0]), bool)
    for features, layer, each in zip((subspace.x, subspace.y), layers, ids, strict=True):
        if features is not None:
            kept &= np.isin(each, np.fromiter(features[layer], np.int64))
    return kept


def _check_ids(layers: tuple[Label, Label], ids: tuple[Any, Any], sides: Mapping[str, Mapping[Label, Any]]) -> None:
    for (side, rows), layer, each in zip(sides.items(), layers, ids, strict=True):
        if layer not in rows:
            raise InputError(f"pairs name layer {layer!r} of {side}, and {side}_rows has {list(rows)}; add its matrix")
        numbers = np.asarray(each)
        if numbers.ndim != 1 or not (np.issubdtype(numbers.dtype, np.integer) or not numbers.size):
            raise InputError(f"pairs {layers}: {side} ids are not a list of whole numbers; give one id per pair")
        outside = numbers[(numbers < 0) | (numbers >= len(rows[layer]))]
        if len(outside):
            raise InputError(
                f"pairs {layers}: {side} id {outside[0]} is no row of layer {layer!r}, which has {len(rows[layer])}; "
                "rows are numbered from 0"
            )
    if len(ids[0]) != len(ids[1]):
        raise InputError(f"pairs {layers} have {len(ids[0])} x ids and {len(ids[1])} y ids; give as many of each")


def _check_subspace(name: str, subspace: Subspace, layers: tuple[Label, Label]) -> None:
    if subspace.x is None and subspace.y is None:
        raise InputError(f"subspace {name!r} names no features; give those of x, of y, or of both")
    for side, features, layer in zip("xy", (subspace.x, subspace.y), layers, strict=True):
        if features is not None and layer not in features:
            raise InputError(
                f"subspace {name!r} does not tell its features of layer {layer!r} of {side}; give an empty list if "
                "it has none there"
            )
