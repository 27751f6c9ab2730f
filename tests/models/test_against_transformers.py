"""Every hook point and the logits of every family agree with transformers in torch.

Differences are told as a share of the largest entry of a tensor: 1e-4 in float32, 3e-2 in bfloat16.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from made_models import CASES, VOCAB, Pair, error, random_model, saved_model, torch_forward, watched

import saejax.models
from saejax.errors import InputError

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
LENGTH = 14  # longer than the windows of the models that have one


def some_ids(rows: int, length: int = LENGTH, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(rows * 1000 + length).integers(0, vocab, (rows, length))


def padded(lengths: list[int], length: int, side: str) -> np.ndarray:
    mask = np.zeros((len(lengths), length), np.int64)
    for row, count in zip(mask, lengths, strict=True):
        row[slice(None, count) if side == "right" else slice(length - count, None)] = 1
    return mask


def compare(pair: Pair, ids: np.ndarray, mask: np.ndarray | None = None, tolerance: float = 1e-4) -> None:
    """Compare all that both show, wherever there are tokens."""
    with watched(pair.theirs, pair.ours) as seen:
        theirs = torch_forward(pair.theirs, ids, mask)
    ours = pair.ours.run(ids, mask, hooks=pair.ours.hooks)
    real = np.ones_like(ids, bool) if mask is None else mask.astype(bool)
    assert list(ours.activations) == list(pair.ours.hooks)
    assert set(seen) == set(pair.ours.hooks)
    for hook, value in seen.items():
        value = value.reshape(*ids.shape, -1)
        assert value.shape[-1] == pair.ours.width(hook), hook
        assert error(np.asarray(ours.activations[hook])[real], value[real]) < tolerance, hook
    if hasattr(theirs, "logits"):
        assert error(np.asarray(ours.logits)[real], theirs.logits.float().numpy()[real]) < tolerance
    else:
        with pytest.raises(InputError, match="^logits: the model has no output head; load"):
            _ = ours.logits


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    theirs = random_model(request.param)
    theirs.save_pretrained(folder)
    return Pair(theirs, saejax.models.load(folder), folder)


@pytest.mark.parametrize("rows", [1, 5])
def test_every_hook_point_and_the_logits_are_what_torch_sees(pair: Pair, rows: int) -> None:
    compare(pair, some_ids(rows))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_agree(pair: Pair, side: str) -> None:
    compare(pair, some_ids(5), padded([LENGTH, 9, 6, 3, 1], LENGTH, side))


def test_the_hidden_states_of_transformers_are_ours_by_the_table(pair: Pair) -> None:
    """`hidden_states[L + 1]` is `resid_post.L`, but the last is behind the final norm of a family that has one."""
    ids = some_ids(5)
    theirs, ours = torch_forward(pair.theirs, ids), pair.ours.run(ids, hooks=pair.ours.hooks).activations
    layers = pair.ours.config.n_layers
    last = "final_norm" if pair.ours.config.final_norm else f"resid_post.{layers - 1}"
    named = ["embed", *(f"resid_post.{layer}" for layer in range(layers - 1)), last]
    for hook, hidden in zip(named, theirs.hidden_states, strict=True):
        if hidden.shape[-1] == pair.ours.width(hook):  # that of OPT-350m is behind its projection
            assert error(ours[hook], hidden.numpy()) < TOLERANCE["float32"], hook


def test_bfloat16_agrees(pair: Pair, tmp_path: Path) -> None:
    """With transformers in float32 on the same rounded weights, from which its own bfloat16 is as far as ours."""
    rounded = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    copy.deepcopy(rounded).to(torch.bfloat16).save_pretrained(tmp_path)
    half = Pair(rounded, saejax.models.load(tmp_path, dtype="bfloat16"), tmp_path)
    compare(half, some_ids(5), padded([LENGTH, 9, 6, 3, 1], LENGTH, "left"), TOLERANCE["bfloat16"])


@pytest.mark.parametrize("name", ["llama-grouped-tied", "mistral", "gpt2"])
def test_positions_count_tokens_only(name: str, tmp_path: Path) -> None:
    """Rotations are relative, so only padding between tokens can show where positions are counted."""
    theirs = saved_model(name, tmp_path)
    mask = np.ones((3, LENGTH), np.int64)
    mask[0, 4:7] = mask[2, 10] = 0
    compare(Pair(theirs, saejax.models.load(tmp_path), tmp_path), some_ids(3), mask)


@pytest.mark.parametrize("name", ["llama-3", "pythia", "gemma3"])
def test_late_positions_agree(name: str, tmp_path: Path) -> None:
    theirs, ids = saved_model(name, tmp_path), some_ids(1, 700)
    assert error(saejax.models.load(tmp_path).run(ids).logits, torch_forward(theirs, ids).logits) < 1e-4


@pytest.mark.slow
def test_smollm2_agrees_at_every_layer(smollm2: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    encoded = tokenizer(
        ["The capital of France is", "In 1984 there were 12 clocks,\n\nand all of them struck thirteen: “naïve” 東京"],
        padding=True, padding_side="left", return_tensors="np",
    )  # fmt: skip
    ours = saejax.models.load(smollm2)
    assert len(ours.hooks) == 2 + 9 * 30
    compare(Pair(theirs, ours, smollm2), encoded["input_ids"], encoded["attention_mask"])
    next_id = int(ours.run(encoded["input_ids"], encoded["attention_mask"]).logits[0, -1].argmax())
    assert tokenizer.decode([next_id]) == " Paris"


@pytest.mark.slow
def test_minilm_agrees_at_every_layer(minilm: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(minilm, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoded = tokenizer(["How far is the moon?", "A short one."], padding=True, return_tensors="np")
    ours = saejax.models.load(minilm)
    assert (ours.config.causal, ours.config.head, len(ours.hooks)) == (False, "none", 1 + 9 * 6)
    compare(Pair(theirs, ours, minilm), encoded["input_ids"], encoded["attention_mask"])


@pytest.mark.slow
def test_smollm2_of_a_gguf_and_of_safetensors_is_one_model(smollm2: Path, smollm2_gguf: Path) -> None:
    ids = some_ids(2, 20, 49_152)
    folder, file = (saejax.models.load(path).run(ids).logits for path in (smollm2, smollm2_gguf))
    np.testing.assert_array_equal(folder, file)
