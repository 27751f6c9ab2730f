"""Documents from a data set of the Hugging Face hub, streamed row by row (extra `hub`)."""

from collections.abc import Iterator

from saejax.errors import InputError
from saejax.text.document import Document
from saejax.text.files import document_of


def read(source: str, text_field: str) -> Iterator[Document]:
    """Stream the rows of a data set's `train` part in order.

    Args:
        source: `hf:NAME` or `hf:NAME:CONFIG`.
        text_field: column that holds the text.

    Returns:
        An iterator of documents; a row without an `id` column is named `NAME:ROW`.

    Raises:
        InputError: the extra is missing, there is no such data set, or (while iterating) a row holds no text.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise InputError(f'{source} needs datasets to be read; run pip install "saejax[hub]"') from None
    name, config = _parts(source)
    try:
        rows = datasets.load_dataset(name, config, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be opened ({_first_line(error)}); check its name") from None
    return (
        document_of(dict(row), text_field, f"{source} row {number}", f"{name}:{number}", name)
        for number, row in enumerate(rows)
    )


def revision(source: str) -> str:
    """Return the commit of a data set's repository on the hub, as it stands now.

    Args:
        source: `hf:NAME` or `hf:NAME:CONFIG`.

    Returns:
        The commit's hash.

    Raises:
        InputError: the hub cannot be reached or has no such data set.
    """
    import huggingface_hub
    import huggingface_hub.errors

    try:
        commit = huggingface_hub.HfApi().dataset_info(_parts(source)[0]).sha
    except (OSError, huggingface_hub.errors.HFValidationError) as error:
        raise InputError(f"{source} cannot be found ({_first_line(error)}); check its name") from None
    if commit is None:
        raise InputError(f"{source} has no commit on the hub; name another data set")
    return commit


def _parts(source: str) -> tuple[str, str | None]:
    name, _, config = source.removeprefix("hf:").partition(":")
    return name, config or None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
