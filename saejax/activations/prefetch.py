"""Let the next item of an iterator be made while the present one is used."""

import contextvars
import itertools
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_closed: contextvars.ContextVar[tuple[threading.Event, ...]] = contextvars.ContextVar("closed", default=())
"""Of the iterators for which a thread makes items, from the outermost on: whether they are closed."""


def prefetch(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the same items, each made in a thread one ahead of its use; holds two at a time.

    Closing the iterator waits for its thread. What that makes may itself be made of prefetched items: it is then given
    up at the next one of those.

    Args:
        items: what to iterate over, in that thread alone; an error in it is raised here.
    """
    iterator, closed = iter(items), threading.Event()
    context = contextvars.copy_context()
    context.run(_closed.set, (*_closed.get(), closed))
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead = thread.submit(context.run, _next, iterator)
        while item := ahead.result():
            if any(outer.is_set() for outer in _closed.get()):
                raise CancelledError
            ahead = thread.submit(context.run, _next, iterator)
            yield item[0]
    finally:
        closed.set()
        # Garbage may be collected, and so this be run, in a thread that works for the very iterator that is closed.
        thread.shutdown(wait=closed not in _closed.get())


def _next(iterator: Iterator[Item]) -> list[Item]:
    """Return the next item in a list, which is empty at the end."""
    return list(itertools.islice(iterator, 1))
