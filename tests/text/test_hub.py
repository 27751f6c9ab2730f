import sys
from types import SimpleNamespace

import pytest

from saejax.errors import InputError
from saejax.text.corpus import CorpusConfig, corpus_record, read_documents

COMMIT = "0123456789abcdef"


def opened(name: str, config: str | None) -> SimpleNamespace:
    """Answer like `datasets.load_dataset_builder` for one made-up data set."""
    if (name, config) not in (("house/made", None), ("house/made", "small")):
        raise FileNotFoundError(f"no data set {name}\nwith a second line")
    rows = [{"text": f"row {i}", "id": None if i else "named"} for i in range(1 if config else 3)]
    return SimpleNamespace(hash=COMMIT, as_streaming_dataset=lambda split: rows if split == "train" else None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset_builder=opened))


@pytest.mark.usefixtures("hub")
def test_rows_of_a_data_set_are_documents():
    found = list(read_documents(CorpusConfig(source="hf:house/made")))
    assert [(d.id, d.source, d.text) for d in found] == [
        ("named", "house/made", "row 0"),
        ("house/made:1", "house/made", "row 1"),
        ("house/made:2", "house/made", "row 2"),
    ]
    assert len(list(read_documents(CorpusConfig(source="hf:house/made:small")))) == 1


@pytest.mark.usefixtures("hub")
def test_the_record_of_a_data_set_is_its_commit():
    assert corpus_record(CorpusConfig(source="hf:house/made"))["revision"] == COMMIT


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"hf:house/none cannot be opened \(no data set house/none\)"):
        read_documents(CorpusConfig(source="hf:house/none"))
    with pytest.raises(InputError, match=r"hf:house/made row 0 has no field 'body' \(fields: 'text', 'id'\)"):
        list(read_documents(CorpusConfig(source="hf:house/made", text_field="body")))


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for use in (read_documents, corpus_record):
        with pytest.raises(InputError, match=r'hf:house/made needs datasets.*pip install "saejax\[hub\]"'):
            use(CorpusConfig(source="hf:house/made"))


def test_a_folder_is_streamed_by_the_real_library(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two é"}\n')
    config = CorpusConfig(source=f"hf:{tmp_path}")
    assert [document.text for document in read_documents(config)] == ["one", "two é"]
    assert corpus_record(config)["revision"]
