"""Extraction of chosen tokens, and of encoders: what transformers says of each text by itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_stores import files_of, manifest_without_times

from saejax.activations.extract import ExtractConfig, extract, plan
from saejax.activations.store import Store
from saejax.activations.writer import StoreWriter
from saejax.errors import InputError
from saejax.models import LanguageModel
from saejax.text.corpus import CorpusConfig
from saejax.text.tokens import BOS, EOS, Tokenizer, save_tokenizer, train_bpe

WORDS = "the cat sat on a mat and saw that rats ran to sea".split()
VOCAB = 264
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
HOOK = "resid_post.1"
CONTEXT = 24


def texts() -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, length)) for length in (2, 3, 40, 1, 7, 4, 4, 9, 3, 2, 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 and BERT, whose tokenizer puts tokens around a text, and a corpus."""
    folder = tmp_path_factory.mktemp("choice")
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(**SIZES, n_embd=12, n_layer=2, n_head=2, n_positions=32)
    bert = transformers.BertConfig(
        **SIZES, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    for name in ("gpt2", "bert"):
        save_tokenizer(train_bpe(iter(texts()), VOCAB), folder / name)
    path = folder / "bert" / "tokenizer.json"
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    around = [{"SpecialToken": {"id": word, "type_id": 0}} for word in (BOS, EOS)]
    special = {word: {"id": word, "ids": [place], "tokens": [word]} for place, word in enumerate((BOS, EOS))}
    template = {"type": "TemplateProcessing", "single": [around[0], whole, around[1]], "pair": [whole]}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"post_processor": template | {"special_tokens": special}})
    )
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return folder


def config(folder: Path, out: Path, model: str = "gpt2", **fields: Any) -> ExtractConfig:
    corpus = CorpusConfig(str(folder / "corpus.jsonl"))
    options = {"context": CONTEXT, "batch": 2, "shard_tokens": 2 * CONTEXT, "dtype": "float32"} | fields
    return ExtractConfig(folder / model, (HOOK,), out, corpus, **options)


def alone(folder: Path, model: str, ids: list[int]) -> np.ndarray:
    """Return what transformers says of one text, `[position, d_model]`: GPT-2's last entry is normalised, ours not."""
    run = transformers.AutoModel.from_pretrained(folder / model).eval()
    seen = []
    block = run.h[1] if model == "gpt2" else run.encoder.layer[1]
    block.register_forward_hook(lambda _, args, output: seen.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad():
        run(input_ids=torch.tensor([ids]))
    return seen[0][0].numpy()


@pytest.mark.parametrize(("choose", "behind"), [("last", 0), ("end:5", 5)])
def test_a_row_is_the_token_of_a_text_that_is_read_whole(
    folder: Path, tmp_path: Path, choose: str, behind: int
) -> None:
    store = Store.open(extract(config(folder, tmp_path / "run", choose=choose)))
    tokenizer = Tokenizer.load(folder / "gpt2")
    cut = [[*tokenizer.before, *ids[: CONTEXT - 1].tolist()] for ids, _ in tokenizer.encode(texts())]
    expected = [(document, len(ids) - 1 - behind) for document, ids in enumerate(cut) if len(ids) - 1 > behind]
    ledger = store.ledger(0, store.rows)
    assert list(zip(ledger["document"].tolist(), ledger["position"].tolist(), strict=True)) == expected
    assert len(expected) < len(cut) or not behind
    assert max(len(ids) for ids in cut) == CONTEXT
    assert not ledger["special"].any()
    for row, (document, place) in enumerate(expected):
        np.testing.assert_allclose(
            store.read(HOOK, row, row + 1)[0], alone(folder, "gpt2", cut[document])[place], rtol=0, atol=2e-5
        )


def test_random_rows_are_rows_of_all(folder: Path, tmp_path: Path) -> None:
    seeds = [Store.open(extract(config(folder, tmp_path / f"{s}", choose="random:3", seed=s))) for s in (0, 1)]
    ledgers = [store.ledger(0, store.rows) for store in seeds]
    lengths = [len(ids) for ids, _ in Tokenizer.load(folder / "gpt2").encode(texts())]
    for ledger in ledgers:
        assert np.bincount(ledger["document"]).tolist() == [min(3, length) for length in lengths]
    assert ledgers[0]["position"].tolist() != ledgers[1]["position"].tolist()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("killed_at", [2, 4])
def test_a_killed_run_goes_on_within_a_batch(folder: Path, tmp_path: Path, killed_at: int) -> None:
    """Shards end where batches do not: the rows of one that are stored are not stored again."""
    given = config(folder, tmp_path / "whole", choose="random:3", context=8, batch=1, shard_tokens=8)
    whole, original, calls = extract(given), StoreWriter._write, []

    def killed(self: StoreWriter, *args) -> None:
        calls.append(1)
        if len(calls) == killed_at:
            raise Killed
        original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "_write", killed)
        with pytest.raises(Killed):
            extract(dataclasses.replace(given, out=tmp_path / "run"))
    again = extract(dataclasses.replace(given, out=tmp_path / "run"))
    assert files_of(again) == files_of(whole)
    assert manifest_without_times(again) == manifest_without_times(whole)
    assert len(Store.open(again).documents) == len(texts())


@pytest.mark.parametrize("choose", ["all", "last"])
def test_an_encoder_reads_each_piece_within_its_special_tokens(folder: Path, tmp_path: Path, choose: str) -> None:
    store = Store.open(extract(config(folder, tmp_path / "run", "bert", choose=choose)))
    tokenizer = Tokenizer.load(folder / "bert")
    room, rows = CONTEXT - 2, []
    for document, (ids, _) in enumerate(tokenizer.encode(texts())):
        starts = range(0, len(ids) if choose == "all" else 1, room)
        for start in starts:
            piece = [0, *ids[start : start + room].tolist(), 1]
            found = alone(folder, "bert", piece)
            places = range(len(piece)) if choose == "all" else [len(piece) - 2]
            rows += [(document, piece[place], found[place]) for place in places]
    ledger = store.ledger(0, store.rows)
    documents, tokens, expected = zip(*rows, strict=True)
    assert ledger["document"].tolist() == list(documents)
    assert ledger["token_id"].tolist() == list(tokens)
    np.testing.assert_array_equal(ledger["special"], np.array(tokens) < 2)
    np.testing.assert_allclose(store.read(HOOK, 0, store.rows), np.stack(expected), rtol=0, atol=2e-5)


def test_a_plan_counts_the_rows_of_chosen_tokens(folder: Path, tmp_path: Path) -> None:
    planned = plan(config(folder, tmp_path / "run", choose="last", context=12, batch=1, shard_tokens=12))
    assert planned["rows"] == f"{len(texts())}, estimated from the first batch"


def test_bad_choices_die_before_anything_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="choose 'first' is none of all, last, end:N"):
        config(folder, tmp_path / "run", choose="first")

    def ran(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(LanguageModel, "activations", ran)
    with pytest.raises(InputError, match=r"gives no tokens to store"):
        extract(config(folder, tmp_path / "run", choose="end:30"))
    with pytest.raises(InputError, match="context 2 is filled by the 2 special tokens around a text; raise it"):
        extract(config(folder, tmp_path / "run", "bert", context=2, batch=1, shard_tokens=2))
    assert not (tmp_path / "run").exists()
