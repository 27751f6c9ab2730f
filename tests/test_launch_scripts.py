"""The launch scripts, run by their shells, with stand-ins for what Slurm, Kubernetes and Google Cloud have."""

import dataclasses
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from saejax import artifacts
from saejax.cli import parse
from saejax.sae.config import SAETrainConfig

SCRIPTS = Path(__file__).parents[1] / "scripts"
SLURM, TPU_POD = SCRIPTS / "launch_slurm.sh", SCRIPTS / "launch_tpu_pod.sh"
JOB = list(yaml.safe_load_all((SCRIPTS / "launch_kubernetes.yaml").read_text()))[-1]["spec"]
CONTAINER = JOB["template"]["spec"]["containers"][0]

# Stand-ins note what they were told in files of $SEEN.
SRUN = '"$@"\nexit $?'
SCONTROL = 'echo "$@" > "$SEEN/scontrol"'
SAEJAX = """
printf '%s\\n' "$@" > "$SEEN/saejax"
test -z "$SIGNAL" || kill -s "$SIGNAL" $$
exit "${STATUS:-0}"
"""
UNTIL_TOLD = f"""#!{sys.executable}
import os, signal, sys
from pathlib import Path

seen = Path(os.environ["SEEN"])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
(seen / "pid").write_text(f"{{os.getpid()}}\\n")
(seen / "begun").write_text("now")
signal.sigwait([signal.SIGTERM])
(seen / "saved").touch()
sys.exit(int(os.environ.get("STATUS", 0)))
"""
GCLOUD = """
printf '%s\\n' "$@" >> "$SEEN/gcloud"
for command; do :; done
exec bash -c "$command"
"""
PKILL = """
read -r pid < "$SEEN/pid"
test "$*" = "-TERM -x $(cat "/proc/$pid/comm")" && kill "$pid"
"""


@dataclasses.dataclass(frozen=True)
class Nothing:
    """The config of a run that a stand-in for `saejax` might be on."""


class Machine:
    """Where a script runs: programs found first, and what they have seen."""

    def __init__(self, folder: Path, **programs: str) -> None:
        self.seen = folder / "seen"
        self.seen.mkdir()
        found = folder / "bin"
        found.mkdir()
        for name, text in programs.items():
            (found / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
            (found / name).chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{found}:{os.environ['PATH']}", "SEEN": str(self.seen)}

    def words(self, program: str) -> list[str]:
        """Return the words that a program was called with."""
        return (self.seen / program).read_text().splitlines()

    def run(self, *command: str | Path, **variables: str) -> int:
        """Run a command to its end and return its status."""
        return subprocess.run(command, env={**self.environment, **variables}, timeout=60).returncode

    def told_to_end(self, *command: str | Path, by: int = signal.SIGTERM, **variables: str) -> int:
        """Run a command, send its process alone a signal once the run has begun, and return its status."""
        os.mkfifo(self.seen / "begun")
        begun = os.open(self.seen / "begun", os.O_RDONLY | os.O_NONBLOCK)
        # A shell cannot trap what is ignored here, as it is in what a shell runs in the background.
        before = signal.signal(by, signal.default_int_handler)
        process = subprocess.Popen(command, env={**self.environment, **variables}, start_new_session=True)
        signal.signal(by, before)
        try:
            assert select.select([begun], [], [], 60)[0], "no run has begun"
            process.send_signal(by)
            return process.wait(timeout=60)
        finally:
            os.close(begun)
            kill_session(process.pid)


def kill_session(leader: int) -> None:
    """Kill what a script that is not as it should be has left."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def begun(out: Path, complete: bool) -> None:
    """Leave a run behind as saejax does."""
    run = artifacts.begin(out, "sae", Nothing())
    if complete:
        run.finish()


def options(words: list[str]) -> SAETrainConfig:
    """Return what the words after `saejax train` mean."""
    return parse(SAETrainConfig, words, "saejax train", plannable=True)[0]


def directive(name: str) -> int:
    """Return the number that the Slurm script asks for."""
    return int(re.findall(rf"^#SBATCH --{name}=(\d+)$", SLURM.read_text(), re.MULTILINE)[0])


@pytest.fixture
def cluster(tmp_path: Path) -> Machine:
    """Return a node of a Slurm job."""
    return Machine(tmp_path, srun=SRUN, scontrol=SCONTROL, saejax=SAEJAX)


def requeued(cluster: Machine) -> bool:
    return (cluster.seen / "scontrol").exists() and cluster.words("scontrol") == ["requeue 7"]


def test_slurm_example_uses_the_devices_of_its_processes() -> None:
    lines = re.findall(r"^#     (.*?)\\?$", SLURM.read_text(), re.MULTILINE)
    words = shlex.split(" ".join(lines))
    nodes = int(words[1].removeprefix("--nodes="))
    config = options(words[3:])
    assert directive("ntasks-per-node") == 1
    assert config.data * config.latent == nodes * directive("gpus-per-node")
    assert config.lanes % nodes == 0


@pytest.mark.parametrize("out", [["--out", "{}"], ["--out={}"], ["--out", "elsewhere", "--out={}"]])
@pytest.mark.parametrize(("complete", "again"), [(False, True), (True, False)])
def test_slurm_puts_a_run_that_ended_well_into_the_queue_until_it_is_complete(
    cluster: Machine, tmp_path: Path, out: list[str], complete: bool, again: bool
) -> None:
    begun(tmp_path / "of two words", complete)
    words = ["--hook", "x y", *(word.format(tmp_path / "of two words") for word in out), "--data=4"]
    assert cluster.run("bash", SLURM, *words, SLURM_JOB_ID="7") == 0
    assert cluster.words("saejax") == ["train", "--multiprocess", *words]
    assert requeued(cluster) is again


def test_slurm_puts_a_run_that_died_of_sigterm_before_it_began_into_the_queue(cluster: Machine, tmp_path: Path) -> None:
    status = cluster.run("bash", SLURM, "--out", tmp_path / "sae", SLURM_JOB_ID="7", SIGNAL="TERM")
    assert status == 128 + signal.SIGTERM
    assert requeued(cluster)


@pytest.mark.parametrize("ended", [{"STATUS": "2"}, {"SIGNAL": "KILL"}])
def test_slurm_leaves_a_run_that_failed_out_of_the_queue(
    cluster: Machine, tmp_path: Path, ended: dict[str, str]
) -> None:
    begun(tmp_path / "sae", complete=False)
    status = cluster.run("bash", SLURM, "--out", tmp_path / "sae", SLURM_JOB_ID="7", **ended)
    assert status == (2 if "STATUS" in ended else 128 + signal.SIGKILL)
    assert not requeued(cluster)


def test_slurm_plans_once(cluster: Machine, tmp_path: Path) -> None:
    begun(tmp_path / "sae", complete=False)
    assert cluster.run("bash", SLURM, "--out", tmp_path / "sae", "--dry-run", SLURM_JOB_ID="7") == 0
    assert not requeued(cluster)


def pod(folder: Path, saejax: str) -> tuple[Machine, list[str]]:
    """Return a pod of the Kubernetes job with a stand-in for `saejax`, and its command with its shared disk here."""
    command = [*CONTAINER["command"], *CONTAINER["args"]]
    return Machine(folder, saejax=saejax), [word.replace("/shared", str(folder)) for word in command]


def test_kubernetes_example_uses_the_devices_of_its_processes(tmp_path: Path) -> None:
    machine, command = pod(tmp_path, SAEJAX)
    machine.run(*command)
    verb, *words = machine.words("saejax")
    config = options(words)
    pods = JOB["completions"]
    assert verb == "train"
    assert config.multiprocess
    assert config.out == tmp_path / "sae"
    assert JOB["parallelism"] == pods
    assert config.data * config.latent == pods * CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert config.lanes % pods == 0


@pytest.mark.parametrize(("complete", "status"), [(True, 0), (False, 1)])
def test_kubernetes_pod_told_to_end_lets_the_run_save_and_ends_well_if_it_is_complete(
    tmp_path: Path, complete: bool, status: int
) -> None:
    machine, command = pod(tmp_path, UNTIL_TOLD)
    begun(tmp_path / "sae", complete)
    assert machine.told_to_end(*command) == status
    assert (machine.seen / "saved").exists()


@pytest.mark.parametrize(("complete", "ended", "status"), [(True, "0", 0), (False, "0", 1), (True, "2", 2)])
def test_kubernetes_pod_ends_well_only_when_the_run_does_and_is_complete(
    tmp_path: Path, complete: bool, ended: str, status: int
) -> None:
    machine, command = pod(tmp_path, SAEJAX)
    begun(tmp_path / "sae", complete)
    assert machine.run(*command, STATUS=ended) == status


def test_kubernetes_pod_told_to_end_fails_with_the_status_of_its_run(tmp_path: Path) -> None:
    machine, command = pod(tmp_path, UNTIL_TOLD)
    begun(tmp_path / "sae", complete=True)
    assert machine.told_to_end(*command, STATUS="3") == 3


AT = {"TPU": "v5e", "ZONE": "us-east5-a"}
TO_ALL = ["compute", "tpus", "tpu-vm", "ssh", "v5e", "--zone", "us-east5-a", "--worker=all", "--command"]


@pytest.mark.parametrize("words", [[], ["--out=a b", "--hook", "it's $HOME; `x`", "--store", "*"]])
def test_tpu_pod_gets_the_words_as_they_are(tmp_path: Path, words: list[str]) -> None:
    machine = Machine(tmp_path, gcloud=GCLOUD, saejax=SAEJAX)
    assert machine.run("bash", TPU_POD, *words, STATUS="2", **AT) == 2
    assert machine.words("gcloud")[:-1] == TO_ALL
    assert machine.words("saejax") == ["train", "--multiprocess", *words]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_tpu_pod_hands_a_signal_on_to_the_runs_of_all_hosts_and_waits_for_them(tmp_path: Path, by: int) -> None:
    machine = Machine(tmp_path, gcloud=GCLOUD, pkill=PKILL, saejax=UNTIL_TOLD)
    assert machine.told_to_end("bash", TPU_POD, by=by, STATUS="3", **AT) == 3
    assert (machine.seen / "saved").exists()
