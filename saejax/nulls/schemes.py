"""Who may be re-paired with whom: a permutation test is valid only for units that its hypothesis makes exchangeable.

The scheme is always said, never assumed. `uniform`: under the hypothesis that the pairing carries no geometric
information, every feature of y is as good a partner as any other, so all n! re-pairings are equally likely. That
holds for one-to-one pairings. Where a feature stands in several pairs its rows repeat, the pairs move together,
and shuffling them singly makes any clustering of the other side look like agreement: such pairings are refused.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.types import AnyArray

Ids = AnyArray | Sequence[Hashable]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A set of re-pairings that are equally likely when the pairing means nothing.

    Attributes:
        name: what it is called on the command line and in results.
        unit: the exchangeable unit.
        check: `(rows[n, d], ids or None, name of the side)`; raises `InputError` when the pairs of that side are
            not such units.
    """

    name: str
    unit: str
    check: Callable[[np.ndarray, Ids | None, str], None]


def find_scheme(name: str) -> Scheme:
    """Return a scheme by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in SCHEMES:
        raise InputError(f"scheme {name!r} is unknown; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def _as_keys(ids: Ids, side: str) -> list[Hashable]:
    """Return ids as plain values, whatever library they are of: scalars of some are told apart by where they lie."""
    values: Any = ids if isinstance(ids, Sequence) else np.asarray(ids)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise InputError(f"{side}_ids has shape {values.shape}; give one id per row")
    keys = [each.item() if hasattr(each, "item") else each for each in values]
    for row, key in enumerate(keys):
        if not isinstance(key, Hashable) or key != key:  # NaN is not itself
            raise InputError(f"{side}_ids has {key!r} for row {row}, which names no feature; give a number or a word")
    return keys


def _check_uniform(rows: np.ndarray, ids: Ids | None, side: str) -> None:
    keys = [row.tobytes() for row in rows + 0.0] if ids is None else _as_keys(ids, side)
    if len(keys) != len(rows):
        raise InputError(f"{side}_ids has {len(keys)} ids for {len(rows)} rows of {side}; give one id per row")
    first: dict[Hashable, int] = {}
    repeats = [(first[key], row) for row, key in enumerate(keys) if first.setdefault(key, row) != row]
    if not repeats:
        return
    earlier, later = repeats[0]
    what, remedy = f"{side}_ids names feature {keys[later]} for rows {earlier} and {later}", ""
    if ids is None:
        what = f"rows {earlier} and {later} of {side} are equal"
        remedy = f", or give {side}_ids if they are different features"
    raise InputError(
        f"{what} ({len(repeats)} repeats in all); scheme uniform re-pairs single features: keep one pair of each, as "
        f"pairing by mutual_best or one_to_one does{remedy}"
    )


UNIFORM = Scheme("uniform", "a pair of a one-to-one pairing; any feature of y may go with any of x", _check_uniform)
SCHEMES = {UNIFORM.name: UNIFORM}
