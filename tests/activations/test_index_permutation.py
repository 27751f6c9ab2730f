import numpy as np
import pytest
import scipy.stats

from saejax.activations.index_permutation import MAX_SIZE, IndexPermutation
from saejax.errors import InputError

SIZES = [*range(1, 34), 63, 64, 65, 97, 1000, 1009, 4096, 65_535, 65_536, 65_537, 104_729]


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_bijection(n: int) -> None:
    image = IndexPermutation(n, (3, n))(np.arange(n))
    np.testing.assert_array_equal(np.sort(image), np.arange(n))


def test_it_is_a_bijection_where_all_images_cannot_be_listed() -> None:
    n = MAX_SIZE - 87
    index = np.unique(np.random.default_rng(0).integers(0, n, 200_000))
    image = IndexPermutation(n, (0,))(index)
    assert len(np.unique(image)) == len(index)
    assert image.min() >= 0
    assert image.max() < n


def test_an_image_depends_on_its_own_index_and_the_seed_alone() -> None:
    permutation = IndexPermutation(10_007, (5, 1))
    whole = permutation(np.arange(10_007))
    some = np.array([17, 4000, 17, 0, 10_006])
    np.testing.assert_array_equal(permutation(some), whole[some])
    np.testing.assert_array_equal(IndexPermutation(10_007, (5, 1))(some), whole[some])


@pytest.mark.parametrize("other", [(5, 2), (1, 5), (5, 1, 0), (5,), (51,), (-5, 1), (5 + (1 << 32), 1)])
def test_other_seeds_give_other_orders(other: tuple[int, ...]) -> None:
    index = np.arange(10_007)
    fixed = (IndexPermutation(10_007, (5, 1))(index) == IndexPermutation(10_007, other)(index)).sum()
    assert fixed < 10  # two random orders agree in one place on average


def test_all_orders_of_five_things_are_equally_likely() -> None:
    orders = np.array([IndexPermutation(5, (seed,))(np.arange(5)) for seed in range(2400)])
    _, counts = np.unique(orders @ 5 ** np.arange(5), return_counts=True)
    assert len(counts) == 120
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_where_an_index_goes_is_uniform_over_seeds() -> None:
    images = np.array([IndexPermutation(1000, (seed,))(np.array([0, 1, 999])) for seed in range(4000)])
    for image in images.T:
        assert scipy.stats.chisquare(np.bincount(image // 20, minlength=50)).pvalue > 1e-3
    table = np.histogram2d(images[:, 0], images[:, 1], bins=8, range=[(0, 1000)] * 2)[0]
    assert scipy.stats.chisquare(table.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("lag", [1, 2, 256, 1024])
def test_neighbours_do_not_stay_near_each_other(lag: int) -> None:
    n = 100_003
    image = IndexPermutation(n, (1, 2))(np.arange(n))
    assert abs(np.corrcoef(image[:-lag], image[lag:])[0, 1]) < 4 / np.sqrt(n)
    # a prefix of 1 % is spread over all places like a random draw
    gaps = np.abs(np.diff(np.sort(image[: n // 100])))
    assert scipy.stats.kstest(gaps, scipy.stats.geom(0.01).cdf).statistic < 0.06


@pytest.mark.parametrize("n", [0, -1, MAX_SIZE + 1])
def test_a_size_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(InputError, match=f"no permutation of {n} things"):
        IndexPermutation(n, (0,))
