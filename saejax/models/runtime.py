"""Which runtime a model is read in: JAX, for the families that have a model here, or torch, for all others."""

import importlib.util
import logging
from pathlib import Path
from typing import Literal, TypeAlias

from saejax.artifacts import read_json
from saejax.errors import InputError
from saejax.models.families import FAMILIES
from saejax.models.model import LanguageModel, load
from saejax.models.torch_model import TorchModel, load_torch
from saejax.models.weights import CONFIG_FILE

Runtime: TypeAlias = Literal["auto", "jax", "torch"]
HookedModel: TypeAlias = LanguageModel | TorchModel
LOG = logging.getLogger(__name__)


def load_hooked(folder: Path, runtime: Runtime = "auto", *, allow_pickle: bool = False) -> HookedModel:
    """Load a model for reading at hook points, as float32.

    Args:
        folder: a model folder, or a GGUF file, which JAX alone reads.
        runtime: what runs it; `auto` is JAX for the families that have a model here, and else torch.
        allow_pickle: read `pytorch_model.bin`, tensors alone, instead of safetensors (extra `torch`).

    Returns:
        The model, whose `runtime` says what runs it.

    Raises:
        InputError: the model cannot be loaded, has no model in JAX, or torch is absent where it is needed.
    """
    file, families = folder / CONFIG_FILE, ", ".join(FAMILIES)
    model_type = read_json(file).get("model_type") if file.exists() else None
    ours = model_type in FAMILIES or not file.exists()
    if runtime == "jax" or (runtime == "auto" and ours):
        if not ours:
            raise InputError(f"{folder}: model_type {model_type} has no model in JAX; those are {families}; others run "
                             'in torch: pip install "saejax[torch]", and leave --runtime out')  # fmt: skip
        return load(folder, allow_pickle=allow_pickle)
    if not file.exists():
        raise InputError(f"{folder} holds no {CONFIG_FILE}, which runtime torch needs; name a model folder")
    if importlib.util.find_spec("torch") is None:
        raise InputError(f"{folder}: model_type {model_type} runs in torch, which is absent; "
                         f'pip install "saejax[torch]"; without it run {families}')  # fmt: skip
    LOG.info("%s: model_type %s runs in torch, through transformers", folder, model_type)
    return load_torch(folder, allow_pickle=allow_pickle)
