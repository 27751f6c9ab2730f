"""What is measured: similarities of two bare matrices with paired rows, one file each."""

from saejax.similarity.measure import Measure
from saejax.similarity.pair import Pair
from saejax.similarity.rsa import RSA
from saejax.similarity.svcca import SVCCA

MEASURES: dict[str, Measure] = {measure.name: measure for measure in (SVCCA, RSA)}

__all__ = ["MEASURES", "Measure", "Pair"]
