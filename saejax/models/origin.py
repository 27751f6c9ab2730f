"""Where a model folder comes from, as far as the folder says: the name and the revision that manifests record.

A revision says where to get the weights again; that they are the same is what their hash says.
"""

import os
from pathlib import Path
from typing import NamedTuple

from saejax import artifacts

DOWNLOAD_NOTE = ".cache/huggingface/download/config.json.metadata"
RUN_KINDS = ("model", "language_model")


class Origin(NamedTuple):
    """What a folder says of itself.

    Attributes:
        name: what to call the model: its repository on the hub, or else the name of its folder or file.
        revision: commit of that repository, package that `saejax fetch` took it from, or hash of the training run
            that made it; none where the folder holds no record.
    """

    name: str
    revision: str | None


def origin(path: Path) -> Origin:
    """Read where a model folder or file comes from.

    A snapshot in the hub's cache lies at `models--ORG--NAME/snapshots/COMMIT`. A folder that the hub's client
    downloaded to holds a note per file, with the commit in its first line. Folders of saejax hold a manifest.

    Args:
        path: a model folder or a GGUF file.
    """
    # Links are not followed, because files of the hub's cache are links into a folder of nameless blobs.
    path = Path(os.path.abspath(path))
    folder = path if path.is_dir() else path.parent
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return Origin(repository.removeprefix("models--").replace("--", "/"), folder.name)
    name = path.name if path.is_dir() else path.stem
    if (folder / DOWNLOAD_NOTE).exists():
        return Origin(name, (folder / DOWNLOAD_NOTE).read_text().split()[0])
    return Origin(name, _own_revision(path / artifacts.MANIFEST))


def _own_revision(manifest: Path) -> str | None:
    if not manifest.exists():
        return None
    record = artifacts.read_json(manifest)
    if not isinstance(record, dict) or record.get("kind") not in RUN_KINDS:
        return None
    return record["facts"].get("source") or artifacts.run_fingerprint(manifest.parent)
