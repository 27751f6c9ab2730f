"""Documents from a Hugging Face data set, streamed row by row (extra `hub`)."""

from collections.abc import Iterable, Iterator
from typing import Any

from saejax.errors import InputError
from saejax.text.files import Placed, placed


def read(source: str, text_field: str) -> Iterator[Placed]:
    """Stream the rows of a data set's `train` part in order.

    Args:
        source: `hf:NAME` or `hf:NAME:CONFIG`.
        text_field: column that holds the text.

    Returns:
        An iterator of documents with their places; a row without an `id` is named `NAME:ROW`.

    Raises:
        InputError: the extra is missing, there is no such data set, or (while iterating) a row lacks text.
    """
    rows = _opened(source)[0]
    name = source.split(":")[1]
    return (
        placed(dict(row), text_field, f"{source} row {number}", f"{name}:{number}", name)
        for number, row in enumerate(rows)
    )


def revision(source: str) -> str | None:
    """Identify the state of a data set: on the hub its commit, else a hash of its files.

    Args:
        source: `hf:NAME` or `hf:NAME:CONFIG`.

    Returns:
        The hash; None where the data set's loader gives none.

    Raises:
        InputError: the extra is missing, or there is no such data set.
    """
    return _opened(source)[1]


def _opened(source: str) -> tuple[Iterable[Any], str | None]:
    """Return the rows of a data set and the hash of its state."""
    try:
        import datasets  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise InputError(f'{source} needs datasets to be read; run pip install "saejax[hub]"') from None
    name, _, config = source.removeprefix("hf:").partition(":")
    try:
        builder = datasets.load_dataset_builder(name, config or None)
        return builder.as_streaming_dataset(split="train"), builder.hash
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source} cannot be opened ({reason}); check its name") from None
