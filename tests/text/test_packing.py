import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saejax.errors import InputError
from saejax.text import packing
from saejax.text.choice import TokenChoice
from saejax.text.document import Document
from saejax.text.packing import PackedBatch, Packing, pack
from saejax.text.tokens import EOS, Tokenizer

FIELDS = list(PackedBatch.__dataclass_fields__)

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
texts = st.lists(text, min_size=1, max_size=8)


def documents(contents: list[str]) -> list[Document]:
    return [Document(str(i), "test", "", text) for i, text in enumerate(contents)]


def packed_by_loop(docs: list[Document], tokenizer: Tokenizer, how: Packing) -> list[list[dict]]:
    """Return the records of tokens by row, from the words of the contract and nothing else."""
    rows: list[list[dict]] = [[]]
    before, after = ([(i, 0, 0) for i in ids] for ids in (how.before, how.after))
    for ordinal, document in enumerate(docs):
        ids, spans = tokenizer.encode([document.text])[0]
        own = [(int(i), int(a), int(b)) for i, (a, b) in zip(ids, spans, strict=True)]
        starts = range(0, max(len(own), 1), how.room)
        if how.layout == "stream":
            pieces = [before + own + after]
        else:
            pieces = [before + own[start : start + how.room] + after for start in starts]
        place = 0
        for piece in pieces[:1] if how.layout == "whole" else pieces:
            if how.layout != "stream" and len(rows[-1]) + len(piece) > how.context:
                rows.append([])
            for token, start, end in piece:
                if len(rows[-1]) == how.context:
                    rows.append([])
                last = rows[-1][-1] if rows[-1] else {"document": ordinal, "segment": 1, "position": -1}
                new = last["document"] != ordinal
                rows[-1].append({
                    "input_ids": token, "segment": last["segment"] + new, "document": ordinal, "token_position": place,
                    "position": 0 if new else last["position"] + 1, "char_start": start, "char_end": end,
                    "special": token in tokenizer.special_ids, "chosen": True,
                })  # fmt: skip
                place += 1
    return rows


def grid(batches: list[PackedBatch]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([getattr(b, name) for b in batches]) for name in FIELDS}


@settings(max_examples=80, deadline=None)
@given(
    contents=texts, context=st.integers(3, 19), batch=st.integers(1, 4), around=st.sampled_from([0, 1, 2]),
    layout=st.sampled_from(["stream", "whole", "pieces"]),
)  # fmt: skip
def test_packing_agrees_with_a_loop(tokenizer, contents, context, batch, around, layout):
    before, after = [(), (tokenizer.bos_id,)][around > 0], [(), (tokenizer.eos_id,)][around > 1]
    how = Packing(context, batch, before, after, layout)
    docs = documents(contents)
    expected = packed_by_loop(docs, tokenizer, how)
    batches = list(pack(docs, tokenizer, how))
    assert all(getattr(b, name).shape == (batch, context) for b in batches for name in FIELDS)
    found = grid(batches)
    assert 0 <= len(found["segment"]) - len([row for row in expected if row]) < batch
    for name in FIELDS:
        padded = np.full(found[name].shape, -1 if name == "document" else 0, found[name].dtype)
        for row, records in enumerate(expected):
            padded[row, : len(records)] = [record[name] for record in records]
        np.testing.assert_array_equal(found[name], padded, name)


@settings(max_examples=60, deadline=None)
@given(contents=texts, context=st.integers(2, 19), layout=st.sampled_from(["stream", "pieces"]))
def test_spans_of_packed_rows_reproduce_every_document(tokenizer, contents, context, layout):
    found = grid(list(pack(documents(contents), tokenizer, Packing(context, 2, tokenizer.before, layout=layout))))
    text_tokens = (found["segment"] > 0) & ~found["special"]
    for ordinal, text in enumerate(contents):
        own = text_tokens & (found["document"] == ordinal)
        reached, rebuilt = 0, ""
        for start, end in zip(found["char_start"][own], found["char_end"][own], strict=True):
            assert start in (reached, reached - 1)
            rebuilt, reached = rebuilt[:start] + text[start:end], end
        assert rebuilt == text
        assert tokenizer.decode(found["input_ids"][own]) == text


@pytest.mark.parametrize("layout", ["stream", "whole", "pieces"])
def test_where_groups_of_documents_end_changes_nothing(tokenizer, embedded, monkeypatch, layout):
    how = Packing(16, 4, tokenizer.before, layout=layout, choice=TokenChoice("random", 2, 0))
    whole = grid(list(pack(embedded[:50], tokenizer, how)))
    monkeypatch.setattr(packing, "GROUP_CHARACTERS", 300)
    grouped = grid(list(pack(embedded[:50], tokenizer, how)))
    for name in FIELDS:
        np.testing.assert_array_equal(grouped[name], whole[name])


def test_packing_reads_no_further_than_it_must(tokenizer):
    endless = (Document(str(i), "test", "", "a few words " * 100) for i in itertools.count())
    assert next(pack(endless, tokenizer, Packing(32, 2))).input_ids.shape == (2, 32)


def test_a_special_token_written_in_a_text_is_flagged(tokenizer):
    batch = next(pack(documents([f"before {EOS} after"]), tokenizer, Packing(32, 1, tokenizer.before)))
    flagged = batch.input_ids[batch.special].tolist()
    assert flagged == [tokenizer.bos_id, tokenizer.eos_id]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": 0}, "context 0, batch 1; both must be at least 1"),
        ({"batch": 0}, "context 4, batch 0; both must be at least 1"),
        ({"before": (0, 0), "after": (1, 1), "layout": "whole"}, "context 4 is filled by the 4 special tokens"),
    ],
)
def test_rows_without_tokens_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Packing(**{"context": 4, "batch": 1} | fields)
