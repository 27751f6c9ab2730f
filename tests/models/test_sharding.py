"""A model on many devices is the model on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_models import VOCAB, saved_model

from saejax.errors import InputError
from saejax.models.sharding import model_mesh

SCRIPT = """
import json, sys
import jax, numpy as np
import saejax.models
from saejax.models.sharding import model_mesh
folder, data, model = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
ids = rng.integers(0, 97, (8, 12))
mask = np.ones_like(ids)
mask[2, :5] = mask[5, 9:] = 0
segment = np.sort(rng.integers(1, 4, (8, 12)), axis=1)
position = np.broadcast_to(np.arange(12), (8, 12))
one = saejax.models.load(folder)
many = saejax.models.load(folder, mesh=model_mesh(data, model))
def difference(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(a).max())
real = mask.astype(bool)
left, right = (each.run(ids, mask, hooks=one.hooks) for each in (one, many))
worst = difference(left.logits[real], right.logits[real])
for hook in one.hooks:
    worst = max(worst, difference(left.activations[hook][real], right.activations[hook][real]))
packed = [each.activations(ids, segment, position, ("resid_post.1",))["resid_post.1"] for each in (one, many)]
blocks, embed = many._model.blocks, many._model.embed
leaves = {"up": blocks.w_up.kernel, "q": blocks.w_q.kernel, "embed": embed}
shards = {name: leaf[...].addressable_shards[0].data.size / leaf[...].size for name, leaf in leaves.items()}
rows = packed[1].addressable_shards[0].data.shape[0]
print(json.dumps({"worst": worst, "packed": difference(*packed), "rows": rows, **shards}))
"""


def run(folder: Path, data: int, model: int) -> dict[str, Any]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(data), str(model)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "model"),
    [("llama-grouped-tied", 8, 1), ("llama-3", 2, 4), ("gpt2", 1, 8), ("gemma3", 4, 2)],
)
def test_a_sharded_model_computes_what_one_device_does(name: str, data: int, model: int, tmp_path: Path) -> None:
    sizes = {"n_head": 8} if name == "gpt2" else {"num_attention_heads": 8, "num_key_value_heads": 4}
    assert VOCAB % 8, "so that the embedding is held whole"
    saved_model(name, tmp_path, **sizes)
    found = run(tmp_path, data, model)
    assert found["worst"] < 1e-4
    assert found["packed"] < 1e-4
    assert (found["up"], found["q"], found["embed"]) == (1 / model, 1 / model, 1.0)
    assert found["rows"] == 8 / data


def test_a_mesh_of_other_devices_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="^a mesh of data 3 x model 5 needs as many devices; there are "):
        model_mesh(3, 5)


PEAK = Path("/proc/self/clear_refs")
LOADING = """
import sys
import numpy as np
import saejax.models
from pathlib import Path
status = Path("/proc/self/status")
def resident(kind):
    line = next(line for line in status.read_text().splitlines() if line.startswith(kind))
    return 1024 * int(line.split()[1])
saejax.models.load(sys.argv[1])
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = saejax.models.load(sys.argv[2])
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="peaks of resident memory are Linux's to tell")
def test_loading_never_holds_the_model_twice(tmp_path: Path) -> None:
    """Resident memory holds the parameters and a layer on its way, mapped pages of the file counted."""
    for name, layers in (("small", 2), ("large", 16)):
        (tmp_path / name).mkdir()
        saved_model(
            "llama-grouped-tied",
            tmp_path / name,
            num_hidden_layers=layers,
            hidden_size=512,
            intermediate_size=2048,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path / "small"), str(tmp_path / "large")], capture_output=True,
        text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    used = int(done.stdout)
    assert size > 2e8
    assert 0.9 * size < used < 1.35 * size, used / size
