"""Train an SAE on one hook of an activation store, into a run directory of kind "sae".

manifest.json     model, hook, store, rows; shape and hash of the weights
sae.safetensors   the SAE
health.json       its health table, over all rows of the store that are no special tokens
metrics.jsonl     a line every 50 steps
checkpoints/      the last two states, from which a killed run goes on, bit for bit
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float
from saejax_kernels import Precision, mosaic

from saejax import artifacts
from saejax.activations.reader import blocks, shuffled_batches
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.progress import progress
from saejax.rng import named_key
from saejax.sae.checkpoint import KEPT, open_checkpoints
from saejax.sae.health import health_table
from saejax.sae.initial import initial_sae
from saejax.sae.metrics import measure
from saejax.sae.params import SAEConfig, save, shapes
from saejax.sae.provenance import provenance
from saejax.sae.step import Recipe, TrainState, initial_state, train_step, workspace

LOG_EVERY = 50
BLOCK = 8192
MOST_CONSIDERED = 2048


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
    impl: Literal["auto", "jax", "pallas"] = "auto"
    """What sums over codes: jax, on any device; pallas, on NVIDIA GPUs from Hopper on; auto is pallas there."""
    initial_rows: int = 8192
    """Rows that set the input scale and the geometric median with which b_dec begins."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the initial decoder and of the order of rows."""

    def __post_init__(self) -> None:
        """Refuse what no run can have, all of it at once."""
        least = {
            "d_sae": 1, "k": 1, "steps": 1, "batch": 1, "warmup_steps": 0, "decay_steps": 0, "aux_k": 1,
            "aux_capacity": 1, "aux_coefficient": 0, "dead_window": 1, "initial_rows": 2, "checkpoint_every": 1,
            "seed": 0,
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
        InputError: the store lacks the hook or holds fewer rows than a batch, or `out` holds another run.
    """
    store = _open(config)
    run = artifacts.begin(config.out, "sae", config, {"store": artifacts.run_fingerprint(config.store)})
    if run.complete:
        return run.path
    recipe = config.recipe(store.width(config.hook))
    with open_checkpoints(run.path / "checkpoints") as checkpoints:
        state = checkpoints.restore(_shapes(config, recipe, store))
        if state is None:
            state = _initial(config, recipe, store)
        start = int(state.step)
        run.rewind_log(start)
        batches = shuffled_batches(store, config.hook, config.batch, config.seed, start)
        state = fit(
            state,
            recipe,
            batches,
            batch=config.batch,
            log=run.log,
            save=checkpoints.save,
            checkpoint_every=config.checkpoint_every,
        )
    facts = save(state.sae, run.path)
    health = health_table(state.sae, measure(state.sae, _all_rows(store, config.hook)))
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
    save: Callable[[TrainState], None],
    checkpoint_every: int,
) -> TrainState:
    """Step from a state to the end of its recipe.

    Args:
        state: where to begin; its buffers are donated.
        recipe: recipe of the run.
        batches: activations in the model's units, from the batch of step `state.step` on.
        batch: rows in each.
        log: called with `step` and the metrics of that step's batch, every 50 steps and after the last.
        save: called with the state every `checkpoint_every` steps and after the last.
        checkpoint_every: steps between checkpoints.

    Returns:
        The state after the last step.

    Raises:
        InputError: the loss is not finite any more.
        ValueError: the batches end before the steps do.
    """
    step = start = int(state.step)
    space = workspace(state, batch)
    with progress("train SAE", recipe.steps, done=start) as advance:
        for step, x in zip(range(start + 1, recipe.steps + 1), batches, strict=False):
            state, space, metrics = train_step(state, space, x, recipe)
            last = step == recipe.steps
            if step % LOG_EVERY == 0 or last:
                numbers = {name: float(value) for name, value in metrics.items()}
                if not math.isfinite(numbers["fvu"]):
                    raise InputError(
                        f"FVU is {numbers['fvu']} at step {step}; lower learning_rate {recipe.learning_rate}"
                    )
                log(step=step, **numbers)
                advance(step - max(start, (step - 1) // LOG_EVERY * LOG_EVERY), f"FVU {numbers['fvu']:.3f}")
            if step % checkpoint_every == 0 or last:
                save(state)
    if step < recipe.steps:
        raise ValueError(f"the batches ended after step {step} of {recipe.steps}")
    return state


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
        "bytes on disk": KEPT * state_bytes + parameters,
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


def _shapes(config: SAETrainConfig, recipe: Recipe, store: Store) -> TrainState:
    shape = SAEConfig(store.width(config.hook), config.d_sae, config.k)
    return jax.eval_shape(lambda sae, key: initial_state(sae, recipe, key), shapes(shape), jax.random.key(0))


def _all_rows(store: Store, hook: str) -> Iterable[np.ndarray]:
    with progress("measure SAE", math.ceil(store.rows / BLOCK)) as advance:
        for _, x in blocks(store, hook, BLOCK):
            yield x
            advance()
