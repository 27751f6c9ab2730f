from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int16, Shaped

from saejax.similarity.padding import lengths, named_axes, padded
from saejax.types import AnyArray


class Factors(NamedTuple):
    """Arrays of every kind that states hold."""

    a: Float[AnyArray, "n kx"]
    b: Int16[np.ndarray, "n n"]
    weights: Shaped[AnyArray, "kx"]
    scale: Float[AnyArray, ""]


STATE = Factors(np.ones((3, 2)), np.ones((3, 3), np.int16), np.ones(4, np.float32), np.asarray(2.5))


def test_axes_are_read_from_annotations() -> None:
    assert named_axes(Factors) == {"a": ("n", "kx"), "b": ("n", "n"), "weights": ("kx",), "scale": ()}
    assert lengths([STATE, STATE._replace(a=np.ones((5, 1)))]) == {"n": 5, "kx": 4}


def test_zeros_are_appended_along_named_axes() -> None:
    wider = padded(STATE, {"n": 5, "kx": 4, "ky": 9})
    assert [array.shape for array in wider] == [(5, 4), (5, 5), (4,), ()]
    assert [array.dtype for array in wider] == [array.dtype for array in STATE]
    np.testing.assert_array_equal(wider.a[:3, :2], STATE.a)
    assert (wider.a.sum(), wider.b.sum(), wider.scale) == (6, 9, 2.5)


def test_longer_and_unnamed_axes_stay_as_they_are() -> None:
    assert padded(STATE, {"n": 2}).b is STATE.b
