"""p-values of many tests, corrected for their number.

Of N tests of true null hypotheses at level a, N a are expected to reject by chance. Two corrections, which need only
the p-values:

    holm                 p_(i) -> max over j <= i of (N - j + 1) p_(j), with p_(1) <= p_(2) <= ...: the chance of one or
                         more false rejections is at most a, however the tests depend on each other [1]
    benjamini_hochberg   p_(i) -> min over j >= i of N p_(j) / j: the expected share of false rejections among all is at
                         most a, for independent tests and those that depend positively [2]

A p from m draws is never below 1 / (m + 1), so after correction no test alone gets below N / (m + 1). With too few
draws no result could be significant; such a correction is refused, with the number of draws that it needs.

[1] Holm, "A simple sequentially rejective multiple test procedure", 1979.
[2] Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy.stats
from jaxtyping import Float

from saejax.errors import InputError

Correction = Literal["holm", "benjamini_hochberg"]
LEVEL = 0.05


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Return p-values that hold for all tests together: any of them below a rejects at family-wise level a."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.arange(len(p_values), 0, -1) * p_values[order])
    return np.minimum(corrected, 1)


def benjamini_hochberg(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Return p-values of which those below a are rejected at a false discovery rate of a."""
    return np.asarray(scipy.stats.false_discovery_control(p_values, method="bh"))


CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}


def smallest_p(record: dict[str, Any]) -> float:
    """Return the smallest p that a result could have had."""
    m = record["permutations"]
    return 1 / m if record["method"] == "enumerated" else 1 / (m + 1)


def corrected(records: Sequence[dict[str, Any]], correction: str, level: float = LEVEL) -> list[dict[str, Any]]:
    """Correct the p-values of all results of a grid together.

    Args:
        records: the results, from `NullResult.record`.
        correction: `holm` or `benjamini_hochberg`.
        level: what a corrected p is to be held against.

    Returns:
        The records with `p_corrected`, its floor `p_floor` for a test that rejects alone, and `correction`.

    Raises:
        InputError: the correction is unknown, the level none, there is only one result, or draws are so few that no
            corrected p can reach the level.
    """
    if correction not in get_args(Correction):
        raise InputError(f"correction {correction!r} is unknown; choose one of {', '.join(get_args(Correction))}")
    if not 0 < level < 1:
        raise InputError(f"level {level} must lie between 0 and 1")
    count = len(records)
    if count < 2:
        raise InputError(f"correction {correction} over {count} result(s) corrects nothing; read p_value as it is")
    floors = [count * smallest_p(record) for record in records]
    if min(floors) > level:
        needed = math.ceil(count / level) - 1
        raise InputError(
            f"permutations {max(record['permutations'] for record in records)} cannot reach level {level} over {count} "
            f"results: the smallest p after {correction} is {min(floors):.2g}; draw at least {needed}"
        )
    p_values = CORRECTIONS[correction](np.array([record["p_value"] for record in records]))
    return [
        {**record, "p_corrected": float(p), "p_floor": min(floor, 1.0), "correction": correction}
        for record, p, floor in zip(records, p_values, floors, strict=True)
    ]


def correction_line(records: Sequence[dict[str, Any]], correction: str) -> str:
    """Say what was corrected, and how small a corrected p could be."""
    floor = min(record["p_floor"] for record in records)
    return f"p corrected by {correction} over {len(records)} results; one alone could reach {floor:.2g}"
