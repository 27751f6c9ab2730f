"""What all tests share: programs compiled once, the longest files first, shapes checked in all but slow tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from servers import GCSServer, S3Server

MAPPINGS, MOST_MAPPINGS = Path("/proc/self/maps"), 20_000
"""Linux gives a process 65,530 mappings of memory, and a program that XLA compiled takes six of them."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep what XLA compiles for other tests, for the processes that they start and for the next run."""
    if getattr(config, "cache", None) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have a slow test, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _check_no_shapes_in_slow_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out checks of shapes where a test repeats a thousand times what others do once: they take half of it."""
    slow = request.node.get_closest_marker("slow") is not None
    jaxtyping.config.update("jaxtyping_disable", slow)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def _unload_programs() -> Iterator[None]:
    """Unload what was compiled before a process has no mapping left, at which XLA would crash it."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Return a server of S3's protocol on loopback, which all `s3://` then means."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        yield server
    server.stop()


@pytest.fixture(scope="session")
def gcs() -> Iterator[GCSServer]:
    """Return a server of Google Cloud Storage's protocol on loopback, which all `gs://` then means."""
    server = GCSServer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.endpoint)
        yield server
    server.stop()
