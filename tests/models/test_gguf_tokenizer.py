from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from made_ggufs import SPECIAL, tokenizer_metadata, trained_tokenizer

from saejax.errors import InputError
from saejax.models.gguf import GGUFCheckpoint
from saejax.models.gguf_tokenizer import save_tokenizer

TEXTS = [
    "the cat sat on the mat", "the other  12 cats\n\n3 mats", " 1  2   34", "“naïve” 東京 ½ ² ٣ 🙂", "\t\r\n x\n", "",
    "<|im_start|>the cat<|im_end|>", "don't there's",
]  # fmt: skip


def test_ids_are_those_of_the_tokenizer_that_the_file_was_made_from(tmp_path: Path) -> None:
    original = trained_tokenizer()
    metadata = tokenizer_metadata(original)
    save_tokenizer(metadata, tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        wanted = original.encode(text)
        assert (ours.encode(text).ids, ours.encode(text).offsets) == (wanted.ids, wanted.offsets), text
        assert theirs(text).input_ids == wanted.ids, text
        assert theirs.decode(wanted.ids) == text
    assert ours.get_vocab() == original.get_vocab()
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == (SPECIAL[1], SPECIAL[2], None)
    assert theirs.chat_template == metadata["tokenizer.chat_template"]


def test_digits_stand_alone_and_leave_the_spaces_before_them_together(tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained_tokenizer())
    metadata["tokenizer.ggml.tokens"].append("12")
    metadata["tokenizer.ggml.token_type"].append(1)
    metadata["tokenizer.ggml.merges"].append("1 2")
    save_tokenizer(metadata, tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode("the  12").tokens[-3:] == ["ĠĠ", "1", "2"]


@pytest.mark.parametrize(
    ("change", "offender"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer llama with pre-tokenizer smollm"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer gpt2 with pre-tokenizer qwen2"),
    ],
)
def test_other_tokenizers_are_refused(change: dict[str, Any], offender: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{offender} is not supported"):
        save_tokenizer(tokenizer_metadata(trained_tokenizer()) | change, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_smollm2_differs_from_the_conversion_of_transformers_before_digits_only(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    save_tokenizer(GGUFCheckpoint(smollm2_gguf).metadata, tmp_path)
    ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    others = ["naïve café — “quotes” 東京 🙂🙂", "x = [1,2];\n\tfor i in f(10):", "In:1984,3.14", "a\n\n\n  b\t\tc\r\n"]
    for text in [TEXTS[0], *TEXTS[4:], *others]:
        assert ours.encode(text).ids == theirs(text).input_ids, text
    assert ours.encode("a\n\n1").tokens == ["a", "ĊĊ", "1"]
    assert theirs.convert_ids_to_tokens(theirs("a\n\n1").input_ids) == ["a", "Ċ", "Ċ", "1"]
