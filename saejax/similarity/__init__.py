"""What is measured: similarities of two bare matrices with paired rows, one small file each."""

from saejax.similarity.measure import Measure
from saejax.similarity.pair import Pair
from saejax.similarity.registry import MEASURES, find_measure

__all__ = ["MEASURES", "Measure", "Pair", "find_measure"]
