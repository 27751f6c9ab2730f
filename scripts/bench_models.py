"""Time the forward pass of a model against transformers in torch, and compare peak memory.

Regime: float32, rows of tokens without padding; transformers keeps all hidden states, as users of activations make
it do, and its head is not run; here, all blocks with `resid_post` of each, and the way to the middle block alone,
which is what extraction runs. Every peer is a process of its own, so that peaks of resident memory, over loading and
all blocks, are its own; ours is one without torch, which saejax does not need and transformers' configs would import
where it is installed. The peers take turns, and the best of all turns counts. Speeds drift with the machine; the ratios
are what to keep. The last line is JSON.

    saejax fetch smollm2-135m --out models/smollm2
    python scripts/bench_models.py --model models/smollm2
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

Peer = Literal["torch", "saejax"]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time."""

    model: Path
    """Model folder in Hugging Face layout."""
    batch: int = 8
    """Rows of a batch."""
    context: int = 256
    """Tokens of a row."""
    passes: int = 3
    """Timed passes of each peer in a turn."""
    turns: int = 3
    """Turns of each peer."""
    peer: Peer | None = None
    """The peer that this process is, of one turn; the whole bench when not given."""


def best(passes: int, run: Callable[[], Any]) -> float:
    """Return the shortest of some passes, in seconds, after one to warm up."""
    run()
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_bytes() -> int:
    """Return the most resident memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def token_ids(config: BenchConfig, vocab_size: int) -> np.ndarray:
    """Return made-up tokens."""
    return np.random.default_rng(0).integers(0, vocab_size, (config.batch, config.context), np.int64)


def torch_turn(config: BenchConfig) -> dict[str, float]:
    """Time transformers."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(config.model, dtype=torch.float32).eval()
    ids = torch.tensor(token_ids(config, model.config.vocab_size))

    def run() -> None:
        with torch.inference_mode():
            model(ids, output_hidden_states=True, use_cache=False)

    return {"all": best(config.passes, run), "peak": peak_bytes()}


def saejax_turn(config: BenchConfig) -> dict[str, float]:
    """Time all blocks, and those up to the middle one."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails

    import jax

    import saejax.models

    model = saejax.models.load(config.model)
    ids = token_ids(config, model.config.vocab_size).astype(np.int32)
    segment, position = np.ones_like(ids), np.broadcast_to(np.arange(config.context, dtype=np.int32), ids.shape)
    layers = model.config.n_layers

    def run(*hooks: str) -> None:
        jax.block_until_ready(model.activations(ids, segment, position, hooks))

    every = best(config.passes, lambda: run(*(f"resid_post.{layer}" for layer in range(layers))))
    peak = peak_bytes()
    middle = best(config.passes, lambda: run(f"resid_post.{layers // 2 - 1}"))
    return {"all": every, "middle": middle, "peak": peak}


def turn(config: BenchConfig, peer: Peer) -> dict[str, float]:
    """Run one turn of a peer in a process of its own."""
    words = [f"--{name}={getattr(config, name)}" for name in ("model", "batch", "context", "passes")]
    done = subprocess.run([sys.executable, __file__, *words, f"--peer={peer}"], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {1000 * value:,.0f} ms" for name, value in found.items() if name != "peak")
    print(f"{peer}: {shown}, peak {found['peak'] / 2**30:.2f} GiB", flush=True)
    return found


def main(config: BenchConfig) -> None:
    """Run one turn, or let the peers take turns and print how they compare."""
    if config.peer is not None:
        print(json.dumps({"torch": torch_turn, "saejax": saejax_turn}[config.peer](config)))
        return
    found: dict[Peer, dict[str, float]] = {}
    for _ in range(config.turns):
        for peer in ("torch", "saejax"):
            new = turn(config, peer)
            found[peer] = {name: min(value, found.get(peer, new)[name]) for name, value in new.items()}
    theirs, ours = found["torch"], found["saejax"]
    tokens = config.batch * config.context
    report = {
        "torch_tokens_per_second": round(tokens / theirs["all"]),
        "tokens_per_second": round(tokens / ours["all"]),
        "middle_tokens_per_second": round(tokens / ours["middle"]),
        "all_blocks_ratio": round(theirs["all"] / ours["all"], 3),
        "middle_ratio": round(theirs["all"] / ours["middle"], 3),
        "peak_ratio": round(ours["peak"] / theirs["peak"], 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(BenchConfig, description=__doc__))
