"""How much more one arm of a comparison matches than the other: at one number of pairs, with two intervals.

Over features: would other features of their kind say the same? (`saejax.nulls.compare_arms`.) Over texts: would pairs
found on other documents? For that documents are drawn with replacement, as many as there are and the same for all
sides; their features are paired anew, and the arms compared again. The standard deviation of the difference over such
draws is its standard error over documents, and 1.96 of those to either side the interval. It holds the part of chance
that the cut of the larger arm to the smaller one's size has, so it is rather too wide.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.features.resampled import drawn_documents
from saejax.features.sources import CodeSource
from saejax.nulls import Arm as Pairs
from saejax.nulls import ArmDifferences, compare_arms
from saejax.nulls.results import aligned
from saejax.nulls.subsampling import NORMAL
from saejax.progress import progress
from saejax.rng import named_seed
from saejax.universality.arms import Arm, paired_arm
from saejax.universality.config import CompareConfig

PERMUTATIONS = 100  # that find the null mean of a subset, where it has no closed form
SUBSETS = 10  # of each arm, by which it is compared on documents drawn anew


def arm_differences(
    arms: Sequence[Arm], sources: Mapping[str, tuple[CodeSource, CodeSource]], config: CompareConfig
) -> list[dict[str, Any]]:
    """Compare two arms by calibrated scores, at the number of pairs of the smaller.

    Args:
        arms: both arms, paired.
        sources: both sides of each, by the arm's name.
        config: measures, numbers of replicates and the seed.

    Returns:
        One record per measure of `config.difference`: the fields of `ArmDifference`, and `document_replicates`,
        `document_se`, `document_low` and `document_high`, None where documents were not drawn anew.

    Raises:
        InputError: the arms cannot be compared by a measure, on these or on other documents.
    """
    if not config.difference:
        return []
    found = _compared(arms, config, config.replicates)
    drawn = np.array(_over_documents(sources, config)).reshape(-1, len(found))
    records = []
    for place, result in enumerate(found):
        se = float(drawn[:, place].std(ddof=1)) if len(drawn) else None
        low, high = (None if se is None else result.difference + side * NORMAL * se for side in (-1, 1))
        about = {"document_replicates": len(drawn), "document_se": se, "document_low": low, "document_high": high}
        records.append({**found.records()[place], **about})
    return records


def difference_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of differences; none where there are none."""
    if not records:
        return []
    names = (records[0]["first"], records[0]["second"])
    head = ("difference at one n", "n", *names, "difference", "95 % over features", "95 % over documents")
    return aligned([head, *map(_cells, records)])


def _compared(arms: Sequence[Arm], config: CompareConfig, replicates: int, name: str = "") -> ArmDifferences:
    first, second = (
        Pairs(arm.name, arm.x_rows, arm.y_rows, arm.pairing.x_ids.tolist(), arm.pairing.y_ids.tolist()) for arm in arms
    )
    return compare_arms(
        first, second, measures=config.difference, permutations=PERMUTATIONS, replicates=replicates,
        scheme="uniform" if all(arm.scheme == "uniform" for arm in arms) else "collapse",
        seed=named_seed(config.seed, f"universality.difference{name}"), memory_gib=config.memory_gib,
    )  # fmt: skip


def _over_documents(sources: Mapping[str, tuple[CodeSource, CodeSource]], config: CompareConfig) -> list[list[float]]:
    """Return the differences by measure, on documents drawn anew each time."""
    found = []
    with progress("documents drawn anew", total=config.document_replicates) as advance:
        for replicate in range(config.document_replicates):
            name = f".documents.{replicate}"
            times = drawn_documents(next(iter(sources.values()))[0], named_seed(config.seed, f"universality{name}"))
            arms = [paired_arm(each, x, y, config, times) for each, (x, y) in sources.items()]
            found.append([result.difference for result in _compared(arms, config, SUBSETS, name)])
            advance()
    return found


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    scores = (f"{record[key]:.4f}" for key in ("first_score", "second_score", "difference"))
    return (record["measure"], str(record["n"]), *scores, _interval(record, ""), _interval(record, "document_"))


def _interval(record: dict[str, Any], over: str) -> str:
    low, high = record[f"{over}low"], record[f"{over}high"]
    return "" if low is None else f"{low:.4f} to {high:.4f}"
