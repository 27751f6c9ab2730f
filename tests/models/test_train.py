from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from saejax import artifacts
from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.train import Schedule, TokenBatch, cross_entropy, mean_loss, train
from saejax.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=11, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=24, max_positions=32
)


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


def keep_nothing(step: int, trained: Transformer) -> None:
    raise AssertionError("no snapshot was asked for")


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
    run = run_in(tmp_path / "r")
    trained = train(model(), counting, Schedule(60, 5, 1e-2, 0.1), run=run, snapshot=keep_nothing)
    assert mean_loss(model(), [counting(999)]) > 2
    assert mean_loss(trained, [counting(999)]) < 0.5
    assert [line["step"] for line in artifacts.read_metrics(run.path)] == [50, 60]


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    schedule = Schedule(30, 5, 1e-2, 0.1, checkpoint_every=7)
    whole = train(model(), counting, schedule, run=run_in(tmp_path / "a"), snapshot=keep_nothing)

    def killed_at(last: int) -> Callable[[int], TokenBatch]:
        def batch_at(step: int) -> TokenBatch:
            if step == last:
                raise KeyboardInterrupt
            return counting(step)

        return batch_at

    for last in (3, 17):
        with pytest.raises(KeyboardInterrupt):
            train(model(), killed_at(last), schedule, run=run_in(tmp_path / "b"), snapshot=keep_nothing)
    resumed = train(model(7), counting, schedule, run=run_in(tmp_path / "b"), snapshot=keep_nothing)
    for ours, theirs in zip(jax.tree.leaves(nnx.state(resumed)), jax.tree.leaves(nnx.state(whole)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_snapshots_are_taken_after_the_steps_asked_for(tmp_path: Path) -> None:
    taken = []
    train(
        model(), counting, Schedule(6, 1, 1e-2, 0.0), run=run_in(tmp_path / "r"),
        snapshot=lambda step, trained: taken.append(step), snapshot_steps=(2, 5),
    )  # fmt: skip
    assert taken == [2, 5]


def test_norms_are_not_decayed() -> None:
    optimizer = Schedule(10, 0, 1.0, 0.5).optimizer()
    _, weights = nnx.split(model())
    still = jax.tree.map(lambda w: 0 * w, weights)
    updates, _ = optimizer.update(still, optimizer.init(weights), weights)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert (np.abs(update).max() == 0) == ("norm" in jax.tree_util.keystr(path)), path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 5, 1e-3, 0.0), "warmup_steps 5"),
        ((5, 1, 0.0, 0.0), "learning_rate 0"),
        ((5, 1, 1e-3, 0.0, 1.0, 0), "0 must"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(*values)
