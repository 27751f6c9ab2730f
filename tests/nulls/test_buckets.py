from saejax.nulls.buckets import LADDER, common_lengths, next_length


def test_lengths_are_those_of_the_ladder() -> None:
    assert [next_length(length) for length in (1, 32, 33, 129, 1024, 1025, 1600)] == [32, 32, 64, 192, 1024, 1536, 2048]


def test_only_axes_that_differ_between_cells_are_padded() -> None:
    lengths = {"n": 150, "kx": 96, "ky": 160, "k": 10}
    assert common_lengths(lengths, 150) == {"n": 192, "kx": 96, "ky": 192}


def test_large_cells_are_left_as_they_are() -> None:
    assert common_lengths({"n": LADDER[-1], "kx": 40}, LADDER[-1]) == {"n": 1024, "kx": 64}
    assert common_lengths({"n": LADDER[-1] + 1, "kx": 40}, LADDER[-1] + 1) == {}
