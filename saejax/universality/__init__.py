"""The experiment: do the features of two models' SAEs share a geometry, and more so than raw neurons?"""

from saejax.universality.arms import Arm, paired_arm
from saejax.universality.compare import compare, plan, score_arms, table, to_csv
from saejax.universality.config import CompareConfig
from saejax.universality.differences import arm_differences, difference_lines

__all__ = [
    "Arm",
    "CompareConfig",
    "arm_differences",
    "compare",
    "difference_lines",
    "paired_arm",
    "plan",
    "score_arms",
    "table",
    "to_csv",
]
