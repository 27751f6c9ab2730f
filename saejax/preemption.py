"""Preemption: a scheduler that takes a machine away sends SIGTERM first, and then waits a little."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from saejax.errors import Preempted


@dataclasses.dataclass
class Preemption:
    """Whether this run has been asked to end."""

    asked: bool = False
    """SIGTERM has come to this process."""
    told: str | None = None
    """What to say where SIGTERM is to end what is being done at once."""

    steps: int = 0
    """Steps after which this process has asked, of all that it trained."""

    def due(self) -> bool:
        """Tell whether to save and end after the step that is done: the same step in all processes of a job."""
        if jax.process_count() == 1:
            return self.asked
        # Counted here, because JAX puts the end behind the highest number that any process has given.
        self.steps += 1
        return multihost_utils.reached_preemption_sync_point(self.steps)

    @contextlib.contextmanager
    def ends(self, told: str) -> Iterator[None]:
        """Let SIGTERM end a block at once, which waits or only reads, in a job of one process.

        Args:
            told: what the user is to know then.

        Raises:
            Preempted: SIGTERM came, or had come.
        """
        try:
            self.told = told
            if self.asked:
                raise Preempted(told)
            yield
        finally:
            self.told = None


@contextlib.contextmanager
def noticed() -> Iterator[Preemption]:
    """Note SIGTERM instead of dying of it, while the block runs.

    In a thread other than the main one nothing is noted, because Python gives signals to that alone; in a job of
    several processes JAX's own service notes it.

    Yields:
        What has been noted.
    """
    preemption = Preemption()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield preemption
        return

    def note(_: int, __: FrameType | None) -> None:
        preemption.asked = True
        told, preemption.told = preemption.told, None
        if told is not None:
            raise Preempted(told)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
