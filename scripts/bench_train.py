"""Time a training step of a TopK SAE against those of sparsify and SAELens, and against what no step can do without.

Regime: one batch of rows that lies in memory already, compiled and warmed up, every step waited for, median over steps;
a full step with Adam, decoder rows kept at unit norm where the library keeps them so, no latent dead. Every peer is a
process of its own, and they take turns; the best turn counts. Peers are `eai-sparsify` and `sae-lens` from PyPI, each
left out where it is not installed; both train in the way of their own trainers, sparsify with its Triton kernels on a
GPU and without them on a CPU.
The floor is measured in saejax's process: the encoder's product, into memory that is there, and a program that reads
weights, gradient and moments and writes all but the gradient.

Parts: `peers` as above; `aux` the same step with a tenth of the latents dead, and one without AuxK; `growth` over d_sae
and batch; `memory` what XLA's own plan of a step says, beyond state and workspace.
Times drift with the machine; the ratios are what to keep. The last line is JSON.

    python scripts/bench_train.py
    python scripts/bench_train.py --d-model 2304 --d-sae 65536 --k 64 --batch 8192 --precision bfloat16 --impl gpu
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import tyro

Peer: TypeAlias = Literal["saejax", "sparsify", "sae_lens"]
Part: TypeAlias = Literal["peers", "aux", "growth", "memory"]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time."""

    d_model: int = 512
    """Width of the activations."""
    d_sae: int = 16_384
    """Latents."""
    k: int = 32
    """Latents kept per row."""
    batch: int = 2048
    """Rows of a step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Inputs of matrix products; sparsify takes bfloat16 on a GPU by itself."""
    impl: Literal["jax", "gpu", "tpu"] = "jax"
    """Kernels of saejax's step."""
    steps: int = 6
    """Timed steps of a peer in a turn."""
    turns: int = 3
    """Turns of each peer."""
    parts: tuple[Part, ...] = ("peers", "aux", "growth", "memory")
    """What to measure."""
    peer: Peer | None = None
    """The peer that this process is, of one turn; the whole bench when not given."""


def median_ms(run: Callable[[], Any], steps: int) -> float:
    """Return the median time of a step, in milliseconds, after two to warm up."""
    seconds = []
    for turn in range(steps + 2):
        start = time.perf_counter()
        run()
        if turn >= 2:
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def rows_of(config: BenchConfig) -> np.ndarray:
    """Return made-up activations."""
    return np.random.default_rng(0).normal(size=(config.batch, config.d_model)).astype(np.float32)


def saejax_turn(config: BenchConfig, tenth_dead: bool = False, aux: bool = True) -> dict[str, float]:
    """Time a step of ours, with AuxK or without."""
    import jax
    import jax.numpy as jnp

    from saejax.sae.initial import initial_sae
    from saejax.sae.params import SAEConfig
    from saejax.sae.state import initial_state, workspace
    from saejax.sae.step import train_step

    x, key = rows_of(config), jax.random.key(0)
    shape, recipe = SAEConfig(config.d_model, config.d_sae, config.k), recipe_of(config)
    recipe = recipe if aux else dataclasses.replace(recipe, aux_coefficient=0)
    state = initial_state(initial_sae(shape, x, key), recipe, key)
    space, x = workspace(state, config.batch, config.impl), jnp.asarray(x)
    every = 10 if tenth_dead else config.d_sae + 1
    silent = np.where(np.arange(1, config.d_sae + 1) % every == 0, recipe.dead_window, 0).astype(np.int32)

    def run() -> None:
        nonlocal state, space
        # Dead latents would come to life within some steps; the counters are set back so that the regime holds.
        state = dataclasses.replace(state, silent=jnp.array(silent))
        state, space, _ = jax.block_until_ready(train_step(state, space, x, recipe))

    return {"step": median_ms(run, config.steps)}


def floor_turn(config: BenchConfig) -> dict[str, float]:
    """Time the encoder's product, and Adam's memory traffic."""
    import jax
    import jax.numpy as jnp
    from saejax_kernels import product

    x, W = jnp.asarray(rows_of(config)), jnp.ones((config.d_sae, config.d_model))
    multiply = jax.jit(lambda x, W, _: product(x, W, config.precision), donate_argnums=2, keep_unused=True)
    held = jnp.zeros((config.batch, config.d_sae))

    gradient = [W, jnp.array(W)]
    arrays = [jax.tree.map(jnp.array, gradient) for _ in range(3)]

    def add(arrays: Any, gradient: Any) -> Any:
        return [jax.tree.map(jnp.add, each, gradient) for each in arrays]

    traffic = jax.jit(add, donate_argnums=0)

    def run_product() -> None:
        nonlocal held
        held = jax.block_until_ready(multiply(x, W, held))

    def run_traffic() -> None:
        nonlocal arrays
        arrays = jax.block_until_ready(traffic(arrays, gradient))

    return {"product": median_ms(run_product, config.steps), "traffic": median_ms(run_traffic, config.steps)}


def sparsify_turn(config: BenchConfig) -> dict[str, float]:
    """Time a step of sparsify, as its trainer takes one with Adam."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(rows_of(config), device=device)
    sae = SparseCoder(config.d_model, SparseCoderConfig(num_latents=config.d_sae, k=config.k), device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)

    def run() -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(torch)

    return {"step": median_ms(run, config.steps)}


def sae_lens_turn(config: BenchConfig) -> dict[str, float]:
    """Time a step of SAELens, as its trainer takes one."""
    import torch
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.topk_sae import (  # pyright: ignore[reportMissingImports]
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(rows_of(config), device=device)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=config.d_model, d_sae=config.d_sae, k=config.k, device=device))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    nobody_dead = torch.zeros(config.d_sae, dtype=torch.bool, device=device)

    def run() -> None:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=nobody_dead, n_training_steps=0, is_logging_step=False
        )
        output = sae.training_forward_pass(given)
        with torch.no_grad():
            firing = output.feature_acts.bool().float()
            firing.sum(-2).bool()
            firing.sum(0)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronise(torch)

    return {"step": median_ms(run, config.steps)}


def synchronise(torch: Any) -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(config: BenchConfig) -> dict[str, float]:
    """Read from XLA's plan what a step needs, in MiB, without running one."""
    import jax
    import jax.numpy as jnp

    from saejax.sae.params import SAEConfig, shapes
    from saejax.sae.state import initial_state, workspace
    from saejax.sae.step import train_step

    shape, recipe = SAEConfig(config.d_model, config.d_sae, config.k), recipe_of(config)
    state = jax.eval_shape(lambda sae, key: initial_state(sae, recipe, key), shapes(shape), jax.random.key(0))
    space = jax.eval_shape(lambda state: workspace(state, config.batch, config.impl), state)
    x = jax.ShapeDtypeStruct((config.batch, config.d_model), jnp.float32)
    plan: Any = train_step.lower(state, space, x, recipe).compile().memory_analysis()
    matrices = 2 * 4 * config.d_sae * config.d_model
    sizes = {
        "parameters": matrices,
        "moments": 2 * matrices,
        "gradient": matrices,
        "product": 4 * config.batch * config.d_sae,
        "everything_else": plan.temp_size_in_bytes,
    }
    return {name: round(size / 2**20, 1) for name, size in sizes.items()}


def recipe_of(config: BenchConfig) -> Any:
    """Return a recipe in which nobody dies."""
    from saejax.sae.state import Recipe

    return Recipe(
        steps=10**6, learning_rate=1e-4, warmup_steps=10, decay_steps=10, aux_k=256, aux_capacity=1024,
        aux_coefficient=1 / 32, dead_window=2**30, precision=config.precision, impl=config.impl,
    )  # fmt: skip


def turn(config: BenchConfig, peer: Peer, **changes: Any) -> dict[str, float]:
    """Run one turn of a peer in a process of its own."""
    given = dataclasses.replace(config, peer=peer, **changes)
    names = ("d_model", "d_sae", "k", "batch", "precision", "impl", "steps", "peer")
    words = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]
    settings = dict(os.environ)
    if not nvidia():
        settings["SPARSIFY_DISABLE_TRITON"] = "1"
    command = [sys.executable, __file__, *words, "--parts", *given.parts]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=settings)
    return json.loads(done.stdout.splitlines()[-1])


def nvidia() -> bool:
    """Tell whether there is an NVIDIA GPU."""
    return os.path.exists("/dev/nvidiactl")


def best_of_turns(config: BenchConfig, peers: list[Peer], **changes: Any) -> dict[Peer, dict[str, float]]:
    """Let peers take turns, and return the shortest time of each measurement."""
    found: dict[Peer, dict[str, float]] = {}
    for _ in range(config.turns):
        for peer in peers:
            new = turn(config, peer, **changes)
            found[peer] = {name: min(value, found.get(peer, new)[name]) for name, value in new.items()}
    return found


def main(config: BenchConfig) -> None:
    """Run one turn, or all parts, and print how they compare."""
    if config.peer is not None:
        found: dict[str, float] = {}
        if config.peer == "saejax":
            if "memory" in config.parts:
                found |= memory(config)
            if "peers" in config.parts:
                found |= saejax_turn(config) | floor_turn(config)
            if "aux" in config.parts:
                found |= {"tenth_dead": saejax_turn(config, tenth_dead=True)["step"]}
                found |= {"without_aux": saejax_turn(config, aux=False)["step"]}
        else:
            found = {"sparsify": sparsify_turn, "sae_lens": sae_lens_turn}[config.peer](config)
        print(json.dumps(found))
        return
    report: dict[str, Any] = {}
    shape = {name: getattr(config, name) for name in ("d_model", "d_sae", "k", "batch", "precision", "impl")}
    if "peers" in config.parts:
        installed: list[Peer] = [peer for peer in ("sparsify", "sae_lens") if importlib.util.find_spec(peer)]
        times = best_of_turns(config, ["saejax", *installed], parts=("peers", "aux"))
        ours = times["saejax"]
        report |= {f"{peer}_ms": round(found["step"], 1) for peer, found in times.items()}
        report |= {
            f"{peer}_tokens_per_second": round(config.batch / found["step"] * 1000) for peer, found in times.items()
        }
        report |= {f"{peer}_over_saejax": round(times[peer]["step"] / ours["step"], 2) for peer in installed}
        report |= {"product_ms": round(ours["product"], 1), "traffic_ms": round(ours["traffic"], 1)}
        report["over_floor"] = round(ours["step"] / (ours["product"] + ours["traffic"]), 2)
        report["tenth_dead_over_without_aux"] = round(ours["tenth_dead"] / ours["without_aux"], 3)
        report["none_dead_over_without_aux"] = round(ours["step"] / ours["without_aux"], 3)
        print(json.dumps({**shape, **report}), flush=True)
    if "growth" in config.parts:
        report["growth"] = []
        sizes = [(d_sae, config.batch) for d_sae in (4096, 8192, 16_384, 32_768, 65_536)]
        sizes += [(config.d_sae, batch) for batch in (512, 1024, 4096, 8192)]
        for d_sae, batch in sizes:
            ours = turn(config, "saejax", d_sae=d_sae, batch=batch, parts=("peers",))
            row = {
                "d_sae": d_sae,
                "batch": batch,
                "ms": round(ours["step"], 1),
                "tokens_per_second": round(batch / ours["step"] * 1000),
            }
            row["over_floor"] = round(ours["step"] / (ours["product"] + ours["traffic"]), 2)
            report["growth"].append(row)
            print(json.dumps(row), flush=True)
    if "memory" in config.parts:
        report["memory_mib"] = turn(config, "saejax", d_sae=65_536, parts=("memory",))
    print(json.dumps({**shape, **report}))


if __name__ == "__main__":
    main(tyro.cli(BenchConfig, description=__doc__))
