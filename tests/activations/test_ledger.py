from pathlib import Path

import numpy as np
import pytest
from made_stores import documents, ledger

from saejax.activations.ledger import COLUMNS, Ledger, LedgerWriter
from saejax.errors import InputError
from saejax.storage import Folder


def made(folder: Path, columns: dict[str, np.ndarray], records: list[dict[str, str]], shard_rows: int) -> Ledger:
    """Write a ledger whose documents all begin in the first shard."""
    writer = LedgerWriter(Folder(folder), shard_rows, 1)
    for shard in range(shards_of(columns, shard_rows)):
        part = {name: column[shard * shard_rows :][:shard_rows] for name, column in columns.items()}
        for write in writer.write(shard, part, records if shard == 0 else []):
            write.result()
    writer.seal(len(columns["document"]))
    return Ledger(Folder(folder))


def shards_of(columns: dict[str, np.ndarray], shard_rows: int) -> int:
    return -(-len(columns["document"]) // shard_rows)


def test_columns_and_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    columns, records = ledger(90), documents(4)
    records[2]["title"] = "Ünïcode\u2028and\nlines"
    opened = made(tmp_path / "ledger", columns, records, 32)
    found, rows = opened.read(20, 70), np.array([3, 89, 3])
    some = opened.gather(rows)
    for name, dtype in COLUMNS.items():
        assert found[name].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found[name], columns[name][20:70])
        np.testing.assert_array_equal(some[name], columns[name][rows])
    assert opened.documents(3) == records
    assert set(opened.rows.values()) == {90}


def test_the_hash_is_of_the_rows_and_not_of_how_they_lie(tmp_path: Path) -> None:
    columns, records = ledger(90), documents(4)
    expected = made(tmp_path / "a", columns, records, 32).sha256(90, 3)
    assert made(tmp_path / "b", columns, records, 20).sha256(90, 5) == expected
    for name in COLUMNS:
        changed = {**columns, name: columns[name].copy()}
        changed[name][88] = 1 - changed[name][88]
        assert made(tmp_path / name, changed, records, 32).sha256(90, 3) != expected, name
    swapped = {**columns, "char_start": columns["char_end"], "char_end": columns["char_start"]}
    assert made(tmp_path / "swapped", swapped, records, 32).sha256(90, 3) != expected
    assert made(tmp_path / "other", columns, documents(5)[1:], 32).sha256(90, 3) != expected


def test_the_hash_is_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_ledger = made(tmp_path / "a", ledger(90), documents(4), 32)
    expected = made_ledger.sha256(90, 3)
    monkeypatch.setattr("saejax.activations.ledger.HASHED_ROWS", 7)
    assert made_ledger.sha256(90, 3) == expected


def test_broken_records_are_named(tmp_path: Path) -> None:
    opened = made(tmp_path / "a", ledger(90), documents(4), 32)
    file = tmp_path / "a" / "documents" / "00000001.jsonl"
    file.write_text("{")
    with pytest.raises(InputError, match=r"documents/00000001\.jsonl is damaged"):
        opened.documents(3)
    file.unlink()
    with pytest.raises(InputError, match=r"documents/00000001\.jsonl is damaged: it does not exist"):
        opened.sha256(90, 3)
