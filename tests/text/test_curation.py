import gzip
import json
from pathlib import Path

import pytest

from saejax.errors import InputError
from saejax.text import curation
from saejax.text.curation import SOURCES, curate, curated
from saejax.text.files import read

PARAGRAPH = "A paragraph that is long enough to tell whether it was read before. " * 2
OTHER = "Another paragraph, of other words, that is long enough to be told apart. " * 2


def record(source: str, number: int, text: str, title: str = "title") -> dict[str, str]:
    return {"id": f"{source}/{number}", "source": source, "title": title, "text": text}


def kept(source: str, *texts: str) -> list[str]:
    records = [record(source, number, text) for number, text in enumerate(texts)]
    return [document["text"] for document in curated(source, records)]


def written(folder: Path, source: str, records: list[dict[str, str]]) -> None:
    lines = "".join(json.dumps(entry) + "\n" for entry in records)
    (folder / f"{source}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for source in SOURCES:
        texts = [f"{source} n 1: document number {i} of this made-up source" for i in range(30)]
        written(folder, source, [record(source, i, text) for i, text in enumerate(texts)])
    return folder


def test_navigation_of_the_manuals_is_cut():
    page = "Small. Fast.\n\nHome\n\nSearch Documentation\nSearch Changelog\n\n"
    page += f"SELECT\n\n►\nTable Of Contents\n\nexpr:\nshow\n\n{PARAGRAPH.strip()}\n\n"
    page += "See also lists of\nObjects,\nConstants, and\nFunctions."
    assert kept("sqlite-doc", page) == [f"SELECT\n\n{PARAGRAPH.strip()}"]
    page = f"1.2. Joins\nPrev\xa0UpPart\xa0IHome\xa0Next\n\n1.2. Joins\n\n{PARAGRAPH.strip()}"
    assert kept("postgresql-doc", page + "\n\nPrev\xa0Up\xa0Next\n1.1\xa0Home\xa01.3") == [
        f"1.2. Joins\n\n{PARAGRAPH.strip()}"
    ]


def test_pages_that_only_list_pages_are_left_out():
    index = record("sqlite-doc", 0, PARAGRAPH, "doc_keyword_crossref")
    page = record("sqlite-doc", 1, OTHER, "joins")
    assert [document["id"] for document in curated("sqlite-doc", [index, page])] == ["sqlite-doc/1"]


def test_the_chapter_is_kept_and_the_manual_that_repeats_it_is_not():
    manual = f"{PARAGRAPH}\n\n{OTHER}"
    assert kept("postgresql-doc", manual, PARAGRAPH, OTHER) == [PARAGRAPH.strip(), OTHER.strip()]


def test_a_document_may_share_a_small_part_with_others():
    new = "\n\n".join(f"{number}. {OTHER}" for number in range(9))
    assert len(kept("jargon", PARAGRAPH, f"{PARAGRAPH}\n\n{new}")) == 2
    assert len(kept("jargon", PARAGRAPH, f"{PARAGRAPH}\n\n{OTHER}")) == 1


def test_of_wordnet_synonyms_the_word_of_more_senses_is_kept():
    fad = "fad n 1: an interest followed with exaggerated zeal [syn: {fad}, {craze}]"
    craze = fad.replace("fad n", "craze n") + " 2: a fine crack in a glaze"
    other = "glaze v 1: coat with something sweet, such as a hard sugar glaze"
    assert kept("wordnet", fad, craze, other) == [craze, other]


def test_documents_too_short_to_say_anything_are_left_out():
    assert kept("devil", "PLAN, v.t.", OTHER) == [OTHER.strip()]


def test_the_corpus_is_shuffled_and_the_same_every_time(sources, tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl.xz", "b.jsonl.xz")]
    counts = [curate(sources, path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found = [document for _, document in read(paths[0], tmp_path, "text")]
    assert counts[0] == {source: (30, sum(len(d.text) for d in found if d.source == source)) for source in SOURCES}
    changes = sum(a.source != b.source for a, b in zip(found, found[1:], strict=False))
    assert changes > len(found) / 2


def test_a_missing_source_or_a_corpus_too_large_is_refused(sources, tmp_path, monkeypatch):
    out = tmp_path / "corpus.jsonl.xz"
    monkeypatch.setattr(curation, "LONGEST_FILE", 100)
    with pytest.raises(InputError, match=r"corpus.jsonl.xz would take \d+ bytes, above 100; leave a source"):
        curate(sources, out)
    (sources / "kjv.jsonl.gz").unlink()
    with pytest.raises(InputError, match="has no kjv.jsonl.gz"):
        curate(sources, out)
    assert not out.exists()
