"""A language model as the rest of the house sees it: token ids in, activations at hook points and logits out.

Three ways in. `run` takes padded rows, as tokenizers make them, and gives logits; `run_packed` does so of packed rows,
where documents share a row. `activations` takes packed rows too, stops after the last block needed and never computes
logits. Programs are compiled once per shape, and shared by passes whose layers do the same.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.models import forward
from saejax.models.config import TransformerConfig
from saejax.models.families import Family
from saejax.models.forward import Edit
from saejax.models.gguf import load_gguf
from saejax.models.origin import Origin, origin
from saejax.models.sharding import rows
from saejax.models.transformer import Hidden
from saejax.models.weights import Dtype, LoadedModel, files_fingerprint, load_folder
from saejax.types import AnyArray

AnyInts = Int[AnyArray, "batch position"]
PRECISION = "float32"
"""Matrix products keep float32 inputs: accelerators would round them to TF32 or bfloat16 by default."""


@dataclasses.dataclass(frozen=True)
class RunOutput:
    """What one forward pass gives.

    Attributes:
        activations: by hook, `[batch, position, width]`; rows of padding hold no meaning.
        scores: the logits, or None of a model without a head that makes them.
    """

    activations: Mapping[str, Float[Array, "batch position width"]]
    scores: Float[Array, "batch position vocab"] | None

    @property
    def logits(self) -> Float[Array, "batch position vocab"]:
        """Scores of the next token; of an encoder, those of the token itself.

        Raises:
            InputError: the model is an encoder without the head that makes them.
        """
        if self.scores is None:
            raise InputError("logits: the model has no output head; load the checkpoint of a masked language model")
        return self.scores


class LanguageModel:
    """A loaded model.

    Attributes:
        runtime: what it runs in, for manifests.
        config: its shape and constants.
        name: what manifests call it.
        revision: which release of it, or none where its folder does not say.
        family: where its weights and hook points lie in Hugging Face's naming.
    """

    runtime = "jax"

    def __init__(self, loaded: LoadedModel, source: Origin, mesh: Mesh | None = None) -> None:
        """Wrap a transformer; `load` is the way from a folder.

        Args:
            loaded: the transformer, its family and its files.
            source: its name and revision.
            mesh: devices that its weights are spread over, if they are.
        """
        self.config: TransformerConfig = loaded.model.config
        self.name, self.revision = source
        self.family: Family = loaded.family
        self._files, self._rows = loaded.files, rows(mesh)
        self._model = loaded.model

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weight files: equal for equal models, wherever their folders lie."""
        return files_fingerprint(self._files)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest sequence that the model was made for, in tokens."""
        return self.config.max_positions

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points, in the order in which a forward pass meets them."""
        return self.config.hooks

    def require_hooks(self, hooks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the hooks as given.

        Raises:
            InputError: the model lacks one of them.
        """
        return self.config.require_hooks(hooks)

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
        return self.family.module_path(hook, self.config)

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
        return self._model.blocks.w_down.kernel[...][int(layer)]

    def run(
        self,
        input_ids: AnyArray,
        attention_mask: AnyArray | None = None,
        hooks: Sequence[str] = (),
        *,
        position_ids: AnyArray | None = None,
        edits: Mapping[str, Edit] | None = None,
        edit_mask: AnyArray | None = None,
    ) -> RunOutput:
        """Run the whole model on rows of text.

        Args:
            input_ids: token ids, `[batch, position]`.
            attention_mask: `[batch, position]`, 1 for tokens, 0 for padding on either side. All are tokens when
                absent.
            hooks: hook points to show, as they are after their edit.
            position_ids: position of each token, `[batch, position]`; tokens of a row are counted from 0 when absent.
            edits: by hook point, a function of its activation and of the positions to edit, `[batch, position]`, that
                gives the activation to go on with: `saejax.models.edits`, or any of JAX. A function that is not a
                pytree is compiled anew for every new object.
            edit_mask: `[batch, position]`, 1 where to edit; all tokens when absent.

        Returns:
            Activations by hook, and logits.

        Raises:
            InputError: a hook is unknown, ids are not integers of the vocabulary, a mask is of another shape or has
                other values, or a row holds more tokens than the model has positions.
        """
        ids = checked_ids(input_ids, self.vocab_size)
        mask = _checked_mask("attention_mask", attention_mask, np.ones_like(ids))
        edited = _checked_mask("edit_mask", edit_mask, mask).astype(bool)
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        position = np.asarray(counted if position_ids is None else position_ids, np.int32)
        if position.shape != ids.shape or position.min() < 0:
            raise InputError(f"position_ids {list(position.shape)} must be {list(ids.shape)}, each at least 0")
        return self._whole(ids, mask, position, edited, hooks, edits)

    def run_packed(
        self,
        input_ids: AnyInts,
        segment: AnyInts,
        position: AnyInts,
        hooks: Sequence[str] = (),
        *,
        edits: Mapping[str, Edit] | None = None,
        edit_mask: AnyArray | None = None,
    ) -> RunOutput:
        """Run the whole model on packed rows of text.

        Args:
            input_ids: token ids.
            segment: document number within the row, 0 for padding; a token sees earlier tokens of its own only.
            position: tokens since the segment began.
            hooks: as `run` has them, like what follows.
            edits: functions of activations, by hook point.
            edit_mask: `[batch, position]`, 1 where to edit; all tokens when absent.

        Returns:
            Activations by hook, and logits; rows of padding hold no meaning.

        Raises:
            InputError: as `run`.
        """
        ids, documents = checked_ids(input_ids, self.vocab_size), np.asarray(segment)
        edited = _checked_mask("edit_mask", edit_mask, (documents > 0).astype(np.int32)).astype(bool)
        return self._whole(ids, documents, np.asarray(position), edited, hooks, edits)

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
        ids = checked_ids(input_ids, self.vocab_size)
        check_positions(np.asarray(position), self.max_positions)
        ids, segment, position = (self._placed(np.asarray(each)) for each in (ids, segment, position))
        with jax.default_matmul_precision(PRECISION):
            found = forward.activations(self._model, ids, segment, position, ordered)
        return {hook: found[hook] for hook in ordered}

    def _whole(
        self, ids: np.ndarray, segment: np.ndarray, position: np.ndarray, edited: np.ndarray, hooks: Sequence[str],
        edits: Mapping[str, Edit] | None,
    ) -> RunOutput:  # fmt: skip
        check_positions(position, self.max_positions)
        self.config.require_hooks(tuple(edits or {}))
        tokens = {"input_ids": ids, "segment": segment, "position": position, "edited": edited}
        placed = {name: self._placed(each) for name, each in tokens.items()}
        ordered = self._ordered(hooks)
        with jax.default_matmul_precision(PRECISION):
            last, found = forward.forward(self._model, **placed, hooks=ordered, edits=edits)
            logits = None if self.config.head == "none" else _logits(*nnx.split(self._model), last)
        return RunOutput({hook: found[hook] for hook in ordered}, logits)

    def _ordered(self, hooks: Sequence[str]) -> tuple[str, ...]:
        wanted = set(self.config.require_hooks(tuple(hooks)))
        return tuple(hook for hook in self.hooks if hook in wanted)

    def _placed(self, array: np.ndarray) -> np.ndarray | jax.Array:
        return array if self._rows is None else jax.device_put(array, self._rows)


def load(
    folder: Path | str, *, dtype: Dtype = "float32", mesh: Mesh | None = None, allow_pickle: bool = False
) -> LanguageModel:
    """Load a language model from a local folder or GGUF file.

    Args:
        folder: a folder in Hugging Face layout (`config.json` and safetensors), a folder with one GGUF file, or a
            GGUF file.
        dtype: type of weights and activations.
        mesh: devices to spread the model over, from `saejax.models.sharding.model_mesh`; batches then hold a multiple
            of its `data` rows. The first device alone when None.
        allow_pickle: read `pytorch_model.bin`, tensors alone, instead of safetensors (extra `torch`).

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
        return LanguageModel(load_folder(path, dtype, mesh, allow_pickle), origin(path), mesh)
    if len(single) > 1:
        raise InputError(f"{path} holds {len(single)} .gguf files; name one, for example {single[0]}")
    return LanguageModel(load_gguf(single[0], dtype, mesh), origin(single[0]), mesh)


def checked_ids(input_ids: AnyArray, vocab_size: int) -> Int[np.ndarray, "batch position"]:
    """Return token ids as int32.

    Raises:
        InputError: they are no integers of the vocabulary, or no rows.
    """
    ids = np.asarray(input_ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"input_ids of {ids.dtype} must be integers; give token ids")
    if ids.ndim != 2 or ids.size == 0:
        raise InputError(f"input_ids {list(ids.shape)} must be [batch, position] with at least one token")
    if ids.min() < 0 or ids.max() >= vocab_size:
        worst = ids.max() if ids.max() >= vocab_size else ids.min()
        raise InputError(
            f"input_ids holds {worst}, outside the vocabulary of {vocab_size}; use the model's own tokenizer"
        )
    return ids.astype(np.int32)


def check_positions(position: np.ndarray, max_positions: int | None) -> None:
    """Refuse positions beyond a model's last, if it has one.

    Raises:
        InputError: there is one.
    """
    if max_positions is not None and position.max() >= max_positions:
        raise InputError(
            f"a row holds {position.max() + 1} tokens of one text, more than the model's {max_positions} positions; "
            "cut it"
        )


def _checked_mask(name: str, given: AnyArray | None, default: np.ndarray) -> np.ndarray:
    mask = default if given is None else np.asarray(given, np.int32)
    if mask.shape != default.shape:
        raise InputError(f"{name} {list(mask.shape)} must have the shape of input_ids {list(default.shape)}")
    if not np.isin(mask, (0, 1)).all():
        raise InputError(f"{name} holds {np.setdiff1d(mask, (0, 1))[0]}; it may hold 0 and 1 only")
    return mask


@functools.partial(jax.jit, static_argnames="graph")
def _logits(graph: Any, weights: nnx.State, x: Hidden) -> Float[Array, "batch position vocab"]:
    return nnx.merge(graph, weights).logits(x)
