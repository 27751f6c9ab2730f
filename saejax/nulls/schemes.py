"""Who may be re-paired with whom: a permutation test is valid only for units that its hypothesis makes exchangeable.

The scheme is always said, never assumed. It arranges a pairing: which two matrices are compared, and which re-pairings
of their rows are equally likely if the pairing means nothing.

uniform          One-to-one pairings. Every feature of y is as good a partner as any other: all n! re-pairings.
collapse         Many-to-one. Each feature of the side that repeats, once, against the mean of its partners: again a
                 plain permutation problem, of as many units as there are features, so all that holds for uniform
                 holds.
blocks           The same question of the rows as they stand, repeats and all: the rows of the side that repeats are
                 dealt to its clusters anew, each row to a whole cluster. Clusters differ in size, so a draw changes
                 which rows there are; each is scored from nothing, and no exact moments are known.
representative   The same question of one-to-one picks: each feature with one of its partners, drawn at random, 20
                 times (representative:picks=50 for another number). The statistic is the mean score over picks, whose
                 spread is reported.
strata           One-to-one, and features go with features of their own label: a bin of frequency, a category, a class
                 of tokens or positions. What the labels explain is then no evidence.
stimulus         Rows are stimuli, not features: the classical test. Rows of one document are replaced by their mean,
                 and documents are exchanged.
stimulus_blocks  The same without means: the rows of a document move as a block, in their order. All documents have
                 equally many.

Where a feature stands in several pairs its rows repeat, the pairs move together, and shuffling them singly makes any
clustering of the other side look like agreement. So uniform and strata refuse repeats. They can be told to accept
them, which reproduces published numbers and no valid test.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, UInt32

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls.arrangement import Arrangement, Told
from saejax.nulls.identity import Features, plain_values
from saejax.nulls.permutations import as_indices, on_host
from saejax.nulls.shuffles import Shuffle
from saejax.similarity import Pair
from saejax.similarity.pair import FEWEST_PAIRS
from saejax.types import Permutation

PICKS = 20  # of scheme representative


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A set of re-pairings that are equally likely when the pairing means nothing.

    Attributes:
        name: what it is called on the command line and in results.
        unit: the exchangeable unit.
        arrange: `(pair, told) -> Arrangement`; raises `InputError` when the pairs are not such units.
        needs_labels: whether `row_labels` say what the units are; else there must be none.
        single_features: whether rows are features that move one by one; repeats of such can be accepted.
        named_units: whether units are features, which can draw by what they are.
    """

    name: str
    unit: str
    arrange: Callable[[Pair, Told], Arrangement]
    needs_labels: bool = False
    single_features: bool = False
    named_units: bool = False


def find_scheme(name: str) -> Scheme:
    """Return a scheme by name.

    Args:
        name: a key of `SCHEMES`, or `representative:picks=N`.

    Raises:
        InputError: there is none of that name.
    """
    bare, _, option = name.partition(":")
    if bare not in SCHEMES:
        raise InputError(f"scheme {name!r} is unknown; choose one of {', '.join(SCHEMES)}")
    if not option:
        return SCHEMES[bare]
    given, _, count = option.partition("=")
    if (bare, given) != ("representative", "picks") or not count.isdecimal() or int(count) < 2:
        raise InputError(f"scheme {name!r} is unknown; the one with an option is representative:picks=N, N above 1")
    return _representative_scheme(int(count))


def arrange(pair: Pair, scheme: str, told: Told) -> Arrangement:
    """Say what is compared, and which re-pairings of it are equally likely.

    Args:
        pair: the matrices as they are paired.
        scheme: name of the scheme.
        told: which feature each row is, and its label.

    Raises:
        InputError: the pairs are not exchangeable as the scheme says, labels are missing or have no meaning in it.
    """
    found = find_scheme(scheme)
    if found.needs_labels and told.row_labels is None:
        raise InputError(f"scheme {scheme} needs row_labels, one per row: {found.unit}")
    if not found.needs_labels and told.row_labels is not None:
        which = ", ".join(each.name for each in SCHEMES.values() if each.needs_labels)
        raise InputError(f"scheme {scheme} has no use for row_labels; leave them out, or choose one of {which}")
    if told.duplicates == "accept" and not found.single_features:
        raise InputError(f"duplicates 'accept' has no meaning under scheme {scheme}; leave it out")
    if told.coupled is not None and not found.named_units:
        which = ", ".join(each.name for each in SCHEMES.values() if each.named_units)
        raise InputError(f"couple {told.coupled[0]!r} has no meaning under scheme {scheme}; choose one of {which}")
    return found.arrange(pair, told)


def _uniform(pair: Pair, told: Told) -> Arrangement:
    repeats = _repeats(pair, told, "uniform")
    pair, shuffle = _coupled(pair, Shuffle(pair.n), told)
    return Arrangement(pair, shuffle, pair.n, repeats)


def _strata(pair: Pair, told: Told) -> Arrangement:
    repeats = _repeats(pair, told, "strata")
    strata, labels = _labels(pair, told)
    sizes = np.bincount(strata)
    if np.all(sizes == 1):
        raise InputError(
            f"row_labels are {pair.n} different ones for {pair.n} pairs, which leaves none to re-pair; widen the strata"
        )
    if len(labels) == 1:
        raise InputError(f"row_labels are all {labels[0]!r}; give at least two strata, or choose scheme uniform")
    pair, shuffle = _coupled(pair, Shuffle(pair.n, strata.astype(np.int32)), told)
    return Arrangement(pair, shuffle, pair.n, repeats, int(np.sum(sizes == 1)))


def _collapse(pair: Pair, told: Told) -> Arrangement:
    side, features = _repeating(pair, told)
    rows, partners = _by_side(pair, side)
    shuffle = _shuffle_of(features, pair.n)
    collapsed = Pair.of(*_in_order(side, features.rows_of(rows), _means(partners, features.of_row)))
    if told.coupled is not None:
        asked, of = told.coupled
        if features.repeats and asked != side:
            raise InputError(
                f"couple {asked!r}: scheme collapse exchanges features of {side}, each with the mean of its partners "
                f"in {asked}; couple {side!r}"
            )
        named = _features(pair, told)["xy".index(asked)]
        collapsed, shuffle = _drawing_by_name(collapsed, shuffle, named, of)
    return Arrangement(collapsed, shuffle, pair.n)


def _blocks(pair: Pair, told: Told) -> Arrangement:
    side, features = _repeating(pair, told)
    rows, partners = _by_side(pair, side)
    singles = features.rows_of(rows)

    def pairing(perm: Permutation) -> Pair:
        # A re-pairing moves what belongs to y: its single rows to other clusters of x, or its clusters to other rows.
        dealt = np.asarray(perm) if side == "y" else np.argsort(np.asarray(perm))
        return Pair.of(*_in_order(side, singles[dealt[features.of_row]], partners))

    beside = (artifacts.array_sha256(features.of_row),)
    return Arrangement(pair, _shuffle_of(features, pair.n), pair.n, beside=beside, pairing=pairing)


def _representative(picks: int, pair: Pair, told: Told) -> Arrangement:
    side, features = _repeating(pair, told)
    rows, partners = _by_side(pair, side)
    singles = features.rows_of(rows)

    def picked(order: Integer[np.ndarray, "rows"]) -> Pair:
        first = np.unique(features.of_row[order], return_index=True)[1]
        return Pair.of(*_in_order(side, singles, partners[order[first]]))

    def pick(key: UInt32[np.ndarray, "2"]) -> Iterator[Pair]:
        # Another stream than that of the re-pairings, which count up from 0 under this key.
        return map(picked, on_host(~key, as_indices(0, picks), pair.n))

    shuffle = _shuffle_of(features, pair.n)
    beside = tuple(artifacts.array_sha256(each) for each in (features.of_row, rows, partners))
    return Arrangement(picked(np.arange(pair.n)), shuffle, pair.n, beside=beside, picks=picks, pick=pick)


def _repeating(pair: Pair, told: Told) -> tuple[str, Features]:
    """Return which side has features in several pairs, x if neither has, and its features.

    Raises:
        InputError: both sides have such.
    """
    x, y = _features(pair, told)
    if x.repeats and y.repeats:
        raise InputError(
            f"{x.first_repeat()}, and {y.first_repeat()}: features repeat on both sides, so neither has units; pair "
            "many_to_one, one_to_one or mutual_best"
        )
    return ("y", y) if y.repeats else ("x", x)


def _by_side(pair: Pair, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a side, and those of the other."""
    return _in_order(side, pair.x.values, pair.y.values)


def _in_order(side: str, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y, if the first is of that side; or the other way round."""
    return (one, other) if side == "x" else (other, one)


def _shuffle_of(features: Features, rows: int) -> Shuffle:
    """Return the shuffle of all features.

    Raises:
        InputError: there are too few.
    """
    count = len(features.names)
    if count < FEWEST_PAIRS:
        raise InputError(f"x and y have {count} features in {rows} rows; give at least {FEWEST_PAIRS}")
    return Shuffle(count)


def _stimulus(pair: Pair, told: Told) -> Arrangement:
    documents, labels = _documents(pair, told)
    pooled = Pair.of(*(_means(side.values, documents) for _, side in pair.sides))
    return Arrangement(pooled, Shuffle(len(labels)), pair.n)


def _stimulus_blocks(pair: Pair, told: Told) -> Arrangement:
    documents, labels = _documents(pair, told)
    sizes = np.bincount(documents)
    unlike = np.flatnonzero(sizes != sizes[0])
    if len(unlike):
        raise InputError(
            f"document {labels[0]!r} has {sizes[0]} rows and {labels[unlike[0]]!r} has {sizes[unlike[0]]}; blocks that "
            "are exchanged whole are equally long: cut them, or choose scheme stimulus, which takes their means"
        )
    order = np.argsort(documents, kind="stable")
    blocks = Pair.of(*(side.values[order] for _, side in pair.sides))
    return Arrangement(blocks, Shuffle(pair.n, together=int(sizes[0])), pair.n)


def _documents(pair: Pair, told: Told) -> tuple[Int[np.ndarray, "n"], tuple[Hashable, ...]]:
    """Return the document of each row; rows are stimuli, so nothing may be said of features."""
    for side, ids in (("x", told.x_ids), ("y", told.y_ids)):
        if ids is not None:
            raise InputError(f"{side}_ids name features, and rows are stimuli here; give row_labels alone")
    documents, labels = _labels(pair, told)
    if len(labels) < FEWEST_PAIRS:
        raise InputError(f"row_labels name {len(labels)} documents; give at least {FEWEST_PAIRS}")
    return documents, labels


def _labels(pair: Pair, told: Told) -> tuple[Int[np.ndarray, "n"], tuple[Hashable, ...]]:
    """Return the number of each row's label, in the order in which they come, and the labels."""
    keys = plain_values(told.row_labels, "row_labels", "group")
    if len(keys) != pair.n:
        raise InputError(f"row_labels has {len(keys)} labels for {pair.n} rows; give one per row")
    places: dict[Any, int] = {}
    return np.array([places.setdefault(key, len(places)) for key in keys]), tuple(places)


def _coupled(pair: Pair, shuffle: Shuffle, told: Told) -> tuple[Pair, Shuffle]:
    """Sort pairs by the names of their features on one side, and let those draw; nothing where that is not asked for.

    Raises:
        InputError: that side has no ids, or a feature stands in several pairs.
    """
    if told.coupled is None:
        return pair, shuffle
    side, of = told.coupled
    features = _features(pair, told)["xy".index(side)]
    if features.repeats:
        raise InputError(f"couple {side!r}: {features.first_repeat()}; coupled cells have each feature once")
    return _drawing_by_name(pair, shuffle, features, of)


def _drawing_by_name(pair: Pair, shuffle: Shuffle, features: Features, of: Hashable) -> tuple[Pair, Shuffle]:
    """Sort pairs by the names of their features, which are in the same order, and let those draw.

    Raises:
        InputError: features have no names.
    """
    if not features.told:
        side = features.side
        raise InputError(f"couple {side!r} needs {side}_ids: features that several cells share are told by them")
    names = features.words(of)
    order = np.lexsort(names.T[::-1])
    strata = None if shuffle.strata is None else shuffle.strata[order]
    sorted_pair = Pair.of(*(each.values[order] for _, each in pair.sides))
    return sorted_pair, dataclasses.replace(shuffle, strata=strata, names=names[order])


def _features(pair: Pair, told: Told) -> tuple[Features, Features]:
    ids = (told.x_ids, told.y_ids)
    x, y = (Features.of(side.values, each, name) for (name, side), each in zip(pair.sides, ids, strict=True))
    return x, y


def _repeats(pair: Pair, told: Told, scheme: str) -> int:
    """Return how many pairs repeat a feature, where that is accepted.

    Raises:
        InputError: one does, and it is not accepted.
    """
    sides = _features(pair, told)
    if told.duplicates == "accept":
        return int(np.sum(sides[0].later | sides[1].later))
    for side in sides:
        if side.repeats:
            both = all(each.repeats for each in sides)
            remedy = "" if both else ", or choose scheme collapse, which re-pairs each feature with all its partners"
            ids = "" if side.told else f", or give {side.side}_ids if they are different features"
            raise InputError(
                f"{side.first_repeat()} ({side.repeats} repeats in all); scheme {scheme} re-pairs single features: "
                f"keep one pair of each, as pairing by mutual_best or one_to_one does{remedy}{ids}"
            )
    return 0


def _means(rows: Float[np.ndarray, "n d"], unit: Int[np.ndarray, "n"]) -> Float[np.ndarray, "units d"]:
    """Return the mean of the rows of every unit, all of which have some."""
    order = np.argsort(unit, kind="stable")
    sizes = np.bincount(unit)
    return np.add.reduceat(rows[order], np.cumsum(sizes) - sizes, axis=0) / sizes[:, None]


UNIFORM = Scheme(
    "uniform",
    "a pair of a one-to-one pairing; any feature of y may go with any of x",
    _uniform,
    single_features=True,
    named_units=True,
)
COLLAPSE = Scheme(
    "collapse", "a feature of the side that repeats, with the mean of all its partners", _collapse, named_units=True
)
STRATA = Scheme(
    "strata",
    "a pair, whose features may go with those of pairs of its label",
    _strata,
    True,
    single_features=True,
    named_units=True,
)
STIMULUS = Scheme("stimulus", "a document, each side's rows of which are replaced by their mean", _stimulus, True)
STIMULUS_BLOCKS = Scheme("stimulus_blocks", "a document, the rows of which move in their order", _stimulus_blocks, True)
BLOCKS = Scheme("blocks", "a row of the side that repeats, dealt to a whole cluster of partners", _blocks)


def _representative_scheme(picks: int, name: str | None = None) -> Scheme:
    unit = "a feature of the side that repeats, with one of its partners in each random pick"
    return Scheme(name or f"representative:picks={picks}", unit, functools.partial(_representative, picks))


REPRESENTATIVE = _representative_scheme(PICKS, "representative")
SCHEMES = {
    scheme.name: scheme for scheme in (UNIFORM, COLLAPSE, BLOCKS, REPRESENTATIVE, STRATA, STIMULUS, STIMULUS_BLOCKS)
}
