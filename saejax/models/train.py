"""Trains a language model from scratch on batches of packed tokens.

The step is a pure function of (state, batch) and the batch is a function of the step, so a run that is killed goes
on from its last checkpoint exactly as if it had not been.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float, Int

from saejax.artifacts import Run
from saejax.errors import InputError
from saejax.models.transformer import Transformer
from saejax.progress import progress

LOG_EVERY = 50


class TokenBatch(NamedTuple):
    """Packed rows of tokens.

    Attributes:
        input_ids: token ids.
        segment: number of the document within the row, 0 for padding.
        position: position of each token in its segment.
    """

    input_ids: Int[np.ndarray | Array, "batch position"]
    segment: Int[np.ndarray | Array, "batch position"]
    position: Int[np.ndarray | Array, "batch position"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """AdamW with linear warm-up and cosine decay to a tenth.

    Attributes:
        steps: optimiser steps in all.
        warmup_steps: steps over which the learning rate grows from 0.
        learning_rate: peak learning rate.
        weight_decay: decoupled decay of the matrices; norms are not decayed.
        clip: largest global norm of a gradient.
        checkpoint_every: steps between checkpoints that a killed run resumes from.
    """

    steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    clip: float = 1.0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        """Refuse a schedule that has no steps left after its warm-up."""
        if not 0 <= self.warmup_steps < self.steps:
            raise InputError(f"warmup_steps {self.warmup_steps} must be below the {self.steps} steps of the run")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate {self.learning_rate} must be positive")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every {self.checkpoint_every} must be at least 1 step")

    def rate(self) -> optax.Schedule:
        """Return the learning rate as a function of the step."""
        peak = self.learning_rate
        return optax.warmup_cosine_decay_schedule(0.0, peak, self.warmup_steps, self.steps, end_value=peak / 10)

    def optimizer(self) -> optax.GradientTransformation:
        """Return gradient clipping followed by AdamW with betas (0.9, 0.95)."""
        adamw = optax.adamw(self.rate(), b2=0.95, weight_decay=self.weight_decay, mask=_is_matrix)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw)


class TrainState(NamedTuple):
    """Everything that one step changes.

    Attributes:
        weights: the model's parameters.
        optimizer: the optimiser's moments and its count of steps.
        step: steps taken.
    """

    weights: nnx.State
    optimizer: optax.OptState
    step: Int[Array, ""]


def cross_entropy(model: Transformer, batch: TokenBatch) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sum the next-token cross-entropy of a batch, in nats, over targets of the same document.

    The first token of a segment is context only: there is nothing of its document before it.

    Args:
        model: the language model.
        batch: packed rows.

    Returns:
        The sum over predicted tokens and their number.
    """
    input_ids, segment, position = (jnp.asarray(column) for column in batch)
    x, _ = model.hidden(input_ids, segment, position)
    logits = model.logits(x[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, input_ids[:, 1:])
    counted = predicted(segment)
    return jnp.sum(losses * counted), jnp.sum(counted)


def predicted(segment: Int[Array, "batch position"]) -> jax.Array:
    """Return `[batch, position - 1]`: whether the token at the next position is predicted at this one."""
    return (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)


def train(
    model: Transformer,
    batch_at: Callable[[int], TokenBatch],
    schedule: Schedule,
    *,
    run: Run,
    snapshot: Callable[[int, Transformer], None],
    snapshot_steps: tuple[int, ...] = (),
) -> Transformer:
    """Train a model, resuming from the run's last checkpoint if there is one.

    Args:
        model: the model with its initial weights.
        batch_at: the batch of each step, a pure function of the step (from 0).
        schedule: optimiser and its lengths.
        run: the run directory; metrics go to its log, checkpoints below it.
        snapshot: called with the step and the model after each of `snapshot_steps`.
        snapshot_steps: steps after which the model is kept.

    Returns:
        The trained model.
    """
    graph, weights = nnx.split(model)
    optimizer = schedule.optimizer()
    state = TrainState(weights, optimizer.init(weights), jnp.zeros((), jnp.int32))
    with _checkpoints(run.path / "training") as checkpoints:
        if checkpoints.latest_step() is not None:
            restored = checkpoints.restore(checkpoints.latest_step(), args=ocp.args.StandardRestore(state))
            state = cast(TrainState, restored)
        begin = int(state.step)
        run.rewind_log(begin)
        step = _compiled_step(graph, optimizer)
        rate, losses, since = schedule.rate(), [], time.perf_counter()
        with progress(f"training {run.path.name}", schedule.steps, begin) as advance:
            for index in range(begin, schedule.steps):
                batch = batch_at(index)
                state, loss = step(state, batch)
                losses.append(loss)
                done = index + 1
                if done % LOG_EVERY == 0 or done == schedule.steps:
                    loss = float(jnp.mean(jnp.stack(losses)))
                    seconds, since = time.perf_counter() - since, time.perf_counter()
                    tokens = int(np.prod(batch.input_ids.shape))
                    run.log(step=done, tokens=done * tokens, loss=loss, learning_rate=float(np.asarray(rate(index))),
                            tokens_per_second=round(len(losses) * tokens / seconds))  # fmt: skip
                    advance(len(losses), f"loss {loss:.3f}")
                    losses = []
                if done in snapshot_steps:
                    snapshot(done, nnx.merge(graph, state.weights))
                if done % schedule.checkpoint_every == 0 or done == schedule.steps:
                    checkpoints.save(done, args=ocp.args.StandardSave(state))
    return nnx.merge(graph, state.weights)


def mean_loss(model: Transformer, batches: list[TokenBatch]) -> float:
    """Return the mean cross-entropy of a model over all predicted tokens of some batches, in nats per token."""
    graph, weights = nnx.split(model)
    evaluate = jax.jit(lambda weights, batch: cross_entropy(nnx.merge(graph, weights), batch))
    sums = np.zeros(2)
    for batch in batches:
        sums += [float(value) for value in evaluate(weights, batch)]
    return float(sums[0] / sums[1])


def step_seconds(model: Transformer, schedule: Schedule, shape: tuple[int, int]) -> float:
    """Time the training step on made-up tokens.

    Args:
        model: the model; its weights are not changed.
        schedule: the optimiser.
        shape: rows and positions of a batch.

    Returns:
        The shortest of three timed steps, in seconds.
    """
    graph, weights = nnx.split(model)
    weights = jax.tree.map(jnp.copy, weights)
    optimizer = schedule.optimizer()
    state = TrainState(weights, optimizer.init(weights), jnp.zeros((), jnp.int32))
    position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = TokenBatch(np.ones(shape, np.int32), np.ones(shape, np.int32), position)
    step, seconds = _compiled_step(graph, optimizer), []
    for _ in range(4):
        start = time.perf_counter()
        state, loss = step(state, batch)
        loss.block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _compiled_step(graph: Any, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    def loss_of(weights: nnx.State, batch: TokenBatch) -> jax.Array:
        total, count = cross_entropy(nnx.merge(graph, weights), batch)
        return total / count

    def step(state: TrainState, batch: TokenBatch) -> tuple[TrainState, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.weights, batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.weights)
        weights = cast(nnx.State, optax.apply_updates(state.weights, updates))
        return TrainState(weights, moments, state.step + 1), loss

    return jax.jit(step, donate_argnums=0)


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _is_matrix(weights: nnx.State) -> nnx.State:
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), weights)
