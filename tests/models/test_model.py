import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import saejax.models
from saejax.errors import InputError
from saejax.models import weights
from saejax.models.config import TransformerConfig
from saejax.models.families import LLAMA
from saejax.models.forward import activations
from saejax.models.model import LanguageModel
from saejax.models.transformer import Transformer

ROOT = Path(__file__).parents[2]
CONFIG = TransformerConfig(
    vocab_size=50, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, d_head=6, d_mlp=32, max_positions=16
)
HOOKS = ("mlp_hidden.1", "resid_post.0", "attn_z.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    weights.save(folder, Transformer(CONFIG, nnx.Rngs(params=2)), family=LLAMA, bos_id=0, eos_id=1, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return saejax.models.load(str(folder))


def packed(*lengths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row of documents of these lengths, and two tokens of padding."""
    segment = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, 2])
    position = np.concatenate([np.arange(length) for length in (*lengths, 2)])
    ids = np.random.default_rng(7).integers(0, 50, segment.size)
    return ids[None].astype(np.int32), segment[None].astype(np.int32), position[None].astype(np.int32)


def test_packed_documents_read_as_each_would_alone(model: LanguageModel) -> None:
    ids, segment, position = packed(7, 5)
    together = model.activations(ids, segment, position, HOOKS)
    assert set(together) == set(HOOKS)
    whole = model.run_packed(ids, segment, position, HOOKS)
    for number, start, stop in ((1, 0, 7), (2, 7, 12)):
        assert (segment[0, start:stop] == number).all()
        alone = model.run(ids[:, start:stop], hooks=HOOKS)
        np.testing.assert_allclose(whole.logits[:, start:stop], alone.logits, rtol=1e-4, atol=1e-5)
        for hook in HOOKS:
            for found in (together, whole.activations):
                np.testing.assert_allclose(found[hook][:, start:stop], alone.activations[hook], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hook", ["embed", "resid_pre.0", "resid_mid.1", "resid_post.2", "final_norm"])
def test_activations_are_those_of_a_run(model: LanguageModel, hook: str) -> None:
    ids = np.random.default_rng(1).integers(0, 50, (2, 9))
    position = np.broadcast_to(np.arange(9), (2, 9))
    (stopped,) = model.activations(ids, np.ones_like(ids), position, (hook,)).values()
    np.testing.assert_allclose(stopped, model.run(ids, hooks=(hook,)).activations[hook], rtol=1e-4, atol=1e-5)


def test_activations_stop_after_the_last_block_needed_and_make_no_logits(model: LanguageModel) -> None:
    graph, state = nnx.split(model._model)
    ids, segment, position = packed(14)

    def flops(hook: str) -> float:
        run = jax.jit(lambda state, *rows: activations(nnx.merge(graph, state), *rows, hooks=(hook,)))
        analysis = run.lower(state, ids, segment, position).compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    block = flops("resid_post.1") - flops("resid_post.0")
    assert flops("resid_pre.0") < block / 100
    assert flops("mlp_in.0") < 0.7 * flops("resid_post.0")
    assert flops("final_norm") - flops("resid_post.2") < 2 * CONFIG.vocab_size * CONFIG.d_model * ids.size / 2


def test_padding_is_never_attended(model: LanguageModel) -> None:
    ids = np.random.default_rng(3).integers(0, 50, (1, 6))
    alone = model.run(ids).logits
    other = np.random.default_rng(4).integers(0, 50, (1, 4))
    for padded, real in ((np.hstack([other, ids]), slice(4, 10)), (np.hstack([ids, other]), slice(0, 6))):
        mask = np.zeros_like(padded)
        mask[:, real] = 1
        np.testing.assert_allclose(model.run(padded, mask).logits[:, real], alone, rtol=1e-4, atol=1e-5)


def test_numpy_and_jax_inputs_and_any_order_of_hooks_give_the_same(model: LanguageModel) -> None:
    ids = np.array([[3, 1, 4, 1, 5]], np.int64)
    one = model.run(ids, np.ones_like(ids), HOOKS)
    other = model.run(jnp.asarray(ids), jnp.ones(ids.shape, bool), list(reversed(HOOKS)))
    np.testing.assert_array_equal(one.logits, other.logits)
    for hook in HOOKS:
        np.testing.assert_array_equal(one.activations[hook], other.activations[hook])


def test_a_model_says_what_it_is(model: LanguageModel, folder: Path) -> None:
    assert (model.config, model.name) == (CONFIG, folder.name)
    assert len(model.hooks) == len(set(model.hooks)) == 2 + 9 * CONFIG.n_layers
    assert [model.width(f"{name}.2") for name in ("resid_post", "attn_z", "mlp_hidden")] == [24, 24, 32]
    assert model.module_path("mlp_hidden.1") == "model.layers.1.mlp.down_proj:input"
    assert model.module_path("final_norm") == "model.norm:output"


def test_decoder_rows_turn_neurons_into_what_the_mlp_writes(model: LanguageModel, folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    rows = model.decoder_rows("mlp_hidden.2")
    np.testing.assert_array_equal(rows, stored.T)
    found = model.run(np.array([[1, 2, 3]]), hooks=("mlp_hidden.2", "mlp_out.2")).activations
    np.testing.assert_allclose(found["mlp_hidden.2"] @ rows, found["mlp_out.2"], rtol=1e-4, atol=1e-6)


def test_the_fingerprint_is_of_the_weights_alone(model: LanguageModel, folder: Path, tmp_path: Path) -> None:
    weights.save(tmp_path, weights.load_weights(folder), family=LLAMA, bos_id=None, eos_id=None, dtype="float32")
    assert saejax.models.load(tmp_path).fingerprint == model.fingerprint
    weights.save(tmp_path, Transformer(CONFIG, nnx.Rngs(params=3)), family=LLAMA, bos_id=0, eos_id=1, dtype="float32")
    assert saejax.models.load(tmp_path).fingerprint != model.fingerprint


ONES = np.ones((1, 4), np.int64)
REFUSALS: list[tuple[Callable[[LanguageModel], Any], str]] = [
    (
        lambda m: m.run(ONES, hooks=("resid_post.3",)),
        r"hook resid_post.3 is not in this model; it has embed and final_norm, and",
    ),
    (lambda m: m.width("mlp.0"), r"hook mlp.0 is not in this model"),
    (lambda m: m.module_path("resid_mid"), r"hook resid_mid is not in this model"),
    (lambda m: m.decoder_rows("resid_post.0"), r"hook resid_post.0 has no output matrix .* mlp_hidden.0"),
    (lambda m: m.activations(ONES, ONES, ONES, ()), r"names no hook point"),
    (lambda m: m.run(ONES * 50), r"input_ids holds 50, outside the vocabulary of 50"),
    (lambda m: m.run(-ONES), r"input_ids holds -1, outside the vocabulary of 50"),
    (lambda m: m.run(np.ones((1, 17), np.int64)), r"a row holds 17 tokens of one text, more than the model's 16"),
    (lambda m: m.activations(ONES, ONES, ONES * 16, ("embed",)), r"more than the model's 16 positions"),
    (lambda m: m.run(np.ones(4, np.int64)), r"input_ids \[4\] must be \[batch, position\]"),
    (lambda m: m.run(np.ones((1, 4))), r"input_ids of float64 must be integers"),
    (lambda m: m.run(np.ones((1, 0), np.int64)), r"input_ids \[1, 0\] must be"),
    (lambda m: m.run(ONES, np.ones((1, 3), np.int64)), r"attention_mask \[1, 3\] must have the shape of input_ids"),
    (lambda m: m.run(ONES, ONES * 2), r"attention_mask holds 2"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_bad_input_is_refused_with_its_value(
    call: Callable[[LanguageModel], Any], message: str, model: LanguageModel
) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


def test_more_padding_than_positions_is_fine(model: LanguageModel) -> None:
    mask = np.zeros((1, 20), np.int64)
    mask[:, 17:] = 1
    assert model.run(np.ones((1, 20), np.int64), mask).logits.shape == (1, 20, 50)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist; name a model folder"):
        saejax.models.load(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no weights"):
        saejax.models.load(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match=r"weights\.bin is not a \.gguf file"):
        saejax.models.load(tmp_path / "weights.bin")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds 2 \.gguf files; name one"):
        saejax.models.load(tmp_path)


def python(code: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_room_imports_no_other_framework() -> None:
    code = "import sys, saejax.models; print({'transformers', 'torch', 'gguf', 'tokenizers'} & set(sys.modules))"
    assert python(code) == "set()"


def test_transformers_is_not_misled_by_the_folder_kernels() -> None:
    code = "import transformers; from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
    assert python(code) == "LlamaForCausalLM"


def test_a_model_loads_silently_without_torch(folder: Path) -> None:
    code = f"import sys; sys.modules['torch'] = None; import saejax.models; saejax.models.load({str(folder)!r})"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
