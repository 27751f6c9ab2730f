"""Let the next item of an iterator be made while the present one is used."""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items, each made in a thread one ahead of its use; holds two at a time.

    Args:
        items: what to iterate over, in that thread alone; an error in it is raised here.
    """
    iterator = iter(items)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead = thread.submit(_next, iterator)
        while item := ahead.result():
            ahead = thread.submit(_next, iterator)
            yield item[0]
    finally:
        thread.shutdown(wait=False)


def _next(iterator: Iterator[Item]) -> list[Item]:
    """Return the next item in a list, which is empty at the end."""
    return list(itertools.islice(iterator, 1))
