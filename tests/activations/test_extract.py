import dataclasses
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from made_extractions import HOOKS, WIDTHS, made_config, make_model, texts
from made_stores import files_of, manifest_without_times

from saejax import artifacts
from saejax.activations.extract import ExtractConfig, extract, plan
from saejax.activations.extractor import Extractor
from saejax.activations.store import Store, aligned
from saejax.activations.token_rows import TokenRows
from saejax.activations.writer import StoreWriter, committed_shards
from saejax.errors import InputError
from saejax.models import LanguageModel, load
from saejax.storage import Folder
from saejax.text.corpus import CorpusConfig
from saejax.text.tokens import Tokenizer, save_tokenizer, train_bpe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """An extraction that is done."""
    config = made_config(tmp_path_factory.mktemp("extract"))
    extract(config)
    return config


@pytest.fixture(scope="module")
def store(made: ExtractConfig) -> Store:
    return Store.open(made.out)


def encoded(made: ExtractConfig) -> list[np.ndarray]:
    """Return the tokens of each document, BOS first."""
    tokenizer = Tokenizer.load(made.model)
    bos = np.array([tokenizer.bos_id], np.int32)
    return [np.concatenate([bos, ids]) for ids, _ in tokenizer.encode(list(texts()))]


def test_every_token_of_every_document_is_a_row(made: ExtractConfig, store: Store) -> None:
    documents, ledger = encoded(made), store.ledger(0, store.rows)
    assert store.rows == sum(map(len, documents)) > 3 * 128
    assert store.rows % 64, "the last batch must hold padding for this test to mean anything"
    np.testing.assert_array_equal(ledger["token_id"], np.concatenate(documents))
    np.testing.assert_array_equal(ledger["document"], np.repeat(np.arange(10), [len(d) for d in documents]))
    np.testing.assert_array_equal(ledger["position"], np.concatenate([np.arange(len(d)) for d in documents]))
    np.testing.assert_array_equal(ledger["special"], ledger["position"] == 0)
    assert len({document["id"] for document in store.documents}) == 10
    assert [document["title"] for document in store.documents] == [f"T{i}" for i in range(10)]


def test_the_ledger_finds_the_text_behind_a_row(made: ExtractConfig, store: Store) -> None:
    tokenizer, originals = Tokenizer.load(made.model), list(texts())
    ledger = store.ledger(0, store.rows)
    for row in range(store.rows):
        text = originals[ledger["document"][row]][ledger["char_start"][row] : ledger["char_end"][row]]
        expected = "" if ledger["special"][row] else tokenizer.decode([ledger["token_id"][row]])
        assert text == expected


def test_a_row_is_what_the_model_says_of_the_text_in_its_packed_row(made: ExtractConfig, store: Store) -> None:
    """Each document's part of a packed row, run alone, gives the stored rows."""
    rows = store.ledger(0, store.rows)
    cuts = {(row // made.context, document) for row, document in enumerate(rows["document"].tolist())}
    parts = [np.flatnonzero((rows["document"] == d) & (np.arange(store.rows) // made.context == r)) for r, d in cuts]
    ids, mask = np.zeros((2, len(parts), made.context), np.int32)
    for one, part in enumerate(parts):
        ids[one, : len(part)], mask[one, : len(part)] = rows["token_id"][part], 1
    alone = load(made.model).run(ids, mask, HOOKS).activations
    for hook in HOOKS:
        expected = np.asarray(alone[hook])
        for one, part in enumerate(parts):
            found = store.gather(hook, part)
            np.testing.assert_allclose(found, expected[one, : len(part)], rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_neurons_write_is_kept_beside_them(made: ExtractConfig, store: Store) -> None:
    expected = np.asarray(load(made.model).decoder_rows("mlp_hidden.0"))
    assert expected.shape == (12, 8)
    np.testing.assert_array_equal(store.decoder_rows("mlp_hidden.0"), expected)
    with pytest.raises(InputError, match=r"hook resid_post\.1 of store .* has no output matrix"):
        store.decoder_rows("resid_post.1")


def test_the_manifest_names_model_hooks_and_text(made: ExtractConfig, store: Store) -> None:
    facts, model = store.manifest["facts"], load(made.model)
    assert (facts["model"], facts["revision"]) == ("model", model.revision)
    assert facts["model_fingerprint"] == model.fingerprint
    assert facts["tokenizer_sha256"] == Tokenizer.load(made.model).sha256
    assert facts["hooks"] == {hook: {"width": WIDTHS[hook], "module_path": model.module_path(hook)} for hook in HOOKS}
    assert facts["corpus"]["files"][0]["name"] == "corpus.jsonl"
    assert (facts["dtype"], facts["documents"], facts["special_rows"]) == ("float32", 10, 10)
    store.require(model_fingerprint=model.fingerprint, hook="mlp_hidden.0")


@pytest.mark.parametrize("tokens", [1, 64, 100, 128, 200, 256])
def test_tokens_is_the_exact_number_of_rows(made: ExtractConfig, store: Store, tmp_path: Path, tokens: int) -> None:
    short = Store.open(extract(dataclasses.replace(made, tokens=tokens, out=tmp_path / "run")))
    assert short.rows == tokens
    expected = store.ledger(0, tokens)
    for name, column in short.ledger(0, tokens).items():
        np.testing.assert_array_equal(column, expected[name])
    assert short.documents == store.documents[: expected["document"][-1] + 1]
    np.testing.assert_array_equal(short.read("resid_post.1", 0, tokens), store.read("resid_post.1", 0, tokens))


def test_more_tokens_than_the_corpus_has_are_all_of_it(made: ExtractConfig, store: Store, tmp_path: Path) -> None:
    more = dataclasses.replace(made, tokens=10_000, out=tmp_path / "run")
    assert files_of(extract(more)) == files_of(store.path)


def test_bfloat16_is_the_rounded_float32(made: ExtractConfig, store: Store, tmp_path: Path) -> None:
    narrow = Store.open(extract(dataclasses.replace(made, dtype="bfloat16", out=tmp_path / "run")))
    for hook in HOOKS:
        expected = store.read(hook, 0, store.rows).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(narrow.read(hook, 0, narrow.rows), expected)


def test_stores_of_two_models_on_one_text_are_aligned(made: ExtractConfig, store: Store, tmp_path: Path) -> None:
    model = make_model(tmp_path / "other", 1)
    config = dataclasses.replace(
        made, model=model, hooks=("embed",), dtype="bfloat16", context=8, shard_tokens=64, out=tmp_path / "run"
    )
    other = Store.open(extract(config))
    aligned(store, other)
    with pytest.raises(InputError, match="is of model"):
        other.require(model_fingerprint=load(made.model).fingerprint)
    shorter = Store.open(extract(dataclasses.replace(config, tokens=300, out=tmp_path / "short")))
    with pytest.raises(InputError, match="are of different tokens"):
        aligned(store, shorter)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("killed_at", ["activations 1", "activations 2", "activations 5", "note 3", "finish 1"])
def test_a_killed_extraction_goes_on_and_ends_the_same(
    made: ExtractConfig, store: Store, tmp_path: Path, killed_at: str
) -> None:
    method, call = killed_at.split()
    of = {"activations": LanguageModel, "note": artifacts.Run, "finish": StoreWriter}[method]
    config = dataclasses.replace(made, out=tmp_path / "run")
    original, calls = getattr(of, method), []

    def killed(self, *args, **kwargs):
        calls.append(method)
        if len(calls) == int(call):
            raise Killed
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of, method, killed)
        with pytest.raises(Killed):
            extract(config)
    stored = min(len(committed_shards(Folder(config.out))) * made.shard_tokens, store.rows)
    runs = count_runs(config)
    assert runs == -(-(store.rows - stored) // made.batch_tokens)
    assert files_of(config.out) == files_of(store.path)
    assert manifest_without_times(config.out) == manifest_without_times(store.path)


def count_runs(config: ExtractConfig) -> int:
    """Extract, and return on how many batches the model ran."""
    original, calls = LanguageModel.activations, []

    def counted(self, *args):
        calls.append(1)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "activations", counted)
        extract(config)
    return len(calls)


def test_text_is_read_while_the_model_runs_and_the_model_runs_while_rows_are_written(
    made: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for what only comes after it where one thread does all."""
    batches = 4
    read, begun = ([threading.Event() for _ in range(batches)] for _ in range(2))
    rows, compute, append = Extractor.rows, Extractor.compute, StoreWriter.append
    of_compute, of_append = itertools.count(1), itertools.count(1)

    def reading(self: Extractor) -> Iterator[TokenRows]:
        for found, event in zip(rows(self), read, strict=True):
            event.set()
            yield found

    def computing(self: Extractor, *args):
        following = next(of_compute)
        begun[following - 1].set()
        assert following == batches or read[following].wait(10), "no text is read"
        return compute(self, *args)

    def appending(self: StoreWriter, *args):
        following = next(of_append)
        assert following == batches or begun[following].wait(10), "the model has not begun"
        append(self, *args)

    monkeypatch.setattr(Extractor, "rows", reading)
    monkeypatch.setattr(Extractor, "compute", computing)
    monkeypatch.setattr(StoreWriter, "append", appending)
    extract(dataclasses.replace(made, tokens=batches * made.batch_tokens, out=tmp_path / "run"))
    assert all(event.is_set() for event in begun)


def test_a_complete_store_is_left_alone(made: ExtractConfig, store: Store) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path(made.out).rglob("*")}
    assert count_runs(made) == 0
    assert {file: file.stat().st_mtime_ns for file in Path(made.out).rglob("*")} == before
    with pytest.raises(InputError, match="holds another run"):
        extract(dataclasses.replace(made, tokens=64))


def changed(made: ExtractConfig, **fields) -> ExtractConfig:
    return dataclasses.replace(made, **fields)


def test_bad_input_dies_before_anything_is_written(made: ExtractConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    bare = shutil.copytree(made.model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    mute = shutil.copytree(made.model, tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    wide = shutil.copytree(made.model, tmp_path / "wide")
    save_tokenizer(train_bpe(texts(), 280), wide)
    (tmp_path / "empty.jsonl").write_text('{"text": "a cat"}\n{"text": " "}\n')
    cases = [
        (changed(made, model=tmp_path / "no"), "does not exist"),
        (changed(made, model=bare), "holds no weights"),
        (changed(made, model=mute), r"holds no tokenizer\.json"),
        (changed(made, model=wide), "tokenizer of 280 tokens and a model of 270"),
        (changed(made, hooks=("resid_post.1", "mlp_out.2")), r"hook mlp_out\.2 is not in this model"),
        (changed(made, corpus=CorpusConfig(str(tmp_path / "*.txt"))), r"\*\.txt"),
        (changed(made, corpus=CorpusConfig(str(tmp_path / "empty.jsonl"))), "empty document"),
        (changed(made, context=128, batch=1), "context 128 is above the model's 64 positions"),
    ]
    for config, message in cases:
        with pytest.raises(InputError, match=message) as refusal:
            extract(dataclasses.replace(config, out=out))
        assert "\n" not in str(refusal.value)
        assert not out.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shard_tokens": 100}, "shard_tokens 100 must be a multiple of context x batch, 64; give 128"),
        ({"shard_tokens": 10}, "give 64"),
        ({"tokens": 0}, "tokens 0 is below 1"),
        ({"batch": 0}, "batch 0 is below 1"),
        ({"hooks": ()}, "must be distinct, and at least one"),
        ({"hooks": ("embed", "embed")}, "must be distinct"),
        ({"corpus": CorpusConfig("hf:some/thing")}, "tokens is not given for hf:some/thing"),
    ],
)
def test_a_config_that_cannot_run_is_refused(made: ExtractConfig, fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(made, **fields)


def test_another_dtype_is_refused(made: ExtractConfig) -> None:
    config = dataclasses.replace(made)
    object.__setattr__(config, "dtype", "float16")  # as if annotations were not checked, as for users
    with pytest.raises(InputError, match="dtype float16 is none of bfloat16, float32"):
        config.__post_init__()


def test_an_activation_that_is_no_number_names_hook_and_row(
    made: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LanguageModel.activations

    def broken(self, input_ids, segment, position, hooks) -> dict[str, jax.Array]:
        found = original(self, input_ids, segment, position, hooks)
        return {**found, "mlp_hidden.0": found["mlp_hidden.0"].at[1, 3, 5].set(np.nan)}

    monkeypatch.setattr(LanguageModel, "activations", broken)
    with pytest.raises(InputError, match=r"hook mlp_hidden\.0 is nan at row 19, which float32 cannot hold"):
        extract(dataclasses.replace(made, out=tmp_path / "run"))


def test_padding_that_is_no_number_is_nobodys_business(
    made: ExtractConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LanguageModel.activations

    def padded(self, input_ids, segment, position, hooks) -> dict[str, jax.Array]:
        found = original(self, input_ids, segment, position, hooks)
        return {hook: jax.numpy.where(segment[:, :, None] == 0, np.nan, x) for hook, x in found.items()}

    monkeypatch.setattr(LanguageModel, "activations", padded)
    assert files_of(extract(dataclasses.replace(made, out=tmp_path / "run"))) == files_of(store.path)


def test_a_plan_tells_rows_and_bytes_and_writes_nothing(made: ExtractConfig, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    planned = plan(dataclasses.replace(made, tokens=200, out=out))
    per_row = (8 + 12) * 4 + 5 * 4 + 1
    assert planned["rows"] == "200"
    assert planned["disk"] == f"{200 * per_row:,} bytes at most ({per_row} a row)"
    assert set(planned) == {"rows", "disk", "minutes", "memory"}
    estimated = plan(dataclasses.replace(made, out=out))["rows"]
    assert estimated.endswith(", estimated from the first batch")
    assert abs(int(estimated.split(",")[0]) / store.rows - 1) < 0.1
    assert not out.exists()
