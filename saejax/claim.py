"""Keeps two processes from writing one run at a time.

On a disk the system keeps the claim, and gives it up when the process ends, however it ends. Buckets have no locks:
whoever comes last takes the run over, and the other stops at its next commit.
"""

import contextlib
import fcntl
import uuid
from collections.abc import Callable, Iterator

from saejax.errors import InputError
from saejax.storage import Folder


@contextlib.contextmanager
def claimed(folder: Folder, part: int) -> Iterator[Callable[[], None]]:
    """Claim a run, or that part of it which one of several processes writes.

    Args:
        folder: the run's.
        part: number of the part.

    Returns:
        A context, and in it a function that makes sure that the claim still stands.

    Raises:
        InputError: another process has the claim; from that function: another has taken it.
    """
    name = f".writer-{part}"
    if folder.path is not None:
        with (folder.path / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder} is being written by another process; wait until it ends, or stop it"
                ) from None
            yield lambda: None
        return
    token = uuid.uuid4().bytes
    folder.write(name, token)

    def require() -> None:
        if folder.read(name) != token:
            raise InputError(f"{folder} was taken over by another process; leave it to that one, or stop that one")

    yield require
