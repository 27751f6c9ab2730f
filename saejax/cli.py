"""`saejax VERB`: one frozen config dataclass and one library call per verb.

Verbs are named by strings and imported when asked for, so that `saejax --help` does not wait for JAX.
"""

import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from saejax.errors import InputError, Preempted

Config = TypeVar("Config")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        module: where its config, its function and its plan live.
        config: name of the config dataclass.
        function: name of the function that takes it.
        summary: what the verb does, for the overview.
        plan: name of the function that says what a run would cost, for verbs that can be long.
    """

    module: str
    config: str
    function: str
    summary: str
    plan: str | None = None


VERBS = {
    "demo": Verb("saejax.demo", "DemoConfig", "demo", "run the whole way on what ships with the project"),
    "fetch": Verb("saejax.models.fetch", "FetchConfig", "fetch", "get a real model as a local folder"),
    "lm train": Verb("saejax.pretraining", "PretrainConfig", "pretrain", "train small language models", "plan"),
    "extract": Verb("saejax.activations.extract", "ExtractConfig", "extract", "store a model's activations", "plan"),
    "import": Verb("saejax.activations.imports", "ImportConfig", "import_activations", "store others' activations"),
    "stats": Verb("saejax.stats", "StatsConfig", "stats", "measure a store: norms, spectrum, outlier dimensions"),
    "live": Verb("saejax.activations.live", "LiveConfig", "record", "name activations to compute while an SAE trains"),
    "train": Verb("saejax.sae.train", "SAETrainConfig", "train", "train a sparse autoencoder on a store", "plan"),
    "sae import": Verb("saejax.sae.formats", "ImportSAEConfig", "import_sae", "take an SAE that others have trained"),
    "sweep": Verb("saejax.sweep", "SweepConfig", "sweep", "train SAEs side by side, and compare them", "plan"),
    "eval": Verb("saejax.interventions.evaluation", "EvalConfig", "evaluate", "splice an SAE into its model", "plan"),
    "encode": Verb("saejax.features.encode", "EncodeConfig", "encode", "turn a store into sparse codes", "plan"),
    "pair": Verb("saejax.features.pairing", "PairConfig", "pair", "pair features by their correlation", "plan"),
    "null": Verb("saejax.nulls.verb", "NullConfig", "null", "hold measures of two matrices against a null", "plan"),
    "compare": Verb(
        "saejax.universality", "CompareConfig", "compare", "compare two SAE spaces and raw neurons", "plan"
    ),
    "report": Verb("saejax.report.page", "ReportConfig", "report", "draw a comparison as one HTML file"),
}


@dataclasses.dataclass(frozen=True)
class Plannable(Generic[Config]):
    """A verb whose cost can be asked for first."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what the run would cost (rows, bytes, minutes, memory, smallest p) and write nothing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line; bad input ends in one line on stderr and exit code 2.

    Args:
        arguments: words after `saejax`; those of the process when absent.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="saejax: %(message)s", stream=sys.stderr)
    logging.getLogger("saejax").setLevel(logging.INFO)
    with ending():
        for line in run(words):
            sys.stdout.write(f"{line}\n")


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process as a command ends, where what it does in the block is broken off."""
    try:
        yield
    except InputError as error:
        _exit(str(error), 2)
    except Preempted as ended:
        sys.stderr.write(_line(str(ended)))
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from the last checkpoint, if there is one", 130)
    except Exception as error:  # a defect of ours, but for a full disk; it keeps its traceback
        if isinstance(error, OSError) and error.errno in FULL:
            _exit(f"{error.filename or 'a file'} cannot be written: {error.strerror}; free space, and run it again", 2)
        _leave_if_of_several()
        raise


def _exit(told: str, code: int) -> None:
    sys.stderr.write(_line(told))
    _leave_if_of_several(code)
    sys.exit(code)


def _leave_if_of_several(code: int = 1) -> None:
    """End this process if it is of several; it would wait at its exit for the others, which wait for it in the midst of
    a step, and now the service that they share ends them. With code 1 the traceback of a defect comes first.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    if code == 1:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _line(told: str) -> str:
    return f"saejax: {' '.join(told.split())}\n"


def run(words: list[str]) -> list[str]:
    """Parse a command line, call its verb and return the lines to print.

    Raises:
        InputError: there is no such verb, or what the verb was given is wrong.
    """
    if not words or words[0] in ("-h", "--help"):
        return overview()
    if words == ["--version"]:
        return [f"saejax {importlib.import_module('importlib.metadata').version('saejax')}"]
    name = " ".join(words[: 2 if words[0] in ("lm", "sae") else 1])
    if name not in VERBS:
        raise InputError(f"verb {name!r} is unknown; choose one of {', '.join(VERBS)}")
    verb, rest = VERBS[name], words[len(name.split()) :]
    module = importlib.import_module(verb.module)
    config, dry_run = parse(getattr(module, verb.config), rest, f"saejax {name}", plannable=verb.plan is not None)
    function: Callable[[Any], Any] = getattr(module, verb.plan if dry_run and verb.plan else verb.function)
    return lines_of(function(config))


def parse(config: type[Config], words: list[str], program: str, plannable: bool = False) -> tuple[Config, bool]:
    """Turn words into a config; every field of the dataclass is an option.

    Args:
        config: the dataclass.
        words: options and their values.
        program: what the help calls the command.
        plannable: whether `--dry-run` is an option too.

    Returns:
        The config, and whether only its plan is wanted.
    """
    wanted: Any = Plannable[config] if plannable else config
    parsed = tyro.cli(wanted, args=words, prog=program, description=config.__doc__)
    return (parsed.config, parsed.dry_run) if plannable else (parsed, False)


def overview() -> list[str]:
    """Return the lines of `saejax --help`."""
    return [
        "usage: saejax VERB [options]",
        "",
        "Do two language models share a feature space?",
        "",
        *(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()),
        "",
        "saejax VERB --help says what every option means and its unit.",
    ]


def lines_of(result: Any) -> list[str]:
    """Return what a verb's result looks like on a terminal: a line per path or plan entry, text as it is."""
    if isinstance(result, dict):
        width = max(map(len, result))
        return [f"{key:<{width}}  {value}" for key, value in result.items()]
    if isinstance(result, (str, Path)):
        return [str(result)]
    return [line for item in result for line in lines_of(item)]


if __name__ == "__main__":
    main()
