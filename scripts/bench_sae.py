"""Time one SAE training step against the same step written the plain way in JAX, in one process, alternating.

Regime: float32, batch 2,048 rows already on the device, compiled and warmed up, median over steps, each step
    waited for.
Two sizes (the demo's, and a large one), each with no latent dead (AuxK costs nothing) and with a tenth of
them dead. The plain step scatters the codes into a dense matrix, multiplies, differentiates automatically,
and takes AuxK by `top_k` over all pre-activations. Times drift with the machine; the ratios are what to keep.
The last line is JSON.

    python scripts/bench_sae.py --steps 10
"""

import dataclasses
import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from saejax.sae.initial import initial_sae
from saejax.sae.params import SAE, SAEConfig
from saejax.sae.step import Recipe, TrainState, initial_state, tangent, train_step


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time."""

    steps: int = 10
    """Timed steps of each kind."""
    batch: int = 2048
    """Rows per step."""


SIZES = {"demo": SAEConfig(d_model=256, d_sae=2048, k=16), "large": SAEConfig(d_model=512, d_sae=16384, k=32)}


def plain_loss(sae: SAE, x: jax.Array, dead: jax.Array, recipe: Recipe, with_aux: bool) -> Any:
    """Compute the loss of `train_step` with dense codes and no custom gradient."""
    rows = jnp.arange(x.shape[0])[:, None]

    def dense(preactivations: jax.Array, k: int) -> jax.Array:
        values, indices = lax.optimization_barrier(lax.top_k(preactivations, k))
        return jnp.zeros_like(preactivations).at[rows, indices].set(jax.nn.relu(values))

    preactivations = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    codes = dense(preactivations, sae.config.k)
    residual = x - (codes @ sae.W_dec + sae.b_dec)
    loss = jnp.mean(jnp.sum(residual**2, axis=1)) / x.shape[1]
    if with_aux:
        target = lax.stop_gradient(residual)
        aux_codes = dense(jnp.where(dead, preactivations, -jnp.inf), recipe.aux_k)
        error = jnp.mean(jnp.sum((aux_codes @ sae.W_dec - target) ** 2, axis=1))
        loss += recipe.aux_coefficient * error / jnp.sum(jnp.var(target, axis=0))
    return loss, codes


@partial(jax.jit, static_argnames=("recipe", "with_aux"), donate_argnames="state")
def plain_step(state: TrainState, x: jax.Array, recipe: Recipe, with_aux: bool) -> tuple[TrainState, dict]:
    """Take the step of `train_step`, dense and automatically differentiated."""
    dead = state.silent >= recipe.dead_window
    (loss, codes), gradient = jax.value_and_grad(plain_loss, has_aux=True)(
        state.sae, x * state.sae.scale, dead, recipe, with_aux
    )
    gradient = dataclasses.replace(gradient, W_dec=tangent(gradient.W_dec, state.sae.W_dec))
    updates, optimiser = recipe.optimiser().update(gradient, state.optimiser, state.sae)
    sae = jax.tree.map(jnp.add, state.sae, updates)
    sae = dataclasses.replace(sae, W_dec=sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True))
    silent = jnp.where(jnp.any(codes > 0, axis=0), 0, jnp.minimum(state.silent + len(x), recipe.dead_window))
    return TrainState(sae, optimiser, silent, state.step + 1, state.key), {"fvu": loss}


def measure(shape: SAEConfig, dead: bool, config: BenchConfig) -> dict[str, Any]:
    """Time both steps at one size, alternating, from equal states."""
    x = np.random.default_rng(0).normal(size=(config.batch, shape.d_model)).astype(np.float32)
    recipe = Recipe(10**6, 1e-4, 10, 10, shape.d_model // 2, 1 / 32, dead_window=2**30)
    silent = jnp.where(jnp.arange(shape.d_sae) % 10 == 0, 2**30, 0) if dead else jnp.zeros(shape.d_sae, jnp.int32)
    kinds = {
        "saejax": lambda state, x: train_step(state, x, recipe),
        "plain": lambda state, x: plain_step(state, x, recipe, with_aux=dead),
    }
    key = jax.random.key(0)
    states = {kind: initial_state(initial_sae(shape, x, key), recipe, key) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    x = jnp.asarray(x)
    for turn in range(config.steps + 2):
        for kind, step in kinds.items():
            # Live latents would revive the dead within steps; the counters are set back so that the regime
            # holds.
            state = jax.block_until_ready(dataclasses.replace(states[kind], silent=jnp.array(silent)))
            start = time.perf_counter()
            states[kind], _ = jax.block_until_ready(step(state, x))
            if turn >= 2:
                seconds[kind].append(time.perf_counter() - start)
    ms = {f"{kind}_ms": round(1000 * statistics.median(times), 1) for kind, times in seconds.items()}
    return {**ms, "plain_over_saejax": round(ms["plain_ms"] / ms["saejax_ms"], 2)}


def main(config: BenchConfig) -> None:
    """Time every size and regime, print a line each, then all of it as JSON."""
    results = {}
    for name, shape in SIZES.items():
        for dead in (False, True):
            label = f"{name}, {'a tenth dead' if dead else 'none dead'}"
            results[label] = measure(shape, dead, config)
            print(f"{label:22} {shape}  {results[label]}", flush=True)
    print(json.dumps({"batch": config.batch, "jax": jax.__version__, "results": results}))


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
