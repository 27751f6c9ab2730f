from pathlib import Path

import numpy as np
import pytest
from made_stores import documents, ledger

from saejax.activations.ledger import COLUMNS, DOCUMENTS, Ledger
from saejax.errors import InputError


def made(folder: Path, columns: dict[str, np.ndarray], records: list[dict[str, str]], shard_rows: int) -> Ledger:
    made = Ledger.create(folder, shard_rows, documents=0)
    for start in range(0, len(columns["document"]), shard_rows):
        part = {name: column[start : start + shard_rows] for name, column in columns.items()}
        for write in made.write(start, part, records if start == 0 else []):
            write.result()
    return made


def test_columns_and_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    columns, records = ledger(90), documents(4)
    records[2]["title"] = "Ünïcode\u2028and\nlines"
    made(tmp_path / "ledger", columns, records, 32)
    opened = Ledger.open(tmp_path / "ledger")
    found, rows = opened.read(20, 70), np.array([3, 89, 3])
    some = opened.gather(rows)
    for name, dtype in COLUMNS.items():
        assert found[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found[name], columns[name][20:70])
        np.testing.assert_array_equal(some[name], columns[name][rows])
    assert opened.documents() == records


def test_the_hash_is_of_the_rows_and_not_of_how_they_lie(tmp_path: Path) -> None:
    columns, records = ledger(90), documents(4)
    expected = made(tmp_path / "a", columns, records, 32).sha256(90)
    assert made(tmp_path / "b", columns, records, 20).sha256(90) == expected
    for name in COLUMNS:
        changed = {**columns, name: columns[name].copy()}
        changed[name][88] = 1 - changed[name][88]
        assert made(tmp_path / name, changed, records, 32).sha256(90) != expected, name
    swapped = {**columns, "char_start": columns["char_end"], "char_end": columns["char_start"]}
    assert made(tmp_path / "swapped", swapped, records, 32).sha256(90) != expected
    assert made(tmp_path / "other", columns, documents(5)[1:], 32).sha256(90) != expected


def test_the_hash_is_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ledger = made(tmp_path / "a", ledger(90), documents(4), 32)
    expected = made_ledger.sha256(90)
    monkeypatch.setattr("saejax.activations.ledger.HASHED_ROWS", 7)
    assert made_ledger.sha256(90) == expected


def test_records_behind_the_final_ones_are_dropped(tmp_path: Path) -> None:
    made(tmp_path / "a", ledger(90), documents(4), 32)
    path = tmp_path / "a" / DOCUMENTS
    path.write_bytes(path.read_bytes() + b'{"id": "half')
    assert Ledger.create(tmp_path / "a", 32, documents=2).documents() == documents(2)


def test_broken_records_are_named(tmp_path: Path) -> None:
    made(tmp_path / "a", ledger(90), documents(4), 32)
    (tmp_path / "a" / DOCUMENTS).write_text("{")
    with pytest.raises(InputError, match=r"documents\.jsonl is damaged"):
        Ledger.open(tmp_path / "a").documents()
