"""Hugging Face data sets of activations as SAELens caches them: Arrow streams with a text per row.

SAELens saves a folder by `save_to_disk`, with a column named after the hook, `[positions, width]`, and in newer
versions `token_ids`. pyarrow alone reads it; there `Array2D` is a list of lists (extra `pandas`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from saejax.activations.imports.files import BLOCK_ROWS, UNKNOWN, Block, all_or_none, require_none
from saejax.artifacts import read_json
from saejax.errors import InputError

TOKEN_IDS = "token_ids"
STATE_FILE = "state.json"
END_OF_STREAM = bytes.fromhex("ffffffff00000000")


class ArrowFiles:
    """A column of one hook, read through memory maps."""

    def __init__(self, files: Sequence[Path], key: str | None) -> None:
        """Look at the columns.

        Args:
            files: the files in the order of their rows.
            key: column of the activations; when None the only one of lists of lists of floats.

        Raises:
            InputError: pyarrow is missing; or a file is broken or lacks the column, or files do not fit together.
        """
        self.files = files
        told, faults = {}, []
        for file in self.files:
            try:
                with _stream(file) as stream:
                    key = _key(file, stream.schema, key)
                    told[file] = _has_tokens(file, stream.schema)
            except InputError as error:
                faults.append(str(error))
        require_none(faults)
        self.key = str(key)
        self.has_tokens = all_or_none(told, TOKEN_IDS)
        self.width = next((width for file in self.files for width in self._widths(file)), 0)

    @staticmethod
    def in_order(files: Sequence[Path]) -> list[Path]:
        """Return the files of a saved data set as its state lists them, without caches that `datasets` puts beside.

        Raises:
            InputError: the state is none, or a file that it lists is absent.
        """
        state = files[0].parent / STATE_FILE
        if not state.exists():
            return list(files)
        content = read_json(state)
        if not isinstance(content, dict) or "_data_files" not in content:
            raise InputError(f"{state} is no state of a saved data set; name the .arrow files' folder without it")
        listed = [state.parent / entry["filename"] for entry in content["_data_files"]]
        require_none([
            f"{file} does not exist, though {state} lists it; copy it again" for file in listed if not file.exists()
        ])  # fmt: skip
        return listed

    def blocks(self) -> Iterator[Block]:
        """Yield all rows; see `ActivationFiles`."""
        document = 0
        for file in self.files:
            with _stream(file) as stream:
                for batch in stream:
                    texts = _stored(batch.column(self.key))
                    tokens = _stored(batch.column(TOKEN_IDS)) if self.has_tokens else None
                    yield from self._of_batch(file, document, texts, tokens)
                    document += len(texts)

    def _of_batch(self, file: Path, document: int, texts: Any, tokens: Any) -> Iterator[Block]:
        """Yield the rows of some texts, the first of them the one of that number."""
        lengths = _lengths(file, texts)
        step = max(1, BLOCK_ROWS // max(lengths.max(initial=1), 1))
        for start in range(0, len(texts), step):
            length = lengths[start : start + step]
            rows, first = texts.slice(start, step).flatten(), document + start
            wrong = np.flatnonzero(_lengths(file, rows) != self.width)
            if wrong.size:
                text = first + int(np.searchsorted(np.cumsum(length), wrong[0], side="right"))
                raise InputError(f"{file}: a row of text {text} has not the {self.width} entries of the first row")
            count = int(length.sum())
            token_id = np.full(count, UNKNOWN)
            if tokens is not None:
                if not np.array_equal(_lengths(file, tokens.slice(start, step)), length):
                    raise InputError(
                        f"{file}: {TOKEN_IDS} are not as many as rows from text {first} on; cache it again"
                    )
                token_id = tokens.slice(start, step).flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            begins = np.cumsum(length) - length
            yield Block(
                document=first + np.repeat(np.arange(len(length)), length),
                position=np.arange(count) - np.repeat(begins, length),
                token_id=token_id,
                read=partial(_matrix, rows, self.width),
            )

    def _widths(self, file: Path) -> Iterator[int]:
        with _stream(file) as stream:
            for batch in stream:
                yield from _lengths(file, _stored(batch.column(self.key)).flatten())[:1].tolist()


@contextlib.contextmanager
def _stream(file: Path) -> Iterator[Any]:
    """Open a file, and turn Arrow's errors about it into one line for the user."""
    try:
        import pyarrow
    except ImportError:
        raise InputError(f'{file} needs pyarrow to be read; run pip install "saejax[pandas]"') from None
    try:
        with file.open("rb") as whole:
            whole.seek(-len(END_OF_STREAM), 2)
            ended = whole.read() == END_OF_STREAM
        if not ended:
            raise InputError(f"{file} does not end as an Arrow stream does; copy it again")
        with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            yield stream
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file} is not a whole Arrow stream ({error}); copy it again") from None


def _key(file: Path, schema: Any, key: str | None) -> str:
    """Return which column holds the activations."""
    import pyarrow.types as types

    fitting = [field.name for field in schema if _is_nested(field.type, 2, types.is_floating)]
    if key is None and len(fitting) == 1:
        return fitting[0]
    if key is None or key not in fitting:
        columns = ", ".join(f"{field.name} ({_stored_type(field.type)})" for field in schema)
        asked = "no single column" if key is None else f"no column {key}"
        raise InputError(f"{file} has {asked} of lists of lists of floats, but {columns}; name one by --key")
    return key


def _has_tokens(file: Path, schema: Any) -> bool:
    """Tell whether a file has token ids, which must be lists of integers."""
    import pyarrow.types as types

    if TOKEN_IDS not in schema.names:
        return False
    kind = schema.field(TOKEN_IDS).type
    if not _is_nested(kind, 1, types.is_integer):
        raise InputError(f"{file} has {TOKEN_IDS} of {_stored_type(kind)}, not of lists of integers; leave them out")
    return True


def _is_nested(kind: Any, depth: int, is_leaf: Callable[[Any], bool]) -> bool:
    """Tell whether a type is that of lists, of so many levels, of something."""
    import pyarrow.types as types

    for _ in range(depth):
        kind = _stored_type(kind)
        if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
            return False
        kind = kind.value_type
    return is_leaf(kind)


def _stored_type(kind: Any) -> Any:
    """Return what a type is stored as: `datasets` makes types of its own out of lists, where it is imported."""
    return getattr(kind, "storage_type", kind)


def _stored(column: Any) -> Any:
    return getattr(column, "storage", column)


def _lengths(file: Path, lists: Any) -> Int[np.ndarray, "lists"]:
    """Return the lengths of lists."""
    import pyarrow.compute

    if lists.null_count:
        raise InputError(f"{file} has {lists.null_count} empty places; leave out what has no activations")
    found = pyarrow.compute.list_value_length(lists)  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _matrix(rows: Any, width: int) -> Shaped[np.ndarray, "rows width"]:
    return rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
