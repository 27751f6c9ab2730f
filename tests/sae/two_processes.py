"""Train in one of two processes with two devices each: run by test_processes.py."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from saejax import cli
from saejax.activations.source import StoredRows
from saejax.errors import InputError
from saejax.sae.config import SAETrainConfig
from saejax.sae.placement import own_rows, step_mesh
from saejax.sae.train import train


def main() -> None:
    """Join the other process, train, and exit as the command line does; where told to, find a store damaged."""
    port, process, given, failing = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10)
    config = SAETrainConfig(**{**given, "store": Path(given["store"]), "out": Path(given["out"])})
    share, own = config.batch // config.data, process if config.data == 2 else 0
    assert own_rows(config.batch, step_mesh(config.data, config.latent)) == slice(own * share, (own + 1) * share)
    if process == failing:
        reader = StoredRows.batches

        def damaged(self: StoredRows, *start: Any) -> Iterator[Any]:
            yield from itertools.islice(reader(self, *start), 50)
            raise (InputError, RuntimeError)[failing]("its store is damaged")

        StoredRows.batches = damaged  # pyright: ignore[reportAttributeAccessIssue]
    with cli.ending():
        train(config)


if __name__ == "__main__":
    main()
