import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saejax.errors import InputError
from saejax.text import tokens
from saejax.text.document import Document
from saejax.text.tokens import BOS, EOS, PackedBatch, Tokenizer, pack, save_tokenizer, train_bpe

FIELDS = list(PackedBatch.__dataclass_fields__)
NON_ASCII = "Ångström — naïve 日本語 🙂🙃 e\u0301tude\u00a0\n\tthe\r\nend  "

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
texts = st.lists(text, min_size=1, max_size=8)


def documents(contents: list[str]) -> list[Document]:
    return [Document(str(i), "test", "", text) for i, text in enumerate(contents)]


def packed_by_loop(docs: list[Document], tokenizer: Tokenizer, context: int, bos: bool) -> list[dict]:
    """Return one record a token, from the words of the contract and nothing else."""
    stream = []
    for ordinal, document in enumerate(docs):
        ids, offsets = tokenizer.encode([document.text])[0]
        entries = [(tokenizer.bos_id, 0, 0)] if bos else []
        entries += [(int(i), int(a), int(b)) for i, (a, b) in zip(ids, offsets, strict=True)]
        stream += [(ordinal, place, *entry) for place, entry in enumerate(entries)]
    records, segment, position = [], 0, 0
    for index, (ordinal, place, token, start, end) in enumerate(stream):
        if index % context == 0:
            segment, position = 1, 0
        elif ordinal != stream[index - 1][0]:
            segment, position = segment + 1, 0
        else:
            position += 1
        record = {"input_ids": token, "segment": segment, "position": position, "document": ordinal}
        record |= {"token_position": place, "char_start": start, "char_end": end}
        records.append(record | {"special": token in tokenizer.special_ids})
    return records


def flattened(batches: list[PackedBatch]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([getattr(b, name).ravel() for b in batches]) for name in FIELDS}


@settings(max_examples=60, deadline=None)
@given(contents=texts, context=st.integers(1, 19), batch=st.integers(1, 4), bos=st.booleans())
def test_packing_agrees_with_a_loop_and_pads_only_the_end(tokenizer, contents, context, batch, bos):
    docs = documents(contents)
    expected = packed_by_loop(docs, tokenizer, context, bos)
    batches = list(pack(docs, tokenizer, context=context, batch=batch, bos=bos))
    assert all(getattr(b, name).shape == (batch, context) for b in batches for name in FIELDS)
    flat = flattened(batches)
    count = len(expected)
    assert 0 <= len(flat["segment"]) - count < context * batch
    for name in FIELDS:
        np.testing.assert_array_equal(flat[name][:count], [record[name] for record in expected], name)
        np.testing.assert_array_equal(flat[name][count:], {"document": -1}.get(name, 0), name)


@settings(max_examples=60, deadline=None)
@given(contents=texts, context=st.integers(1, 19))
def test_spans_of_packed_rows_reproduce_every_document(tokenizer, contents, context):
    flat = flattened(list(pack(documents(contents), tokenizer, context=context, batch=2)))
    text_tokens = (flat["segment"] > 0) & (flat["token_position"] > 0)
    for ordinal, text in enumerate(contents):
        own = text_tokens & (flat["document"] == ordinal)
        reached, rebuilt = 0, ""
        for start, end in zip(flat["char_start"][own], flat["char_end"][own], strict=True):
            assert start in (reached, reached - 1)
            rebuilt, reached = rebuilt[:start] + text[start:end], end
        assert rebuilt == text
        assert tokenizer.decode(flat["input_ids"][own]) == text


def test_spans_count_characters_where_bytes_are_more(tokenizer):
    ids, offsets = tokenizer.encode([NON_ASCII])[0]
    assert len(NON_ASCII.encode()) > len(NON_ASCII)
    shown = [(tokenizer.decode([i]), NON_ASCII[a:b]) for i, (a, b) in zip(ids, offsets, strict=True)]
    whole = [(decoded, span) for decoded, span in shown if "\ufffd" not in decoded]
    assert all(decoded == span for decoded, span in whole)
    assert ("\n", "\n") in whole
    assert {span for _, span in shown} >= {"日", "🙂"}


def test_where_groups_of_documents_end_changes_nothing(tokenizer, embedded, monkeypatch):
    whole = flattened(list(pack(embedded[:50], tokenizer, context=16, batch=4)))
    monkeypatch.setattr(tokens, "GROUP_CHARACTERS", 300)
    grouped = flattened(list(pack(embedded[:50], tokenizer, context=16, batch=4)))
    for name in FIELDS:
        np.testing.assert_array_equal(grouped[name], whole[name])


def test_packing_reads_no_further_than_it_must(tokenizer):
    endless = (Document(str(i), "test", "", "a few words " * 100) for i in itertools.count())
    assert next(pack(endless, tokenizer, context=32, batch=2)).input_ids.shape == (2, 32)


def test_a_special_token_written_in_a_text_is_flagged(tokenizer):
    batch = next(pack(documents([f"before {EOS} after"]), tokenizer, context=32, batch=1))
    flagged = batch.input_ids[batch.special].tolist()
    assert flagged == [tokenizer.bos_id, tokenizer.eos_id]


def test_transformers_loads_the_same_tokenizer(tokenizer, tokenizer_folder, embedded):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    contents = [NON_ASCII, *(document.text for document in embedded[400:420])]
    ours = [ids.tolist() for ids, _ in tokenizer.encode(contents)]
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in contents] == ours
    assert theirs.decode(ours[0]) == NON_ASCII == tokenizer.decode(ours[0])
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert len(theirs) == tokenizer.vocab_size == 600


def test_training_again_gives_the_same_tokenizer(tokenizer_folder, embedded, tmp_path):
    save_tokenizer(train_bpe((document.text for document in embedded[:400]), 600), tmp_path)
    assert Tokenizer.load(tmp_path).sha256 == Tokenizer.load(tokenizer_folder).sha256


def rewritten(source: Path, target: Path, config: dict | None = None, **changes: object) -> Path:
    content = json.loads((source / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps({**content, **changes}))
    if config is not None:
        (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_truncation_and_padding_kept_in_a_tokenizer_file_are_not_applied(tokenizer_folder, tmp_path):
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    fill |= {"pad_id": 0, "pad_type_id": 0, "pad_token": BOS}
    folder = rewritten(tokenizer_folder, tmp_path, truncation=cut, padding=fill)
    ids, _ = Tokenizer.load(folder).encode([NON_ASCII])[0]
    np.testing.assert_array_equal(ids, Tokenizer.load(tokenizer_folder).encode([NON_ASCII])[0][0])


def test_bos_may_be_described_by_an_object(tokenizer_folder, tmp_path):
    folder = rewritten(tokenizer_folder, tmp_path, {"bos_token": {"content": EOS, "special": True}})
    loaded = Tokenizer.load(folder)
    assert loaded.eos_id is None
    assert loaded.bos_id == Tokenizer.load(tokenizer_folder).eos_id


def test_a_tokenizer_without_bos_packs_only_without_bos(tokenizer_folder, tmp_path):
    bare = Tokenizer.load(rewritten(tokenizer_folder, tmp_path))
    with pytest.raises(InputError, match="no BOS token; pack with bos=False"):
        pack(documents(["text"]), bare, context=4, batch=1)
    batch = next(pack(documents(["text"]), bare, context=4, batch=1, bos=False))
    assert not batch.special.any()
    assert batch.token_position[0, 0] == 0
    assert batch.char_end[0, 0] > 0


@pytest.mark.parametrize(("context", "batch"), [(0, 1), (1, 0)])
def test_rows_without_tokens_are_refused(tokenizer, context, batch):
    with pytest.raises(InputError, match=f"context {context}, batch {batch}; both must be at least 1"):
        pack(documents(["text"]), tokenizer, context=context, batch=batch)


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json is not JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="tokenizer.json is not a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json describes no tokenizer model"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_that_cannot_be_filled_is_refused():
    with pytest.raises(InputError, match="vocab_size 257 is below 258"):
        train_bpe(iter(["text"]), 257)
    with pytest.raises(InputError, match=r"vocab_size 600 is above the \d+ tokens that the texts give"):
        train_bpe(iter(["text text"]), 600)
