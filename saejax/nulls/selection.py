"""What is asked for: measures by name, and a pairing that they can score and the scheme can re-pair."""

from collections.abc import Sequence
from typing import Any

from saejax.errors import InputError
from saejax.nulls.arrangement import Arrangement, Told
from saejax.nulls.budget import Budget
from saejax.nulls.schemes import arrange
from saejax.similarity import MEASURES, Measure, Pair, find_measure


def find_measures(names: Sequence[str], rank_bits: int | None = None) -> list[Measure]:
    """Return measures by name.

    Args:
        names: keys of `saejax.similarity.MEASURES`, with options where they have such (`svcca:components=20`).
        rank_bits: bits of the ranks of Spearman measures.

    Raises:
        InputError: a name is unknown or repeated, or there is none.
    """
    if isinstance(names, str):
        raise InputError(f"measures {names!r} is one name; give a list, [{names!r}]")
    found = [find_measure(name, rank_bits=rank_bits) for name in names]
    if not found or len({measure.name for measure in found}) < len(found):
        raise InputError(f"measures {list(names)} must be distinct, and at least one of {', '.join(MEASURES)}")
    return found


def check_pairing(
    x: Any, y: Any, measures: Sequence[Measure], scheme: str, told: Told, budget: Budget | None = None
) -> Arrangement:
    """Read a pairing; refuse, within moments, one that the scheme cannot re-pair or the measures cannot score.

    Args:
        x: `[n, dx]`.
        y: `[n, dy]`.
        measures: the measures.
        scheme: name of the scheme.
        told: which feature each row is, and its label.
        budget: memory for a null of them; unlimited when None.

    Returns:
        What is compared and which re-pairings of it are equally likely.

    Raises:
        InputError: the offender, its value and the remedy.
    """
    found = arrange(Pair.of(x, y), scheme, told)
    if budget is not None:
        budget.require_room(found, measures)
    for measure in measures:
        measure.check(found.pair)
    return found
