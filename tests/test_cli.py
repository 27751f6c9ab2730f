import dataclasses
import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saejax import cli
from saejax.errors import InputError


def test_help_names_every_verb_without_importing_jax() -> None:
    code = "import sys; from saejax import cli; print('\\n'.join(cli.run(['--help']))); assert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for verb in cli.VERBS:
        assert f"  {verb}" in shown


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_is_there_with_a_described_config(name: str) -> None:
    verb = cli.VERBS[name]
    module = importlib.import_module(verb.module)
    config = getattr(module, verb.config)
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for function in filter(None, (verb.function, verb.plan)):
        assert callable(getattr(module, function))


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_of_a_verb_describes_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    options = [line for line in shown.splitlines() if line.lstrip("│ ").startswith("--")]
    assert options
    assert "--out" in shown
    assert cli.Plannable.__doc__ is not None
    assert cli.Plannable.__doc__ not in shown


def test_an_unknown_verb_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["steer"])
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith("saejax: verb 'steer' is unknown; choose one of demo, ")
    assert shown.err.count("\n") == 1


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["null", "--x", str(tmp_path / "x.npy"), "--y", str(tmp_path / "y.npy"), "--scheme", "uniform",
                  "--out", str(tmp_path / "r.json")])  # fmt: skip
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.err.count("\n") == 1
    assert "x.npy" in shown.err
    assert not list(tmp_path.iterdir())


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(words: list[str]) -> list[str]:
        raise ValueError("ours")

    monkeypatch.setattr(cli, "run", defective)
    with pytest.raises(ValueError, match="ours"):
        cli.main(["demo"])


def test_a_full_disk_is_one_line_and_other_errors_of_files_are_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(number: int) -> None:
        def run(_: list[str]) -> list[str]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(cli, "run", run)

    failing(errno.ENOSPC)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == "saejax: a file cannot be written: No space left on device; free space, and run it again\n"
    failing(errno.EBADF)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["train"])


def test_an_input_error_of_several_lines_is_printed_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(words: list[str]) -> list[str]:
        raise InputError("a\nb")

    monkeypatch.setattr(cli, "run", refusing)
    with pytest.raises(SystemExit):
        cli.main([])
    assert capsys.readouterr().err == "saejax: a b\n"


@pytest.mark.parametrize(
    "words",
    [["fetch", "gpt"], ["demo", "--tokens", "5"], ["encode", "--store", "a", "--sae", "b", "--block", "0"],
     ["train", "--store", "a", "--hook", "resid_post.0", "--k", "0"], ["lm", "train", "--batch", "0"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_value_that_no_config_can_have_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.startswith("saejax: ")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
