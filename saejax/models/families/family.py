"""What tells one family of models from another: its configs, the names of its weights and where its hook points lie.

The names are those of Hugging Face (and of GGUF files). Each table is written once and read both ways: weights are
loaded and saved by the same map, and tests hang torch hooks on the very modules that `sites` names.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from saejax.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where one of our parameters lies in a checkpoint.

    Attributes:
        ours: path of the parameter in `Transformer`, dotted; under `blocks.` it is stacked by layer.
        theirs: Hugging Face tensor name, `{}` standing for the layer.
        gguf: tensor name in a GGUF file, `{}` standing for the layer; None where those are not read.
        transposed: whether the checkpoint stores `[out, in]` where we store `[in, out]`.
        part: which of `parts` equal shares of the outputs the parameter is.
        parts: how many parameters the tensor holds.
        interleaved: whether the shares alternate head by head, rather than follow each other.
    """

    ours: str
    theirs: str
    gguf: str | None = None
    transposed: bool = False
    part: int = 0
    parts: int = 1
    interleaved: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one per layer."""
        return self.ours.startswith("blocks.")

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor that holds a parameter of one layer.

        Args:
            shape: the parameter's.
        """
        whole = (*shape[:-1], self.parts * shape[-1])
        return whole[::-1] if self.transposed else whole

    def take(self, stored: np.ndarray, config: TransformerConfig) -> np.ndarray:
        """Return the parameter that a tensor holds, as a view of it."""
        whole = stored.T if self.transposed else stored
        if self.parts == 1:
            return whole
        if not self.interleaved:
            return np.split(whole, self.parts, axis=-1)[self.part]
        heads = whole.reshape(*whole.shape[:-1], config.n_heads, self.parts, -1)
        return heads[..., self.part, :].reshape(*whole.shape[:-1], -1)

    def put(self, parameter: np.ndarray, stored: np.ndarray, config: TransformerConfig) -> None:
        """Write a parameter where `take` reads it."""
        whole = stored.T if self.transposed else stored
        if not self.interleaved:
            width = parameter.shape[-1]
            whole[..., self.part * width : (self.part + 1) * width] = parameter
            return
        for head, own in enumerate(np.split(parameter, config.n_heads, axis=-1)):
            width = own.shape[-1]
            start = (head * self.parts + self.part) * width
            whole[..., start : start + width] = own


@dataclasses.dataclass(frozen=True)
class Site:
    """A hook point in the Hugging Face model: what goes into or comes out of a module.

    Attributes:
        module: path of the module, `{}` standing for the layer.
        side: its input or its output.
    """

    module: str
    side: Literal["input", "output"]


def dense(ours: str, theirs: str, gguf: str | None = None, **options: Any) -> tuple[Weight, Weight]:
    """Return where a matrix and its bias lie.

    Args:
        ours: path of the `Dense`.
        theirs: name of the module.
        gguf: name before the last dot in a GGUF file.
        **options: fields of `Weight`; a matrix is transposed where they do not say.
    """
    return (
        Weight(f"{ours}.kernel", f"{theirs}.weight", gguf and f"{gguf}.weight", **{"transposed": True, **options}),
        Weight(f"{ours}.bias", f"{theirs}.bias", gguf and f"{gguf}.bias", **{**options, "transposed": False}),
    )


def norm(ours: str, theirs: str, gguf: str | None = None) -> tuple[Weight, Weight]:
    """Return where the scale and the bias of a norm lie."""
    return (
        Weight(f"{ours}.scale", f"{theirs}.weight", gguf and f"{gguf}.weight"),
        Weight(f"{ours}.bias", f"{theirs}.bias", gguf and f"{gguf}.bias"),
    )


def into(module: str) -> Site:
    """Return the hook point before a module."""
    return Site(module, "input")


def out_of(module: str) -> Site:
    """Return the hook point behind a module."""
    return Site(module, "output")


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        model_type: the `model_type` of its `config.json`.
        architecture: the class that transformers loads it with.
        weights: all its parameters.
        base: what names in the checkpoint of a model with a head begin with, and those of one without do not.
        ignored: patterns of names that a checkpoint may hold besides; they repeat what is known, or are of parts that
            no hook point is of.
        renamed: endings of old names, and the new ones.
        required: fields without which a `config.json` says too little.
        sizes: what a `config.json` calls the sizes of `TransformerConfig` that the family leaves free.
        sites: hook points by bare name, of a model of some config.
        config_from: reads a config of transformers.
        config_to: writes its fields.
    """

    model_type: str
    architecture: str
    weights: tuple[Weight, ...]
    base: str
    required: tuple[str, ...]
    sizes: Mapping[str, str]
    sites: Callable[[TransformerConfig], Mapping[str, Site]]
    config_from: Callable[[Any], TransformerConfig]
    config_to: Callable[[TransformerConfig], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def module_path(self, hook: str, config: TransformerConfig) -> str:
        """Return where a hook point lies in the Hugging Face model, as `module.path:input` or `:output`."""
        name, _, layer = hook.partition(".")
        site = self.sites(config)[name]
        return f"{site.module.format(layer)}:{site.side}"

    def full_name(self, name: str) -> str:
        """Return the name that a tensor has in this table, of the one that it has in a checkpoint."""
        for old, new in self.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    def ignores(self, name: str) -> bool:
        """Tell whether a tensor that is no parameter here may stand in a checkpoint."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)
