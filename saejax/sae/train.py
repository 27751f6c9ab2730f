"""Train SAEs on one hook of an activation store, each into a run directory of kind "sae".

manifest.json     model, hook, store, rows; shape and hash of the weights, kind of normalisation
sae.safetensors   the SAE
health.json       its health table: over all rows of a store, or a window of a live source that was not trained on
metrics.jsonl     a line every 50 steps; FVU there is of a batch, in normalised units (see `saejax.sae.step`)
checkpoints/      the last states, and the best, from which a killed run goes on, bit for bit
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from saejax import artifacts
from saejax import mesh as processes
from saejax.activations.source import BatchSource, open_source
from saejax.claim import claimed
from saejax.errors import InputError
from saejax.preemption import Preemption, noticed
from saejax.progress import progress
from saejax.rng import named_key
from saejax.sae.checkpoint import open_checkpoints, saved_steps
from saejax.sae.config import SAETrainConfig
from saejax.sae.fit import Diverged, Member, fit
from saejax.sae.health import health_table
from saejax.sae.initial import initial_sae, normalised_variance
from saejax.sae.metrics import Measured, measure
from saejax.sae.normalisation import require_sample
from saejax.sae.params import SAE, SAEConfig, save, shapes
from saejax.sae.placement import (
    own_rows,
    placed_batches,
    placed_initial_state,
    placed_state,
    placed_workspace,
    step_mesh,
    whole,
)  # fmt: skip
from saejax.sae.provenance import provenance
from saejax.sae.state import Recipe, TrainState, initial_state
from saejax.sae.step import repeatable_step, train_step
from saejax.sae.trackers import require as require_trackers
from saejax.sae.trackers import tracked

CHECKPOINTS = "checkpoints"
LOG = logging.getLogger(__name__)
BLOCK, CODES = 8192, 2**27
"""Rows that an SAE is measured on at a time, and their codes, of which all are held: at most."""
Group: TypeAlias = Sequence[tuple[SAETrainConfig, artifacts.Run]]
"""Runs that train together."""


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
    return train_together([config])[0]


def train_together(configs: Sequence[SAETrainConfig]) -> list[Path]:
    """Train SAEs that differ in seed, k, weight of L1 or learning rate on one stream of batches, each as if alone.

    Args:
        configs: runs that agree in all else but `out`.

    Returns:
        Their run directories; those of SAEs that diverged are not complete.

    Raises:
        InputError: as `train`, where all diverged; or they do not agree.
        Preempted: as `train`.
    """
    configs = [dataclasses.replace(config, impl=config.kernels) for config in configs]
    shared = configs[0]
    _require_agreement(configs)
    require_trackers(shared.trackers)
    mesh, rows = _opened(shared)
    inputs = {"store": artifacts.run_fingerprint(shared.store)}
    runs = processes.in_turn("sae", lambda: [artifacts.begin(config.out, "sae", config, inputs) for config in configs])
    left = [(config, run) for config, run in zip(configs, runs, strict=True) if not run.complete]
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            for _, run in left:
                stack.enter_context(claimed(run.folder))
        preemption = stack.enter_context(noticed())
        diverged = []
        for group in _groups(left):
            try:
                _train_group(group, rows, mesh, preemption)
            except Diverged as error:
                diverged.append(error)
        if diverged and not any(run.manifest["status"] == "complete" for run in runs):
            raise diverged[-1]
        for error in diverged:
            LOG.warning("%s", error)
    return [run.path for run in runs]


def _opened(config: SAETrainConfig) -> tuple[Mesh | None, BatchSource]:
    """Join the other processes, and find the devices and the rows of a run."""
    if config.multiprocess:
        processes.join()
    return step_mesh(config.data, config.latent), source(config)


def _train_group(group: Group, rows: BatchSource, mesh: Mesh | None, preemption: Preemption) -> None:
    """Train SAEs from the checkpoint that they share to the end, and measure those that have not diverged."""
    shared, _ = group[0]
    with contextlib.ExitStack() as stack:
        members = _members(group, rows, mesh, stack, preemption)
        batches = rows.batches(int(members[0].state.step), own_rows(shared.batch, mesh))
        stack.enter_context(contextlib.closing(batches))
        fit(
            members,
            batches,
            batch=shared.batch,
            checkpoint_every=shared.checkpoint_every,
            mesh=mesh,
            preemption=preemption,
        )
    for (config, run), member in zip(group, members, strict=True):
        if member.failure is not None:
            continue
        weights, normalisation = whole((member.state.weights, member.state.normalisation), mesh)
        sae = weights.sae(normalisation, member.state.config)
        told = f"told to end while {run.path} was measured; it is trained, and the same command measures it"
        with preemption.ends(told):
            measured = measure(sae, _shown(rows, config), together=True)
        if processes.is_first():
            _finish(run, rows, sae, measured)
    processes.barrier("sae finished")


def _groups(left: Sequence[tuple[SAETrainConfig, artifacts.Run]]) -> Iterator[Group]:
    """Put runs together that can go on from one step: where a kill came between two that were saved, one checkpoint
    earlier. Others train after one another, so that nothing is lost of what each has saved.
    """
    steps = [saved_steps(run.path / CHECKPOINTS) or [0] for _, run in left]
    waiting = sorted(zip(left, steps, strict=True), key=lambda one: one[1][-1])
    while waiting:
        first = waiting[0][1][-1]
        together = [
            found[-1] == first or (first in found and found[-1] - first <= one[0].checkpoint_every)
            for one, found in waiting
        ]
        yield [one for (one, _), chosen in zip(waiting, together, strict=True) if chosen]
        waiting = [one for one, chosen in zip(waiting, together, strict=True) if not chosen]


def _require_agreement(configs: Sequence[SAETrainConfig]) -> None:
    for name in vars(configs[0]):
        values = [getattr(config, name) for config in configs]
        if name not in ("out", "seed", "k", "l1_coefficient", "learning_rate") and any(
            value != values[0] for value in values
        ):
            raise InputError(f"SAEs that train together have one {name}, not {', '.join(map(str, values))}")


def _members(
    group: Group, rows: BatchSource, mesh: Mesh | None, stack: contextlib.ExitStack, preemption: Preemption
) -> list[Member]:
    """Begin all runs, or take them up after the last step that all of them have saved."""
    kept = [stack.enter_context(open_checkpoints(run.path / CHECKPOINTS, config.keep)) for config, run in group]
    common = max(set.intersection(*(set(checkpoints.steps) for checkpoints in kept)), default=0)
    members = []
    for (config, run), checkpoints in zip(group, kept, strict=True):
        checkpoints.drop_after(common)
        recipe = config.recipe(rows.width)
        with preemption.ends("told to end before the first step; the same command goes on"):
            state = checkpoints.restore(_shapes(config, recipe, rows, mesh))
            if state is None:
                state = _initial(config, recipe, rows, mesh)
        log = _unlogged
        if processes.is_first():
            run.rewind_log(common)
            record = artifacts.config_record(config)
            log = stack.enter_context(tracked(run.log, config.trackers, run.path, record, after=common))
        lowest = checkpoints.lowest
        members.append(Member(state, recipe, log, checkpoints, lowest=math.inf if lowest is None else lowest))
    return members


def _unlogged(**_: Any) -> None:
    """Log nothing: of several processes the first alone writes."""


def _finish(run: artifacts.Run, rows: BatchSource, sae: SAE, measured: Measured) -> None:
    facts = save(sae, run.path)
    artifacts.write_json(run.path / "health.json", health_table(sae, measured))
    documents, if_shuffled = rows.mixing()
    mixing = {
        "documents_per_batch": round(documents, 2),
        "documents_per_batch_if_shuffled": None if if_shuffled is None else round(if_shuffled, 2),
    }
    told = {"rows": rows.rows, "measured_rows": measured.rows}
    run.finish(**provenance(rows.facts, rows.hook), **told, **mixing, **facts)


def plan(config: SAETrainConfig) -> dict[str, Any]:
    """Say what a run would cost, from a few timed steps on the store's own rows; nothing is written.

    Args:
        config: the run.

    Returns:
        Rows per epoch, epochs, bytes on disk, minutes and peak memory.

    Raises:
        InputError: as `train`.
    """
    mesh, rows = _opened(config)
    recipe = config.recipe(rows.width)
    state = _initial(config, recipe, rows, mesh)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves((state.weights, state.normalisation)))
    batches = placed_batches(rows.batches(part=own_rows(config.batch, mesh)), config.batch, mesh)
    space, seconds = placed_workspace(state, config.batch, recipe.impl, mesh), {}
    for deterministic in {recipe.deterministic, False}:
        take, times = repeatable_step if deterministic else train_step, []
        for x in itertools.islice(batches, 4):
            begun = time.perf_counter()
            state, space, _ = jax.block_until_ready(take(state, space, x, recipe, mesh))
            times.append(time.perf_counter() - begun)
        seconds[deterministic] = float(np.median(times[1:]))
    step = seconds[recipe.deterministic]
    documents, if_shuffled = rows.mixing()
    trained, of_all = config.steps * config.batch, ", {:.1f} if all rows were shuffled"
    return {
        **({} if rows.rows is None else {"rows per epoch": rows.rows, "epochs": round(trained / rows.rows, 2)}),
        "documents per batch": f"{documents:.1f}" + ("" if if_shuffled is None else of_all.format(if_shuffled)),
        "bytes of parameters": parameters,
        "bytes of parameters and optimiser": state_bytes,
        "bytes on disk": (config.keep + 1) * state_bytes + parameters,
        "minutes": round(step * config.steps / 60, 1),
        **({"deterministic": f"{step / seconds[False]:.2f} times as long as without"} if recipe.deterministic else {}),
        # State, gradient; the product; AuxK's arrays of batch x aux_capacity; rows read ahead.
        "GiB of memory": round(
            (state_bytes + parameters + 4 * config.batch * (config.d_sae + 3 * config.aux_capacity) + rows.held_bytes)
            / 2**30,
            2,
        ),
        **({} if mesh is None else {"devices": mesh.size}),
    }


def source(config: SAETrainConfig) -> BatchSource:
    """Open what a run trains on.

    Args:
        config: the run.

    Raises:
        InputError: the store cannot be read, lacks the hook, or has fewer rows left than a batch, or than the
            normalisation needs.
    """
    rows = open_source(
        config.store, config.hook, config.rows,
        batch=config.batch, seed=config.data_seed, window_rows=config.window_rows, lanes=config.lanes,
    )  # fmt: skip
    require_sample(config.normalise, min(config.initial_rows, _first_batches(config, rows) * config.batch), rows.width)
    return rows


def _first_batches(config: SAETrainConfig, rows: BatchSource) -> int:
    """Return how many batches the initial sample is taken from."""
    wanted = math.ceil(config.initial_rows / config.batch)
    return wanted if rows.rows is None else min(wanted, rows.rows // config.batch)


def _initial(config: SAETrainConfig, recipe: Recipe, rows: BatchSource, mesh: Mesh | None) -> TrainState:
    first = itertools.islice(rows.batches(), _first_batches(config, rows))
    sample = np.concatenate(list(first))[: config.initial_rows]
    shape = SAEConfig(rows.width, config.d_sae, config.k)
    key = named_key(config.seed, "sae.init")
    sae = initial_sae(shape, sample, key, config.normalise)
    return placed_initial_state(sae, recipe, key, normalised_variance(sae.normalisation, sample), mesh)


def _shapes(config: SAETrainConfig, recipe: Recipe, rows: BatchSource, mesh: Mesh | None) -> TrainState:
    like = shapes(SAEConfig(rows.width, config.d_sae, config.k), config.normalise)
    variance = None if config.normalise == "scalar" else np.ones((), np.float32)
    state = jax.eval_shape(lambda sae, key: initial_state(sae, recipe, key, variance), like, jax.random.key(0))
    return placed_state(state, mesh)


def _shown(rows: BatchSource, config: SAETrainConfig) -> Iterable[np.ndarray]:
    """Yield the rows that this process measures an SAE on, with a bar."""
    total, block = (rows.rows or config.window_rows) // jax.process_count(), max(min(BLOCK, CODES // config.d_sae), 1)
    with progress("measure SAE", total) as advance:
        for x in rows.measured(block, config.steps * config.batch, jax.process_index(), jax.process_count()):
            yield x
            advance(len(x))
