"""The main job from end to end on what ships with the project: two language models, their SAEs, the comparison.

Every stage is a run directory under `out`, so an interrupted demo goes on where it was, and each stage can be looked
at, or run again by its own verb.
"""

import dataclasses
import importlib.resources
from pathlib import Path

from saejax.activations.extract import ExtractConfig, extract
from saejax.errors import InputError
from saejax.features.encode import EncodeConfig, encode
from saejax.report.page import ReportConfig, report
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import train
from saejax.text.corpus import CorpusConfig
from saejax.universality import CompareConfig, compare

MODELS = ("seed0", "seed1")
HOOK = "resid_post.0"
RAW_HOOK = "mlp_hidden.0"


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What `saejax demo` runs."""

    out: Path = Path("runs/demo")
    """Directory for all stages."""
    tokens: int = 196_608
    """Tokens of held-out text to read, in both models."""
    d_sae: int = 2048
    """Dictionary size of both SAEs."""
    k: int = 16
    """Latents kept per token."""
    steps: int = 1000
    """Training steps of each SAE, 2,048 rows each."""
    permutations: int = 10_000
    """Random pairings per arm and measure."""
    seed: int = 0
    """Root seed: the SAEs take this one and the next, the nulls derive theirs from it."""

    def __post_init__(self) -> None:
        """Refuse sizes that the stages would refuse later."""
        if self.tokens < 10_000:
            raise InputError(f"tokens {self.tokens} is too few to pair features by; give 10,000 or more")


def demo(config: DemoConfig) -> list[str]:
    """Run the demo, or what is left of it.

    Args:
        config: sizes and seed.

    Returns:
        The lines of the result table and the path of the HTML report.

    Raises:
        InputError: `out` holds other files, or a demo of another configuration.
    """
    features = [_features(config, name, config.seed + side) for side, name in enumerate(MODELS)]
    comparison = CompareConfig(
        x=features[0], y=features[1], x_raw=RAW_HOOK, y_raw=RAW_HOOK, out=config.out / "comparison",
        permutations=config.permutations, seed=config.seed,
    )  # fmt: skip
    lines = compare(comparison)
    page = report(ReportConfig(comparison.out, config.out / "report.html"))
    return [*lines, str(page)]


def shipped(name: str) -> Path:
    """Return the folder of a model that ships with the project."""
    return Path(str(importlib.resources.files("saejax.checkpoints"))) / name


def _features(config: DemoConfig, name: str, seed: int) -> Path:
    """Make the features of one model.

    The SAEs get seeds of their own: with one seed they would begin in the same directions and agree for it.
    """
    folder = config.out / name
    store = extract(ExtractConfig(
        model=shipped(name), hooks=(HOOK, RAW_HOOK), corpus=CorpusConfig(split="heldout"), tokens=config.tokens,
        out=folder / "activations",
    ))  # fmt: skip
    sae = train(
        SAETrainConfig(
            store=store,
            hook=HOOK,
            d_sae=config.d_sae,
            k=config.k,
            steps=config.steps,
            seed=seed,
            data_seed=seed,
            out=folder / "sae",
            warmup_steps=config.steps // 15,
            decay_steps=config.steps // 5,
        )  # fmt: skip
    )
    return encode(EncodeConfig(store=store, sae=sae, out=folder / "features"))
