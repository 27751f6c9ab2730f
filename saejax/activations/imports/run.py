"""The verb `saejax import`: files of activations that others have made become a store, which all stages read.

The store says honestly what is not known. Where files tell no tokens, every token id is -1, and a document is a file;
no row has a span of text, so that text cannot be shown. Positions and documents are those of the files.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32

from saejax import artifacts
from saejax.activations.imports.arrow import ArrowFiles
from saejax.activations.imports.files import ActivationFiles, Block
from saejax.activations.imports.npy import NpyFiles
from saejax.activations.imports.safetensors_chunks import SafetensorsFiles
from saejax.activations.ledger import Columns
from saejax.activations.prefetch import prefetch
from saejax.activations.store import Dtype
from saejax.activations.writer import StoreWriter, begin_store
from saejax.claim import claimed
from saejax.errors import InputError
from saejax.models.origin import origin
from saejax.models.weights import files_fingerprint, weight_files
from saejax.progress import progress
from saejax.storage import Place

FORMATS = {".npy": NpyFiles, ".safetensors": SafetensorsFiles, ".arrow": ArrowFiles}
LARGEST_TOKEN_ID = int(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Make a store of activations of one hook that others have stored, as .npy, safetensors or Arrow files."""

    source: Path
    """A file, or a folder of files of one ending: .npy [rows, width]; .safetensors, chunks of llamascopium among them;
    .arrow, a Hugging Face data set as SAELens caches it. Files are read in the order of their names, chunks in that of
    their numbers, a data set in its own."""
    hook: str
    """Name of the hook in the store. What the model calls it here (resid_post.6) lets saejax eval use its SAEs."""
    out: Place
    """Where the store goes: a folder, s3://BUCKET/NAME or gs://BUCKET/NAME; an interrupted import into it goes on
    where it stopped."""
    model: str | None = None
    """Name of the model, taken at its word: stores of one name are of one model. Give this or model_folder."""
    model_folder: Path | None = None
    """Folder (or GGUF file) of the model, whose weights the store then belongs to, as if it were extracted."""
    key: str | None = None
    """Tensor or column that holds the activations, where files have more than one that could be it."""
    text: str | None = None
    """Name of the text behind the rows. Files without tokens that are imported under one name are taken to be, row by
    row, of the same tokens, as pairing needs; without a name they are of no other store's."""
    bos_id: int | None = None
    """Id of the token that begins a text; its rows are flagged as special, which nothing reads by default. Not
    guessed from tokens: no row is flagged when it is not given."""
    dtype: Dtype = "float32"
    """How activations are stored: float32 (4 bytes, exact for all narrower types) or bfloat16 (2 bytes, 3 significant
    digits)."""
    shard_tokens: int = 65_536
    """Rows per file of the store and per commit; an interruption loses at most so many."""
    chunk_tokens: int | None = None
    """Rows that are read at once, a divisor of shard_tokens; fewer mix better when shuffled, more read faster. The
    largest divisor up to 1,024 by default."""

    def __post_init__(self) -> None:
        """Refuse what no import can do."""
        faults = []
        if not self.hook or "/" in self.hook or self.hook.startswith("."):
            faults.append(f"hook {self.hook!r} cannot name a folder; give resid_post.6, say")
        if (self.model is None) == (self.model_folder is None):
            faults.append("model and model_folder are both given or both not; give one of them")
        if self.bos_id is not None and self.bos_id < 0:
            faults.append(f"bos_id {self.bos_id} is below 0; give the id of a token")
        if self.dtype not in get_args(Dtype):
            faults.append(f"dtype {self.dtype} is none of {', '.join(get_args(Dtype))}")
        for name in ("shard_tokens", "chunk_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append(f"{name} {value} is below 1; give a positive number")
        if self.chunk_tokens is not None and self.chunk_tokens >= 1 and self.shard_tokens % self.chunk_tokens:
            faults.append(f"chunk_tokens {self.chunk_tokens} must divide shard_tokens {self.shard_tokens}")
        if faults:
            raise InputError("; ".join(faults))

    def model_facts(self) -> dict[str, Any]:
        """Return what the manifest says of the model.

        The fingerprint is that of the weights where a folder is given, and else of the name: it then tells apart
        models of different names, and no more.

        Raises:
            InputError: the folder holds no weights.
        """
        if self.model_folder is None:
            return {
                "model": self.model, "revision": None, "model_fingerprint": artifacts.fingerprint({"model": self.model})
            }  # fmt: skip
        folder = self.model_folder
        weights = [folder] if folder.suffix == ".gguf" and folder.is_file() else weight_files(folder)
        name, revision = origin(folder)
        return {"model": name, "revision": revision, "model_fingerprint": files_fingerprint(weights)}


def import_activations(config: ImportConfig) -> Place:
    """Make a store of files of activations, or go on with an interrupted import.

    Memory: two shards, and two blocks of `saejax.activations.imports.files.BLOCK_ROWS` rows or one text.

    Args:
        config: which files.

    Returns:
        Where the store is.

    Raises:
        InputError: the files cannot be read or do not fit together (known before anything is written), the directory
            holds another run, another process writes it, or an activation is NaN or infinite.
    """
    model, found = config.model_facts(), open_files(config.source, config.key)
    rows = _survey(config, found)
    sha256 = [artifacts.file_sha256(file) for file in found.files]
    inputs = {"model_fingerprint": model["model_fingerprint"], "files_sha256": artifacts.fingerprint(sha256)}
    run = begin_store(config.out, config, inputs)
    if run.complete:
        return config.out
    facts = {**model, **inputs, "runtime": "imported", "format": found.files[0].suffix, "key": found.key}
    facts |= {"has_tokens": found.has_tokens, "bos_id": config.bos_id}
    facts["files"] = [
        {"name": file.name, "bytes": file.stat().st_size, "sha256": of_file}
        for file, of_file in zip(found.files, sha256, strict=True)
    ]
    text = config.text or ("imported tokens" if found.has_tokens else f"files {inputs['files_sha256']}")
    with claimed(run.folder) as still_ours:
        run.note(**facts)
        hooks = {config.hook: {"width": found.width, "module_path": found.key}}
        with (
            StoreWriter(
                run, hooks, config.dtype, config.shard_tokens, config.chunk_tokens, still_ours=still_ours
            ) as writer,
            progress("importing activations", rows, done=writer.committed_rows) as advance,
        ):
            told = 0
            for block, x in _read(found, writer):
                begun = int(block.document[-1]) + 1
                records = [{"id": str(number), "source": text, "title": str(number)} for number in range(told, begun)]
                told = begun
                writer.append(None if x is None else {config.hook: x}, _ledger(block, config.bos_id), records)
                advance(0 if x is None else len(x))
            writer.finish(**facts)
    return config.out


def open_files(source: Path, key: str | None) -> ActivationFiles:
    """Find the files of a source and look at what they say of themselves.

    Args:
        source: a file, or a folder of files of one ending.
        key: tensor or column of the activations; the only one that could be it when None.

    Returns:
        The files, whose content is still unread.

    Raises:
        InputError: there are none, they are of several or of unknown endings, or they do not fit together.
    """
    endings = ", ".join(FORMATS)
    if not source.exists():
        raise InputError(f"source {source} does not exist; name a file ({endings}) or a folder of files")
    if source.is_file() and source.suffix not in FORMATS:
        raise InputError(f"source {source} is none of {endings}; convert it")
    names = [source] if source.is_file() else sorted(source.iterdir())
    files = [file for file in names if file.is_file() and file.suffix in FORMATS and not file.name.startswith(".")]
    found = sorted({file.suffix for file in files})
    if not files:
        held = ", ".join(file.name for file in names[:3]) or "nothing"
        raise InputError(f"source {source} holds no file {endings}, but {held}; name the folder that does")
    if len(found) > 1:
        raise InputError(f"source {source} holds files of {' and '.join(found)}; name one file, or put them apart")
    opened = FORMATS[found[0]]
    return opened(files if source.is_file() else opened.in_order(files), key)


def _survey(config: ImportConfig, found: ActivationFiles) -> int:
    """Go through all that files say of their rows, but for the activations, and count the rows."""
    if config.bos_id is not None and not found.has_tokens:
        raise InputError(f"bos_id {config.bos_id} is given, but {config.source} tells no tokens; leave it out")
    rows = 0
    for block in found.blocks():
        rows += len(block.token_id)
        if found.has_tokens and len(block.token_id):
            least, most = int(block.token_id.min()), int(block.token_id.max())
            if least < 0 or most > LARGEST_TOKEN_ID:
                raise InputError(
                    f"{config.source} holds token id {least if least < 0 else most}; mask what is no token"
                )
    if not rows or not found.width:
        raise InputError(f"source {config.source} holds no rows; name files of activations")
    return rows


def _read(
    found: ActivationFiles, writer: StoreWriter
) -> Iterator[tuple[Block, Float32[np.ndarray, "rows width"] | None]]:
    """Yield all blocks that have rows, with their activations where the writer needs them, one block ahead."""

    def read() -> Iterator[tuple[Block, Float32[np.ndarray, "rows width"] | None]]:
        begun = 0
        for block in found.blocks():
            count = len(block.document)
            if count:
                yield block, _float32(block) if writer.needs(begun, begun + count) else None
            begun += count

    return prefetch(read())


def _float32(block: Block) -> Float32[np.ndarray, "rows width"]:
    """Read a block; what float32 cannot hold becomes infinite, which the writer refuses."""
    with np.errstate(over="ignore"):
        return np.array(block.read(), np.float32)


def _ledger(block: Block, bos_id: int | None) -> Columns:
    """Return the columns of the ledger for the rows of a block."""
    nowhere = np.zeros(len(block.document), np.int32)
    return {
        "document": block.document,
        "position": block.position,
        "char_start": nowhere,
        "char_end": nowhere,
        "token_id": block.token_id,
        "special": np.zeros(len(nowhere), bool) if bos_id is None else block.token_id == bos_id,
    }
