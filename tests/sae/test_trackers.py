import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saejax.errors import InputError
from saejax.sae.trackers import require, tracked

LINES = [{"step": 50, "fvu": 0.5, "l0": 16.0}, {"step": 100, "fvu": 0.25, "l0": 15.0}]


def send(out: Path, trackers: tuple, logged: list, after: int = 0) -> None:
    with tracked(lambda **line: logged.append(line), trackers, out, {"k": 16}, after=after) as log:
        for line in LINES:
            log(**line)


def events(file: Path) -> Iterator[Any]:
    """Read TensorBoard's file: of each event its length with a checksum, and the event with another."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_without_trackers_lines_go_to_the_log_alone(tmp_path: Path) -> None:
    logged = []
    send(tmp_path, (), logged)
    assert logged == LINES
    assert not list(tmp_path.iterdir())


def test_tensorboard_has_each_number_at_its_step(tmp_path: Path) -> None:
    logged = []
    send(tmp_path, ("tensorboard",), logged)
    assert logged == LINES
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = {(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value}
    assert found == {(line["step"], name, line[name]) for line in LINES for name in ("fvu", "l0")}


def test_tensorboard_forgets_what_came_after_the_step_from_which_a_run_goes_on(tmp_path: Path) -> None:
    """A start of a session at a step is what its reader forgets by."""
    send(tmp_path, ("tensorboard",), [], after=70)
    (file,) = (tmp_path / "tensorboard").iterdir()
    starts = [event.step for event in events(file) if event.session_log.status == event.session_log.START]
    assert starts == [71]


@pytest.mark.slow
def test_wandb_has_each_number_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    send(tmp_path, ("wandb",), logged)
    assert logged == LINES
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # A log of records: 7 bytes of its own, then of each a checksum, its length and its kind, and the record.
    content, found = file.read_bytes()[7:], {}
    while content:
        (length,) = struct.unpack("<H", content[4:6])
        record = Record.FromString(content[7 : 7 + length])
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if items:
            found[record.history.step.num] = {name: float(items[name]) for name in ("fvu", "l0")}
        content = content[7 + length :]
    assert found == {line["step"]: {name: line[name] for name in ("fvu", "l0")} for line in LINES}


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    require(("tensorboard",))
    with pytest.raises(InputError, match=r"tracker wandb is not installed; pip install 'saejax\[wandb\]', or leave"):
        require(("tensorboard", "wandb"))
