"""Refuses numbers that leave no null, before any work."""

import math
import operator
from typing import Any, get_args

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.budget import Impl


def whole(name: str, number: Any) -> int:
    """Return a whole number of Python, of whatever library it came.

    Args:
        name: what errors call it.
        number: the number.

    Raises:
        InputError: it is not whole.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise InputError(f"{name} {number!r} must be a whole number") from None


def check_numbers(permutations: int, first: int, batch: int | None, memory_gib: float, impl: str | None) -> None:
    """Refuse numbers that leave no null, and implementations that do not exist.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    if permutations < 1:
        raise InputError(f"permutations {permutations} must be at least 1")
    if first < 0 or first + permutations > drawing.MOST_PERMUTATIONS:
        raise InputError(f"permutations {first} to {first + permutations} must lie between 0 and 2^32")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    if not 0 < memory_gib < math.inf:
        raise InputError(f"memory_gib {memory_gib} must be above 0")
    if impl not in (None, *get_args(Impl)):
        raise InputError(f"impl {impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")


def check_stop(stop_after: int | None, permutations: int) -> None:
    """Refuse a sequential test that would stop at once, or never.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    if stop_after is not None and not 2 <= stop_after <= permutations:
        raise InputError(f"stop_after {stop_after} must be at least 2 and at most permutations, {permutations}")
