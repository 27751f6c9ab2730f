"""Progress bars on stderr, silent when stderr is not a terminal, or within another's block."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHOWN = contextvars.ContextVar("shown", default=False)


@contextlib.contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show one stage's bar while the block runs.

    Args:
        title: what is being done, in a few words.
        total: the number of units in the whole stage; a moving bar without an end where it is not known.
        done: units finished before the block, for a resumed stage.

    Yields:
        `advance(units=1, note="")`: moves the bar and shows a short note (a loss, a rate) behind it.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console, disable=_SHOWN.get() or not console.is_terminal) as bar:
        task, outer = bar.add_task(title, total=total, completed=done, note=""), _SHOWN.set(True)

        def advance(units: int = 1, note: str = "") -> None:
            bar.update(task, advance=units, note=note)

        try:
            yield advance
        finally:
            _SHOWN.reset(outer)
