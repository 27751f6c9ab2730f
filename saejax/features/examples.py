"""Top examples: for every feature the rows on which it is largest, found in one pass with bounded memory."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Examples:
    """The rows on which features are largest, best first.

    Attributes:
        rows: `[features, examples]`, row numbers in the store; -1 where a feature has fewer.
        values: `[features, examples]`, the feature's value on those rows; 0 where the row is -1.
    """

    rows: Int[np.ndarray, "features examples"]
    values: Float[np.ndarray, "features examples"]


class TopExamples:
    """Running top examples of many features; memory is 12 bytes per feature and example, whatever the corpus.

    Equal values are ranked by row, lowest first, so that the result does not depend on the size of the
    blocks.
    """

    def __init__(self, features: int, examples: int) -> None:
        """Start with no example.

        Args:
            features: number of features.
            examples: examples kept per feature.
        """
        self._values = np.full((features, examples), -np.inf, np.float32)
        self._rows = np.full((features, examples), -1, np.int64)

    @property
    def thresholds(self) -> Float[np.ndarray, "features"]:
        """What a value must exceed to become an example of its feature; minus infinity while it has few."""
        return self._values[:, -1]

    def add(
        self,
        features: Int[np.ndarray, "entries"],
        rows: Int[np.ndarray, "entries"],
        values: Float[np.ndarray, "entries"],
    ) -> None:
        """Take in the values of features on some rows.

        Args:
            features: which feature each value belongs to.
            rows: the row of each value; no call may hold rows below those of an earlier call.
            values: the values.
        """
        eligible = values > self.thresholds[features]
        if not eligible.any():
            return
        touched, group = np.unique(features[eligible], return_inverse=True)
        examples = self._rows.shape[1]
        groups = np.concatenate([np.repeat(np.arange(len(touched)), examples), group])
        all_rows = np.concatenate([self._rows[touched].ravel(), rows[eligible]])
        all_values = np.concatenate([self._values[touched].ravel(), values[eligible]])
        order = np.lexsort((all_rows, -all_values, groups))
        sizes = np.bincount(groups)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        best = order[rank < examples]
        self._rows[touched] = all_rows[best].reshape(-1, examples)
        self._values[touched] = all_values[best].reshape(-1, examples)

    def result(self) -> Examples:
        """Return the examples found so far."""
        return Examples(self._rows.copy(), np.where(self._rows < 0, np.float32(0), self._values))
