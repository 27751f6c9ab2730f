"""Servers on loopback that stand for what lies in the cloud."""

import contextlib
import itertools
import urllib.request
from collections.abc import Iterator

TEXT = {"Content-Type": "text/plain"}


class S3Server:
    """Amazon's S3, as moto plays it."""

    def __init__(self) -> None:
        """Start it on a free port."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._buckets = itertools.count()

    def bucket(self) -> str:
        """Make a bucket and return its address."""
        name = f"bucket-{next(self._buckets)}"
        self._ask("PUT", name)
        return f"s3://{name}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse every request, because nobody has been given a right."""
        self._ask("POST", "moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self._ask("POST", "moto-api/reset-auth", b"1000000000")

    def stop(self) -> None:
        """End it."""
        self._server.stop()

    def _ask(self, method: str, path: str, data: bytes = b"") -> None:
        request = urllib.request.Request(f"{self.endpoint}/{path}", data=data, method=method, headers=TEXT)
        urllib.request.urlopen(request).close()
