"""Model folders in Hugging Face layout: `config.json` and safetensors, read and written.

Files are memory-mapped, and each parameter is filled layer by layer, its shares for the devices apart, so that loading
holds the parameters and one of them on its way, never the model twice.
"""

import dataclasses
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from saejax.artifacts import file_sha256, fingerprint, read_json, write_bytes, write_json
from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.families import Family, Weight, family_of, read_config
from saejax.models.pickles import PICKLE_FILE, PickledFolder, pickle_files
from saejax.models.sharding import partition
from saejax.models.transformer import Transformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
Dtype = Literal["float32", "float16", "bfloat16"]
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
        """Look into the folder's files.

        Raises:
            InputError: there are none, one is missing, or one is not a safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        self.files = weight_files(folder)
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="np") as mapped:
                    for name in mapped.keys():
                        self._file_of[name] = file
                        self._shapes[name] = tuple(mapped.get_slice(name).get_shape())
            except SafetensorError as error:
                raise InputError(f"{file} is not a whole safetensors file ({error}); copy it again") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by name."""
        return dict(self._shapes)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, copied from the file, which is mapped for as long: its pages count as memory in use."""
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="np") as mapped:
            return mapped.get_tensor(name)


class LoadedModel(NamedTuple):
    """A transformer in memory and where its parts are named.

    Attributes:
        family: its family.
        model: the transformer with its weights.
        files: what these were read from.
    """

    family: Family
    model: Transformer
    files: tuple[Path, ...]


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
    if pickle_files(folder):
        raise InputError(
            f"{folder} holds its weights in {PICKLE_FILE}, a pickle, which can run code; save it as safetensors, or "
            "load it with allow_pickle=True (--allow-pickle), which reads tensors alone"
        )
    raise InputError(f"{folder} holds no weights ({WEIGHTS_FILE}, {INDEX_FILE} or a .gguf file); name a model folder")


def checkpoint_of(folder: Path, allow_pickle: bool = False) -> SafetensorsFolder | PickledFolder:
    """Open the weights of a model folder: safetensors, or, where that is asked for, pickles.

    Raises:
        InputError: there are none of the kind, or one is missing or broken.
    """
    return PickledFolder(folder) if allow_pickle else SafetensorsFolder(folder)


def files_fingerprint(files: Sequence[Path]) -> str:
    """Return the hash of weight files: equal for equal models, wherever their folders lie."""
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes)


def load_folder(
    folder: Path, dtype: Dtype = "float32", mesh: Mesh | None = None, allow_pickle: bool = False
) -> LoadedModel:
    """Load a model folder in Hugging Face layout.

    Args:
        folder: holds `config.json` and safetensors in float32, float16 or bfloat16.
        dtype: type of the weights in memory, and so of the activations.
        mesh: devices to spread them over, with an axis `model`; the first device alone when None.
        allow_pickle: read `pytorch_model.bin` instead, tensors alone (extra `torch`).

    Raises:
        InputError: the family is not supported, or tensors are missing, unexpected or of another shape.
    """
    checkpoint = checkpoint_of(folder, allow_pickle)
    fields = read_json(folder / CONFIG_FILE)
    family = family_of(fields, str(folder / CONFIG_FILE))
    model = assemble(family, read_config(family, fields), checkpoint, str(folder), dtype, mesh)
    return LoadedModel(family, model, tuple(checkpoint.files))


def load_weights(folder: Path) -> Transformer:
    """Load the transformer of a model folder in Hugging Face layout, weights as float32.

    Raises:
        InputError: the family is not supported, or tensors are missing, unexpected or of another shape.
    """
    return load_folder(folder).model


class Stored:
    """The tensors of a checkpoint, by the names of a family's table."""

    def __init__(self, family: Family, checkpoint: Checkpoint) -> None:
        """Look up which tensors there are."""
        self.family, self._checkpoint, self._shapes = family, checkpoint, checkpoint.shapes()
        self._named = {family.full_name(name): name for name in self._shapes}

    def name(self, theirs: str) -> str | None:
        """Return the checkpoint's name of a tensor, with or without what names of a model with a head begin with."""
        return self._named.get(theirs) or self._named.get(theirs.removeprefix(self.family.base))

    def read(self, theirs: str) -> np.ndarray:
        """Return a tensor that `check` has found."""
        return self._checkpoint.read(self.name(theirs) or theirs)

    def has_any(self, ours: str) -> bool:
        """Tell whether there is a tensor of a parameter whose path begins so."""
        return any(self.name(weight.theirs) for weight in self.family.weights if weight.ours.startswith(ours))

    def check(self, config: TransformerConfig, parameters: Mapping[Any, Any], source: str) -> None:
        """Refuse a checkpoint that is not of a model.

        Args:
            config: the model's.
            parameters: its parameters, or their shapes.
            source: where the checkpoint comes from, for the error message.

        Raises:
            InputError: tensors are missing, unexpected or of another shape; all are named at once.
        """
        wanted: dict[str, tuple[int, ...]] = {}
        for weight, path in present(self.family, parameters):
            shape = parameters[path].shape
            for layer in range(config.n_layers if weight.stacked else 1):
                wanted[weight.theirs.format(layer)] = weight.stored_shape(shape[1:] if weight.stacked else shape)
        used = {name: self.name(name) for name in wanted}
        spare = {self.name(weight.theirs) for weight in self.family.weights if weight.ours == "unembed"}
        faults = [f"{name} is missing" for name, found in used.items() if found is None]
        known = {*used.values(), *spare}
        faults += [f"{name} is not of this model" for full, name in self._named.items()
                   if name not in known and not self.family.ignores(full)]  # fmt: skip
        faults += [f"{found} is {list(self._shapes[found])}, not {list(wanted[name])}"
                   for name, found in used.items() if found and self._shapes[found] != wanted[name]]  # fmt: skip
        if faults:
            raise InputError(f"{source}: {'; '.join(faults)}; the weights are not those of this {CONFIG_FILE}")


def present(family: Family, parameters: Mapping[Any, Any]) -> list[tuple[Weight, Any]]:
    """Return the entries of a family's table that a model has parameters for, and their paths."""
    paths = ((weight, tuple(weight.ours.split("."))) for weight in family.weights)
    return [(weight, path) for weight, path in paths if path in parameters]


def assemble(
    family: Family,
    config: TransformerConfig,
    checkpoint: Checkpoint,
    source: str,
    dtype: Dtype = "float32",
    mesh: Mesh | None = None,
) -> Transformer:
    """Build a transformer from the tensors of a checkpoint.

    Args:
        family: says which tensor is which parameter.
        config: the model's shape; the head of a masked language model is left out where the checkpoint has none.
        checkpoint: the tensors.
        source: where they come from, for the error message.
        dtype: type of the weights in memory.
        mesh: devices to spread them over; the first device alone when None.

    Returns:
        The transformer.

    Raises:
        InputError: tensors are missing, unexpected or of another shape; all are named at once.
    """
    stored = Stored(family, checkpoint)
    if config.head == "masked" and not stored.has_any("masked_head."):
        config = dataclasses.replace(config, head="none")
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
    flat = dict(nnx.to_flat_state(state))
    stored.check(config, flat, source)
    for weight, path in present(family, flat):
        place = None if mesh is None else NamedSharding(mesh, partition(path, config, mesh))
        flat[path] = flat[path].replace(_filled(weight, flat[path].shape, stored, config, DTYPES[dtype], place))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _filled(
    weight: Weight, shape: tuple[int, ...], stored: Stored, config: TransformerConfig, dtype: np.dtype,
    place: NamedSharding | None,
) -> jax.Array:  # fmt: skip
    """Read each tensor of a parameter once, into the shares of the devices, and hand these over."""

    def bounds(where: tuple[slice, ...] | None) -> tuple[tuple[int, int, int], ...]:
        cuts = where or (slice(None),) * len(shape)
        return tuple(part.indices(size) for part, size in zip(cuts, shape, strict=True))

    places = {None} if place is None else place.addressable_devices_indices_map(shape).values()
    shares = {where: _pages([len(range(*part)) for part in where], dtype) for where in set(map(bounds, places))}
    for layer in range(shape[0] if weight.stacked else 1):
        tensor = weight.take(stored.read(weight.theirs.format(layer)), config)
        for where, share in shares.items():
            cut = tuple(slice(*part) for part in where)
            if weight.stacked:
                share[layer] = tensor[cut[1:]]
            else:
                share[...] = tensor[cut]
    if place is None:
        return jnp.asarray(shares[bounds(None)])
    return jax.make_array_from_callback(shape, place, lambda where: shares[bounds(where)])


def _pages(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an array on pages of its own, which a CPU device takes over without a copy."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def save(
    folder: Path,
    model: Transformer,
    *,
    family: Family,
    bos_id: int | None,
    eos_id: int | None,
    dtype: Dtype = "bfloat16",
) -> None:
    """Write a transformer as a folder that transformers can load.

    Args:
        folder: exists; gets `config.json` and `model.safetensors`.
        model: the transformer.
        family: whose names its tensors get.
        bos_id: token that begins a document.
        eos_id: token that ends one.
        dtype: type of the stored weights.
    """
    tensors = _tensors(family, model, DTYPES[dtype])
    write_folder(folder, family, model.config, tensors, bos_id=bos_id, eos_id=eos_id)


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


def _tensors(family: Family, model: Transformer, dtype: np.dtype) -> dict[str, np.ndarray]:
    flat = dict(nnx.to_flat_state(nnx.state(model)))
    tensors: dict[str, np.ndarray] = {}
    for weight, path in present(family, flat):
        array = np.asarray(flat[path][...])
        for layer, part in enumerate(array if weight.stacked else [array]):
            name, shape = weight.theirs.format(layer), weight.stored_shape(part.shape)
            weight.put(part.astype(dtype), tensors.setdefault(name, np.empty(shape, dtype)), model.config)
    return tensors
