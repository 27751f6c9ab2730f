"""`saejax eval`: an SAE judged where it lies, by the losses of its language model and by its health on the same text.

The numbers are printed. `out` keeps them as a run directory of kind "evaluation": a manifest that says of which SAE,
model and text they are, and `evaluation.json`, the rows of both tables.
"""

import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from saejax import artifacts
from saejax.activations import extractor
from saejax.activations.token_rows import TokenRows, token_rows
from saejax.errors import InputError
from saejax.interventions.splicing import mismatches, splice, table_rows
from saejax.models import LanguageModel, load
from saejax.sae import SAE
from saejax.sae import load as load_sae
from saejax.sae.health import health_table
from saejax.text.corpus import CorpusConfig, corpus_record
from saejax.text.packing import PackedBatch, Packing
from saejax.text.tokens import Tokenizer

KIND = "evaluation"
RESULT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Which SAE to splice into which model, on which text."""

    sae: Path
    """SAE run."""
    model: Path
    """Model folder that its activations came from: config.json, weights and tokenizer.json."""
    out: Path | None = None
    """Directory for the numbers; they are only printed when not given."""
    corpus: CorpusConfig = CorpusConfig(split="heldout")
    """Text to evaluate on; name other text than the SAE was trained on to see how it generalises."""
    tokens: int = 32_768
    """Tokens of that text, special tokens counted."""
    context: int = 256
    """Length of a packed row, in tokens: how far back a token sees at most."""
    batch: int = 8
    """Packed rows that the model runs on at once; memory grows with batch * context * (vocabulary + d_sae)."""

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing to predict, all of them at once."""
        least = {"tokens": 2, "context": 2, "batch": 1}
        small = [f"{name} {getattr(self, name)}; give at least {low}" for name, low in least.items()
                 if getattr(self, name) < low]  # fmt: skip
        if small:
            raise InputError("; ".join(small))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A config with what it names, opened and checked.

    Attributes:
        config: what to evaluate.
        sae: the SAE.
        hook: the hook point that it reads.
        model: the model.
        tokenizer: its tokenizer.
    """

    config: EvalConfig
    sae: SAE
    hook: str
    model: LanguageModel
    tokenizer: Tokenizer

    @classmethod
    def open(cls, config: EvalConfig) -> "Evaluation":
        """Load SAE, model and tokenizer.

        Raises:
            InputError: one of them cannot be loaded, or they do not fit together; all misfits in one line.
        """
        facts = artifacts.read_finished(config.sae, "sae")["facts"]
        hook, sae = facts["hook"], load_sae(config.sae)
        model, tokenizer = load(config.model), Tokenizer.load(config.model)
        problems = mismatches(model, hook, sae)
        if facts["model_fingerprint"] != model.fingerprint:
            problems.append(
                f"SAE {config.sae} reads model {facts['model']} ({facts['model_fingerprint'][:12]}), but "
                f"{config.model} holds {model.name} ({model.fingerprint[:12]}); name the SAE's model"
            )
        problems += extractor.mismatches(config.model, model, tokenizer, config.context)
        if problems:
            raise InputError("; ".join(problems))
        return cls(config, sae, hook, model, tokenizer)

    def inputs(self) -> dict[str, Any]:
        """Return what identifies the run beside its config."""
        return {
            "sae": artifacts.run_fingerprint(self.config.sae),
            "model_fingerprint": self.model.fingerprint,
            "tokenizer_sha256": self.tokenizer.sha256,
            "corpus": corpus_record(self.config.corpus),
        }

    def batches(self) -> list[PackedBatch]:
        """Return the text, packed as extraction packs it: 33 bytes a token."""
        config = self.config
        packing = Packing.of(self.tokenizer, config.context, config.batch)
        return [_cut(each) for each in token_rows(config.corpus, self.tokenizer, packing, config.tokens)]

    def result(self, batches: list[PackedBatch]) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of both tables, as `evaluation.json` keeps them."""
        found = splice(self.model, self.hook, self.sae, batches)
        return {"splicing": table_rows(found), "health": health_table(self.sae, found.measured)}


def evaluate(config: EvalConfig) -> list[str]:
    """Splice an SAE into its model and measure both.

    Args:
        config: SAE, model and text.

    Returns:
        The lines of a table, and where the numbers lie.

    Raises:
        InputError: SAE, model and text do not fit together (known before any of it is run), or `out` holds another
            run.
    """
    evaluation = Evaluation.open(config)
    if config.out is None:
        return table(evaluation.result(evaluation.batches()))
    run = artifacts.begin(config.out, KIND, config, evaluation.inputs())
    if not run.complete:
        artifacts.write_json(run.path / RESULT, evaluation.result(evaluation.batches()))
        run.finish(hook=evaluation.hook, model=evaluation.model.name, revision=evaluation.model.revision)
    return [*table(artifacts.read_json(run.path / RESULT)), str(run.path)]


def plan(config: EvalConfig) -> dict[str, str]:
    """Return what an evaluation would cost, from one timed batch; nothing is written.

    Args:
        config: the evaluation that is planned.

    Returns:
        Rows, minutes and memory, in words.

    Raises:
        InputError: as `evaluate`.
    """
    evaluation = Evaluation.open(config)
    batches = evaluation.batches()
    evaluation.result(batches[:1])
    started = time.perf_counter()
    evaluation.result(batches[:1])
    seconds = (time.perf_counter() - started) * len(batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "rows": f"{sum(int((batch.segment > 0).sum()) for batch in batches):,}",
        "minutes": f"{seconds / 60:.1f}",
        "memory": f"{peak / 2**30:.2f} GiB",
    }


def table(result: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the lines of both tables: each number, its healthy range where there is one, and what it is."""
    cells = [("metric", "value", "healthy", "")]
    for row in (*result["splicing"], *result["health"]):
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        advice = f" ({row['verdict']}: {row['advice']})" if row["advice"] else ""
        cells.append((row["metric"], value, _range(row), row["unit"] + advice))
    name, number, healthy, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = (f"{a:<{name}}  {b:>{number}}  {c:<{healthy}}  {d}" for a, b, c, d in cells)
    return [line.rstrip() for line in lines]


def _range(row: dict[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if row["verdict"] is None:
        return ""
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def _cut(rows: TokenRows) -> PackedBatch:
    """Return the batch with tokens beyond the number asked for as padding."""
    kept = np.zeros(rows.batch.segment.size, bool)
    kept[rows.stored] = True
    segment = np.where(kept.reshape(rows.batch.segment.shape), rows.batch.segment, 0)
    return dataclasses.replace(rows.batch, segment=segment)
