import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest

from saejax.errors import InputError
from saejax.text.document import Document
from saejax.text.files import find, read

RECORDS = [
    {"id": "first", "source": "test", "title": "One", "text": "naïve\n日本語"},
    {"id": "second", "source": "test", "title": "Two", "text": "plain"},
]
DOCUMENTS = [Document(**record) for record in RECORDS]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def documents(path: Path, text_field: str = "text") -> list[Document]:
    return [document for _, document in read(path, path.parent, text_field)]


def parquet(path: Path, columns: dict[str, list]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1)
    return path


def refused(path: Path, message: str, text_field: str = "text") -> None:
    with pytest.raises(InputError, match=message) as caught:
        documents(path, text_field)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_every_format_gives_the_same_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES.encode()))
    parquet(tmp_path / "a.parquet", {key: [record[key] for record in RECORDS] for key in RECORDS[0]})
    root, paths = find(str(tmp_path))
    assert len(paths) == 4
    assert [[d for _, d in read(path, root, "text")] for path in paths] == [DOCUMENTS] * 4


def test_a_text_file_is_one_document_named_by_its_file(tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "note.txt"
    path.write_text("line\n\nline é\n")
    root, paths = find(str(tmp_path))
    assert [d for _, d in read(paths[0], root, "text")] == [
        Document("deep/note.txt", "deep/note.txt", "note", "line\n\nline é\n")
    ]


def test_a_record_without_id_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x", "id": 5}\n{"body": "y", "id": null}\n')
    assert [d.id for d in documents(path, "body")] == ["5", "a.jsonl:2"]
    rows = parquet(tmp_path / "b.parquet", {"body": ["x", "y"]})
    assert [d.id for d in documents(rows, "body")] == ["b.parquet:0", "b.parquet:1"]


def test_folders_and_globs_are_sorted_and_leave_hidden_files_out(tmp_path):
    for name in ("b.txt", "a.txt", "c/d.jsonl", ".hidden/e.txt", ".f.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    root, paths = find(str(tmp_path))
    assert [p.relative_to(root).as_posix() for p in paths] == ["a.txt", "b.txt", "c/d.jsonl"]
    root, paths = find(f"{tmp_path}/**/*.jsonl")
    assert (root, paths) == (tmp_path, [tmp_path / "c" / "d.jsonl"])
    assert find(f"{tmp_path}/?.txt")[1] == [tmp_path / "a.txt", tmp_path / "b.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("text")
    assert find(str(path)) == (tmp_path, [path])


def test_sources_that_match_nothing_readable_are_refused(tmp_path):
    (tmp_path / "notes.md").write_text("text")
    for source in (tmp_path, tmp_path / "*.txt", tmp_path / "nowhere" / "a.txt"):
        with pytest.raises(InputError, match="matches no file"):
            find(str(source))
    with pytest.raises(InputError, match=r"notes.md is none of .txt, .jsonl.*convert it or narrow the sour"):
        find(f"{tmp_path}/*")


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\nbroken\n')
    reading = read(path, tmp_path, "text")
    assert next(reading)[1].text == "fine"
    with pytest.raises(InputError, match=r"a.jsonl line 2 is not JSON"):
        next(reading)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x", "id": 1}', r"line 1 has no field 'text' \(fields: 'body', 'id'\); choose another"),
        ('{"text": 5}', r"line 1 field 'text' is int, not text"),
        ('{"text": null}', r"line 1 field 'text' is NoneType, not text"),
        ('["text"]', r"line 1 is not a JSON object"),
        ("", r"line 1 is not JSON"),
        (r'{"text": "\ud800"}', r"line 1 holds a broken character"),
        (r'{"text": "x", "title": "\ud800"}', r"line 1 holds a broken character"),
    ],
)
def test_lines_that_are_no_document_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    refused(path, message)


def test_parquet_without_the_column_or_with_nothing_in_it_is_refused(tmp_path):
    refused(parquet(tmp_path / "a.parquet", {"body": ["x"]}), "row 0 has no field 'text'")
    refused(parquet(tmp_path / "b.parquet", {"text": ["x", None]}), "row 1 field 'text' is NoneType")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "é".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", b'{"text": "\xff"}\n', "is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.xz", lzma.compress(LINES.encode())[:-9], "cannot be read"),
        ("a.parquet", b"no parquet", "is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, message)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", {"text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, r'needs pyarrow to be read; run pip install "saejax\[pandas\]"')
