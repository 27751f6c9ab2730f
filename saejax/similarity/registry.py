"""Measures by name: what may be asked for, with which options, and what cannot be held against re-pairings at all."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from saejax.errors import InputError
from saejax.similarity.aligned_cosine import ALIGNED_COSINE
from saejax.similarity.cca_mean_squared import CCA_MEAN_SQUARED
from saejax.similarity.cka import CKA
from saejax.similarity.cka_debiased import CKA_DEBIASED
from saejax.similarity.correlation_match import HARD_CORRELATION_MATCH, SOFT_CORRELATION_MATCH
from saejax.similarity.distance_correlation import DISTANCE_CORRELATION
from saejax.similarity.eigenspace_overlap import EIGENSPACE_OVERLAP
from saejax.similarity.gulp import GULP
from saejax.similarity.knn_jaccard import KNN_JACCARD, knn_jaccard
from saejax.similarity.linear_regression import LINEAR_REGRESSION
from saejax.similarity.measure import Measure
from saejax.similarity.procrustes import ANGULAR_PROCRUSTES, PROCRUSTES, PROCRUSTES_SIZE_AND_SHAPE
from saejax.similarity.pwcca import PWCCA
from saejax.similarity.rank_similarity import RANK_SIMILARITY, rank_similarity
from saejax.similarity.rsa import RSA, RSA_COSINE, RSA_EUCLIDEAN, rsa
from saejax.similarity.rsa_pearson import RSA_PEARSON
from saejax.similarity.second_order_cosine import SECOND_ORDER_COSINE, second_order_cosine
from saejax.similarity.svcca import SVCCA, svcca

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        SVCCA,
        PWCCA,
        CCA_MEAN_SQUARED,
        CKA,
        CKA_DEBIASED,
        RSA,
        RSA_COSINE,
        RSA_EUCLIDEAN,
        RSA_PEARSON,
        PROCRUSTES,
        PROCRUSTES_SIZE_AND_SHAPE,
        ANGULAR_PROCRUSTES,
        ALIGNED_COSINE,
        LINEAR_REGRESSION,
        DISTANCE_CORRELATION,
        EIGENSPACE_OVERLAP,
        GULP,
        KNN_JACCARD,
        RANK_SIMILARITY,
        SECOND_ORDER_COSINE,
        SOFT_CORRELATION_MATCH,
        HARD_CORRELATION_MATCH,
    )
}

WITH_OPTIONS: dict[str, Callable[..., Measure]] = {
    "svcca": svcca,
    "rsa": rsa,
    "rsa_cosine": functools.partial(rsa, inner="cosine"),
    "rsa_euclidean": functools.partial(rsa, inner="euclidean"),
    "knn_jaccard": knn_jaccard,
    "rank_similarity": rank_similarity,
    "second_order_cosine": second_order_cosine,
}

NOT_IN_NAMES = ("inner", "rank_bits")
"""Options that are arguments alone: two measures that differ in them have one name."""

WITHOUT_A_NULL = ("uniformity", "magnitude", "concentricity", "imd")
"""Measures of the literature that describe each set of rows on its own and compare the two numbers."""


def find_measure(name: str, **options: Any) -> Measure:
    """Return a measure by name.

    Args:
        name: a key of `MEASURES`, or one with options, such as `svcca:components=20` or `knn_jaccard:k=5`.
        options: more options, which the measure takes where it has them.

    Raises:
        InputError: the measure is unknown, has no such option, or no re-pairing changes it.
    """
    bare, _, given = name.partition(":")
    if bare.lower() in WITHOUT_A_NULL:
        raise InputError(
            f"measure {bare!r} describes the rows of each side on their own, so no re-pairing changes it and it has no "
            f"permutation null; choose among {', '.join(MEASURES)}"
        )
    if bare not in MEASURES:
        raise InputError(f"measure {bare!r} is unknown; choose among {', '.join(MEASURES)}")
    make = WITH_OPTIONS.get(bare)
    known = {} if make is None else inspect.signature(make).parameters
    named = {option: known[option] for option in known if option not in NOT_IN_NAMES}
    wanted = dict(_option(name, part, named) for part in given.split(",")) if given else {}
    wanted |= {option: value for option, value in options.items() if option in known and value is not None}
    return make(**wanted) if make is not None and wanted else MEASURES[bare]


def _option(name: str, part: str, known: Any) -> tuple[str, Any]:
    option, _, value = part.partition("=")
    if option not in known or not value:
        offered = ", ".join(known) or "none"
        raise InputError(f"measure {name!r} has no option {part!r}; its options are {offered}, given as option=value")
    if "int" not in str(known[option].annotation):
        return option, value
    try:
        return option, int(value)
    except ValueError:
        raise InputError(f"measure {name!r}: {option} {value!r} must be a whole number") from None
