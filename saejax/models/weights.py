"""Model folders in Hugging Face layout: `config.json` and safetensors, read and written.

Files are memory-mapped and each stacked parameter is filled layer by layer where it will stay, so that loading holds
the parameters and one layer's tensor, never the model twice.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from saejax.artifacts import read_json, write_bytes, write_json
from saejax.errors import InputError
from saejax.models.families import LLAMA, Family, Weight, family_of
from saejax.models.transformer import Transformer, TransformerConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@runtime_checkable
class Checkpoint(Protocol):
    """Named tensors that are read one at a time."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by its Hugging Face name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        ...


class SafetensorsFolder:
    """The safetensors of a model folder: a single file, or shards that an index lists."""

    def __init__(self, folder: Path) -> None:
        """Map the folder's files.

        Raises:
            InputError: there are none, one is missing, or one is not a safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        self.files = weight_files(folder)
        self._mapped = []
        for file in self.files:
            try:
                self._mapped.append(safe_open(file, framework="np"))
            except SafetensorError as error:
                raise InputError(f"{file} is not a whole safetensors file ({error}); copy it again") from None
        self._file_of = {name: mapped for mapped in self._mapped for name in mapped.keys()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by name."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, copied from the mapped file."""
        return self._file_of[name].get_tensor(name)


class LoadedModel(NamedTuple):
    """A transformer in memory and where its parts are named.

    Attributes:
        family: its family.
        model: the transformer with its weights.
    """

    family: Family
    model: Transformer


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder, shards in order of their names.

    Raises:
        InputError: the folder has none, or one that its index lists is missing.
    """
    if (folder / INDEX_FILE).exists():
        names = sorted(set(read_json(folder / INDEX_FILE)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise InputError(f"{folder} lacks {', '.join(missing)} that {INDEX_FILE} lists; copy the folder again")
        return [folder / name for name in names]
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    raise InputError(f"{folder} holds no weights ({WEIGHTS_FILE}, {INDEX_FILE} or a .gguf file); name a model folder")


def load_folder(folder: Path) -> LoadedModel:
    """Load a model folder in Hugging Face layout, weights as float32.

    Args:
        folder: holds `config.json` and safetensors in float32, float16 or bfloat16.

    Raises:
        InputError: the family is not supported, or tensors are missing, unexpected or of another shape.
    """
    checkpoint = SafetensorsFolder(folder)
    fields = read_json(folder / CONFIG_FILE)
    family = family_of(fields, str(folder / CONFIG_FILE))
    return LoadedModel(family, assemble(family, family.config_from(fields), checkpoint, str(folder)))


def load_weights(folder: Path) -> Transformer:
    """Load the transformer of a model folder in Hugging Face layout, weights as float32.

    Raises:
        InputError: the family is not supported, or tensors are missing, unexpected or of another shape.
    """
    return load_folder(folder).model


def assemble(family: Family, config: TransformerConfig, checkpoint: Checkpoint, source: str) -> Transformer:
    """Build a transformer from the tensors of a checkpoint.

    Args:
        family: says which tensor is which parameter.
        config: the model's shape.
        checkpoint: the tensors.
        source: where they come from, for the error message.

    Returns:
        The transformer, float32.

    Raises:
        InputError: tensors are missing, unexpected or of another shape; all are named at once.
    """
    abstract = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0)))
    graph, state = nnx.split(abstract)
    flat = dict(nnx.to_flat_state(state))
    _check(family, config, flat, checkpoint.shapes(), source)
    for weight in family.weights_of(config):
        path = tuple(weight.ours.split("."))
        flat[path] = flat[path].replace(_fill(weight, flat[path].shape, checkpoint))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def save(
    folder: Path,
    model: Transformer,
    *,
    bos_id: int | None,
    eos_id: int | None,
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
) -> None:
    """Write a Llama-family transformer as a folder that transformers can load.

    Args:
        folder: exists; gets `config.json` and `model.safetensors`.
        model: the transformer.
        bos_id: token that begins a document.
        eos_id: token that ends one.
        dtype: type of the stored weights.
    """
    tensors = {name: np.ascontiguousarray(array.astype(DTYPES[dtype])) for name, array in _tensors(LLAMA, model)}
    write_folder(folder, LLAMA, model.config, tensors, bos_id=bos_id, eos_id=eos_id)


def write_folder(
    folder: Path,
    family: Family,
    config: TransformerConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    bos_id: int | None,
    eos_id: int | None,
) -> None:
    """Write tensors of one dtype, under their Hugging Face names, and the `config.json` that goes with them."""
    from safetensors.numpy import save as serialized

    write_bytes(folder / WEIGHTS_FILE, serialized(dict(tensors), metadata={"format": "pt"}))
    dtype = next(name for name, kind in DTYPES.items() if all(t.dtype == kind for t in tensors.values()))
    head = {"architectures": [family.architecture], "model_type": family.model_type}
    tail = {"bos_token_id": bos_id, "eos_token_id": eos_id, "torch_dtype": dtype}
    write_json(folder / CONFIG_FILE, head | family.config_to(config) | tail)


def _tensors(family: Family, model: Transformer) -> Iterator[tuple[str, np.ndarray]]:
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    for weight in family.weights_of(model.config):
        array = np.asarray(flat[tuple(weight.ours.split("."))][...])
        layers = enumerate(array) if weight.ours.startswith("blocks.") else [("", array)]
        for layer, part in layers:
            yield weight.theirs.format(layer), part.T if weight.transposed else part


def _check(
    family: Family, config: TransformerConfig, flat: dict[Any, Any], found: dict[str, tuple[int, ...]], source: str
) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for weight in family.weights_of(config):
        shape = flat[tuple(weight.ours.split("."))].shape
        stacked = weight.ours.startswith("blocks.")
        part = shape[1:] if stacked else shape
        for name in (weight.theirs.format(layer) for layer in range(config.n_layers if stacked else 1)):
            wanted[name] = part[::-1] if weight.transposed else part
    spare = {w.theirs for w in family.weights} - {w.theirs for w in family.weights_of(config)}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not of this model" for name in found
               if name not in wanted and name not in spare and not name.endswith(family.optional)]  # fmt: skip
    faults += [f"{name} is {list(found[name])}, not {list(shape)}" for name, shape in wanted.items()
               if found.get(name, shape) != shape]  # fmt: skip
    if faults:
        raise InputError(f"{source}: {'; '.join(faults)}; the weights are not those of this {CONFIG_FILE}")


def _fill(weight: Weight, shape: tuple[int, ...], checkpoint: Checkpoint) -> jax.Array:
    if not weight.ours.startswith("blocks."):
        return _converted(checkpoint.read(weight.theirs), transposed=weight.transposed)
    stack = jnp.empty(shape, jnp.float32)
    for layer in range(shape[0]):
        part = checkpoint.read(weight.theirs.format(layer))
        stack = _with_layer(stack, part, jnp.int32(layer), transposed=weight.transposed)
    return stack


@functools.partial(jax.jit, static_argnames="transposed")
def _converted(part: Float[Array, "..."], transposed: bool) -> Float[Array, "..."]:
    return (part.T if transposed else part).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="transposed", donate_argnums=0)
def _with_layer(
    stack: Float[Array, "layer ..."], part: Float[Array, "..."], layer: Int[Array, ""], transposed: bool
) -> Float[Array, "layer ..."]:
    return stack.at[layer].set((part.T if transposed else part).astype(jnp.float32))
