"""Architectures that have no model here: transformers in torch, read by forward hooks (extra `torch`).

All that is asked of such a model is to run rows of token ids. The segments of packed rows are taken out, and those of
one length run together, each as it would alone: no custom mask or position ids, which not every architecture takes,
and no padding, which convolutions, mixers and positions that depend on a row's length would see. It costs one pass
for each length among the segments of a batch, where the models in JAX need one pass, and as many tokens as there are.
"""

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from saejax.artifacts import read_json
from saejax.errors import InputError
from saejax.models.model import AnyInts, check_positions, checked_ids
from saejax.models.origin import Origin, origin
from saejax.models.weights import CONFIG_FILE, Dtype, checkpoint_of, files_fingerprint

if TYPE_CHECKING:
    import torch

DRY_RUNS = ((2, 3), (3, 5))
"""Rows and tokens that are run to see which modules give activations, and of which width; two, because the heads or
experts of a model may be as many as the tokens of one."""


class Point(NamedTuple):
    """Where an activation can be read.

    Attributes:
        module: the module.
        side: `input` or `output`.
        width: entries that one token has there.
    """

    module: "torch.nn.Module"
    side: str
    width: int


class TorchModel:
    """A model of transformers, without its head, with the surface that extraction needs of `LanguageModel`.

    Hook points are `embed`, `resid_pre.L` and `resid_post.L` where the model has one list of blocks, and
    `module.path:input` and `module.path:output` of every module that one pass runs once, `[batch, position, ...]`.

    Attributes:
        runtime: what it runs in, for manifests.
        name: what manifests call it.
        revision: which release of it, or none where its folder does not say.
        vocab_size: tokens in the vocabulary.
        max_positions: longest sequence that it was made for, in tokens; None where nothing bounds it.
    """

    runtime = "torch"

    def __init__(self, model: Any, files: Sequence[Path], source: Origin) -> None:
        """Wrap a model of transformers; `load_torch` is the way from a folder.

        Args:
            model: the model, without a head.
            files: what its weights were read from.
            source: its name and revision.

        Raises:
            InputError: it does not run on token ids alone.
        """
        self.name, self.revision = source
        self._model, self._files = model, files
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.max_positions: int | None = _max_positions(model)
        self._points = _points(model, self.name)
        self._paths = _residual_paths(model, self._points)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the weight files: equal for equal models, in whichever runtime."""
        return files_fingerprint(self._files)

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hook points: the named ones, and those of modules in the order in which a pass meets them."""
        return (*self._paths, *self._points)

    def require_hooks(self, hooks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the hooks as given.

        Raises:
            InputError: the model lacks one of them.
        """
        known = self.hooks
        unknown = [hook for hook in hooks if hook not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5) or known[:3]
            named = f"{', '.join([*self._paths][:2])} to {[*self._paths][-1]}" if self._paths else "no named block"
            raise InputError(
                f"hook {', '.join(unknown)} is not in this model; it has {named}, and module.path:input and "
                f"module.path:output of {len({point.module for point in self._points.values()})} modules, for example "
                f"{', '.join(near)}"
            )
        return hooks

    def width(self, hook: str) -> int:
        """Return the number of entries that one token has at a hook point.

        Raises:
            InputError: the model has no such hook.
        """
        return self._points[self.module_path(hook)].width

    def module_path(self, hook: str) -> str:
        """Return where a hook point lies in the Hugging Face model, as `module.path:input` or `:output`.

        Raises:
            InputError: the model has no such hook.
        """
        self.require_hooks((hook,))
        return self._paths.get(hook, hook)

    def decoder_rows(self, hook: str) -> Float[np.ndarray, "d_mlp d_model"]:
        """Refuse: which matrix stands behind a hook is known of the families in JAX alone.

        Raises:
            InputError: always.
        """
        raise InputError(f"hook {hook} of {self.name} has no output matrix that is known; its runtime is torch")

    def activations(
        self, input_ids: AnyInts, segment: AnyInts, position: AnyInts, hooks: Sequence[str]
    ) -> dict[str, Float[np.ndarray, "batch position _"]]:
        """Run the model on the segments of packed rows, as far as the last hook needs.

        Args:
            input_ids: token ids.
            segment: document number within the row, 0 for padding; a token sees its own segment only.
            position: tokens since the segment began, from 0.
            hooks: hook points to show, at least one.

        Returns:
            Activations by hook, float32; rows of padding are 0.

        Raises:
            InputError: a hook is unknown or is not met on rows of some length, an id is outside the vocabulary, or
                positions are not counted from 0 in each segment, or go beyond the model's last.
        """
        if not hooks:
            raise InputError("hooks () names no hook point; name at least one, for example resid_post.0")
        points = {hook: self._points[self.module_path(hook)] for hook in hooks}
        ids, counted = checked_ids(input_ids, self.vocab_size), np.asarray(position)
        check_positions(counted, self.max_positions)
        found = {hook: np.zeros((ids.size, point.width), np.float32) for hook, point in points.items()}
        for places in _segments(np.asarray(segment)):
            if (counted.reshape(-1)[places] != np.arange(places.shape[1])).any():
                raise InputError("position does not count from 0 in each segment; pack rows so")
            self._run(ids.reshape(-1)[places], points, lambda hook, x, at=places: found[hook].__setitem__(at, x))
        return {hook: x.reshape(*ids.shape, -1) for hook, x in found.items()}

    def _run(
        self, ids: Int[np.ndarray, "rows length"], points: Mapping[str, Point], keep: Callable[[str, np.ndarray], None]
    ) -> None:
        """Run rows without padding, and keep what is seen of each point, until all have been."""
        import torch

        missing = set(points)

        def see(hook: str, value: Any) -> None:
            x = _activation(value, ids.shape)
            if x is None:
                raise InputError(f"hook {hook} is no [batch, position, width] on rows of {ids.shape[1]}; name another")
            keep(hook, x.float().cpu().numpy())
            missing.discard(hook)
            if not missing:
                raise _SeenAll

        with torch.inference_mode(), _watched(points, see), contextlib.suppress(_SeenAll):
            self._model(input_ids=torch.tensor(ids, dtype=torch.long, device=self._model.device))
        if missing:
            raise InputError(f"hook {', '.join(sorted(missing))} is not met on rows of {ids.shape[1]}; name another")


class _SeenAll(Exception):
    """Ends a pass from within a hook: what comes after is not needed."""


def load_torch(folder: Path, *, dtype: Dtype = "float32", allow_pickle: bool = False) -> TorchModel:
    """Load a model of any architecture that transformers knows, on a GPU where torch sees one.

    Args:
        folder: a folder in Hugging Face layout; code in it is never run.
        dtype: type of weights and activations.
        allow_pickle: read `pytorch_model.bin`, tensors alone, instead of safetensors.

    Raises:
        InputError: the model is none of token ids in one stack, is unknown to transformers, or lacks weights.
    """
    import torch
    import transformers

    name = read_json(folder / CONFIG_FILE).get("model_type")
    if name not in transformers.CONFIG_MAPPING:
        raise InputError(f"{folder}: model_type {name} is unknown to transformers {transformers.__version__}, and code "
                         "of a model folder is never run; update transformers, or take another model")  # fmt: skip
    files = checkpoint_of(folder, allow_pickle).files
    options = {"local_files_only": True, "trust_remote_code": False}
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            if config.is_encoder_decoder or not hasattr(config.get_text_config(), "vocab_size"):
                raise InputError(
                    f"{folder}: model_type {name} is no single stack over a vocabulary of tokens; name a causal "
                    "language model or an encoder"
                )
            model, told = transformers.AutoModel.from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), use_safetensors=not allow_pickle,
                output_loading_info=True, **options,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"{folder}: transformers does not load it ({said}); mend the folder") from None
    # A checkpoint of a masked language model has no pooler, and no hook point lies behind one.
    missing = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"{folder}: {', '.join(missing)} missing; the weights are not those of this {CONFIG_FILE}")
    model.config.get_text_config().use_cache = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchModel(model.eval().to(device), files, origin(folder))


def _segments(segment: Int[np.ndarray, "batch position"]) -> Iterator[Int[np.ndarray, "segments length"]]:
    """Yield the places of all segments in the flattened batch, those of one length together."""
    starts = np.flatnonzero(np.diff(segment, axis=1, prepend=-1))
    lengths = np.diff(starts, append=segment.size)
    kept = segment.reshape(-1)[starts] > 0
    for length in np.unique(lengths[kept]):
        yield starts[kept & (lengths == length)][:, None] + np.arange(length)


@contextlib.contextmanager
def _watched(points: Mapping[str, Point], see: Callable[[str, Any], None]) -> Iterator[None]:
    """Show what goes in and out of modules while they run."""
    handles = []
    for name, (module, side, _) in points.items():
        show = functools.partial(see, name)
        if side == "input":
            handle = module.register_forward_pre_hook(functools.partial(_show_input, show), with_kwargs=True)
        else:
            handle = module.register_forward_hook(functools.partial(_show_output, show))
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _show_input(show: Callable[[Any], None], _: "torch.nn.Module", given: Any, named: Mapping[str, Any]) -> None:
    show([*given, *named.values()])


def _show_output(show: Callable[[Any], None], _: "torch.nn.Module", given: Any, output: Any) -> None:
    show(output)


def _activation(value: Any, shape: tuple[int, ...]) -> "torch.Tensor | None":
    """Return the first thing of what a module takes or gives, if that is an activation of rows of this shape."""
    import torch

    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        value = value[0] if value else None
    if not torch.is_tensor(value) or not value.is_floating_point() or value.ndim < 3 or value.shape[:2] != shape:
        return None
    return value.flatten(2)


def _points(model: Any, source: str) -> dict[str, Point]:
    """Return all hook points of modules, in the order in which a pass meets them, by running a few tokens."""
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    sides = {
        f"{prefix}{path}:{side}": Point(module, side, 0)
        for path, module in model.named_modules()
        for side in ("input", "output")
        if path
    }
    try:
        widths, others = (_widths(model, sides, shape) for shape in DRY_RUNS)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{source} does not run on token ids alone ({said}); name a language model") from None
    return {name: sides[name]._replace(width=width) for name, width in widths.items() if others.get(name) == width}


def _widths(model: Any, sides: Mapping[str, Point], shape: tuple[int, int]) -> dict[str, int]:
    """Run tokens and return the width of each activation that is met once."""
    import torch

    met: dict[str, list[int]] = {}

    def see(name: str, value: Any) -> None:
        x = _activation(value, shape)
        met.setdefault(name, []).append(0 if x is None else x.shape[2])

    with torch.inference_mode(), _watched(sides, see), _quiet():
        model(input_ids=torch.zeros(shape, dtype=torch.long, device=model.device))
    return {name: widths[0] for name, widths in met.items() if len(widths) == 1 and widths[0]}


def _residual_paths(model: Any, points: Mapping[str, Point]) -> dict[str, str]:
    """Return where `embed` and the residual stream lie, if one list of modules only can be the blocks."""
    import torch

    config = model.config.get_text_config()
    layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    candidates = []
    for path, module in model.named_modules(prefix=model.base_model_prefix):
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            sides = [(f"{path}.{layer}:input", f"{path}.{layer}:output") for layer in range(len(module))]
            if all(name in points and points[name].width == width for pair in sides for name in pair):
                candidates.append(sides)
    if len(candidates) != 1:
        return {}
    named = {"embed": candidates[0][0][0]}
    for layer, (before, behind) in enumerate(candidates[0]):
        named |= {f"resid_pre.{layer}": before, f"resid_post.{layer}": behind}
    return named


def _max_positions(model: Any) -> int | None:
    """Return the longest sequence that a model was made for, or None where its config bounds nothing."""
    config = model.config.get_text_config()
    bounds = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    longest = next((bound for bound in bounds if bound is not None and bound > 0), None)
    if longest is None:
        return None
    # The first rows of a table of positions with a padding row, as RoBERTa's, are no positions.
    lost = [
        getattr(module, "padding_idx", None)
        for path, module in model.named_modules()
        if path.endswith("position_embeddings")
    ]
    return longest - max((row + 1 for row in lost if row is not None), default=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling on the terminal what is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
