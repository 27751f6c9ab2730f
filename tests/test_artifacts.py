import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saejax import artifacts
from saejax.errors import InputError
from saejax.storage import Folder


@dataclasses.dataclass(frozen=True)
class Inner:
    steps: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    rate: float = 0.1
    hooks: tuple[str, ...] = ("a", "b")
    inner: Inner = Inner()
    store: Path = Path("s")


def test_a_run_goes_from_new_over_resumed_to_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    run = artifacts.begin(out, "sae", Config(out))
    assert (run.resumed, run.complete) == (False, False)
    run.note(rows=7)
    run = artifacts.begin(out, "sae", Config(out))
    assert (run.resumed, run.complete) == (True, False)
    with pytest.raises(InputError, match="unfinished run"):
        artifacts.read_finished(out, "sae")
    run.finish(loss=0.5)
    with caplog.at_level("INFO"):
        caplog.clear()  # what another test may have made to be heard above
        assert artifacts.begin(out, "sae", Config(out)).complete
    assert caplog.messages == [f"{out} is complete; nothing is left to do"]
    assert artifacts.read_finished(out, "sae")["facts"] == {"rows": 7, "loss": 0.5}


def test_a_run_that_another_process_begins_at_the_same_moment_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there at the first look, and is at the second."""
    out = tmp_path / "run"
    artifacts.begin(out, "sae", Config(out)).note(rows=7)
    original, looks = Folder.read, []

    def late(self: Folder, name: str) -> bytes | None:
        looks.append(name)
        return None if len(looks) == 1 else original(self, name)

    monkeypatch.setattr(Folder, "read", late)
    run = artifacts.begin(out, "sae", Config(out))
    assert run.resumed
    assert run.manifest["facts"] == {"rows": 7}


@dataclasses.dataclass(frozen=True)
class Shared(Config):
    process: int = dataclasses.field(default=0, metadata=artifacts.EXECUTION)


def test_how_a_run_is_computed_may_change_and_is_written_when_it_does(tmp_path: Path) -> None:
    out = tmp_path / "run"
    artifacts.begin(out, "sae", Shared(out))
    file = out / "manifest.json"
    before = file.stat().st_ino, file.stat().st_mtime_ns
    assert artifacts.begin(out, "sae", Shared(out)).resumed
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before
    run = artifacts.begin(out, "sae", Shared(out, process=2))
    assert run.manifest["execution"] == {"process": 2}
    run.finish()
    artifacts.begin(out, "sae", Shared(out, process=1))
    assert run.manifest["execution"] == {"process": 2}


@pytest.mark.parametrize("late", ["begin", "note"])
def test_what_another_process_finishes_meanwhile_stays_finished(
    late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the manifest and the write of it."""
    out, original = tmp_path / "run", Folder.update
    run = artifacts.begin(out, "sae", Shared(out))

    def overtaken(self: Folder, name: str, change: Callable[[bytes | None], bytes | None]) -> bool:
        monkeypatch.setattr(Folder, "update", original)

        def changed(content: bytes | None) -> bytes | None:
            if b"running" in (content or b""):
                run.finish(loss=0.5)
            return change(content)

        return original(self, name, changed)

    monkeypatch.setattr(Folder, "update", overtaken)
    if late == "begin":
        assert artifacts.begin(out, "sae", Shared(out, process=1)).complete
    else:
        run.note(rows=7)
    facts = artifacts.read_finished(out, "sae")["facts"]
    assert facts == {"loss": 0.5} | ({} if late == "begin" else {"rows": 7})


def test_where_a_run_lies_is_not_what_it_is(tmp_path: Path) -> None:
    artifacts.begin(tmp_path / "a", "sae", Config(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert artifacts.begin(tmp_path / "b", "sae", Config(tmp_path / "b")).resumed


def test_another_config_is_refused_with_every_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    artifacts.begin(out, "sae", Config(out), {"store": "abc"})
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(InputError) as error:
        artifacts.begin(out, "sae", Config(out, rate=0.2, inner=Inner(4)), {"store": "xyz"})
    message = str(error.value)
    for part in ("rate 0.1 there, 0.2 now", "inner.steps 3 there, 4 now", "store abc there, xyz now"):
        assert part in message
    assert "\n" not in message
    assert (out / "manifest.json").read_bytes() == before


def test_another_kind_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    artifacts.begin(out, "sae", Config(out)).finish()
    with pytest.raises(InputError, match="kind sae there, features now"):
        artifacts.begin(out, "features", Config(out))
    with pytest.raises(InputError, match="'sae' where 'features' is needed"):
        artifacts.read_finished(out, "features")


def test_a_directory_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        artifacts.begin(tmp_path, "sae", Config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_as_out_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("")
    with pytest.raises(InputError, match="is a file"):
        artifacts.begin(file, "sae", Config(file))


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("[]", "not a saejax manifest"), (None, "holds no manifest")]
)
def test_a_directory_that_is_no_run_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        artifacts.read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_fingerprint_ignores_times_but_not_facts(tmp_path: Path) -> None:
    prints = []
    for name, loss in (("a", 1), ("b", 1), ("c", 2)):
        artifacts.begin(tmp_path / name, "sae", Config(tmp_path / name)).finish(loss=loss)
        manifest = artifacts.read_manifest(tmp_path / name)
        artifacts.write_json(tmp_path / name / "manifest.json", {**manifest, "created": f"then {name}"})
        prints.append(artifacts.run_fingerprint(tmp_path / name))
    assert prints[0] == prints[1] != prints[2]


def test_a_rewound_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    run = artifacts.begin(tmp_path / "r", "sae", Config(tmp_path / "r"))
    for step in (10, 20, 30):
        run.log(step=step)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    run.rewind_log(20)
    run.log(step=21)
    assert [line["step"] for line in artifacts.read_metrics(run.path)] == [10, 20, 21]


def test_npz_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a/b": np.arange(3), "c": np.eye(2)}
    artifacts.write_npz(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz") as loaded:
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
