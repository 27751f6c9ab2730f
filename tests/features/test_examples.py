import numpy as np
import pytest

from saejax.features.examples import TopExamples


def brute_force(x: np.ndarray, feature: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank the rows on which a feature is not zero by value, then by row."""
    rows = np.flatnonzero(x[:, feature])
    best = rows[np.lexsort((rows, -x[rows, feature]))][:examples]
    missing = examples - len(best)
    return np.pad(best, (0, missing), constant_values=-1), np.pad(x[best, feature], (0, missing))


@pytest.mark.parametrize("block", [1, 7, 40, 300])
@pytest.mark.parametrize("examples", [1, 3, 50])
def test_top_examples_equal_a_sort_with_ties_whatever_the_block(block: int, examples: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(1, 6, (300, 8)) * (rng.random((300, 8)) < 0.2)).astype(np.float32)  # five values: many ties
    x[:, 3] = 0
    x[:2, 4], x[2:, 4] = 5, 0  # fewer than asked for
    top = TopExamples(8, examples)
    for start in range(0, 300, block):
        row, feature = np.nonzero(x[start : start + block])
        shuffled = rng.permutation(len(row))  # within a call the order is free
        row, feature = row[shuffled], feature[shuffled]
        top.add(feature, start + row, x[start + row, feature])
    found = top.result()
    for feature in range(8):
        rows, values = brute_force(x, feature, examples)
        np.testing.assert_array_equal(found.rows[feature], rows)
        np.testing.assert_array_equal(found.values[feature], values)


def test_negative_values_are_ranked_too() -> None:
    top = TopExamples(1, 2)
    top.add(np.zeros(3, int), np.arange(3), np.array([-3, -1, -2], np.float32))
    assert top.result().rows.tolist() == [[1, 2]]
    assert top.result().values.tolist() == [[-1, -2]]
