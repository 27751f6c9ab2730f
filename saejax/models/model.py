"""A language model as the rest of the house sees it: token ids in, activations at hook points and logits out.

Two ways in. `run` takes padded rows, as tokenizers make them, and gives logits. `activations` takes packed rows, where
documents share a row, stops after the last block needed and never computes logits. Both are compiled once per shape
and set of hooks.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from saejax.artifacts import file_sha256, fingerprint
from saejax.errors import InputError
from saejax.models.families import Family
from saejax.models.gguf import load_gguf
from saejax.models.origin import Origin, origin
from saejax.models.transformer import TransformerConfig
from saejax.models.weights import LoadedModel, load_folder, weight_files
from saejax.types import AnyArray

AnyInts = Int[AnyArray, "batch position"]
PRECISION = "float32"
"""Matrix products keep float32 inputs: accelerators would round them to TF32 or bfloat16 by default."""


class RunOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        activations: by hook, `[batch, position, width]`; rows of padding hold no meaning.
        logits: scores of the next token, `[batch, position, vocab]`.
    """

    activations: Mapping[str, Float[Array, "batch position width"]]
    logits: Float[Array, "batch position vocab"]


class LanguageModel:
    """A loaded model.

    Attributes:
        config: its shape and constants.
        name: what manifests call it.
        revision: which release of it, or none where its folder does not say.
        family: where its weights and hook points lie in Hugging Face's naming.
    """

    def __init__(self, loaded: LoadedModel, source: Origin, files: Sequence[Path]) -> None:
        """Wrap a transformer; `load` is the way from a folder.

        Args:
            loaded: the transformer and its family.
            source: its name and revision.
            files: the files that its weights came from.
        """
        self.config: TransformerConfig = loaded.model.config
        self.name, self.revision = source
        self.family: Family = loaded.family
        self._files = tuple(files)
        self._graph, self._weights = nnx.split(loaded.model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weight files: equal for equal models, wherever their folders lie."""
        hashes = [file_sha256(file) for file in self._files]
        return hashes[0] if len(hashes) == 1 else fingerprint(hashes)

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points, in the order in which a forward pass meets them."""
        return self.config.hooks

    def width(self, hook: str) -> int:
        """Return the number of entries that one token has at a hook point.

        Raises:
            InputError: the model has no such hook.
        """
        return self.config.hook_width(hook)

    def module_path(self, hook: str) -> str:
        """Return where a hook point lies in the Hugging Face model, as `module.path:input` or `:output`.

        Raises:
            InputError: the model has no such hook.
        """
        self.config.require_hooks((hook,))
        return self.family.module_path(hook)

    def decoder_rows(self, hook: str) -> Float[Array, "d_mlp d_model"]:
        """Return what each MLP neuron writes to the residual stream: the rows of the MLP's output matrix.

        Args:
            hook: `mlp_hidden.L`, the neurons of block L.

        Raises:
            InputError: the hook is another one, or the model lacks it.
        """
        self.config.require_hooks((hook,))
        name, _, layer = hook.partition(".")
        if name != "mlp_hidden":
            raise InputError(f"hook {hook} has no output matrix of its own; name mlp_hidden.0 or another block's")
        return nnx.merge(self._graph, self._weights).blocks.w_down[...][int(layer)]

    def run(self, input_ids: AnyArray, attention_mask: AnyArray | None = None, hooks: Sequence[str] = ()) -> RunOutput:
        """Run the whole model on rows of text.

        Args:
            input_ids: token ids, `[batch, position]`.
            attention_mask: `[batch, position]`, 1 for tokens, 0 for padding on either side; positions count tokens
                only. All are tokens when absent.
            hooks: hook points to show.

        Returns:
            Activations by hook, and logits.

        Raises:
            InputError: a hook is unknown, ids are not integers of the vocabulary, the mask is of another shape or has
                other values, or a row holds more tokens than the model has positions.
        """
        ids = self._checked_ids(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
        if mask.shape != ids.shape:
            raise InputError(f"attention_mask {list(mask.shape)} must have the shape of input_ids {list(ids.shape)}")
        if not np.isin(mask, (0, 1)).all():
            raise InputError(f"attention_mask holds {np.setdiff1d(mask, (0, 1))[0]}; it may hold 0 and 1 only")
        position = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
        self._check_positions(position)
        found, logits = _run(self._graph, self._weights, ids, mask, position, self._ordered(hooks))
        return RunOutput(found, logits)

    def activations(
        self, input_ids: AnyInts, segment: AnyInts, position: AnyInts, hooks: Sequence[str]
    ) -> dict[str, Float[Array, "batch position width"]]:
        """Run the model on packed rows, as far as the last hook needs.

        Args:
            input_ids: token ids.
            segment: document number within the row, 0 for padding; a token sees earlier tokens of its own only.
            position: tokens since the segment began.
            hooks: hook points to show, at least one.

        Returns:
            Activations by hook; rows of padding hold no meaning.

        Raises:
            InputError: a hook is unknown, an id is outside the vocabulary, or a position beyond the model's last.
        """
        ordered = self._ordered(hooks)
        if not ordered:
            raise InputError("hooks () names no hook point; name at least one, for example resid_post.0")
        ids = self._checked_ids(input_ids)
        self._check_positions(np.asarray(position))
        return _activations(self._graph, self._weights, ids, np.asarray(segment), np.asarray(position), ordered)

    def _ordered(self, hooks: Sequence[str]) -> tuple[str, ...]:
        wanted = set(self.config.require_hooks(tuple(hooks)))
        return tuple(hook for hook in self.hooks if hook in wanted)

    def _checked_ids(self, input_ids: AnyArray) -> Int[np.ndarray, "batch position"]:
        ids = np.asarray(input_ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"input_ids of {ids.dtype} must be integers; give token ids")
        if ids.ndim != 2 or ids.size == 0:
            raise InputError(f"input_ids {list(ids.shape)} must be [batch, position] with at least one token")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            worst = ids.max() if ids.max() >= self.config.vocab_size else ids.min()
            raise InputError(
                f"input_ids holds {worst}, outside the vocabulary of {self.config.vocab_size}; "
                "use the model's own tokenizer"
            )
        return ids.astype(np.int32)

    def _check_positions(self, position: np.ndarray) -> None:
        if position.max() >= self.config.max_positions:
            raise InputError(
                f"a row holds {position.max() + 1} tokens of one text, more than the model's "
                f"{self.config.max_positions} positions; cut it"
            )


def load(folder: Path | str) -> LanguageModel:
    """Load a language model from a local folder or GGUF file, weights as float32.

    Args:
        folder: a folder in Hugging Face layout (`config.json` and safetensors), a folder with one GGUF file, or a
            GGUF file.

    Returns:
        The model.

    Raises:
        InputError: there is no such folder, it holds no weights, or the model is not one that runs here.
    """
    path = Path(folder)
    if not path.exists():
        raise InputError(f"model {path} does not exist; name a model folder (saejax fetch makes one)")
    single = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(f"model {path} is not a .gguf file; name a model folder or a .gguf file")
    if path.is_dir() and ((path / "config.json").exists() or not single):
        return LanguageModel(load_folder(path), origin(path), weight_files(path))
    if len(single) > 1:
        raise InputError(f"{path} holds {len(single)} .gguf files; name one, for example {single[0]}")
    return LanguageModel(load_gguf(single[0]), origin(single[0]), single)


@functools.partial(jax.jit, static_argnames=("graph", "hooks"))
def _run(
    graph: Any, weights: nnx.State, ids: jax.Array, mask: jax.Array, position: jax.Array, hooks: tuple[str, ...]
) -> tuple[dict[str, jax.Array], jax.Array]:
    with jax.default_matmul_precision(PRECISION):
        model = nnx.merge(graph, weights)
        last, found = model.hidden(ids, mask, position, hooks)
        return found, last @ model.output_matrix


@functools.partial(jax.jit, static_argnames=("graph", "hooks"))
def _activations(
    graph: Any, weights: nnx.State, ids: jax.Array, segment: jax.Array, position: jax.Array, hooks: tuple[str, ...]
) -> dict[str, jax.Array]:
    with jax.default_matmul_precision(PRECISION):
        return nnx.merge(graph, weights).hidden(ids, segment, position, hooks, stop=hooks[-1])[1]
