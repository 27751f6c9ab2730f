"""Where the curves of a run go beside its `metrics.jsonl`: TensorBoard, Weights & Biases, if asked."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from saejax import artifacts
from saejax.errors import InputError

Tracker: TypeAlias = Literal["tensorboard", "wandb"]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def require(trackers: tuple[Tracker, ...]) -> None:
    """Make sure that the packages of some trackers are installed.

    Raises:
        InputError: one is not.
    """
    missing = [name for name in trackers if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise InputError(
            f"tracker {', '.join(missing)} is not installed; pip install 'saejax[{','.join(missing)}]', or leave it out"
        )


@contextlib.contextmanager
def tracked(
    log: Callable[..., None], trackers: tuple[Tracker, ...], out: Path, config: dict[str, Any], after: int
) -> Iterator[Callable[..., None]]:
    """Send what is logged to trackers too, while the block runs.

    Args:
        log: called with `step` and metrics.
        trackers: which ones.
        out: the run directory: TensorBoard's files lie in `tensorboard/` below it, Weights & Biases' in `wandb/`.
        config: what Weights & Biases is to show of the run.
        after: step after which the run goes on; TensorBoard is to forget what it was sent of later ones, and Weights &
            Biases takes none that it has.

    Yields:
        What to call in place of `log`.
    """
    with contextlib.ExitStack() as stack:
        senders = [log]
        if "tensorboard" in trackers:
            senders.append(stack.enter_context(_tensorboard(out, after)))
        if "wandb" in trackers:
            senders.append(stack.enter_context(_wandb(out, config)))

        def send(**line: Any) -> None:
            for sender in senders:
                sender(**line)

        yield send


@contextlib.contextmanager
def _tensorboard(out: Path, after: int) -> Iterator[Callable[..., None]]:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(out / "tensorboard"), purge_step=after + 1) as writer:

        def send(step: int, **numbers: float) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield send


@contextlib.contextmanager
def _wandb(out: Path, config: dict[str, Any]) -> Iterator[Callable[..., None]]:
    import wandb

    # The same for the same config, so that a run that goes on goes on there too.
    identity = artifacts.fingerprint([out.name, config])[:16]
    run = wandb.init(project="saejax", name=out.name, id=identity, dir=str(out), resume="allow", config=config)
    with run:

        def send(step: int, **numbers: float) -> None:
            run.log(numbers, step=step)

        yield send
