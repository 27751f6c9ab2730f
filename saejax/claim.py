"""Keeps two processes from writing one run at a time, or the same part of it.

On a disk the system keeps the claim, and gives it up when the process ends, however it ends. Buckets have no locks:
whoever comes last takes the run over, and the other stops at its next commit. Which part is which depends on how many
there are, so that all who write at a time have the same number.
"""

import contextlib
import fcntl
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from saejax.errors import InputError
from saejax.storage import Folder

ALL = ".writers"
"""On a disk, held by whoever makes a claim, for as long as that takes; in a bucket, the number of parts."""


@contextlib.contextmanager
def claimed(folder: Folder, part: int = 0, parts: int = 1) -> Iterator[Callable[[], None]]:
    """Claim a run, or that part of it which one of several processes writes.

    Args:
        folder: the run's.
        part: number of the part, from 0.
        parts: how many there are.

    Returns:
        A context, and in it a function that makes sure that the claim still stands.

    Raises:
        InputError: another process has the claim, or one to a part of another number; from that function: another has
            taken it.
    """
    name = f".writer-{part}"
    if folder.path is not None:
        with (folder.path / name).open("a+") as ours:
            _claim(folder.path, ours, parts)
            yield lambda: None
        return
    claim = {name: uuid.uuid4().bytes, ALL: str(parts).encode()}
    for file, content in claim.items():
        folder.write(file, content)

    def require() -> None:
        if any(folder.read(file) != content for file, content in claim.items()):
            raise InputError(f"{folder} was taken over by another process; leave it to that one, or stop that one")

    yield require


def _claim(folder: Path, ours: TextIO, parts: int) -> None:
    """Lock the file of a part, unless others write; those who come at the same time do so one after the other."""
    with (folder / ALL).open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not _lock(ours):
            raise InputError(f"{folder} is being written by another process; wait until it ends, or stop it")
        ours.truncate(0)
        ours.write(str(parts))
        ours.flush()
        for file in {*folder.glob(".writer-*")} - {Path(ours.name)}:
            with file.open("r+") as theirs:
                if not _lock(theirs) and (told := theirs.read()) != str(parts):
                    raise InputError(
                        f"{folder} is being written by one process of {told}, and this is one of {parts}; wait until "
                        "it ends, or give the same number"
                    )


def _lock(file: TextIO) -> bool:
    """Tell whether nobody has a file locked, which then is until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
