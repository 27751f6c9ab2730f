"""Where runs lie: folders on a disk, in a bucket of S3 or GCS, or in this process's memory, all through TensorStore.

A file is written whole or not at all, and is durable when `write` returns. Buckets have no folders; a folder there is
what the names of its files begin with.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import tensorstore

from saejax.errors import InputError

Place: TypeAlias = str | Path
"""A folder's path, or `s3://BUCKET/NAME`, `gs://BUCKET/NAME`, `memory://NAME`."""

CONTEXT = tensorstore.Context()
"""What all that is opened shares: connections, and the contents of `memory://`."""
BUCKETS = ("s3", "gs", "memory")
ENDPOINT = "AWS_ENDPOINT_URL"
"""Environment variable that names another server of S3's protocol, as for Amazon's own tools."""

_REMEDIES = (
    (("No space left", "File too large", "RESOURCE_EXHAUSTED", "Disk quota"), "free space and run the command again"),
    (
        ("PERMISSION_DENIED", "AccessDenied", "InvalidAccessKeyId", "ExpiredToken"),
        "get the right to it, or other credentials",
    ),
    (("NoSuchBucket", "NOT_FOUND"), "make the bucket, or name another"),
)


class Folder:
    """A folder of files."""

    def __init__(self, place: Place) -> None:
        """Name a folder; nothing is looked at.

        Args:
            place: where it is.

        Raises:
            InputError: no folder can have that name.
        """
        self._name = os.fspath(place).rstrip("/") or "/"
        scheme, _, rest = self._name.partition(":/")
        if scheme in BUCKETS and not rest.startswith("/"):
            raise InputError(f"{self._name} has lost a slash, as paths do; give {scheme}://{rest} as text")
        self.path: Path | None = None if scheme in BUCKETS else Path(self._name)
        """The folder on a disk; None in a bucket."""
        if self.path is None:
            try:
                spec = tensorstore.KvStore.Spec(f"{self._name}/").to_json()
            except ValueError as error:
                raise InputError(
                    f"{self._name} names no bucket ({_reason(error)}); give {scheme}://BUCKET/NAME"
                ) from None
            if scheme == "s3" and ENDPOINT in os.environ:
                region = os.environ.get("AWS_REGION", "us-east-1")
                spec.update(endpoint=os.environ[ENDPOINT], aws_region=region)
            if scheme == "s3" and "AWS_ACCESS_KEY_ID" in os.environ:
                spec["aws_credentials"] = {"type": "environment"}  # else files are looked for, loudly
        else:
            spec = {"driver": "file", "path": f"{self.path.resolve()}/"}
        self.spec: dict[str, Any] = spec
        """TensorStore's specification of the folder as a key-value store."""
        self._files = tensorstore.KvStore.open(spec, context=CONTEXT).result()

    def __str__(self) -> str:
        """Return the name as it was given."""
        return self._name

    def __truediv__(self, name: str) -> "Folder":
        """Return the folder of that name in this one."""
        return Folder(f"{self._name}/{name}")

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is no such file.

        Raises:
            InputError: it cannot be read.
        """
        with self.explained(name, "read"):
            found = self._files.read(name).result()
        return found.value if found.state == "value" else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file.

        Raises:
            InputError: it cannot be written.
        """
        with self.explained(name, "written"):
            self._files.write(name, data).result()

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet.

        Returns:
            Whether it was not there, and is now.

        Raises:
            InputError: it cannot be written.
        """
        return self.update(name, lambda present: data if present is None else None)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> bool:
        """Write what a file's present content becomes, and lose nothing that another writes meanwhile.

        Args:
            name: the file.
            change: returns the new content for the present one, or None to leave it; None is also the content of a file
                that is not there. Asked again where another has written the file since.

        Returns:
            Whether it was written.

        Raises:
            InputError: it cannot be read or written.
        """
        written = False
        while not written:
            with self.explained(name, "read"):
                found = self._files.read(name).result()
            data = change(found.value if found.state == "value" else None)
            if data is None:
                break
            with self.explained(name, "written"):
                stamp = self._files.write(name, data, if_equal=found.stamp.generation).result()
            written = bool(stamp.generation)
        return written

    def names(self) -> list[str]:
        """Return the names of all files in the folder and in those within, in order.

        Raises:
            InputError: they cannot be listed.
        """
        with self.explained("", "listed"):
            return sorted(name.decode() for name in self._files.list().result())

    @contextlib.contextmanager
    def explained(self, name: str, act: str) -> Iterator[None]:
        """Turn TensorStore's errors about a file into one line for the user.

        Args:
            name: the file.
            act: what cannot be done: `read`, say.
        """
        try:
            yield
        except ValueError as error:
            told = str(error)
            remedy = next((remedy for signs, remedy in _REMEDIES if any(s in told for s in signs)), "see to it")
            where = f"{self._name}/{name}" if name else self._name
            raise InputError(f"{where} cannot be {act}: {_reason(error)}; {remedy}") from error


def reference(place: Place, start: Place) -> str:
    """Name a place in a run's manifest so that both can be moved together.

    Args:
        place: what is named.
        start: the run's folder.

    Returns:
        The relative path, where both are on a disk; else the place itself.
    """
    to, of = Folder(place), Folder(start)
    return str(to) if to.path is None or of.path is None else os.path.relpath(to.path, of.path)


def referred(name: str, start: Place) -> Place:
    """Return the place that `reference` named."""
    return name if "://" in name else (Path(start) / name).resolve()


def _reason(error: ValueError) -> str:
    return str(error).partition(" [")[0]
