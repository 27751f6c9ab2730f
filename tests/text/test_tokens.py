import json
from pathlib import Path

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.text.tokens import BOS, EOS, Tokenizer, save_tokenizer, train_bpe

NON_ASCII = "Ångström — naïve 日本語 🙂🙃 e\u0301tude\u00a0\n\tthe\r\nend  "


def test_spans_count_characters_where_bytes_are_more(tokenizer):
    ids, offsets = tokenizer.encode([NON_ASCII])[0]
    assert len(NON_ASCII.encode()) > len(NON_ASCII)
    shown = [(tokenizer.decode([i]), NON_ASCII[a:b]) for i, (a, b) in zip(ids, offsets, strict=True)]
    whole = [(decoded, span) for decoded, span in shown if "\ufffd" not in decoded]
    assert all(decoded == span for decoded, span in whole)
    assert ("\n", "\n") in whole
    assert {span for _, span in shown} >= {"日", "🙂"}


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


def test_what_goes_around_a_text_is_what_the_tokenizer_puts_there_or_its_bos(tokenizer, tokenizer_folder, tmp_path):
    assert (tokenizer.before, tokenizer.after) == ((tokenizer.bos_id,), ())
    template = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}]}
    template["single"] = [{"SpecialToken": {"id": BOS, "type_id": 0}}, *template["pair"]]
    template["single"] += [{"SpecialToken": {"id": EOS, "type_id": 0}}]
    ids = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
    template["special_tokens"] = {word: {"id": word, "ids": [i], "tokens": [word]} for word, i in ids.items()}
    framed = Tokenizer.load(rewritten(tokenizer_folder, tmp_path, {}, post_processor=template))
    assert (framed.before, framed.after) == ((tokenizer.bos_id,), (tokenizer.eos_id,))
    bare = Tokenizer.load(rewritten(tokenizer_folder, tmp_path, {}))
    assert (bare.before, bare.after) == ((), ())


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
