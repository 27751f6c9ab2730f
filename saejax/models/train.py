"""Trains language models from scratch on batches of packed tokens.

The step is a pure function of (state, batch) and the batch is a function of the step, so a run that is killed goes
on from its last checkpoint exactly as if it had not been. Several models of one shape can take their steps together,
on the same batches; what one learns does not depend on the others beyond the rounding of sums. Rows of a batch can be
spread over devices, each of which holds all weights.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from saejax.artifacts import Run
from saejax.mesh import replicated
from saejax.models.config import TransformerConfig
from saejax.models.forward import forward
from saejax.models.schedule import Schedule, is_matrix
from saejax.models.sharding import rows
from saejax.models.transformer import Transformer
from saejax.progress import progress

LOG_EVERY = 50
Precision = Literal["float32", "bfloat16"]


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


class TrainState(NamedTuple):
    """Everything that one step changes; of several models, each array has an axis of models before its own.

    Attributes:
        weights: the model's parameters.
        optimizer: the optimiser's moments and its count of steps.
        step: steps taken.
    """

    weights: nnx.State
    optimizer: optax.OptState
    step: Int[Array, "*models"]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """How a step is computed.

    Attributes:
        precision: type of the inputs of matrix products. Parameters, the optimiser's moments, norms, logits and the
            loss are float32 either way.
        mesh: devices that the rows of a batch are spread over, with an axis `data`; the first alone when None.
    """

    precision: Precision = "float32"
    mesh: Mesh | None = None


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
    x, _ = forward(model, input_ids, segment, position)
    logits = model.logits(x[:, :-1], jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, input_ids[:, 1:])
    counted = predicted(segment)
    return jnp.sum(losses * counted), jnp.sum(counted)


def predicted(segment: Int[Array, "batch position"]) -> jax.Array:
    """Return `[batch, position - 1]`: whether the token at the next position is predicted at this one."""
    return (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)


def train(
    models: Sequence[Transformer],
    batch_at: Callable[[int], TokenBatch],
    schedule: Schedule,
    *,
    runs: Sequence[Run],
    snapshot: Callable[[int, int, Transformer], None],
    snapshot_steps: tuple[int, ...] = (),
    hardware: Hardware = Hardware(),
) -> list[Transformer]:
    """Train models of one shape on the same batches, resuming from the last checkpoint that all their runs have.

    Args:
        models: the models with their initial weights; one, or several that take their steps together.
        batch_at: the batch of each step, a pure function of the step (from 0).
        schedule: optimiser and its lengths.
        runs: the run directory of each model; metrics go to its log, checkpoints below it.
        snapshot: called with the model's place among `models`, the step and the model after each of `snapshot_steps`.
        snapshot_steps: steps after which the models are kept.
        hardware: number format and devices.

    Returns:
        The trained models.
    """
    graph, optimizer = nnx.split(models[0])[0], schedule.optimizer()
    with ExitStack() as open_folders:
        folders = [open_folders.enter_context(_checkpoints(run.path / "training")) for run in runs]
        state = _placed(_restored([_initial(model, optimizer) for model in models], folders), hardware.mesh)
        begin = int(np.ravel(state.step)[0])
        for run in runs:
            run.rewind_log(begin)
        rate, losses, since = schedule.rate(), [], time.perf_counter()
        with progress(f"training {', '.join(run.path.name for run in runs)}", schedule.steps, begin) as advance:
            for index in range(begin, schedule.steps):
                batch = _placed(batch_at(index), hardware.mesh, over_rows=True)
                state, loss = _step(graph, state, batch, schedule, hardware)
                losses.append(loss)
                done = index + 1
                if done % LOG_EVERY == 0 or done == schedule.steps:
                    seconds, since = time.perf_counter() - since, time.perf_counter()
                    loss = _log(runs, losses, done, batch.input_ids.size, float(np.asarray(rate(index))), seconds)
                    advance(len(losses), f"loss {loss:.3f}")
                    losses = []
                if done in snapshot_steps:
                    for place, part in enumerate(_parts(state, len(models))):
                        snapshot(place, done, nnx.merge(graph, part.weights))
                if done % schedule.checkpoint_every == 0 or done == schedule.steps:
                    _save(_parts(state, len(models)), folders)
    return [nnx.merge(graph, part.weights) for part in _parts(state, len(models))]


def mean_loss(model: Transformer, batches: list[TokenBatch]) -> float:
    """Return the mean cross-entropy of a model over all predicted tokens of some batches, in nats per token."""
    graph, weights = nnx.split(model)
    sums = np.zeros(2)
    for batch in batches:
        sums += [float(value) for value in _cross_entropy(graph, weights, batch)]
    return float(sums[0] / sums[1])


def step_seconds(
    models: Sequence[Transformer], schedule: Schedule, shape: tuple[int, int], hardware: Hardware = Hardware()
) -> float:
    """Time the training step on made-up tokens.

    Args:
        models: the models that step together; their weights are not changed.
        schedule: the optimiser.
        shape: rows and positions of a batch.
        hardware: number format and devices.

    Returns:
        The shortest of three timed steps, in seconds.
    """
    graph, optimizer = nnx.split(models[0])[0], schedule.optimizer()
    state = _placed(_joined([_initial(model, optimizer) for model in models]), hardware.mesh)
    position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = TokenBatch(np.ones(shape, np.int32), np.ones(shape, np.int32), position)
    batch = _placed(batch, hardware.mesh, over_rows=True)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        state, loss = _step(graph, state, batch, schedule, hardware)
        loss.block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def step_bytes(config: TransformerConfig, shape: tuple[int, int]) -> int:
    """Bound the memory that one model takes while it is trained, in bytes.

    16 bytes a parameter (weight, gradient, two moments), and twice the update's 4; 12 a logit (its exponential and
    its gradient beside it); 4 for each entry that a block keeps for the backward pass, of the residual stream, heads,
    MLP and attention scores, and as much again for their gradients in the block that is at work.

    Args:
        config: the model's.
        shape: rows and positions of a batch on one device.
    """
    model = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    tokens = shape[0] * shape[1]
    heads = config.n_heads * (3 * config.d_head + 4 * shape[1])
    kept = 12 * config.d_model + 6 * config.d_mlp + heads
    return 24 * parameters + tokens * (12 * config.vocab_size + 4 * kept * (config.n_layers + 1))


@functools.partial(jax.jit, static_argnames="graph")
def _cross_entropy(graph: Any, weights: nnx.State, batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
    return cross_entropy(nnx.merge(graph, weights), batch)


@functools.partial(jax.jit, static_argnames=("graph", "schedule", "hardware"), donate_argnames="state")
def _step(
    graph: Any, state: TrainState, batch: TokenBatch, schedule: Schedule, hardware: Hardware
) -> tuple[TrainState, jax.Array]:
    """Take one step; models share a compilation if they share a shape."""
    optimizer = schedule.optimizer()

    def loss_of(weights: nnx.State) -> jax.Array:
        if hardware.precision != "float32":
            weights = jax.tree.map(lambda w, m: w.astype(hardware.precision) if m else w, weights, is_matrix(weights))
        total, count = cross_entropy(nnx.merge(graph, weights), batch)
        return total / count

    def step(state: TrainState) -> tuple[TrainState, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.weights)
        updates, moments = optimizer.update(gradient, state.optimizer, state.weights)
        weights = cast(nnx.State, optax.apply_updates(state.weights, updates))
        return TrainState(weights, moments, state.step + 1), loss

    # One model is no stack of one: a product with an axis of models is another sum to the compiler.
    after = (jax.vmap(step) if state.step.ndim else step)(state)
    return after if hardware.mesh is None else jax.lax.with_sharding_constraint(after, replicated(hardware.mesh))


def _initial(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    weights = jax.tree.map(jnp.copy, nnx.split(model)[1])
    return TrainState(weights, optimizer.init(weights), jnp.zeros((), jnp.int32))


def _joined(states: list[TrainState]) -> TrainState:
    return states[0] if len(states) == 1 else jax.tree.map(lambda *parts: jnp.stack(parts), *states)


def _parts(state: TrainState, models: int) -> list[TrainState]:
    """Return the state of each model by itself."""
    if models == 1:
        return [state]
    return [jax.tree.map(lambda stack, at=at: stack[at], state) for at in range(models)]


def _placed(tree: Any, mesh: Mesh | None, over_rows: bool = False) -> Any:
    """Give every device of a mesh the whole, or its share of the rows."""
    return tree if mesh is None else jax.device_put(tree, rows(mesh) if over_rows else replicated(mesh))


def _log(runs: Sequence[Run], losses: list[jax.Array], step: int, tokens: int, rate: float, seconds: float) -> float:
    """Log the mean loss of each model since the last line, and return the mean over models."""
    means = np.atleast_1d(np.asarray(jnp.mean(jnp.stack(losses), axis=0)))
    per_second = round(len(losses) * tokens / seconds)
    for run, loss in zip(runs, means.tolist(), strict=True):
        run.log(step=step, tokens=step * tokens, loss=loss, learning_rate=rate, tokens_per_second=per_second)
    return float(means.mean())


def _save(states: list[TrainState], folders: list[ocp.CheckpointManager]) -> None:
    for state, folder in zip(states, folders, strict=True):
        folder.save(int(state.step), args=ocp.args.StandardSave(state))
    for folder in folders:
        folder.wait_until_finished()


def _restored(states: list[TrainState], folders: list[ocp.CheckpointManager]) -> TrainState:
    """Join the states of the last step that all runs have kept; the initial ones where there is none."""
    step = max(set.intersection(*(set(folder.all_steps()) for folder in folders)), default=0)
    for folder in folders:
        for later in [kept for kept in folder.all_steps() if kept > step]:
            folder.delete(later)
    if step:
        kept = zip(folders, states, strict=True)
        states = [cast(TrainState, each.restore(step, args=ocp.args.StandardRestore(of))) for each, of in kept]
    return _joined(states)


def _checkpoints(folder: Path) -> ocp.CheckpointManager:
    """Open the checkpoints of one run: the last, and the one before, which the runs beside it may still be at."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)
