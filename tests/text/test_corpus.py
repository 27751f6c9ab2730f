import collections
import hashlib
import json
from pathlib import Path

import pytest

from saejax.errors import InputError
from saejax.text.corpus import EMBEDDED, CorpusConfig, corpus_record, read_documents
from saejax.text.curation import LONGEST_FILE, SOURCES
from saejax.text.document import Document


def ids(config: CorpusConfig) -> list[str]:
    return [document.id for document in read_documents(config)]


def lines(path: Path, contents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(contents)))
    return path


def test_the_embedded_corpus_is_small_and_carries_the_licences_it_owes():
    notices = " ".join((EMBEDDED.parent / "LICENSES.md").read_text().split())
    assert EMBEDDED.stat().st_size <= LONGEST_FILE <= 12_000_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in notices
    assert "Princeton University and LICENSEE agrees to preserve same." in notices
    assert "Portions Copyright © 1994, The Regents of the University of California" in notices
    assert "CALIFORNIA HAS NO OBLIGATIONS TO PROVIDE MAINTENANCE, SUPPORT, UPDATES, ENHANCEMENTS" in notices
    assert all(f"| {source} |" in notices for source in SOURCES)


def test_embedded_documents_are_distinct_full_and_of_shippable_sources(embedded):
    assert len({document.id for document in embedded}) == len(embedded) > 50_000
    assert len({document.text for document in embedded}) == len(embedded)
    assert {document.source for document in embedded} == set(SOURCES)
    assert sum(len(document.text) for document in embedded) > 30_000_000
    assert not any("Small. Fast. Reliable." in document.text[:200] for document in embedded)


def test_a_prefix_of_the_embedded_corpus_is_a_fair_sample(embedded):
    sample = 4000
    whole = collections.Counter(document.source for document in embedded)
    prefix = collections.Counter(document.source for document in embedded[:sample])
    for source, count in whole.items():
        share = count / len(embedded)
        assert abs(prefix[source] - sample * share) < 4 * (sample * share * (1 - share)) ** 0.5


def test_every_document_is_either_held_out_or_for_training(tmp_path):
    path = str(lines(tmp_path / "corpus.jsonl", ["text"] * 400))
    whole, heldout, train = (ids(CorpusConfig(source=path, split=s)) for s in ("all", "heldout", "train"))
    assert not set(heldout) & set(train)
    assert len(heldout) + len(train) == len(whole) == 400
    assert set(heldout) | set(train) == set(whole)


def test_one_embedded_document_and_character_in_twenty_is_held_out(embedded):
    heldout = [document for document in embedded if document.split == "heldout"]
    characters = [sum(len(document.text) for document in part) for part in (heldout, embedded)]
    assert 0.045 < len(heldout) / len(embedded) < 0.055
    assert 0.045 < characters[0] / characters[1] < 0.055


def test_heldout_text_was_not_read_in_training(embedded):
    def paragraphs(split: str) -> set[str]:
        texts = (d.text for d in embedded if d.split == split)
        return {p for text in texts for p in text.split("\n\n") if len(p) >= 80}

    heldout = paragraphs("heldout")
    assert len(heldout & paragraphs("train")) < 0.01 * len(heldout)


def test_the_split_is_a_function_of_the_id_alone(tmp_path):
    parts = {name: Document(name, "", "", "text").split for name in (f"d{i}" for i in range(400))}
    forward = lines(tmp_path / "forward.jsonl", ["text"] * 400)
    backward = tmp_path / "backward.jsonl"
    backward.write_text("".join(reversed(forward.read_text().splitlines(keepends=True))))
    expected = [name for name, part in parts.items() if part == "heldout"]
    assert 5 <= len(expected) <= 40
    assert ids(CorpusConfig(source=str(forward), split="heldout")) == expected
    assert ids(CorpusConfig(source=str(backward), split="heldout")) == expected[::-1]


def test_parts_are_disjoint_in_their_text_and_make_up_the_split(tmp_path):
    path = str(lines(tmp_path / "corpus.jsonl", [f"text {i % 300}" for i in range(400)]))
    for parts in (1, 2, 3):
        read = [list(read_documents(CorpusConfig(path, "train", parts, part))) for part in range(1, parts + 1)]
        texts = [{document.text for document in part} for part in read]
        assert sum(map(len, texts)) == len(set.union(*texts)), "a text that occurs twice is in one part"
        assert sorted(d.id for part in read for d in part) == sorted(ids(CorpusConfig(path, "train")))
        assert min(map(len, read)) > 0.7 * 380 / parts
    assert ids(CorpusConfig(path, "train", 1, 1)) == ids(CorpusConfig(path, "train"))


def test_a_number_of_documents_gives_a_prefix_of_the_split(embedded):
    expected = [document.id for document in embedded if document.split == "heldout"]
    assert ids(CorpusConfig(split="heldout", documents=7)) == expected[:7]


def test_the_record_identifies_every_file(tmp_path):
    lines(tmp_path / "b.jsonl", ["one"])
    (tmp_path / "a.txt").write_text("two")
    config = CorpusConfig(source=str(tmp_path))
    record = corpus_record(config)
    assert [entry["name"] for entry in record["files"]] == ["a.txt", "b.jsonl"]
    assert record["files"][0] == {"name": "a.txt", "bytes": 3, "sha256": hashlib.sha256(b"two").hexdigest()}
    assert json.loads(json.dumps(record)) == record
    (tmp_path / "a.txt").write_text("too")
    assert corpus_record(config) != record


def test_the_record_of_the_embedded_corpus_is_its_hash():
    record = corpus_record(CorpusConfig(split="heldout", documents=5))
    sha256 = hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()
    assert record["files"] == [{"name": EMBEDDED.name, "bytes": EMBEDDED.stat().st_size, "sha256": sha256}]
    assert (record["source"], record["split"], record["documents"]) == ("embedded", "heldout", 5)


def test_an_empty_document_is_refused_where_it_stands(tmp_path):
    path = lines(tmp_path / "corpus.jsonl", ["full", " \n\u2003\t"])
    reading = read_documents(CorpusConfig(source=str(path)))
    assert next(reading).text == "full"
    with pytest.raises(InputError, match=r"corpus.jsonl line 2 is an empty document; remove it"):
        next(reading)
    with pytest.raises(InputError, match=r"corpus.jsonl line 2 is an empty document"):
        corpus_record(CorpusConfig(source=str(path)))


def test_a_source_that_gives_no_document_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.txt matches no file .*; check the path"):
        read_documents(CorpusConfig(source=str(tmp_path / "nowhere.txt")))
    path = lines(tmp_path / "one.jsonl", ["text"])
    assert Document("d0", "", "", "").split == "train"
    with pytest.raises(InputError, match=r"one.jsonl, split heldout, holds no document"):
        list(read_documents(CorpusConfig(source=str(path), split="heldout")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": ""}, "corpus source '' is empty"),
        ({"source": "hf:"}, "corpus source 'hf:' is empty"),
        ({"part": 0}, "corpus part 0 of 1 parts does not exist; count from 1"),
        ({"part": 3, "parts": 2}, "corpus part 3 of 2 parts does not exist"),
        ({"documents": 0}, "corpus documents 0 is below 1"),
        ({"text_field": ""}, "corpus text_field is empty"),
    ],
)
def test_configs_that_can_match_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        CorpusConfig(**fields)
