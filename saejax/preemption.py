"""Preemption: a scheduler that takes a machine away sends SIGTERM first, and then waits a little."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@dataclasses.dataclass
class Preemption:
    """Whether this run has been asked to end."""

    asked: bool = False
    """SIGTERM has come to this process."""

    def at(self, step: int) -> bool:
        """Tell whether to save and end after a step: the same step in all processes of a job.

        Args:
            step: number of the step that is done.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


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

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield preemption
    finally:
        signal.signal(signal.SIGTERM, before)
