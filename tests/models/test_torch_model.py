"""Architectures without a model here: what hooks see in packed rows is what transformers says of each text alone."""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_models import VOCAB, error, saved_model
from transformers.utils.generic import ModelOutput

from saejax.errors import InputError
from saejax.models import LanguageModel, load
from saejax.models.families import FAMILIES
from saejax.models.runtime import Runtime, load_hooked
from saejax.models.torch_model import TorchModel, load_torch

SIZES = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
ENCODER: dict[str, Any] = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 64}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "falcon": ("FalconForCausalLM", SIZES),  # one key and value for all heads; attention and MLP in parallel
    "gptj": ("GPTJForCausalLM", {**SIZES, "rotary_dim": 4, "n_positions": 64}),  # blocks are given by keyword
    "bloom": ("BloomForCausalLM", {**SIZES, "n_layer": 3, "n_head": 3}),  # ALiBi: no bound of positions
    "mamba": ("MambaForCausalLM", {**SIZES, "state_size": 4}),  # no attention at all
    "roberta": ("RobertaForMaskedLM", ENCODER),  # no pooler in the checkpoint; positions begin behind the padding's
    "electra": ("ElectraModel", {**ENCODER, "embedding_size": 12}),  # embeddings narrower than the blocks
    "convbert": ("ConvBertModel", {**ENCODER, "embedding_size": 24, "num_attention_heads": 4}),  # convolves padding too
    "fnet": ("FNetModel", {**ENCODER, "hidden_act": "gelu"}),  # mixes all positions, and takes no attention mask
}
LENGTHS = ((5, 3, 1), (9,), (3, 5))  # of the texts in packed rows of ten tokens


def made_model(name: str, folder: Path) -> Any:
    """Save a random model, and return it without its head, as transformers reads it."""
    torch.manual_seed(0)
    architecture, fields = CASES[name]
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder).eval()


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, segments and positions of rows with padding behind."""
    ids = np.random.default_rng(0).integers(2, VOCAB, (3, 10)).astype(np.int32)
    segment, position = np.zeros_like(ids), np.zeros_like(ids)
    for row, lengths in enumerate(LENGTHS):
        stops = np.cumsum(lengths)
        for number, (stop, length) in enumerate(zip(stops, lengths, strict=True), start=1):
            segment[row, stop - length : stop] = number
            position[row, stop - length : stop] = np.arange(length)
    return ids, segment, position


def texts() -> list[tuple[int, slice]]:
    """Row and columns of each text."""
    starts = [np.cumsum((0, *lengths)) for lengths in LENGTHS]
    return [(row, slice(a, b)) for row, ends in enumerate(starts) for a, b in zip(ends[:-1], ends[1:], strict=True)]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TorchModel]:
    folder = tmp_path_factory.mktemp("model")
    return made_model(request.param, folder), load_torch(folder)


def test_the_residual_stream_is_the_hidden_states_of_each_text_alone(pair: tuple[Any, TorchModel]) -> None:
    theirs, ours = pair
    named = ["embed", *(f"{name}.{layer}" for layer in range(3) for name in ("resid_pre", "resid_post"))]
    assert list(ours.hooks[:7]) == named
    assert {ours.width(hook) for hook in named} == {24}
    ids, segment, position = packed()
    found = ours.activations(ids, segment, position, named)
    assert not any(x[segment == 0].any() for x in found.values())
    for row, columns in texts():
        with torch.no_grad():
            run = theirs(input_ids=torch.tensor(ids[None, row, columns]), output_hidden_states=True)
        states = [state[0].numpy() for state in run.hidden_states]
        if theirs.config.model_type == "mamba":  # whose first one is behind the first block
            states.insert(0, theirs.embeddings.weight.detach().numpy()[ids[row, columns]])
        assert error(found["embed"][row, columns], states[0]) < 1e-5
        for layer in range(3):
            assert error(found[f"resid_pre.{layer}"][row, columns], states[layer]) < 1e-5
            if layer < 2:  # the last one of transformers is behind a norm in most
                assert error(found[f"resid_post.{layer}"][row, columns], states[layer + 1]) < 1e-5


def test_every_module_that_runs_once_is_seen_as_a_hook_of_torch_sees_it(pair: tuple[Any, TorchModel]) -> None:
    theirs, ours = pair
    ids, segment, position = packed()
    raw = ours.hooks[7:]
    assert len(raw) > 30
    found = ours.activations(ids, segment, position, raw)
    row, columns = texts()[0]
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple | ModelOutput) else value
        seen[name] = value.clone() if torch.is_tensor(value) else value  # some add to it in place

    for path, module in theirs.named_modules(prefix=theirs.base_model_prefix):
        module.register_forward_hook(lambda _, args, output, name=path: keep(f"{name}:output", output))
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=path: keep(f"{name}:input", args[0] if args else next(iter(kwargs.values()))),
            with_kwargs=True,
        )
    with torch.no_grad():
        theirs(input_ids=torch.tensor(ids[None, row, columns]))
    for hook in raw:
        value = seen[hook][0].flatten(1).numpy()
        assert ours.module_path(hook) == hook
        assert ours.width(hook) == value.shape[1]
        np.testing.assert_allclose(found[hook][row, columns], value, rtol=0, atol=1e-5 * np.abs(value).max() + 1e-30)


@pytest.mark.parametrize("name", ["llama-grouped-tied", "bert"])
def test_a_family_that_has_a_model_here_reads_the_same_in_torch(name: str, tmp_path: Path) -> None:
    saved_model(name, tmp_path)
    ours, theirs = load(tmp_path), load_torch(tmp_path)
    packing = packed()
    same = [hook for hook in theirs.hooks if hook in ours.hooks]
    assert len(same) == 7
    one, other = ours.activations(*packing, same), theirs.activations(*packing, same)
    for hook in same:
        real = packing[1] > 0
        assert error(np.asarray(one[hook])[real], other[hook][real]) < 1e-4, hook
        assert ours.width(hook) == theirs.width(hook)
    inside = ours.module_path("mlp_hidden.1")
    expected = np.asarray(ours.activations(*packing, ["mlp_hidden.1"])["mlp_hidden.1"])
    found = theirs.activations(*packing, [inside])[inside]
    assert error(expected[packing[1] > 0], found[packing[1] > 0]) < 1e-4
    assert ours.module_path("resid_post.1") == theirs.module_path("resid_post.1")
    assert (ours.fingerprint, ours.name, ours.revision) == (theirs.fingerprint, theirs.name, theirs.revision)
    assert (ours.vocab_size, ours.max_positions) == (theirs.vocab_size, theirs.max_positions)


def test_a_pass_ends_behind_the_last_hook_needed(tmp_path: Path) -> None:
    made_model("gptj", tmp_path)
    model, ran = load_torch(tmp_path), []
    for layer, block in enumerate(model._model.h):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model.activations(*packed(), ["resid_pre.1"])
    assert set(ran) == {0}
    model.activations(*packed(), ["resid_post.1", "embed"])
    assert set(ran) == {0, 1}


def test_a_hook_that_a_pass_leaves_out_is_never_zeros(tmp_path: Path) -> None:
    made_model("gptj", tmp_path)
    model = load_torch(tmp_path)
    model._model.h = model._model.h[:2]
    with pytest.raises(InputError, match=r"hook resid_post\.2 is not met on rows of 1; name another"):
        model.activations(*packed(), ["resid_post.2", "embed"])


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    made_model("gptj", tmp_path)
    narrow = load_torch(tmp_path, dtype="bfloat16").activations(*packed(), ["resid_post.2"])["resid_post.2"]
    wide = load_torch(tmp_path).activations(*packed(), ["resid_post.2"])["resid_post.2"]
    assert 1e-5 < error(narrow, wide) < 3e-2


def test_bounds_of_positions_are_those_that_run(tmp_path: Path) -> None:
    bounds = {"gptj": 64, "bloom": None, "mamba": None, "roberta": 62}
    for name, bound in bounds.items():
        made_model(name, tmp_path / name)
        assert load_torch(tmp_path / name).max_positions == bound
    longest = np.full((1, 62), 5, np.int32)
    load_torch(tmp_path / "roberta").activations(longest, np.ones_like(longest), np.arange(62)[None], ["embed"])


def test_hooks_that_the_model_lacks_are_told_with_near_ones(tmp_path: Path) -> None:
    made_model("gptj", tmp_path)
    model = load_torch(tmp_path)
    with pytest.raises(InputError, match=r"hook resid_post\.3, mlp\.0 is not in this model; it has embed, resid_pre\.0 "
                                         r"to resid_post\.2, and .* for example resid_post\.2"):  # fmt: skip
        model.require_hooks(("resid_post.3", "embed", "mlp.0"))
    with pytest.raises(InputError, match=r"for example .*transformer\.h\.0\.mlp:output"):
        model.width("transformer.h.0.mlp.output")
    with pytest.raises(InputError, match="has no output matrix that is known"):
        model.decoder_rows("resid_post.0")


def test_modules_that_run_often_are_no_hook_points(tmp_path: Path) -> None:
    """ALBERT runs one block again and again; no name says which time is meant."""
    transformers.AlbertModel(transformers.AlbertConfig(**ENCODER, embedding_size=12)).save_pretrained(tmp_path)
    hooks = load_torch(tmp_path).hooks
    assert "albert.embeddings:output" in hooks
    assert not [hook for hook in hooks if "albert_layers" in hook or hook.startswith("resid")]


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    made_model("roberta", tmp_path)
    model, ones = load_torch(tmp_path), np.ones((1, 4), np.int32)
    cases = [
        (ones, ones, ones, ["embed"], "position does not count from 0 in each segment"),
        (ones * VOCAB, ones, ones, ["embed"], f"outside the vocabulary of {VOCAB}"),
        (ones, ones, ones * 62, ["embed"], "more than the model's 62 positions"),
        (ones, ones, ones, [], "names no hook point"),
    ]
    for ids, segment, position, hooks, message in cases:
        with pytest.raises(InputError, match=message):
            model.activations(ids, segment, position, hooks)


def test_auto_is_jax_for_the_families_and_torch_for_all_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved_model("gpt2", tmp_path / "known")
    made_model("gptj", tmp_path / "unknown")
    with caplog.at_level(logging.INFO, "saejax"):
        known = load_hooked(tmp_path / "known")
        assert isinstance(known, LanguageModel)
        assert not [record for record in caplog.records if record.name.startswith("saejax")]
        other = load_hooked(tmp_path / "unknown")
    assert "model_type gptj runs in torch" in caplog.text
    assert (known.runtime, other.runtime) == ("jax", "torch")
    assert load_hooked(tmp_path / "known", "torch").runtime == "torch"
    with pytest.raises(InputError, match=r"model_type gptj has no model in JAX; those are gpt2, .*leave --runtime out"):
        load_hooked(tmp_path / "unknown", "jax")


def test_without_torch_the_families_and_the_extra_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_model("gpt2", tmp_path / "known")
    made_model("gptj", tmp_path / "unknown")
    monkeypatch.setitem(sys.modules, "torch", None)
    needing: list[tuple[str, Runtime]] = [("unknown", "auto"), ("unknown", "torch"), ("known", "torch")]
    for name, runtime in needing:
        with pytest.raises(InputError) as refusal:
            load_hooked(tmp_path / name, runtime)
        assert 'pip install "saejax[torch]"' in str(refusal.value)
        assert ", ".join(FAMILIES) in str(refusal.value)


def with_config(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    t5: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "d_kv": 8}
    transformers.T5Model(transformers.T5Config(**t5)).save_pretrained(tmp_path / "t5")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
    clip = transformers.CLIPConfig(text_config=sizes | {"vocab_size": VOCAB}, vision_config=sizes)
    transformers.CLIPModel(clip).save_pretrained(tmp_path / "clip")
    for name in ("remote", "lacking", "larger"):
        made_model("gptj", tmp_path / name)
    with_config(tmp_path / "remote", model_type="mine", auto_map={"AutoModel": "code.Mine"})
    with_config(tmp_path / "lacking", n_layer=4)
    with_config(tmp_path / "larger", n_embd=36)
    cases = {
        "t5": "model_type t5 is no single stack over a vocabulary of tokens",
        "vit": "model_type vit is no single stack",
        "clip": "clip does not run on token ids alone",
        "remote": "model_type mine is unknown to transformers .* code of a model folder is never run",
        "lacking": r"h\.3\.attn\.k_proj\.weight.* missing",
        "larger": "transformers does not load it",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as refusal:
            load_torch(tmp_path / name)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=r"holds no config\.json, which runtime torch needs"):
        load_hooked(tmp_path, "torch")


def test_a_pickle_is_read_only_when_asked_for(tmp_path: Path) -> None:
    theirs = made_model("gptj", tmp_path)
    expected = load_torch(tmp_path).activations(*packed(), ["resid_post.2"])["resid_post.2"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle, which can run code; .* \(--allow-pickle\)"):
        load_hooked(tmp_path)
    found = load_hooked(tmp_path, allow_pickle=True).activations(*packed(), ["resid_post.2"])["resid_post.2"]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)
