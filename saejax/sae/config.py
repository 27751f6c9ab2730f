"""What a training run of an SAE is told."""

import dataclasses
import math
from pathlib import Path
from typing import Literal, get_args

from saejax_kernels import Impl, Precision, mosaic

from saejax import artifacts
from saejax.activations.filters import RowFilter
from saejax.activations.reader import WINDOW_ROWS
from saejax.errors import InputError
from saejax.sae.normalisation import Kind
from saejax.sae.state import Recipe
from saejax.sae.trackers import Tracker
from saejax.storage import Place

MOST_CONSIDERED = 2048
"""Dead latents that AuxK may consider in one step."""


@dataclasses.dataclass(frozen=True)
class SAETrainConfig:
    """Train a sparse autoencoder, TopK or ReLU, on the activations of one hook."""

    store: Place
    """Activation store to train on, or live source: a folder, s3://BUCKET/NAME or gs://BUCKET/NAME."""
    hook: str
    """Hook point of the store whose activations the SAE reads, for example resid_post.0."""
    out: Path
    """Run directory to write."""
    rows: RowFilter = RowFilter()
    """Rows of the store to train on."""
    window_rows: int = WINDOW_ROWS
    """Rows of the store that are shuffled among each other: more mix text from further apart, and take more memory."""
    lanes: int = 1
    """Parts of a batch that are read apart, each from text of its own, so that of several processes each reads what its
    own devices need: as many as there may ever be processes. The order of rows depends on it."""
    d_sae: int = 2048
    """Dictionary size: number of latents."""
    k: int = 16
    """Latents kept per row, at most."""
    l1_coefficient: float = 0.0
    """Weight of the L1 norm of a row's codes beside its squared error, both in normalised units, which makes a ReLU SAE
    of what never reaches k: `capped` in the log is the share of rows that do, to be brought to 0 by a larger k."""
    steps: int = 1500
    """Training steps."""
    batch: int = 2048
    """Rows per step."""
    learning_rate: float | None = None
    """Adam's peak learning rate; by default 4e-4 / sqrt(d_sae / 16,384)."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    decay_steps: int = 300
    """Last steps, over which the learning rate falls linearly to 0."""
    aux_k: int | None = None
    """Dead latents that AuxK uses per row; by default half the width of the hook, at most aux_capacity."""
    aux_capacity: int = 1024
    """Dead latents that AuxK considers in one step, at most 2,048; where more are dead, they take turns."""
    aux_coefficient: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""
    dead_window: int = 200_000
    """Tokens without firing after which a latent counts as dead; below 2^31 less a batch."""
    precision: Precision = "float32"
    """Inputs of matrix products: float32, or bfloat16; parameters, moments and sums are float32."""
    impl: Literal["auto", "jax", "gpu", "tpu"] = dataclasses.field(default="auto", metadata=artifacts.EXECUTION)
    """Kernels: jax runs on any device; gpu is for NVIDIA GPUs from Hopper on, and adds in one order there; tpu does so
    on TPUs, and finds the k largest codes while the encoder's product is made, which is never held; auto is gpu where
    it runs, else jax."""
    normalise: Kind = "scalar"
    """What is done to activations before the SAE and undone after it: scalar brings their centred RMS norm to
    sqrt(d_model), standardise each dimension to SD 1, zca each direction, layer_norm each row; none does nothing."""
    recall: float | None = None
    """Share of a row's k largest latents that a step is to find, for TPUs, which are faster where they may miss some;
    the share that was found is logged. All by default, and on devices that gain nothing."""
    deterministic: bool = dataclasses.field(default=False, metadata=artifacts.EXECUTION)
    """On GPUs, take steps that give the same bits every time, so that a killed run ends as if it had not been killed;
    --dry-run tells what that costs. CPUs and TPUs always do; on a GPU the kernels of impl gpu add in one order by
    themselves, and the sums for biases and AuxK do not."""
    initial_rows: int = 8192
    """Rows that fit the normalisation and set the geometric median with which b_dec begins; zca needs several times as
    many as the hook has dimensions."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = dataclasses.field(default=2, metadata=artifacts.EXECUTION)
    """Last checkpoints to keep; the one with the lowest FVU is kept too."""
    data: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Devices that the rows of a batch are spread over, in equal parts."""
    latent: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Devices that the latents are spread over, in equal parts; data x latent devices are used."""
    trackers: tuple[Tracker, ...] = dataclasses.field(default=(), metadata=artifacts.EXECUTION)
    """Where curves go beside metrics.jsonl: tensorboard, wandb (extras of these names)."""
    multiprocess: bool = dataclasses.field(default=False, metadata=artifacts.EXECUTION)
    """Spread the run over the processes of a job that Slurm, Open MPI, Kubernetes or a TPU pod started."""
    seed: int = 0
    """Seed of the initial decoder, below 2^32."""
    data_seed: int = 0
    """Seed of the order of rows; SAEs that share it train on one stream of batches."""

    def __post_init__(self) -> None:
        """Refuse what no run can have, all of it at once."""
        least = {
            "d_sae": 1, "k": 1, "steps": 1, "batch": 1, "warmup_steps": 0, "decay_steps": 0, "aux_k": 1,
            "aux_capacity": 1, "aux_coefficient": 0, "l1_coefficient": 0, "dead_window": 1, "initial_rows": 2,
            "checkpoint_every": 1, "keep": 1, "window_rows": 1, "lanes": 1, "data": 1, "latent": 1, "seed": 0,
            "data_seed": 0,
        }  # fmt: skip
        given = {name: getattr(self, name) for name in least}
        problems = [
            f"{name} {value}; give at least {least[name]}"
            for name, value in given.items()
            if value is not None and not value >= least[name]
        ]
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate {self.learning_rate}; give a positive number")
        for name, most in (("seed", 2**32 - 1), ("data_seed", 2**63 - 1), ("dead_window", 2**31 - 1 - self.batch)):
            if getattr(self, name) > most:
                problems.append(f"{name} {getattr(self, name)}; give at most {most}")
        if self.l1_coefficient == math.inf:
            problems.append("l1_coefficient inf; give a finite number")
        for name, value in (("k", self.k), ("aux_k", self.aux_k)):
            if value is not None and value > self.d_sae:
                problems.append(f"{name} {value} is larger than d_sae {self.d_sae}; lower {name} or raise d_sae")
        if self.aux_capacity > MOST_CONSIDERED:
            problems.append(f"aux_capacity {self.aux_capacity}; give at most {MOST_CONSIDERED}")
        if self.aux_k is not None and self.aux_k > self.aux_capacity:
            problems.append(f"aux_k {self.aux_k} is larger than aux_capacity {self.aux_capacity}; lower aux_k")
        for whole, parts in (("batch", "lanes"), ("batch", "data"), ("d_sae", "latent")):
            size, count = getattr(self, whole), getattr(self, parts)
            if count >= 1 and size % count:
                problems.append(f"{whole} {size} is no multiple of {parts} {count}; change one of them")
        if self.recall is not None and not 0 < self.recall < 1:
            problems.append(f"recall {self.recall}; give a share between 0 and 1, or leave it out to find all")
        if self.recall is not None and self.impl == "tpu":
            problems.append("recall is not for impl tpu, whose kernel finds all; leave one of them out")
        for name, kinds in (("precision", Precision), ("normalise", Kind)):
            if getattr(self, name) not in get_args(kinds):
                problems.append(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kinds))}")
        if 1 <= self.steps < self.warmup_steps + self.decay_steps:
            ramps = f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps}"
            problems.append(f"{ramps} exceed steps {self.steps}; lower them or raise steps")
        if problems:
            raise InputError("; ".join(problems))

    @property
    def peak_rate(self) -> float:
        """Adam's peak learning rate."""
        return self.learning_rate or 4e-4 / math.sqrt(self.d_sae / 2**14)

    @property
    def kernels(self) -> Impl:
        """Kernels on this device, as the manifest records them."""
        if self.impl != "auto":
            return self.impl
        return "gpu" if mosaic.runs_here() else "jax"

    def recipe(self, d_model: int) -> Recipe:
        """Resolve the defaults that depend on the width of the hook.

        Args:
            d_model: width of the hook.

        Returns:
            What the training step needs to know.
        """
        return Recipe(
            steps=self.steps,
            learning_rate=self.peak_rate,
            warmup_steps=self.warmup_steps,
            decay_steps=self.decay_steps,
            aux_k=self.aux_k or min(max(d_model // 2, 1), self.d_sae, self.aux_capacity),
            aux_capacity=self.aux_capacity,
            aux_coefficient=self.aux_coefficient,
            l1_coefficient=self.l1_coefficient,
            dead_window=self.dead_window,
            precision=self.precision,
            impl=self.kernels,
            recall=self.recall,
            deterministic=self.deterministic,
        )
