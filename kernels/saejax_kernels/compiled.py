"""Functions that numba compiles, with their machine code kept on disk for the next process.

Compiling all of them takes 20 s, which every command would pay anew. The code lies in `__pycache__` beside the source,
or where NUMBA_CACHE_DIR says, and is made again when the file of the function or the CPU is another. Where nothing can
be written it is compiled in every process.
"""

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator that compiles a function when it is first called.

    Args:
        options: of `numba.njit`.
    """

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(function, cache=True, **options)
        except RuntimeError:  # no folder for the code can be written
            return numba.njit(function, **options)

    return compile_
