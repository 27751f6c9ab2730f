"""Drawing documents anew weighs their rows, and nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from made_sources import HOOK, made_store, some_special, sparse_codes

from saejax.errors import InputError
from saejax.features.pairing import correlation_pairs
from saejax.features.resampled import ResampledDocuments, drawn_documents
from saejax.features.sources import RawHook

ROWS, D, DOCUMENTS = 300, 8, 23


class SparseHook(RawHook):
    """A hook that gives out its blocks as an SAE's codes come."""

    def blocks(self, rows_per_block: int = 64) -> Iterator[Any]:
        return map(scipy.sparse.csr_array, super().blocks(rows_per_block))


def hook(folder: Path, seed: int, kind: type[RawHook] = RawHook, documents: int = DOCUMENTS) -> RawHook:
    made_store(folder, sparse_codes(ROWS, D, seed), some_special(ROWS), documents=documents)
    return kind.open(folder, HOOK)


@pytest.mark.parametrize("rows_per_block", [7, 64, 1000])
@pytest.mark.parametrize("kind", [RawHook, SparseHook])
def test_correlations_are_those_of_the_repeated_rows(kind: type[RawHook], rows_per_block: int, tmp_path: Path) -> None:
    x, y = hook(tmp_path / "x", 0), hook(tmp_path / "y", 1, kind)
    times = drawn_documents(x, 5)
    found = correlation_pairs(
        ResampledDocuments(x, times), ResampledDocuments(y, times), method="many_to_one", minimum_correlation=-1.0,
        memory_gib=1.0, rows_per_block=rows_per_block,
    )  # fmt: skip
    document = np.arange(ROWS) * DOCUMENTS // ROWS
    rows = np.repeat(np.arange(ROWS), np.where(some_special(ROWS), 0, times[document]))
    exact = np.corrcoef(sparse_codes(ROWS, D, 0)[rows].T, sparse_codes(ROWS, D, 1)[rows].T)[:D, D:]
    assert len(rows) != ROWS - some_special(ROWS).sum()
    np.testing.assert_array_equal(found.x_ids, exact.argmax(axis=0)[found.y_ids])
    np.testing.assert_allclose(found.correlation, exact[found.x_ids, found.y_ids], atol=1e-6)


def test_documents_are_drawn_with_replacement(tmp_path: Path) -> None:
    x = hook(tmp_path / "x", 0)
    drawn = [drawn_documents(x, seed) for seed in range(400)]
    assert all(each.sum() == DOCUMENTS and len(each) == DOCUMENTS for each in drawn)
    np.testing.assert_array_equal(drawn[3], drawn_documents(x, 3))
    # Each comes once on average, with variance 1 - 1 / D.
    assert np.mean(drawn, axis=0) == pytest.approx(1, abs=4 / np.sqrt(400))
    assert np.var(drawn) == pytest.approx(1 - 1 / DOCUMENTS, rel=0.1)


def test_few_documents_say_nothing_of_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 9 documents; a bootstrap needs at least 10"):
        drawn_documents(hook(tmp_path / "few", 0, documents=9), 0)
