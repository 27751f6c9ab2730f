"""Run directories: every stage reads finished directories and writes one, described by its `manifest.json`.

A directory belongs to one configuration for good. Opened again with the same configuration and the same inputs
it resumes or is complete; with anything else it is refused and the difference is printed. Files appear under
their final name only when they are whole: written beside it, flushed, renamed.
"""

import dataclasses
import datetime
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.storage import Folder, Place

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
EXECUTION = {"execution": True}
"""Metadata of a config's field that says how a run is computed and not what: a run may go on with another value."""
LOG = logging.getLogger(__name__)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: a reader sees the old content or the new, never a part.

    Args:
        path: final name; its folder must exist.
        data: the whole content.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given; NaN and infinity are refused by `json`."""
    write_bytes(path, _json(content))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one `.npz`, atomically."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as `.npy`, atomically."""
    content = io.BytesIO()
    np.save(content, array)
    write_bytes(path, content.getvalue())


def read_json(path: Path) -> Any:
    """Read a JSON file that a run wrote.

    Raises:
        InputError: it is absent or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run the command that writes it again") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); run the command that writes it again") from None


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_sha256(array: np.ndarray) -> str:
    """Return the hexadecimal SHA-256 of an array's dtype, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def fingerprint(content: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def config_record(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into the identity of a run: all fields but `out`, its place, and those of `EXECUTION`.

    Args:
        config: a frozen dataclass instance; nested dataclasses, tuples and paths are allowed.

    Returns:
        Plain JSON values.
    """
    record = dataclasses.asdict(config)
    for name in ["out", *execution_record(config)]:
        record.pop(name, None)
    return json.loads(json.dumps(record, default=str))


def execution_record(config: Any) -> dict[str, Any]:
    """Return the fields of a config that say how a run is computed, as plain JSON values."""
    fields = [field.name for field in dataclasses.fields(config) if "execution" in field.metadata]
    return json.loads(json.dumps({name: getattr(config, name) for name in fields}, default=str))


@dataclasses.dataclass(frozen=True)
class Run:
    """One open run directory.

    Attributes:
        folder: the directory, on a disk or in a bucket.
        resumed: whether it held an interrupted run of the same configuration.
        complete: whether the run had already finished; then nothing is left to do.
    """

    folder: Folder
    resumed: bool
    complete: bool

    @property
    def path(self) -> Path:
        """The directory of a run that can only be written to a disk.

        Raises:
            InputError: it is in a bucket.
        """
        if self.folder.path is None:
            raise InputError(f"--out {self.folder} is no folder of a disk; of all runs stores alone may be elsewhere")
        return self.folder.path

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands on disk."""
        return json.loads(self.folder.read(MANIFEST) or b"")

    def note(self, **facts: Any) -> None:
        """Add facts that the run found out (row counts, hashes, results) to its manifest."""
        self._change(lambda manifest: {"facts": manifest["facts"] | facts})

    def finish(self, **facts: Any) -> None:
        """Add the last facts and mark the run complete, in one atomic write."""
        ended = {"status": "complete", "finished": _now()}
        self._change(lambda manifest: {"facts": manifest["facts"] | facts, **ended})

    def reopen(self) -> "Run":
        """Return the run as one that is not complete, because something of it is to be made again."""
        self._change(lambda _: {"status": "running"})
        return dataclasses.replace(self, complete=False)

    def _change(self, entries: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Give the manifest new entries, which depend on those that it has."""

        def changed(content: bytes | None) -> bytes:
            manifest = json.loads(content or b"")
            return _json({**manifest, **entries(manifest), "updated": _now()})

        self.folder.update(MANIFEST, changed)

    def log(self, **metrics: Any) -> None:
        """Append one line to the run's `metrics.jsonl`."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop logged lines with a `step` beyond the one that a resumed run starts from."""
        kept = [line for line in read_metrics(self.path) if line.get("step", 0) <= step]
        write_bytes(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())


def begin(out: Place, kind: str, config: Any, inputs: Mapping[str, Any] | None = None) -> Run:
    """Open a run directory for one configuration: new, resumed or already complete.

    Args:
        out: the directory; created when absent.
        kind: what the run makes, for example `"activations"`.
        config: the frozen config dataclass that is the run's identity.
        inputs: provenance of what the run reads (names to fingerprints); part of its identity.

    Returns:
        The open run.

    Raises:
        InputError: the directory holds files of no run, another kind of run, or a run of another configuration.
    """
    identity = {"kind": kind, "config": config_record(config), "inputs": dict(inputs or {})}
    identity = json.loads(json.dumps(identity, default=str))
    folder = Folder(out)
    if folder.path is not None and folder.path.exists() and not folder.path.is_dir():
        raise InputError(f"--out {out} is a file; name a directory")
    if folder.read(MANIFEST) is None:
        held = [name for name in folder.names() if not name.startswith(".")]
        if held and MANIFEST not in held:
            raise InputError(f"--out {out} holds files of no saejax run ({held[0]}); name an empty directory")
        times = {"created": _now(), "updated": _now()}
        begun = {"saejax": _version(), **times, "status": "running", "facts": {}}
        if folder.create(MANIFEST, _json({**identity, "execution": execution_record(config), **begun})):
            return Run(folder, resumed=False, complete=False)
    manifest = read_manifest(out)
    differences = list(_differences({key: manifest.get(key) for key in identity}, identity))
    if differences:
        raise InputError(f"--out {out} holds another run ({'; '.join(differences)}); name a new directory")

    def gone_on(content: bytes | None) -> bytes | None:
        """Tell how the run is computed from here on, unless another process that shares it has finished it."""
        manifest = json.loads(content or b"")
        told = {**manifest, "execution": execution_record(config)}
        return None if manifest["status"] == "complete" or told == manifest else _json(told)

    folder.update(MANIFEST, gone_on)
    complete = read_manifest(out)["status"] == "complete"
    LOG.info("%s is complete; nothing is left to do" if complete else "%s: going on with an interrupted run", out)
    return Run(folder, resumed=True, complete=complete)


def read_manifest(path: Place) -> dict[str, Any]:
    """Read the manifest of a run directory.

    Raises:
        InputError: the directory or its manifest is absent or not a manifest.
    """
    content = Folder(path).read(MANIFEST)
    if content is None:
        raise InputError(f"{path} holds no {MANIFEST}; name a directory that saejax wrote")
    try:
        manifest = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}/{MANIFEST} is not JSON ({error}); make the run again") from None
    if not isinstance(manifest, dict) or "kind" not in manifest or "status" not in manifest:
        raise InputError(f"{path}/{MANIFEST} is not a saejax manifest; name a directory that saejax wrote")
    return manifest


def read_finished(path: Place, kind: str) -> dict[str, Any]:
    """Read the manifest of a finished run of one kind.

    Raises:
        InputError: it is absent, of another kind, or not finished.
    """
    manifest = read_manifest(path)
    if manifest["kind"] != kind:
        raise InputError(f"{path} holds a run of kind {manifest['kind']!r} where {kind!r} is needed")
    if manifest["status"] != "complete":
        raise InputError(f"{path} holds an unfinished run; run its command again to finish it")
    return manifest


def run_fingerprint(path: Place) -> str:
    """Identify a run by what it is and found, not by when: the hash of its manifest without the times."""
    manifest = read_manifest(path)
    return fingerprint({key: manifest[key] for key in ("kind", "config", "inputs", "facts")})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`; a last line cut short by an interruption is left out."""
    file = path / METRICS
    if not file.exists():
        return []
    lines = file.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name.removeprefix('config.')} {old} there, {new} now"


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version() -> str:
    from importlib.metadata import version

    return version("saejax")
