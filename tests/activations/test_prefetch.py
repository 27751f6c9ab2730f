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
    ahead.close()
    assert not any(thread.is_alive() for thread in ours)


def test_closing_gives_up_an_item_that_is_made_of_many() -> None:
    """As a window is of the model's batches: one or two more of those are made, not all."""
    before, begun, closed, made = set(threading.enumerate()), threading.Event(), threading.Event(), []

    def parts() -> Iterator[int]:
        for number in range(100_000):
            if number == 5:
                begun.set()
                assert closed.wait(10)
            made.append(number)
            yield number

    def whole() -> Iterator[int]:
        yield 0
        yield sum(prefetch(parts()))

    ahead = prefetch(prefetch(whole()))
    assert next(ahead) == 0
    assert begun.wait(10)
    ours = [thread for thread in threading.enumerate() if thread not in before]
    assert len(ours) == 3
    closing = threading.Thread(target=ahead.close)
    closing.start()
    closed.set()
    closing.join(10)
    assert not any(thread.is_alive() for thread in [closing, *ours])
    assert len(made) < 100_000


def test_garbage_that_its_own_thread_collects_is_closed() -> None:
    """Where an iterator is part of a cycle, its end may be noticed anywhere."""
    closed, collected, held = threading.Event(), threading.Event(), []

    def items() -> Iterator[int]:
        yield 0
        assert closed.wait(10)
        held.pop().close()
        collected.set()
        yield 1

    def outer() -> Iterator[int]:
        yield from prefetch(items())

    held.append(prefetch(outer()))
    assert next(held[0]) == 0
    closed.set()
    assert collected.wait(10)
