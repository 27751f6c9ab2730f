"""Splicing against torch in float64, and against what SAEs of known behaviour must give."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_models import VOCAB, Pair, saved_model
from made_texts import batch_of, constant_sae, documents, identity_sae, random_sae, reference

import saejax.models
from saejax.errors import InputError
from saejax.interventions.splicing import Loss, Splice, edited_tokens, predictions, splice, table_rows
from saejax.sae import SAE
from saejax.sae.normalisation import Kind, Normalisation

TEXTS = documents(VOCAB, (9, 2, 14, 5, 7, 11, 3, 1))
LENGTH = 26
PACKED = [batch_of([TEXTS[:3], TEXTS[3:6]], LENGTH), batch_of([TEXTS[6:], []], LENGTH)]
HOOK = "resid_post.0"
EDITS = ("original", "spliced", "zero_ablated", "mean_ablated")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("llama")
    theirs = saved_model("llama-grouped-tied", folder, num_hidden_layers=2)
    return Pair(theirs.double(), saejax.models.load(folder), folder)


@pytest.mark.parametrize("hook", ["attn_z.1", HOOK])
def test_every_number_is_that_of_torch_document_by_document(pair: Pair, hook: str) -> None:
    sae = random_sae(pair.ours.width(hook))
    found, expected = splice(pair.ours, hook, sae, PACKED), reference(pair.theirs, pair.ours, hook, sae, TEXTS)
    assert found.predictions == expected.predictions == sum(int(predictions(batch).sum()) for batch in PACKED)
    for name in EDITS:
        loss: Loss = getattr(found, name)
        assert loss.cross_entropy == pytest.approx(expected.cross_entropy[name], rel=1e-5), name
        assert loss.kl == pytest.approx(expected.kl[name], rel=1e-3, abs=1e-6), name
    original, spliced, zero, mean = (expected.cross_entropy[name] for name in EDITS)
    assert found.loss_recovered_zero == pytest.approx((zero - spliced) / (zero - original), rel=1e-3)
    assert found.loss_recovered_mean == pytest.approx((mean - spliced) / (mean - original), rel=1e-3)
    assert len({round(value, 4) for value in (original, spliced, zero, mean)}) == 4


def test_an_sae_that_keeps_everything_recovers_all(pair: Pair) -> None:
    found = splice(pair.ours, HOOK, identity_sae(48), PACKED)
    assert found.spliced.cross_entropy == pytest.approx(found.original.cross_entropy, rel=1e-6)
    assert found.loss_recovered_zero == pytest.approx(1, abs=1e-5)
    assert found.loss_recovered_mean == pytest.approx(1, abs=1e-5)
    assert found.spliced.kl == pytest.approx(0, abs=1e-6)
    assert found.original.kl == 0
    assert found.measured.fvu == 0


def test_an_sae_that_gives_one_vector_is_the_ablation_to_it(pair: Pair) -> None:
    found = splice(pair.ours, HOOK, constant_sae(np.zeros(48)), PACKED)
    assert found.spliced == found.zero_ablated
    assert found.loss_recovered_zero == 0
    found = splice(pair.ours, HOOK, constant_sae(found.measured.mean), PACKED)
    assert found.spliced.cross_entropy == pytest.approx(found.mean_ablated.cross_entropy, rel=1e-6)
    assert found.spliced.kl == pytest.approx(found.mean_ablated.kl, rel=1e-5)
    assert found.loss_recovered_mean == pytest.approx(0, abs=1e-5)


def test_neither_rows_nor_batches_matter(pair: Pair) -> None:
    """The same documents, packed and one to a batch."""
    sae = random_sae(48)
    packed = splice(pair.ours, HOOK, sae, PACKED)
    alone = splice(pair.ours, HOOK, sae, [batch_of([[document]], LENGTH) for document in TEXTS])
    assert (alone.predictions, alone.measured.rows) == (packed.predictions, packed.measured.rows)
    for name in EDITS:
        ours, theirs = (dataclasses.astuple(getattr(each, name)) for each in (alone, packed))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_special_tokens_and_padding_keep_their_activations_to_the_bit(pair: Pair) -> None:
    batch = PACKED[0]
    packed, mask = (batch.input_ids, batch.segment, batch.position), edited_tokens(batch)
    before = pair.ours.run_packed(*packed, hooks=(HOOK,)).activations[HOOK]
    edits = {HOOK: Splice(random_sae(48))}
    after = pair.ours.run_packed(*packed, hooks=(HOOK,), edits=edits, edit_mask=mask).activations[HOOK]
    np.testing.assert_array_equal(mask, (batch.segment > 0) & (batch.input_ids > 1))
    np.testing.assert_array_equal(np.asarray(after)[~mask], np.asarray(before)[~mask])
    assert np.all(np.any(np.asarray(after)[mask] != np.asarray(before)[mask], axis=-1))


def test_the_predictions_that_count_are_those_between_plain_tokens_of_one_segment() -> None:
    batch = batch_of([[[0, 5, 6, 1, 7, 8], [9, 4], [3]]], 11)
    np.testing.assert_array_equal(np.flatnonzero(predictions(batch)[0]), [1, 4, 6])


def test_weights_are_not_compiled_in(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, decode = [], SAE.decode_sparse
    monkeypatch.setattr(SAE, "decode_sparse", lambda *given, like: traced.append(given) or decode(*given, like=like))
    for seed in (0, 1):
        splice(pair.ours, HOOK, random_sae(48, d_sae=41, seed=seed), PACKED)
    assert len(traced) == 1


def test_a_reconstruction_in_bfloat16_is_cast_and_nothing_else() -> None:
    sae, x = random_sae(8), jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
    made = Splice(sae)(x, jnp.ones((2, 3), bool))
    exact = sae.decode(sae.encode(x.reshape(-1, 8).astype(jnp.float32))).reshape(x.shape)
    assert made.dtype == jnp.bfloat16
    np.testing.assert_allclose(made.astype(jnp.float32), exact, rtol=2**-8)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_sae_that_keeps_everything_changes_nothing_whatever_its_normalisation(kind: Kind) -> None:
    x = 3 + jax.random.normal(jax.random.key(0), (4, 20, 8)) * jnp.arange(1, 9)
    sae = dataclasses.replace(identity_sae(8), normalisation=Normalisation.fit(kind, x.reshape(-1, 8)))
    np.testing.assert_allclose(Splice(sae)(x, jnp.ones((4, 20), bool)), x, atol=2e-5)


def test_a_ratio_without_a_denominator_is_none_in_the_table(pair: Pair) -> None:
    found = splice(pair.ours, HOOK, constant_sae(np.zeros(48)), PACKED)
    useless = dataclasses.replace(found, zero_ablated=found.original)
    assert math.isnan(useless.loss_recovered_zero)
    rows = {row["metric"]: row["value"] for row in table_rows(useless)}
    assert rows["loss_recovered_zero"] is None
    assert rows["ce_zero_ablated"] == rows["ce_original"] == found.original.cross_entropy
    assert f"{found.predictions:,} predictions" in table_rows(found)[0]["unit"]


@pytest.mark.parametrize(
    ("hook", "width", "batches", "message"),
    [
        ("resid_post.9", 48, PACKED, r"^hook resid_post\.9 of the SAE is not in model .*; name the model"),
        ("mlp_hidden.0", 48, PACKED, r"^the SAE reads 48 entries, and mlp_hidden\.0 of model .* has 56; name"),
        (HOOK, 48, [batch_of([[[0, 5], [0, 1, 6, 1]]], 8)], "^the text has no two neighbouring tokens .*; give more"),
        (HOOK, 48, [], "^the text has no two neighbouring tokens"),
    ],
    ids=["hook", "width", "only specials", "no text"],
)
def test_what_does_not_fit_is_refused(pair: Pair, hook: str, width: int, batches: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        splice(pair.ours, hook, constant_sae(np.zeros(width)), batches)


@pytest.mark.parametrize("name", ["bert", "distilbert-headless"])
def test_encoders_have_no_loss_to_recover(name: str, tmp_path: Path) -> None:
    saved_model(name, tmp_path)
    with pytest.raises(InputError, match="predicts no next token, so it has no loss to recover; name a causal model"):
        splice(saejax.models.load(tmp_path), HOOK, constant_sae(np.zeros(48)), PACKED)
