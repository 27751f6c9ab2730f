"""Every matrix of a stack goes to one core, and BLAS keeps to it."""

import threading
from collections.abc import Sequence

import numba
import numpy as np
import pytest
import threadpoolctl
from saejax_kernels import cores as module
from saejax_kernels import on_all_cores
from saejax_kernels.cores import BLOCK_BYTES


def blas_threads() -> set[int]:
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


@pytest.fixture(params=[1, 2, 4])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(numba, "get_num_threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("count", [1, 3, 4, 50])
@pytest.mark.parametrize("bytes_each", [1, BLOCK_BYTES // 4, BLOCK_BYTES // 4 + 1, 3 * BLOCK_BYTES])
def test_every_place_is_worked_on_once(cores: int, count: int, bytes_each: int) -> None:
    times, shares, lock = np.zeros(count, int), [], threading.Lock()

    def work(blocks: Sequence[slice]) -> None:
        with lock:
            shares.append(sum(block.stop - block.start for block in blocks))
            for before, after in zip(blocks, blocks[1:], strict=False):
                assert before.stop == after.start
            for block in blocks:
                times[block] += 1
                length = block.stop - block.start
                assert 1 <= length <= blocks[0].stop - blocks[0].start
                assert length == 1 or length * bytes_each <= BLOCK_BYTES

    on_all_cores(work, count, bytes_each)
    assert np.all(times == 1)
    assert len(shares) == min(cores, count)
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("count", "threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_blas_shares_the_cores_and_is_given_them_back(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba, "get_num_threads", lambda: 4)
    module._blas.cache_clear()  # other tests may have loaded another BLAS since
    before, seen = blas_threads(), []
    on_all_cores(lambda blocks: seen.append(blas_threads()), count, 1)
    assert seen == [{threads}] * min(4, count)
    assert blas_threads() == before


def test_what_fails_on_a_core_is_raised(cores: int) -> None:
    before = blas_threads()

    def work(blocks: Sequence[slice]) -> None:
        raise ValueError("no such matrix")

    with pytest.raises(ValueError, match="no such matrix"):
        on_all_cores(work, 5, 1)
    assert blas_threads() == before
