"""The verb `saejax sae import`: an SAE that another library has trained becomes a run, which all stages read.

Its file says little of what it belongs to, so the store that it is to encode does: model, hook, width. What is not of
that hook explains none of its variance, and is refused.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from saejax import artifacts
from saejax.activations.filters import RowFilter
from saejax.activations.reader import blocks
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.progress import progress
from saejax.sae.formats import gemma_scope, sae_lens, sparsify
from saejax.sae.formats.foreign import ForeignSAE
from saejax.sae.health import health_table
from saejax.sae.metrics import Measured, measure
from saejax.sae.params import save
from saejax.sae.provenance import provenance
from saejax.storage import Place

FORMATS = {"sparsify": sparsify, "SAELens": sae_lens, "Gemma Scope": gemma_scope}
BLOCK, TRIAL_BLOCKS = 8192, 8
"""Rows of the store that are measured at a time; and so many times that leave a row before anything is written."""


@dataclasses.dataclass(frozen=True)
class ImportSAEConfig:
    """Make a run of an SAE of sparsify, SAELens or Gemma Scope: TopK, ReLU, JumpReLU or gated, of one hook."""

    source: Path
    """Folder with the SAE's weights: sae.safetensors of sparsify or sae_weights.safetensors of SAELens, both with
    cfg.json, or params.npz or params.safetensors of Gemma Scope."""
    store: Place
    """Activation store of the model that the SAE was trained on; its health is measured there."""
    hook: str
    """Hook of the store that the SAE reads: what is layers.5 for sparsify and blocks.5.hook_resid_post for SAELens is
    resid_post.5 here. Never guessed."""
    out: Path
    """Run directory to write."""
    rows: RowFilter = RowFilter()
    """Rows of the store to measure it on."""
    k: int = 512
    """Latents to have room for in a row of an SAE that keeps all that are active; too few are refused, here and where
    the SAE is used."""

    def __post_init__(self) -> None:
        """Refuse to keep none."""
        if self.k < 1:
            raise InputError(f"k {self.k}; give at least 1")


def import_sae(config: ImportSAEConfig) -> Path:
    """Make a run of an SAE.

    Args:
        config: where it is, and what it reads.

    Returns:
        The run directory.

    Raises:
        InputError: the files are broken or of another kind of SAE, the store lacks the hook, it has another width or
            rows that the SAE does not explain or k has no room for (nothing is written where the first rows tell), or
            `out` holds another run.
    """
    name, weights, foreign = read(config.source)
    sae, store = foreign.sae(config.k), Store.open(config.store)
    store.require(hook=config.hook)
    if sae.config.d_model != store.width(config.hook):
        raise InputError(
            f"SAE {config.source} reads rows of {sae.config.d_model} numbers, and {config.hook} of {config.store} has "
            f"{store.width(config.hook)}; name the model and the hook that it was trained on"
        )
    kept = config.rows.kept(store, config.hook)
    with_rows = (x for _, x in blocks(store, config.hook, BLOCK, kept=kept) if len(x))
    _require_fit(config, measure(sae, itertools.islice(with_rows, TRIAL_BLOCKS)))
    inputs = {
        "store": artifacts.run_fingerprint(config.store),
        "weights_sha256": artifacts.file_sha256(weights),
    }
    run = artifacts.begin(config.out, "sae", config, inputs)
    if not run.complete:
        measured = measure(sae, _shown(store, config.hook, kept))
        _require_fit(config, measured)
        facts = save(sae, run.path)
        artifacts.write_json(run.path / "health.json", health_table(sae, measured))
        run.finish(
            **provenance(store.manifest["facts"], config.hook),
            rows=measured.rows, measured_rows=measured.rows, format=name, foreign_config=dict(foreign.config), **facts,
        )  # fmt: skip
    return run.path


def read(source: Path) -> tuple[str, Path, ForeignSAE]:
    """Read an SAE of any format.

    Args:
        source: its folder.

    Returns:
        The name of the format, the file of the weights, and the SAE.

    Raises:
        InputError: the folder holds none, or a broken one.
    """
    if (source / artifacts.MANIFEST).exists():
        raise InputError(f"source {source} is a run of saejax; name it where an SAE is asked for, it needs no import")
    known = [(file, name) for name, module in FORMATS.items() for file in module.WEIGHTS]
    for file, name in known:
        if (source / file).exists():
            return name, source / file, FORMATS[name].read(source / file)
    looked_for = " or ".join(f"{file} ({name})" for file, name in known)
    held = ", ".join(sorted(entry.name for entry in source.iterdir())[:3]) if source.is_dir() else ""
    raise InputError(f"source {source} holds no {looked_for}, but {held or 'nothing'}; name the folder of one SAE")


def _shown(store: Store, hook: str, kept: Bool[np.ndarray, "rows"]) -> Iterator[Float32[np.ndarray, "_ d_model"]]:
    """Yield all rows to measure on, with a bar."""
    with progress("measure SAE", int(kept.sum())) as advance:
        for _, x in blocks(store, hook, BLOCK, kept=kept):
            yield x
            advance(len(x))


def _require_fit(config: ImportSAEConfig, measured: Measured) -> None:
    if not measured.fvu < 1:
        raise InputError(
            f"SAE {config.source} leaves {measured.fvu:.3g} of the variance of {config.hook} of {config.store} "
            "unexplained, as its mean would 1; name the model and the hook that it was trained on"
        )
