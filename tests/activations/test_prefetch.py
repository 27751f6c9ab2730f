import threading
from collections.abc import Iterator

import pytest

from saejax.activations.prefetch import prefetch


def test_items_come_in_their_order() -> None:
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([None, 0, ""])) == [None, 0, ""]
    assert list(prefetch([])) == []


def test_the_next_item_is_made_while_one_is_used_and_no_further() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = prefetch(items())
    for number in range(3):
        assert next(ahead) == number
        assert made[number + 1].wait(10)
        assert not any(event.is_set() for event in made[number + 2 :])


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_a_reader_that_stops_early_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    ahead = prefetch(iter(int, 1))
    next(ahead)
    ours = [thread for thread in threading.enumerate() if thread not in before]
    assert ours
    ahead.close()  # pyright: ignore[reportAttributeAccessIssue]
    for thread in ours:
        thread.join(10)
        assert not thread.is_alive()
