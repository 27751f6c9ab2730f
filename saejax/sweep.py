"""A sweep trains SAEs of several k, weights of L1, learning rates and seeds on one stream, and compares them.

OUT/NAME/     a run of `saejax train` for each of them, the same as if it had been trained alone
OUT/sweep.csv      a line for each: what was varied, FVU, L0, dead latents
OUT/sweep.html     the same as a table, L0 against FVU, and training curves
"""

import csv
import dataclasses
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from saejax import artifacts, mesh
from saejax.errors import InputError
from saejax.report.sweeps import draw
from saejax.report.table import text_table
from saejax.sae.config import SAETrainConfig
from saejax.sae.train import plan as plan_one
from saejax.sae.train import train_together

HEALTH = "health.json"
COLUMNS = ("fvu", "l0", "capped", "dead_rate")
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Train SAEs that differ in seed, k, weight of L1 or learning rate on one stream of batches."""

    train: Annotated[SAETrainConfig, tyro.conf.arg(name="")]
    """What they share; `out` is the folder of all of them."""
    seeds: tuple[int, ...] = ()
    """Seeds of initial decoders; that of `train` when not given."""
    ks: tuple[int, ...] = ()
    """Latents kept per row; that of `train` when not given."""
    l1_coefficients: tuple[float, ...] = ()
    """Weights of the L1 norm of codes; that of `train` when not given."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates; that of `train` when not given."""

    def __post_init__(self) -> None:
        """Refuse to train one SAE twice."""
        for name in ("seeds", "ks", "l1_coefficients", "learning_rates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InputError(f"{name} {', '.join(map(str, values))} names one twice; name each once")

    def members(self) -> dict[str, SAETrainConfig]:
        """Return every combination by its name, which says what was varied."""
        return dict(self._members())

    def _members(self) -> Iterator[tuple[str, SAETrainConfig]]:
        varied = {
            "k": self.ks, "l1_coefficient": self.l1_coefficients, "learning_rate": self.learning_rates,
            "seed": self.seeds,
        }  # fmt: skip
        varied = {name: values for name, values in varied.items() if values}
        for values in itertools.product(*varied.values()):
            changes: dict[str, Any] = dict(zip(varied, values, strict=True))
            name = "_".join(f"{key}{str(value).removesuffix('.0')}" for key, value in changes.items()) or "sae"
            yield name, dataclasses.replace(self.train, out=self.train.out / name, **changes)


def sweep(config: SweepConfig) -> list[str]:
    """Train the SAEs of a sweep, or go on with them, and compare them.

    Args:
        config: what they share and in what they differ.

    Returns:
        The table, a line for each SAE, empty for one that diverged, and where the page is.

    Raises:
        InputError: as `saejax.sae.train.train`; of divergence, if all SAEs diverged.
        Preempted: SIGTERM came; all that was done is saved.
    """
    members = config.members()
    runs = train_together(list(members.values()))
    rows = [_row(name, member, run) for (name, member), run in zip(members.items(), runs, strict=True)]
    if not mesh.is_first():
        return text_table(rows)
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    artifacts.write_bytes(config.train.out / "sweep.csv", content.getvalue().encode())
    page = draw([run for run in runs if (run / HEALTH).exists()], config.train.out / "sweep.html")
    return [*text_table(rows), str(page)]


def plan(config: SweepConfig) -> dict[str, Any]:
    """Say what a sweep would cost, from a few timed steps of its largest k; nothing is written.

    Args:
        config: the sweep.

    Returns:
        As the plan of one SAE, with minutes and bytes for all.

    Raises:
        InputError: as `sweep`.
    """
    members = config.members().values()
    of_one, count = plan_one(max(members, key=lambda member: member.k)), len(members)
    more = (count - 1) * of_one["bytes of parameters and optimiser"] / 2**30
    return {
        "SAEs": count,
        **of_one,
        "bytes on disk": count * of_one["bytes on disk"],
        "minutes": round(count * of_one["minutes"], 1),
        "GiB of memory": round(of_one["GiB of memory"] + more, 2),
    }


def _row(name: str, member: SAETrainConfig, run: Path) -> dict[str, Any]:
    """Return a line of the table, from what a run has written; one that diverged has nothing to show."""
    lines = artifacts.read_json(run / HEALTH) if (run / HEALTH).exists() else []
    health = dict.fromkeys(COLUMNS) | {line["metric"]: line["value"] for line in lines}
    return {
        "name": name, "k": member.k, "l1_coefficient": member.l1_coefficient, "learning_rate": member.peak_rate,
        "seed": member.seed,
        **{column: health[column] for column in COLUMNS},
    }  # fmt: skip
