"""Files of activations as others write them, with known content, for the tests that import."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch
from safetensors.torch import save_file

from saejax.activations.imports import ImportConfig, import_activations
from saejax.activations.store import Store

HOOK, COLUMN = "resid_post.0", "blocks.0.hook_resid_post"
BOS, PAD = 7, 0
MATRIX = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
INTEGERS = pyarrow.list_(pyarrow.int32())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return float32 numbers that bfloat16 holds exactly, so that every type is to give the same back."""
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.float32) / 16


def token_ids(texts: int, positions: int, seed: int = 0) -> np.ndarray:
    """Return tokens of texts of different lengths, each after a BOS and before padding."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(10, 90, (texts, positions)).astype(np.int32)
    ids[np.arange(positions) >= draw.integers(2, positions + 1, texts)[:, None]] = PAD
    ids[:, 0] = BOS
    return ids


def write_chunk(file: Path, activation: torch.Tensor, tokens: np.ndarray, flat: bool = False) -> None:
    """Write a chunk as llamascopium does: its mask leaves out padding and BOS, its flat target what the mask does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.from_numpy(tokens).long()
    mask = torch.logical_and(ids.ne(PAD), ids.ne(BOS)).int()
    chunk = {"activation": activation, "tokens": ids, "mask": mask, "attention_mask": mask.clone()}
    save_file({key: value[mask.bool()] for key, value in chunk.items()} if flat else chunk, file)
    file.with_suffix(".meta.json").write_text("[]")


def cached_by_saelens(x: np.ndarray, ids: np.ndarray | None, dtype: str = "float32") -> datasets.Dataset:
    """Return a data set as SAELens makes it of `[texts, positions, width]`."""
    columns: dict[str, Any] = {COLUMN: torch.from_numpy(x)}
    features: dict[str, Any] = {COLUMN: datasets.Array2D(shape=x.shape[1:], dtype=dtype)}
    if ids is not None:
        columns["token_ids"] = torch.from_numpy(ids)
        features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=ids.shape[1])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save_to_disk(dataset: datasets.Dataset, folder: Path, shards: int) -> Path:
    datasets.disable_progress_bars()
    dataset.save_to_disk(str(folder), num_shards=shards)
    return folder


def save_npy(folder: Path, arrays: dict[str, Any] | Sequence[Any]) -> Path:
    """Save arrays by name, or numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    named = arrays if isinstance(arrays, dict) else {f"{number:04d}": array for number, array in enumerate(arrays)}
    for name, array in named.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def write_arrow(file: Path, columns: dict[str, pyarrow.Array]) -> None:
    batch = pyarrow.RecordBatch.from_pydict(columns)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def lists(texts: list[np.ndarray], kind: pyarrow.DataType) -> pyarrow.Array:
    return pyarrow.array([text.tolist() for text in texts], kind)


def config_of(source: Path, out: Path | str, **changes: Any) -> ImportConfig:
    return ImportConfig(
        **{"source": source, "hook": HOOK, "out": out, "model": "theirs", "shard_tokens": 16, **changes}
    )


def imported(source: Path, out: Path | str, **changes: Any) -> Store:
    return Store.open(import_activations(config_of(source, out, **changes)))
