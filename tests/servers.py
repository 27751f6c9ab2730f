"""Servers on loopback that stand for what lies in the cloud."""

import contextlib
import itertools
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

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


class GCSServer:
    """As much of Google Cloud Storage's JSON interface as TensorStore speaks to read, write and list objects."""

    def __init__(self) -> None:
        """Start it on a free port."""
        self._objects: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_GCSRequest, self._objects, threading.Lock()))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def bucket(self) -> str:
        """Make a bucket and return its address."""
        name = f"bucket-{len(self._objects)}"
        self._objects[name] = {}
        return f"gs://{name}"

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


class _GCSRequest(BaseHTTPRequestHandler):
    """A request about objects: for each bucket their generations and contents by name."""

    protocol_version = "HTTP/1.1"
    generations = itertools.count(1)

    def __init__(self, objects: dict[str, dict[str, tuple[int, bytes]]], lock: threading.Lock, *request: Any) -> None:
        self._objects, self._lock = objects, lock
        super().__init__(*request)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Write an object, if its generation is the one that is expected; 0 is that of none."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        held, _, asked = self._bucket()
        if held is None:
            self._answer(404)
            return
        with self._lock:
            found = held.get(asked["name"], (0, b""))[0]
            if int(asked.get("ifGenerationMatch", found)) != found:
                self._answer(412)
                return
            held[asked["name"]] = (next(self.generations), content)
            self._answer(200, json.dumps(self._described(asked["name"], *held[asked["name"]])).encode())

    def do_GET(self) -> None:
        """List a bucket, or read an object or a range of it."""
        held, name, asked = self._bucket()
        if held is None or (name and name not in held):
            self._answer(404)
        elif not name:
            first, end = asked.get("startOffset", ""), asked.get("endOffset")
            named = [each for each in sorted(held) if each >= first and (end is None or each < end)]
            items = [self._described(each, *held[each]) for each in named]
            self._answer(200, json.dumps({"kind": "storage#objects", "items": items}).encode())
        else:
            generation, content = held[name]
            told, whole = {"x-goog-generation": str(generation)}, len(content)
            ranged = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if ranged is None:
                self._answer(200, content, told)
                return
            first, last = ranged.groups()
            start = int(first) if first else max(whole - int(last), 0)
            stop = min(int(last) + 1, whole) if first and last else whole
            told["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
            self._answer(206 if start < whole else 416, content[start:stop], told)

    def _bucket(self) -> tuple[dict[str, tuple[int, bytes]] | None, str, dict[str, str]]:
        """Return the bucket that is asked about, the object or an empty name, and the parameters."""
        address = urlsplit(self.path)
        found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", address.path)
        assert found, self.path
        return self._objects.get(found[1]), unquote(found[2] or ""), dict(parse_qsl(address.query))

    def _described(self, name: str, generation: int, content: bytes) -> dict[str, str]:
        return {"name": name, "generation": str(generation), "size": str(len(content))}

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
