"""Training on many devices is training on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from pathlib import Path
import jax, numpy as np
from flax import nnx
from saejax import artifacts
from saejax.models.config import TransformerConfig
from saejax.models.schedule import Schedule
from saejax.models.sharding import model_mesh
from saejax.models.train import Hardware, TokenBatch, train
from saejax.models.transformer import Transformer
shape = TransformerConfig(
    vocab_size=11, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=24, max_positions=32
)
schedule = Schedule(12, 2, 1e-2, 0.1, checkpoint_every=5)
seen = {}
def counting(step, killed=None):
    if step == killed:
        raise KeyboardInterrupt
    ids = (np.random.default_rng(step).integers(0, 11, (8, 1)) + np.arange(12)) % 11
    segment = np.ones_like(ids)
    segment[:, 9:] = 2 * (np.arange(8)[:, None] % 2)  # devices predict different numbers of tokens
    position = np.broadcast_to(np.arange(12), ids.shape)
    return TokenBatch(*(column.astype(np.int32) for column in (ids, segment, position)))
def look(place, step, model):
    embed = jax.tree.leaves(nnx.state(model))[0]
    seen[place] = len(embed.sharding.device_set)
def made(name, seeds, mesh, killed=None):
    models = [Transformer(shape, nnx.Rngs(seed)) for seed in seeds]
    runs = [artifacts.begin(Path(sys.argv[1]) / name / str(seed), "language_model", schedule) for seed in seeds]
    trained = train(models, lambda step: counting(step, killed), schedule, runs=runs, snapshot=look,
                    snapshot_steps=(3,), hardware=Hardware(mesh=mesh))
    return [[np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))] for model in trained]
mesh, found = model_mesh(8, 1), {}
for name, seeds in (("alone", (0,)), ("both", (0, 1))):
    one, many = made(name + "/one", seeds, None), made(name + "/many", seeds, mesh)
    found[name + " devices"] = list(seen.values())
    try:
        made(name + "/killed", seeds, mesh, killed=8)
    except KeyboardInterrupt:
        pass
    resumed = made(name + "/killed", seeds, mesh)
    pairs = [(a, b, c) for x, y, z in zip(one, many, resumed) for a, b, c in zip(x, y, z)]
    found[name] = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b, _ in pairs)
    found[name + " resumed"] = all(np.array_equal(b, c) for _, b, c in pairs)
print(json.dumps(found))
"""


def test_rows_spread_over_devices_teach_the_same_and_resume_to_the_bit(tmp_path: Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alone devices"] == [8]
    assert found["both devices"] == [8, 8]
    assert found["alone"] < 1e-3
    assert found["both"] < 1e-3
    assert found["alone resumed"]
    assert found["both resumed"]
