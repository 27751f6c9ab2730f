import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from saejax import artifacts
from saejax.models import train as room
from saejax.models.config import TransformerConfig
from saejax.models.forward import forward
from saejax.models.schedule import Schedule, is_matrix
from saejax.models.train import Hardware, TokenBatch, cross_entropy, mean_loss, step_bytes, train
from saejax.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=11, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=24, max_positions=32
)


SHORT = Schedule(14, 3, 1e-2, 0.1, checkpoint_every=5)


def model(seed: int = 0) -> Transformer:
    return Transformer(CONFIG, nnx.Rngs(seed))


def one_document(ids: np.ndarray) -> TokenBatch:
    ids = np.asarray(ids, np.int32)[None]
    return TokenBatch(ids, np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None])


def counting(step: int) -> TokenBatch:
    """Rows that count upwards modulo the vocabulary from a start that depends on the step."""
    starts = np.random.default_rng(step).integers(0, 11, (4, 1))
    ids = ((starts + np.arange(12)) % 11).astype(np.int32)
    position = np.broadcast_to(np.arange(12, dtype=np.int32), ids.shape)
    return TokenBatch(ids, np.ones_like(ids), position)


def run_in(path: Path) -> artifacts.Run:
    return artifacts.begin(path, "language_model", Schedule(60, 5, 1e-2, 0.1))


def keep_nothing(place: int, step: int, trained: Transformer) -> None:
    raise AssertionError("no snapshot was asked for")


def trained(seeds: tuple[int, ...], folder: Path, schedule: Schedule, **changes: Any) -> list[Transformer]:
    runs = [run_in(folder / f"seed{seed}") for seed in seeds]
    given = {"batch_at": counting, "snapshot": keep_nothing, **changes}
    return train([model(seed) for seed in seeds], schedule=schedule, runs=runs, **given)


def leaves(of: Transformer) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(of))]


def assert_equal(some: list[Transformer], others: list[Transformer]) -> None:
    for one, other in zip(some, others, strict=True):
        for leaf, its in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_array_equal(leaf, its)


def killed_at(last: int) -> Callable[[int], TokenBatch]:
    def batch_at(step: int) -> TokenBatch:
        if step == last:
            raise KeyboardInterrupt
        return counting(step)

    return batch_at


def test_the_loss_of_a_packed_row_is_that_of_its_documents() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 11, 5), rng.integers(0, 11, 4)
    packed = TokenBatch(
        np.concatenate([first, second, [0, 0]])[None].astype(np.int32),
        np.array([[1] * 5 + [2] * 4 + [0] * 2], np.int32),
        np.array([[*range(5), *range(4), 0, 0]], np.int32),
    )
    total, count = cross_entropy(model(), packed)
    parts = [cross_entropy(model(), one_document(ids)) for ids in (first, second)]
    assert int(count) == sum(int(part[1]) for part in parts) == 7
    np.testing.assert_allclose(float(total), sum(float(part[0]) for part in parts), rtol=1e-5)


def test_mean_loss_weights_tokens_and_not_batches() -> None:
    rng = np.random.default_rng(1)
    batches = [one_document(rng.integers(0, 11, length)) for length in (3, 9)]
    sums = [cross_entropy(model(), batch) for batch in batches]
    expected = sum(float(total) for total, _ in sums) / sum(int(count) for _, count in sums)
    np.testing.assert_allclose(mean_loss(model(), batches), expected, rtol=1e-6)


def test_training_learns_a_rule(tmp_path: Path) -> None:
    (learned,) = trained((0,), tmp_path, Schedule(60, 5, 1e-2, 0.1))
    assert mean_loss(model(), [counting(999)]) > 2
    assert mean_loss(learned, [counting(999)]) < 0.5
    assert [line["step"] for line in artifacts.read_metrics(tmp_path / "seed0")] == [50, 60]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_killed_run_ends_with_the_same_weights(seeds: tuple[int, ...], tmp_path: Path) -> None:
    """Killed before the first checkpoint and behind one, alone and beside others."""
    schedule = SHORT
    whole = trained(seeds, tmp_path / "a", schedule)
    for last in (3, 11):
        with pytest.raises(KeyboardInterrupt):
            trained(seeds, tmp_path / "b", schedule, batch_at=killed_at(last))
    resumed = trained(seeds, tmp_path / "b", schedule)
    assert_equal(resumed, whole)


def test_a_run_killed_between_the_checkpoints_of_its_models_goes_back_to_the_last_of_all(tmp_path: Path) -> None:
    schedule = SHORT
    whole = trained((0, 1), tmp_path / "a", schedule)
    with pytest.raises(KeyboardInterrupt):
        trained((0, 1), tmp_path / "b", schedule, batch_at=killed_at(11))
    shutil.rmtree(tmp_path / "b" / "seed1" / "training" / "10")
    begun = []

    def noted(step: int) -> TokenBatch:
        begun.append(step)
        return counting(step)

    resumed = trained((0, 1), tmp_path / "b", schedule, batch_at=noted)
    assert begun[0] == 5
    assert_equal(resumed, whole)


def test_a_model_learns_the_same_beside_others_as_alone(tmp_path: Path) -> None:
    schedule = SHORT
    together = trained((0, 1), tmp_path / "together", schedule)
    for seed, ours in enumerate(together):
        (alone,) = trained((seed,), tmp_path / "alone", schedule)
        for one, other, start in zip(leaves(ours), leaves(alone), leaves(model(seed)), strict=True):
            moved = np.abs(other - start).max()
            assert np.abs(one - other).max() <= 1e-3 * moved
        lines = [artifacts.read_metrics(tmp_path / name / f"seed{seed}")[-1] for name in ("together", "alone")]
        np.testing.assert_allclose(lines[0]["loss"], lines[1]["loss"], rtol=1e-5)


def test_snapshots_are_taken_after_the_steps_asked_for(tmp_path: Path) -> None:
    taken = {}
    trained(
        (0, 1), tmp_path, Schedule(6, 1, 1e-2, 0.0),
        snapshot=lambda place, step, kept: taken.update({(place, step): leaves(kept)[0]}), snapshot_steps=(2, 5),
    )  # fmt: skip
    assert sorted(taken) == [(0, 2), (0, 5), (1, 2), (1, 5)]
    assert not np.allclose(taken[0, 2], taken[1, 2])
    assert not np.allclose(taken[0, 2], taken[0, 5])


def test_products_in_bfloat16_teach_the_rule_and_leave_float32_weights(tmp_path: Path) -> None:
    schedule = Schedule(60, 5, 1e-2, 0.1)
    (rough,) = trained((0,), tmp_path / "rough", schedule, hardware=Hardware("bfloat16"))
    (fine,) = trained((0,), tmp_path / "fine", schedule)
    assert all(leaf.dtype == np.float32 for leaf in leaves(rough))
    differences = [np.abs(one - other).max() for one, other in zip(leaves(rough), leaves(fine), strict=True)]
    assert max(differences) > 1e-4, "nothing was rounded"
    losses = [mean_loss(each, [counting(999)]) for each in (rough, fine)]
    assert losses[0] < 0.5
    np.testing.assert_allclose(losses[0], losses[1], atol=0.1)


def test_products_in_bfloat16_take_rounded_inputs_and_give_float32_scores() -> None:
    """The loss is that of weights rounded to bfloat16, norms apart, to the precision of rounded activations."""
    graph, weights = nnx.split(model())
    rounded = jax.tree.map(lambda w, m: w.astype("bfloat16") if m else w, weights, is_matrix(weights))
    batch = counting(0)
    total, count = cross_entropy(nnx.merge(graph, rounded), batch)
    exact, _ = cross_entropy(nnx.merge(graph, jax.tree.map(lambda w: w.astype("float32"), rounded)), batch)
    assert total.dtype == np.float32
    np.testing.assert_allclose(total / count, exact / count, atol=2**-8)
    input_ids, segment, position = (jnp.asarray(column) for column in batch)
    x, _ = forward(nnx.merge(graph, rounded), input_ids, segment, position)
    assert (x.dtype, nnx.merge(graph, rounded).logits(x, jnp.float32).dtype) == ("bfloat16", "float32")


def test_the_bound_on_memory_holds_what_the_compiler_plans() -> None:
    for layers, vocab, shape in ((1, 11, (4, 64)), (3, 500, (8, 32))):
        config = dataclasses.replace(CONFIG, n_layers=layers, vocab_size=vocab, max_positions=shape[1])
        schedule = Schedule(60, 5, 1e-2, 0.1)
        graph, weights = nnx.split(nnx.eval_shape(lambda config=config: Transformer(config, nnx.Rngs(0))))
        moments = jax.eval_shape(schedule.optimizer().init, weights)
        step: Any = jax.ShapeDtypeStruct((), np.int32)
        state = room.TrainState(weights, moments, step)
        batch = TokenBatch(*[np.ones(shape, np.int32)] * 3)
        lowered = room._step.lower(graph, state, batch, schedule, Hardware())
        planned: Any = lowered.compile().memory_analysis()
        used = planned.argument_size_in_bytes + planned.temp_size_in_bytes
        bound = step_bytes(config, shape)
        assert used <= bound <= 4 * used, (used, bound)


def test_norms_are_not_decayed() -> None:
    optimizer = Schedule(10, 0, 1.0, 0.5).optimizer()
    _, weights = nnx.split(model())
    still = jax.tree.map(lambda w: 0 * w, weights)
    updates, _ = optimizer.update(still, optimizer.init(weights), weights)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert (np.abs(update).max() == 0) == ("norm" in jax.tree_util.keystr(path)), path
