"""What every format gives an import: the rows of one hook in the order of its files, and what is known of each."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from saejax.errors import InputError

BLOCK_ROWS = 4096
"""Rows that are read at once; formats of whole texts read at least one text."""
UNKNOWN = -1
"""Token id of a row whose files tell no tokens."""
NAMED = 3
"""Faulty files that one error names."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive rows of a hook.

    Attributes:
        document: number of each row's document, from 0, ascending over all blocks.
        position: place of the row in it, in tokens, those that are left out counted.
        token_id: token of the row; `UNKNOWN` where the files tell none.
        read: returns the rows' activations; to be called before the next block is asked for.
    """

    document: Int[np.ndarray, "rows"]
    position: Int[np.ndarray, "rows"]
    token_id: Int[np.ndarray, "rows"]
    read: Callable[[], Shaped[np.ndarray, "rows width"]]


@runtime_checkable
class ActivationFiles(Protocol):
    """The files of one hook in one format, opened and found to fit together.

    Attributes:
        files: the files in the order of their rows.
        width: entries of a row.
        has_tokens: whether the files tell the token of each row.
    """

    files: Sequence[Path]
    width: int
    has_tokens: bool

    @property
    def key(self) -> str | None:
        """What the files call the activations; None where they have no name for them."""
        ...

    @staticmethod
    def in_order(files: Sequence[Path]) -> list[Path]:
        """Return the files of a folder, given in the order of their names, in the order of their rows."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Yield all rows, the same at every call.

        Raises:
            InputError: while iterating: what only the content shows to be wrong.
        """
        ...


def require_none(faults: Sequence[str]) -> None:
    """Raise if files are faulty, with all faults in one line, or the first few of many.

    Raises:
        InputError: there are faults.
    """
    if faults:
        more = f"; and {len(faults) - NAMED} more like these" if len(faults) > NAMED else ""
        raise InputError("; ".join(faults[:NAMED]) + more)


def one_width(widths: Mapping[Path, int]) -> int:
    """Return the width that the rows of all files have.

    Args:
        widths: entries of a row by file, at least one.

    Raises:
        InputError: rows are empty, or two files differ.
    """
    first, width = next(iter(widths.items()))
    if width < 1:
        raise InputError(f"{first} has rows of {width} entries; name files of activations")
    require_none([
        f"{file} has rows of {other} entries and {first} of {width}; import files of one hook"
        for file, other in widths.items() if other != width
    ])  # fmt: skip
    return width


def all_or_none(has_tokens: Mapping[Path, bool], name: str) -> bool:
    """Return whether files tell tokens.

    Args:
        has_tokens: the answer by file, at least one.
        name: what they call the tokens.

    Raises:
        InputError: some do and some do not.
    """
    without = [file for file, told in has_tokens.items() if not told]
    if without and len(without) < len(has_tokens):
        raise InputError(f"{without[0]} has no {name} and other files have; import the ones and the others apart")
    return not without
