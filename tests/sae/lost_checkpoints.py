"""Meet checkpoints that lost some of their arrays, and a full disk: run by test_checkpoint.py.

In a process of its own, because TensorStore tells of what failed late, and troubles whatever test runs then.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from full_disk import full_disk

from saejax.errors import InputError
from saejax.sae.checkpoint import open_checkpoints
from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig
from saejax.sae.state import Recipe, initial_state, workspace
from saejax.sae.step import train_step

RECIPE = Recipe(30, 3e-3, 5, 10, 8, 48, 1 / 32, dead_window=500, precision="float32", impl="jax")


def main() -> None:
    """Print a line of JSON: what each harm is called, and whether a full disk left the checkpoint before as it was."""
    folder, key = Path(sys.argv[1]), jax.random.key(0)
    x = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    state = initial_state(initial_sae(SAEConfig(16, 48, 4), x, key), RECIPE, key)
    like = jax.eval_shape(lambda: state)
    with open_checkpoints(folder / "whole", keep=2) as checkpoints:
        checkpoints.save(state, 1.0, 0.5)
    report = {}
    for harm in ("cut short", "gone"):
        shutil.copytree(folder / "whole", folder / harm)
        files = (path for path in (folder / harm / "0" / "default").rglob("*") if path.is_file())
        file = max(files, key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if harm == "gone":
            file.unlink()
        try:
            with open_checkpoints(folder / harm, keep=2) as checkpoints:
                checkpoints.restore(like)
        except InputError as error:
            report[harm] = str(error)
    expected = jax.tree.map(np.array, state)
    state, _, _ = train_step(state, workspace(state, 100, "jax"), x, RECIPE)
    try:
        with full_disk(2000), open_checkpoints(folder / "whole", keep=2) as checkpoints:
            checkpoints.save(state, 1.0, 0.5)
    except InputError as error:
        report["full"] = str(error)
    with open_checkpoints(folder / "whole", keep=2) as checkpoints:
        restored = checkpoints.restore(like)
    report["stays"] = bool(jax.tree.all(jax.tree.map(np.array_equal, restored, expected)))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
