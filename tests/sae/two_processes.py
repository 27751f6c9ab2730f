"""Train in one of two processes with two devices each: run by test_processes.py."""

import json
import sys
from pathlib import Path

import jax

from saejax.errors import Preempted
from saejax.sae.config import SAETrainConfig
from saejax.sae.placement import own_rows, step_mesh
from saejax.sae.train import train


def main() -> None:
    """Join the other process, train, and exit as the command line does."""
    port, process, given = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    config = SAETrainConfig(**{**given, "store": Path(given["store"]), "out": Path(given["out"])})
    half = config.batch // 2
    assert own_rows(config.batch, step_mesh(config.data, config.latent)) == slice(process * half, (process + 1) * half)
    try:
        train(config)
    except Preempted as ended:
        print(ended, file=sys.stderr)


if __name__ == "__main__":
    main()
