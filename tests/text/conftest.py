from pathlib import Path

import pytest

from saejax.text.corpus import CorpusConfig, read_documents
from saejax.text.document import Document
from saejax.text.tokens import Tokenizer, save_tokenizer, train_bpe


@pytest.fixture(scope="session")
def embedded() -> list[Document]:
    return list(read_documents(CorpusConfig()))


@pytest.fixture(scope="session")
def tokenizer_folder(embedded: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_bpe((document.text for document in embedded[:400]), 600), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)
