"""Zeros appended to states, so that pairs of matrices of different sizes share compiled programs.

A state names its axes in its annotations (`Float[AnyArray, "n kx"]`), one name standing for one length, and zeros at
the end of any axis change no core: see `saejax.similarity.measure`. So what can be padded, and along what, is read
from the type.
"""

import functools
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped


def lengths(states: Iterable[Any]) -> dict[str, int]:
    """Return the length of every named axis in some states, the largest where arrays differ."""
    longest: dict[str, int] = {}
    for state in states:
        for field, axes in named_axes(type(state)).items():
            for axis, length in zip(axes, getattr(state, field).shape, strict=True):
                longest[axis] = max(longest.get(axis, 0), length)
    return longest


def with_zeros(array: Shaped[np.ndarray, "*shape"], *wanted: int) -> Shaped[np.ndarray, "*wanted"]:
    """Append zeros to an array; `np.pad` takes most of the time in which a small state is prepared.

    Args:
        array: the array.
        wanted: length of each axis, not below what it has.
    """
    whole = np.zeros(wanted, array.dtype)
    whole[tuple(map(slice, array.shape))] = array
    return whole


def padded(state: Any, wanted: Mapping[str, int]) -> Any:
    """Append zeros to the arrays of a state.

    Args:
        state: a NamedTuple of numpy arrays, own part of a measure or state of a statistic.
        wanted: length by name of an axis; axes that are not named here, or are longer, stay as they are.

    Returns:
        A state of the same type.
    """
    arrays = {}
    for field, axes in named_axes(type(state)).items():
        array = getattr(state, field)
        shape = tuple(max(wanted.get(axis, 0), length) for axis, length in zip(axes, array.shape, strict=True))
        arrays[field] = array if shape == array.shape else with_zeros(array, *shape)
    return type(state)(**arrays)


@functools.cache
def named_axes(state_type: type) -> dict[str, tuple[str, ...]]:
    """Return the names of the axes of every array of a state, by field."""
    hints = typing.get_type_hints(state_type, include_extras=True)
    return {field: _axes(annotation) for field, annotation in hints.items()}


def _axes(annotation: Any) -> tuple[str, ...]:
    """Return the axes of one annotation; of `AnyArray`, which is a union of two array types with the same axes."""
    return tuple((typing.get_args(annotation) or (annotation,))[0].dim_str.split())
