"""Train an SAE on one hook of an activation store, into a run directory of kind "sae".

manifest.json     model, hook, store, rows; shape and hash of the weights
sae.safetensors   the SAE
health.json       its health table, over all rows of the store that are no special tokens
metrics.jsonl     a line every 50 steps
checkpoints/      the last states, and the best, from which a killed run goes on, bit for bit
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from saejax_kernels import Precision, mosaic

from saejax import artifacts
from saejax.activations.reader import blocks, shuffled_batches
from saejax.activations.store import Store
from saejax.errors import InputError, Preempted
from saejax.preemption import Preemption, noticed
from saejax.progress import progress
from saejax.rng import named_key
from saejax.sae.checkpoint import Checkpoints, open_checkpoints
from saejax.sae.health import health_table
from saejax.sae.initial import initial_sae
from saejax.sae.metrics import measure
from saejax.sae.params import SAEConfig, save, shapes
from saejax.sae.placement import placed_state, placed_workspace, step_mesh
from saejax.sae.provenance import provenance
from saejax.sae.state import Recipe, TrainState, initial_state, workspace
from saejax.sae.step import train_step
from saejax.types import Array

LOG_EVERY = 50
BLOCK = 8192
MOST_CONSIDERED = 2048
DIVERGED = 10.0
"""Times the lowest FVU that was logged, at least 1, from which on a run has diverged."""


@dataclasses.dataclass(frozen=True)
class SAETrainConfig:
    """Train a TopK sparse autoencoder on the activations of one hook."""

    store: Path
    """Activation store to train on."""
    hook: str
    """Hook point of the store whose activations the SAE reads, for example resid_post.0."""
    out: Path
    """Run directory to write."""
    d_sae: int = 2048
    """Dictionary size: number of latents."""
    k: int = 16
    """Latents kept per row."""
    steps: int = 1500
    """Training steps."""
    batch: int = 2048
    """Rows per step."""
    learning_rate: float | None = None
    """Adam's peak learning rate; by default 4e-4 / sqrt(d_sae / 16,384)."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    decay_steps: int = 300
    """Last steps, over which the learning rate falls linearly to 0."""
    aux_k: int | None = None
    """Dead latents that AuxK uses per row; by default half the width of the hook, at most aux_capacity."""
    aux_capacity: int = 1024
    """Dead latents that AuxK considers in one step, at most 2,048; where more are dead, they take turns."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    dead_window: int = 200_000
    """Tokens without firing after which a latent counts as dead."""
    precision: Precision = "float32"
    """Inputs of matrix products: float32, or bfloat16; parameters, moments and sums are float32."""
    impl: Literal["auto", "jax", "pallas"] = dataclasses.field(default="auto", metadata=artifacts.EXECUTION)
    """What sums over codes: jax, on any device; pallas, on NVIDIA GPUs from Hopper on; auto is pallas there."""
    initial_rows: int = 8192
    """Rows that set the input scale and the geometric median with which b_dec begins."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = dataclasses.field(default=2, metadata=artifacts.EXECUTION)
    """Last checkpoints to keep; the one with the lowest FVU is kept too."""
    data: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Devices that the rows of a batch are spread over, in equal parts."""
    latent: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Devices that the latents are spread over, in equal parts; data x latent devices are used."""
    seed: int = 0
    """Seed of the initial decoder and of the order of rows."""

    def __post_init__(self) -> None:
        """Refuse what no run can have, all of it at once."""
        least = {
            "d_sae": 1, "k": 1, "steps": 1, "batch": 1, "warmup_steps": 0, "decay_steps": 0, "aux_k": 1,
            "aux_capacity": 1, "aux_coefficient": 0, "dead_window": 1, "initial_rows": 2, "checkpoint_every": 1,
            "keep": 1, "data": 1, "latent": 1, "seed": 0,
        }  # fmt: skip
        given = {name: getattr(self, name) for name in least}
        problems = [
            f"{name} {value}; give at least {least[name]}"
            for name, value in given.items()
            if value is not None and not value >= least[name]
        ]
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate {self.learning_rate}; give a positive number")
        for name, value in (("k", self.k), ("aux_k", self.aux_k)):
            if value is not None and value > self.d_sae:
                problems.append(f"{name} {value} is larger than d_sae {self.d_sae}; lower {name} or raise d_sae")
        if self.aux_capacity > MOST_CONSIDERED:
            problems.append(f"aux_capacity {self.aux_capacity}; give at most {MOST_CONSIDERED}")
        if self.aux_k is not None and self.aux_k > self.aux_capacity:
            problems.append(f"aux_k {self.aux_k} is larger than aux_capacity {self.aux_capacity}; lower aux_k")
        for name, whole, parts in (("batch", self.batch, self.data), ("d_sae", self.d_sae, self.latent)):
            if parts >= 1 and whole % parts:
                axis = "data" if name == "batch" else "latent"
                problems.append(f"{name} {whole} is no multiple of {axis} {parts}; change one of them")
        if self.precision not in get_args(Precision):
            problems.append(f"precision {self.precision!r} is none of {', '.join(get_args(Precision))}")
        if 1 <= self.steps < self.warmup_steps + self.decay_steps:
            ramps = f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps}"
            problems.append(f"{ramps} exceed steps {self.steps}; lower them or raise steps")
        if problems:
            raise InputError("; ".join(problems))

    def recipe(self, d_model: int) -> Recipe:
        """Resolve the defaults that depend on the width of the hook.

        Args:
            d_model: width of the hook.

        Returns:
            What the training step needs to know.
        """
        return Recipe(
            steps=self.steps,
            learning_rate=self.learning_rate or 4e-4 / math.sqrt(self.d_sae / 2**14),
            warmup_steps=self.warmup_steps,
            decay_steps=self.decay_steps,
            aux_k=self.aux_k or min(max(d_model // 2, 1), self.d_sae, self.aux_capacity),
            aux_capacity=self.aux_capacity,
            aux_coefficient=self.aux_coefficient,
            dead_window=self.dead_window,
            precision=self.precision,
            impl=self.impl if self.impl != "auto" else "pallas" if mosaic.runs_here() else "jax",
        )


def train(config: SAETrainConfig) -> Path:
    """Train an SAE, or go on with the run that `out` holds.

    Args:
        config: the run.

    Returns:
        The run directory.

    Raises:
        InputError: the store lacks the hook or holds fewer rows than a batch, there are not so many devices, `out`
            holds another run, or training diverged.
        Preempted: SIGTERM came; all that was done is saved.
    """
    mesh = step_mesh(config.data, config.latent)
    store = _open(config)
    run = artifacts.begin(config.out, "sae", config, {"store": artifacts.run_fingerprint(config.store)})
    if run.complete:
        return run.path
    recipe = config.recipe(store.width(config.hook))
    with open_checkpoints(run.path / "checkpoints", config.keep) as checkpoints, noticed() as preemption:
        state = checkpoints.restore(_shapes(config, recipe, store, mesh))
        if state is None:
            state = placed_state(_initial(config, recipe, store), mesh)
        start = int(state.step)
        run.rewind_log(start)
        batches = shuffled_batches(store, config.hook, config.batch, config.seed, start)
        state = fit(
            state,
            recipe,
            batches,
            batch=config.batch,
            log=run.log,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            mesh=mesh,
            preemption=preemption,
        )
    sae = jax.device_put(state.sae, jax.local_devices()[0])
    facts = save(sae, run.path)
    health = health_table(sae, measure(sae, _all_rows(store, config.hook)))
    artifacts.write_json(run.path / "health.json", health)
    run.finish(**provenance(store, config.hook), **facts)
    return run.path


def fit(
    state: TrainState,
    recipe: Recipe,
    batches: Iterable[Float[np.ndarray, "batch d_model"]],
    *,
    batch: int,
    log: Callable[..., None],
    checkpoints: Checkpoints,
    checkpoint_every: int,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
) -> TrainState:
    """Step from a state to the end of its recipe.

    Args:
        state: where to begin; its buffers are donated.
        recipe: recipe of the run.
        batches: activations in the model's units, from the batch of step `state.step` on.
        batch: rows in each.
        log: called with `step` and the metrics of that step's batch, every 50 steps and after the last.
        checkpoints: where states go every `checkpoint_every` steps, after the last, and when the run is to end.
        checkpoint_every: steps between checkpoints.
        mesh: devices that the steps are spread over; the state is there already.
        preemption: whether the run is to end before its last step; never when None.

    Returns:
        The state after the last step.

    Raises:
        InputError: the loss is not finite any more, or has grown to ten times what it was.
        Preempted: the run was to end; its state is saved.
        ValueError: the batches end before the steps do.
    """
    step = start = int(state.step)
    space, fvus, lowest, since = placed_workspace(state, batch, mesh), [], math.inf, time.perf_counter()
    with progress("train SAE", recipe.steps, done=start) as advance:
        for step, x in zip(range(start + 1, recipe.steps + 1), batches, strict=False):
            state, space, metrics = train_step(state, space, x, recipe, mesh)
            fvus.append(metrics["fvu"])
            last, ending = step == recipe.steps, preemption is not None and preemption.at(step)
            if step % LOG_EVERY == 0 or last:
                numbers = {name: float(value) for name, value in metrics.items()}
                lowest = min(lowest, _sound(numbers["fvu"], lowest, step, recipe, checkpoints))
                log(step=step, **numbers)
                done = step - max(start, (step - 1) // LOG_EVERY * LOG_EVERY)
                seconds, since = time.perf_counter() - since, time.perf_counter()
                advance(done, _note(numbers, done * batch / seconds))
            if step % checkpoint_every == 0 or last or ending:
                fvu = float(jnp.mean(jnp.stack(fvus)))
                _sound(fvu if all_finite(state) else math.nan, lowest, step, recipe, checkpoints)
                checkpoints.save(state, fvu)
                fvus = []
            if ending and not last:
                raise Preempted(f"told to end; step {step} of {recipe.steps} is saved, and the same command goes on")
    if step < recipe.steps:
        raise ValueError(f"the batches ended after step {step} of {recipe.steps}")
    return state


def _sound(fvu: float, lowest: float, step: int, recipe: Recipe, checkpoints: Checkpoints) -> float:
    """Return an FVU that a run may have, and refuse others: what diverged is never saved."""
    if fvu <= DIVERGED * max(lowest, 1.0) or (math.isinf(lowest) and math.isfinite(fvu)):
        return fvu
    kept = "no checkpoint was saved yet" if checkpoints.best is None else f"the best checkpoint is {checkpoints.best}"
    raise InputError(f"FVU is {fvu} at step {step}; {kept}; lower learning_rate {recipe.learning_rate}")


@jax.jit
def all_finite(tree: Any) -> Array:
    """Tell whether no number of a tree is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _note(numbers: Mapping[str, float], tokens_per_second: float) -> str:
    health = f"FVU {numbers['fvu']:.3f}  L0 {numbers['l0']:.1f}  dead {numbers['dead']:.0f}"
    return f"{tokens_per_second:,.0f} tokens/s  {health}"


def plan(config: SAETrainConfig) -> dict[str, Any]:
    """Say what a run would cost, from a few timed steps on the store's own rows; nothing is written.

    Args:
        config: the run.

    Returns:
        Rows per epoch, epochs, bytes on disk, minutes and peak memory.

    Raises:
        InputError: as `train`.
    """
    store = _open(config)
    d_model = store.width(config.hook)
    recipe = config.recipe(d_model)
    state = _initial(config, recipe, store)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves((state.weights, state.scale)))
    times, space = [], workspace(state, config.batch)
    for x in itertools.islice(shuffled_batches(store, config.hook, config.batch, config.seed), 4):
        begun = time.perf_counter()
        state, space, _ = jax.block_until_ready(train_step(state, space, x, recipe))
        times.append(time.perf_counter() - begun)
    rows = int(store.kept.sum())
    return {
        "rows per epoch": rows,
        "epochs": round(config.steps * config.batch / rows, 2),
        "bytes of parameters": parameters,
        "bytes of parameters and optimiser": state_bytes,
        "bytes on disk": (config.keep + 1) * state_bytes + parameters,
        "minutes": round(float(np.median(times[1:])) * config.steps / 60, 1),
        # State, gradient and one array like W_dec; the product; AuxK's arrays of batch x aux_capacity.
        "GiB of memory": round(
            (state_bytes + 1.5 * parameters + 4 * config.batch * (config.d_sae + 3 * config.aux_capacity)) / 2**30, 2
        ),
    }


def _open(config: SAETrainConfig) -> Store:
    store = Store.open(config.store)
    store.require(hook=config.hook)
    rows = int(store.kept.sum())
    if config.batch > rows:
        raise InputError(f"batch {config.batch} is larger than the store's {rows} rows; lower it or extract more")
    return store


def _initial(config: SAETrainConfig, recipe: Recipe, store: Store) -> TrainState:
    batches = min(math.ceil(config.initial_rows / config.batch), int(store.kept.sum()) // config.batch)
    first = itertools.islice(shuffled_batches(store, config.hook, config.batch, config.seed), batches)
    sample = np.concatenate(list(first))[: config.initial_rows]
    shape = SAEConfig(store.width(config.hook), config.d_sae, config.k)
    key = named_key(config.seed, "sae.init")
    return initial_state(initial_sae(shape, sample, key), recipe, key)


def _shapes(config: SAETrainConfig, recipe: Recipe, store: Store, mesh: Mesh | None) -> TrainState:
    shape = SAEConfig(store.width(config.hook), config.d_sae, config.k)
    state = jax.eval_shape(lambda sae, key: initial_state(sae, recipe, key), shapes(shape), jax.random.key(0))
    return placed_state(state, mesh)


def _all_rows(store: Store, hook: str) -> Iterable[np.ndarray]:
    with progress("measure SAE", math.ceil(store.rows / BLOCK)) as advance:
        for _, x in blocks(store, hook, BLOCK):
            yield x
            advance()
